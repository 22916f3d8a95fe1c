"""Conversations: whether a turn goes on with what was said before (`follow_ups`), and when it stays
with what answered before (`staying`)."""
