"""Adapter files on their way in, and at rest.

In: `sources` and `uploads` bring them into a private folder, `signatures` and `door` check them
there, in child processes (`inbound`). At rest: `blobs` keeps them under the hash of their content,
in a folder or, with `remote_blobs`, in object storage; `node_cache` is what a node's replicas share
of them.

Knows nothing of Redis: who needs a blob is for `adapter_store.blob_refs` to say. Its methods block;
callers use threads. Imports `cluster` and itself; never `router`, `deployments`, Ray or vLLM.
"""
