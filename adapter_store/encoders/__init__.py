"""Encoders that catalogues have taught: `kept` is which there are and which one is held."""
