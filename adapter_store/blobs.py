"""Adapter files under the hash of their content: stored once, never changed, one folder each."""

import hashlib
import os
import shutil
import tempfile
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

    def stage(self, source: Path) -> Path:
        """Copy the adapter files of `source` to a private folder, so that they cannot change."""
        self._staging.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._staging))
        for name in FILES:
            shutil.copyfile(source / name, folder / name)
        return folder

    def commit(self, staged: Path) -> tuple[str, int]:
        """Move a staged folder under its hash.

        Returns:
            The digest, and the size in bytes.
        """
        digest = digest_of(staged)
        size_bytes = sum((staged / name).stat().st_size for name in FILES)
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync(staged)
        try:
            staged.chmod(0o755)
            staged.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(staged)
        return digest, size_bytes

    def discard(self, staged: Path) -> None:
        shutil.rmtree(staged, ignore_errors=True)


def digest_of(folder: Path) -> str:
    """sha256 over the names and the sha256 of the adapter files."""
    whole = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            part = hashlib.file_digest(file, "sha256")
        whole.update(f"{name}\0{part.hexdigest()}\n".encode())
    return whole.hexdigest()


def _sync(folder: Path) -> None:
    """Force the files to disk: the record that names them must not outlive them."""
    for path in (*(folder / name for name in FILES), folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
