"""The blob store that the settings name."""

from pathlib import Path

from adapter_store.files.blobs import BlobStore, LocalBlobs
from cluster.settings import StoreSettings


def open_blobs(settings: StoreSettings) -> BlobStore:
    """A folder that every node sees, or object storage."""
    where = f"{settings.blob_root}/blobs"
    if "://" not in where:
        return LocalBlobs(Path(where))
    # Only who needs them waits for the libraries of object storage.
    from adapter_store.files.remote_blobs import RemoteBlobs

    return RemoteBlobs(where)
