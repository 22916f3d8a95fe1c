"""Batches: what clients order, and the work on it, which fills idle places.

The work goes through the gateway as any request does. Nothing here knows how replicas are chosen.
"""
