"""Encoders that the catalogue has taught."""
