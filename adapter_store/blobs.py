"""Adapter files under the hash of their content: stored once, never changed, one folder each."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
FILES = (CONFIG, WEIGHTS)


class BlobStore:
    """A folder of blobs. Writers on the same file system may race: the content decides."""

    def __init__(self, root: Path) -> None:
        self._root = root / "blobs"
        self._staging = root / "staging"

    def path(self, digest: str) -> Path:
        """The folder that holds the blob, whether it is there or not."""
        return self._root / digest[:2] / digest

    def has(self, digest: str) -> bool:
        return self.path(digest).is_dir()

    @contextlib.contextmanager
    def staged(self, source: Path) -> Iterator[Path]:
        """A private copy of the adapter files of `source`, so that they cannot change; removed at
        the end, unless it was committed."""
        self._staging.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            for name in FILES:
                shutil.copyfile(source / name, folder / name)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, staged: Path) -> tuple[str, int]:
        """Move a staged folder under its hash; a damaged blob of that hash is replaced.

        Returns:
            The digest, and the size in bytes.
        """
        digest = digest_of(staged)
        size_bytes = sum((staged / name).stat().st_size for name in FILES)
        target = self.path(digest)
        if self.is_whole(digest):
            return digest, size_bytes
        if target.exists():
            target.rename(Path(tempfile.mkdtemp(dir=self._staging)) / "damaged")
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(*(staged / name for name in FILES), staged)
        staged.chmod(0o755)
        try:
            staged.rename(target)
        except OSError:
            # Another writer of the same content was faster.
            if not self.is_whole(digest):
                raise
        sync(target.parent, self._root)
        return digest, size_bytes

    def sweep(self) -> None:
        """Remove what a crash left in the staging folder; call it when nobody is staging."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def is_whole(self, digest: str) -> bool:
        """Whether the blob is there and its content is still what its name says."""
        folder = self.path(digest)
        return all((folder / n).is_file() for n in FILES) and digest_of(folder) == digest


def digest_of(folder: Path, names: Iterable[str] = FILES) -> str:
    """sha256 over the names and the sha256 of files, by default the adapter's."""
    whole = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            part = hashlib.file_digest(file, "sha256")
        whole.update(f"{name}\0{part.hexdigest()}\n".encode())
    return whole.hexdigest()


def sync(*paths: Path) -> None:
    """Force files and folders to disk: the record that names them must not outlive them."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
