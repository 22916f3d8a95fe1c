"""Adapter files under the hash of their content: stored once, never changed, one folder each."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from adapter_store.files.handles import NotPlain, copy_plain, open_plain

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
# In the order in which they are stored: a blob is there when its last file is.
FILES = (CONFIG, WEIGHTS)
_ABANDONED_S = 3600.0


class BlobGone(Exception):
    """The blob is not there, or is not what its hash says."""


class BlobStore(Protocol):
    """Where adapter files are kept. Writers may race: the content decides."""

    def commit(self, staged: Path, digest: str | None = None) -> tuple[str, int]:
        """Keep the files of a private folder under their hash; a damaged blob is replaced.

        Args:
            digest: of the files, where the caller has worked it out.

        Returns:
            The digest, and the size in bytes.
        """

    def opened(self, digest: str) -> contextlib.AbstractContextManager[Path]:
        """A local folder with the files, checked against the hash; raises :class:`BlobGone`."""

    def digests(self) -> Iterator[tuple[str, int]]:
        """Every blob with its size in bytes."""

    def remove(self, digest: str) -> None:
        """Forget a blob; nothing happens when it is not there."""

    def sweep(self) -> None:
        """Remove what a crash left."""


class LocalBlobs:
    """A folder that every node sees."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._unfinished = root / ".unfinished"

    def commit(self, staged: Path, digest: str | None = None) -> tuple[str, int]:
        digest, size_bytes = digest or digest_of(staged), size_of(staged)
        target = self._path(digest)
        if self._is_whole(digest):
            return digest, size_bytes
        with _own_folder(self._unfinished) as folder:
            # A copy, since the staged folder may be on another file system; one rename shows it.
            fresh = folder / "fresh"
            fresh.mkdir()
            for name in FILES:
                copy_plain(staged / name, fresh / name)
            sync(*(fresh / name for name in FILES), fresh)
            if target.exists():
                target.rename(folder / "damaged")
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                fresh.rename(target)
            except OSError:
                # Another writer of the same content was faster.
                if not self._is_whole(digest):
                    raise
        sync(target.parent, self._root)
        return digest, size_bytes

    @contextlib.contextmanager
    def opened(self, digest: str) -> Iterator[Path]:
        if not self._path(digest).is_dir():
            raise BlobGone("are gone from the blob store")
        if not self._is_whole(digest):
            raise BlobGone("were damaged in the blob store")
        yield self._path(digest)

    def digests(self) -> Iterator[tuple[str, int]]:
        for folder in sorted(self._root.glob("??/*")):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                yield folder.name, sum(file.stat().st_size for file in folder.iterdir())

    def remove(self, digest: str) -> None:
        with contextlib.suppress(FileNotFoundError), _own_folder(self._unfinished) as folder:
            # Out of sight at once: nobody may see half a blob.
            self._path(digest).rename(folder / "gone")

    def sweep(self) -> None:
        remove_abandoned(self._unfinished)

    def _path(self, digest: str) -> Path:
        return self._root / digest[:2] / digest

    def _is_whole(self, digest: str) -> bool:
        try:
            return digest_of(self._path(digest)) == digest
        except (FileNotFoundError, NotPlain):
            return False


def digest_of(folder: Path, names: Iterable[str] = FILES) -> str:
    """sha256 over the names and the sha256 of plain files, by default the adapter's."""
    whole = hashlib.sha256()
    for name in names:
        with open_plain(folder / name) as file:
            part = hashlib.file_digest(file, "sha256")
        whole.update(f"{name}\0{part.hexdigest()}\n".encode())
    return whole.hexdigest()


def size_of(folder: Path) -> int:
    """Bytes of the adapter files in a folder."""
    return sum((folder / name).stat().st_size for name in FILES)


def sync(*paths: Path) -> None:
    """Force files and folders to disk: the record that names them must not outlive them."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders that a crash left. Another cluster may share the place: what is fresh may
    be its work."""
    for folder in parent.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
