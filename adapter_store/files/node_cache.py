"""Files that the replicas of a node share, bounded in bytes: what stands before object storage.

An entry is a folder, made once and never changed. Replicas are processes that may die at any time,
so all coordination is by locks that the operating system frees with their holder, and an entry
becomes visible by one rename.
"""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from adapter_store.files.blobs import sync

_BUILDING, _LOCK = ".building", ".lock"


class NodeCache:
    """A folder of entries; the least recently used go when it grows over `max_bytes`.

    An entry that someone holds open is never removed, so the bound may be passed by what is in use.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes

    def has(self, key: str) -> bool:
        return (self._root / key).is_dir()

    @contextlib.contextmanager
    def entry(self, key: str, build: Callable[[Path], None]) -> Iterator[Path]:
        """The folder of an entry, held for the length of the block; built where it is missing.

        Those who want the same missing entry wait for the first of them to build it. When `build`
        raises, nothing of the entry stays.
        """
        folder = self._root / key
        self._root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            while not _lock(held, folder, fcntl.LOCK_SH):
                with self._alone(key):
                    if not folder.is_dir():
                        self._build(folder, build)
            os.utime(folder)
            yield folder

    def has_room(self, wanted: int) -> bool:
        """Whether an entry of so many bytes fits without another having to go."""
        return self.size_bytes() + wanted <= self._max_bytes

    def discard(self, key: str) -> None:
        """Forget an entry that turned out to be of no use; the next who wants it builds it anew."""
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            self._remove(self._root / key)

    def size_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(_size(path) for path in self._entries())

    def sweep(self) -> None:
        """Remove what builders left that died."""
        for left in self._root.glob(f"*{_BUILDING}"):
            with self._alone(left.name.removesuffix(_BUILDING)):
                shutil.rmtree(left, ignore_errors=True)

    def _build(self, folder: Path, build: Callable[[Path], None]) -> None:
        unfinished = folder.with_name(folder.name + _BUILDING)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            build(unfinished)
            # The rename must not outlive what it names, should the power fail.
            sync(*unfinished.iterdir(), unfinished)
            with self._alone("room"):
                self._make_room(_size(unfinished))
                unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _make_room(self, wanted: int) -> None:
        sizes = {path: _size(path) for path in sorted(self._entries(), key=_last_use)}
        excess = sum(sizes.values()) + wanted - self._max_bytes
        for path, size in sizes.items():
            if excess <= 0:
                return
            with contextlib.suppress(BlockingIOError):
                self._remove(path)
                excess -= size

    def _entries(self) -> Iterator[Path]:
        return (path for path in self._root.iterdir() if path.suffix not in (_BUILDING, _LOCK))

    def _remove(self, folder: Path) -> None:
        """Raises BlockingIOError when the entry is in use."""
        with contextlib.ExitStack() as held:
            if not _lock(held, folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return  # another was faster
            # Out of sight at once: nobody may see half an entry.
            gone = folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex}{_BUILDING}"))
        shutil.rmtree(gone, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Hold the builder's lock of a key."""
        path = self._root / (key + _LOCK)
        with contextlib.ExitStack() as held:
            path.touch()
            while not _lock(held, path, fcntl.LOCK_EX):
                path.touch()
            # Removed while it is held: whoever waits for it sees that it is gone, and tries again.
            held.callback(path.unlink)
            yield


def _lock(held: contextlib.ExitStack, path: Path, how: int) -> bool:
    """Lock a file or folder until `held` ends.

    Returns:
        False when it is not there, or was removed or replaced before the lock was had.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    held.callback(os.close, fd)
    fcntl.flock(fd, how)
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _size(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in folder.iterdir())
    return 0


def _last_use(folder: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return folder.stat().st_mtime
    return 0.0
