"""Files by handles: what is opened is what was checked, whatever happens to its name meanwhile."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from itertools import islice
from pathlib import Path

# O_NONBLOCK: a named pipe would keep its reader waiting.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
# Of what is passed through, its owner may forbid the reading.
_PASS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 8
_MOST_SHOWN = 1000


class NotPlain(Exception):
    """It is no plain file, or a link that leads out of the place that it is read from."""


class Linked(NotPlain):
    """It is a link, or reached over one."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """The handle of a file or folder, reached over no link.

    Raises:
        Linked: its path leads over one.
    """
    parts = Path(os.path.normpath(path.absolute())).parts
    with contextlib.ExitStack() as held:
        handle = os.open("/", _PASS if len(parts) > 1 else _READ)
        held.callback(os.close, handle)
        for i, part in enumerate(parts[1:], 2):
            try:
                handle = os.open(part, _READ if i == len(parts) else _PASS, dir_fd=handle)
            except OSError as e:
                if _is_link(e, part, handle):
                    raise Linked(f"{path} leads over a link") from e
                raise
            held.callback(os.close, handle)
        yield handle


def open_plain(path: Path) -> BufferedReader:
    """A plain file, its folders being trusted; raises NotPlain for anything else."""
    try:
        return _reader(os.open(path, _READ))
    except OSError as e:
        if e.errno != errno.ELOOP:
            raise
        raise Linked(f"{path} is a link") from e


def copy_plain(source: Path, target: Path) -> None:
    """Copy a plain file; raises NotPlain for anything else."""
    with open_plain(source) as data, target.open("xb") as out:
        while chunk := data.read(1 << 20):
            out.write(chunk)


def reader(handle: int) -> BufferedReader:
    """Reads from a handle, which stays open; raises NotPlain when it is of no plain file."""
    return _reader(os.dup(handle))


class Folder:
    """A folder that is held open.

    Args:
        handle: of what its files may not leave.
        place: where in it the folder is.
    """

    def __init__(self, handle: int, place: tuple[str, ...] = ()) -> None:
        self._home = handle
        self._place = place

    def open(self, name: str) -> BufferedReader:
        """A plain file in it, over links that stay inside.

        Raises:
            FileNotFoundError: there is none.
            NotPlain: it is something else, or leads out.
        """
        return _reader(_open_beneath(self._home, (*self._place, name)))

    def names(self) -> list[str]:
        """What is in it; the first thousand."""
        handle = _open_beneath(self._home, (*self._place, "."))
        try:
            with os.scandir(handle) as entries:
                return sorted(entry.name for entry in islice(entries, _MOST_SHOWN))
        finally:
            os.close(handle)

    def above(self, name: str) -> list[str]:
        """The folders in it that have something of a name; of the first thousand."""
        return [folder for folder in self.names() if self._has(folder, name)]

    def _has(self, *below: str) -> bool:
        try:
            os.close(_open_beneath(self._home, (*self._place, *below)))
        except (OSError, NotPlain):
            return False
        return True


def _open_beneath(home: int, place: tuple[str, ...]) -> int:
    left, links = list(reversed(place)), 0
    with contextlib.ExitStack() as held:
        trail = [home]
        while True:
            part = left.pop() if left else "."
            if part == "..":
                if len(trail) == 1:
                    raise NotPlain("it leads out")
                trail.pop()
                continue
            if part in ("", ".") and left:
                continue
            try:
                handle = os.open(part or ".", _PASS if left else _READ, dir_fd=trail[-1])
            except OSError as e:
                if not _is_link(e, part, trail[-1]):
                    raise
                links += 1
                target = os.readlink(part, dir_fd=trail[-1])
                if target.startswith("/") or links > _MOST_LINKS:
                    raise NotPlain("it leads out") from e
                left += reversed(target.split("/"))
                continue
            if not left:
                return handle
            held.callback(os.close, handle)
            trail.append(handle)


def _is_link(error: OSError, name: str, folder: int) -> bool:
    """Whether something was not opened because it is a link."""
    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
        return False
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return True  # it was one, and went


def _reader(handle: int) -> BufferedReader:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotPlain("it is not a plain file")
    return os.fdopen(handle, "rb")
