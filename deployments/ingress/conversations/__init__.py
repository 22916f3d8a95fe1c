"""Turns of a conversation: what answered the earlier ones is known to whoever chooses the next."""
