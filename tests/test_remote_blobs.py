"""Blobs in a bucket, on a real S3 server."""

import pytest

from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.blobs import WEIGHTS, BlobGone, digest_of
from adapter_store.files.filesystems import open_filesystem
from cluster.settings import StoreSettings


@pytest.fixture
def blobs(s3_bucket, tmp_path):
    return open_blobs(StoreSettings(data_dir=tmp_path, blobs=f"{s3_bucket}/roundhouse"))


def test_a_blob_comes_back_as_it_was(blobs, make_adapter):
    folder = make_adapter()
    digest, size_bytes = blobs.commit(folder)
    assert blobs.commit(folder) == (digest, size_bytes)
    with blobs.opened(digest) as found:
        assert digest_of(found) == digest == digest_of(folder)
    assert list(blobs.digests()) == [(digest, size_bytes)]


def test_what_is_not_there_is_gone(blobs):
    with pytest.raises(BlobGone, match="gone"), blobs.opened("0" * 64):
        pass


def test_a_damaged_blob_is_seen_and_healed(blobs, make_adapter, s3_bucket):
    digest, _ = blobs.commit(make_adapter())
    files, root = open_filesystem(f"{s3_bucket}/roundhouse/blobs/{digest[:2]}/{digest}")
    files.pipe_file(f"{root}/{WEIGHTS}", b"rubbish")
    with pytest.raises(BlobGone, match="damaged"), blobs.opened(digest):
        pass
    blobs.commit(make_adapter())
    with blobs.opened(digest) as found:
        assert digest_of(found) == digest


def test_a_removed_blob_leaves_nothing(blobs, make_adapter, s3_bucket):
    digest, _ = blobs.commit(make_adapter())
    blobs.remove(digest)
    blobs.remove(digest)
    assert list(blobs.digests()) == []
    files, root = open_filesystem(s3_bucket)
    assert files.find(root) == []
