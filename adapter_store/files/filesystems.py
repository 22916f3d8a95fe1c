"""Any place with a URL as a file system, by fsspec.

Credentials and endpoints come from where the libraries look for them: environment variables,
files in the home folder, the machine's role, and `FSSPEC_<SCHEME>_<OPTION>`.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

import fsspec

from cluster.errors import RoundhouseError, StorageFull, Unavailable

# Or gcsfs would first ask Google's control plane what kind of bucket it is, for a minute where that
# is not reached, or may not be asked.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def open_filesystem(url: str) -> tuple[Any, str]:
    """The file system behind a URL, and the path in it.

    Raises:
        ValueError, ImportError: no such scheme, or what it needs is not installed or configured.
    """
    # A listing that was kept would hide what another process has written.
    files, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return files, path.rstrip("/")


@contextlib.contextmanager
def storage(what: str) -> Iterator[None]:
    """Tell as Unavailable that a place of ours cannot be read or written now, or is full.

    What is not there (FileNotFoundError) is for the caller to judge.

    Raises:
        StorageFull: there is no room.
    """
    try:
        yield
    except (RoundhouseError, FileNotFoundError):
        raise
    except Exception as e:
        if is_full(e):
            raise full(what, e) from e
        # Every back end of fsspec has errors of its own.
        raise Unavailable(f"{what} cannot be used now: {e!r}"[:500]) from e


def is_full(error: BaseException) -> bool:
    """Whether what went wrong is that there is no room; only who writes hears of that."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def full(what: str, error: BaseException) -> StorageFull:
    """That there is no room, for the eyes of callers: which file it was is the log's."""
    why = error.strerror if isinstance(error, OSError) else error
    return StorageFull(f"{what} has no room ({why}); whoever runs this must make some")
