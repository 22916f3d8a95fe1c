"""The commands that order batches, and look after them."""
