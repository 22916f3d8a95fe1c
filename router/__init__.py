"""The choices of a request: which adapter fits the prompt."""
