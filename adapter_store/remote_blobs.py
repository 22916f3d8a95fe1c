"""Adapter files in object storage, or anywhere that fsspec can write."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from adapter_store.blobs import FILES, WEIGHTS, BlobGone, digest_of, size_of
from adapter_store.filesystems import open_filesystem


class RemoteBlobs:
    """Implements :class:`adapter_store.blobs.BlobStore` on an fsspec URL.

    An object appears whole or not at all, and the weights are written last: a blob is there when
    they are.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def commit(self, staged: Path) -> tuple[str, int]:
        digest, size_bytes = digest_of(staged), size_of(staged)
        files, root = open_filesystem(self._url)
        if self._is_whole(digest):
            return digest, size_bytes
        files.makedirs(f"{root}/{digest[:2]}/{digest}", exist_ok=True)
        for name in FILES:
            files.put_file(str(staged / name), f"{root}/{digest[:2]}/{digest}/{name}")
        return digest, size_bytes

    @contextlib.contextmanager
    def opened(self, digest: str) -> Iterator[Path]:
        files, root = open_filesystem(self._url)
        with tempfile.TemporaryDirectory(prefix="rh-blob-") as temporary:
            folder = Path(temporary)
            try:
                for name in FILES:
                    files.get_file(f"{root}/{digest[:2]}/{digest}/{name}", str(folder / name))
            except FileNotFoundError as e:
                raise BlobGone("are gone from the blob store") from e
            if digest_of(folder) != digest:
                raise BlobGone("were damaged in the blob store")
            yield folder

    def digests(self) -> Iterator[tuple[str, int]]:
        files, root = open_filesystem(self._url)
        sizes: dict[str, int] = {}
        for path, facts in files.find(root, detail=True).items():
            digest = path.rsplit("/", 2)[-2]
            sizes[digest] = sizes.get(digest, 0) + int(facts["size"] or 0)
        yield from sorted(sizes.items())

    def remove(self, digest: str) -> None:
        files, root = open_filesystem(self._url)
        # The other way round than it came: never weights without their config.
        for name in reversed(FILES):
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(f"{root}/{digest[:2]}/{digest}/{name}")

    def sweep(self) -> None:
        """Object storage shows no half-written objects."""

    def _is_whole(self, digest: str) -> bool:
        files, root = open_filesystem(self._url)
        if not files.exists(f"{root}/{digest[:2]}/{digest}/{WEIGHTS}"):
            return False
        try:
            with self.opened(digest):
                return True
        except BlobGone:
            return False
