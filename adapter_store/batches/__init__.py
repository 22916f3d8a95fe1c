"""Batches of requests: what was ordered, how far it is, and the files, by tenant.

Records are in Redis, contents beside the blobs. Nothing here runs a request.
"""
