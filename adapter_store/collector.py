"""Removes what nothing refers to any more: blobs without a version, uploads left behind."""

import asyncio
import contextlib
import time

from adapter_store.files.blobs import BlobStore
from adapter_store.files.uploads import Uploads
from adapter_store.store import Store
from cluster.errors import Conflict, NotFound
from cluster.values import Value

# A removal takes moves of two files; nobody may store the same content again before it is through.
_CONDEMNED_S = 120.0


class Collected(Value):
    """What was, or in a dry run would be, removed."""

    blobs: tuple[str, ...]
    blob_bytes: int
    uploads: tuple[str, ...]


async def collect(
    store: Store,
    blobs: BlobStore,
    uploads: Uploads,
    *,
    dry_run: bool,
    may_be_empty: bool = False,
) -> Collected:
    """Remove every blob that no version uses, and every upload older than a day.

    Safe beside registrations: they reserve a blob before they write it, and a blob that is being
    removed cannot be reserved.

    Raises:
        Conflict: the store has no adapters at all, and `may_be_empty` does not say that this is
            right: it may be the wrong store, and all files would go.
    """
    digests, total = [], 0
    found = await asyncio.to_thread(lambda: list(blobs.digests()))
    if found and not dry_run and not may_be_empty and await store.registry.is_empty():
        raise Conflict(
            f"this store has no adapters, so all {len(found)} blobs would go; is it the right one "
            "(store.url, store.namespace)? `--even-all` removes them"
        )
    for digest, size_bytes in found:
        if dry_run:
            is_garbage = await store.blob_refs.condemn(digest, for_s=0)
        else:
            is_garbage = await remove_unneeded(store, blobs, digest)
        if is_garbage:
            digests.append(digest)
            total += size_bytes
    outdated = await asyncio.to_thread(lambda: list(uploads.outdated()))
    if not dry_run:
        for upload_id in outdated:
            with contextlib.suppress(NotFound):  # another collector was faster
                await asyncio.to_thread(uploads.remove, upload_id)
    return Collected(blobs=tuple(digests), blob_bytes=total, uploads=tuple(outdated))


async def remove_unneeded(store: Store, blobs: BlobStore, digest: str) -> bool:
    """Remove a blob that no version uses and nobody reserves; returns whether it was so."""
    deadline = time.monotonic() + _CONDEMNED_S
    if not await store.blob_refs.condemn(digest, for_s=_CONDEMNED_S):
        return False
    if time.monotonic() > deadline:
        return False  # the store took too long to say so: the verdict is void
    await asyncio.to_thread(blobs.remove, digest)
    await store.blob_refs.absolve(digest)
    return True
