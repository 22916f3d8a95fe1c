"""Any place with a URL as a file system, by fsspec.

Credentials and endpoints come from where the libraries look for them: environment variables,
files in the home folder, the machine's role, and `FSSPEC_<SCHEME>_<OPTION>`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import fsspec

from cluster.errors import RoundhouseError, Unavailable


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
    """Tell as Unavailable that a place of ours cannot be read or written now.

    What is not there (FileNotFoundError) is for the caller to judge.
    """
    try:
        yield
    except (RoundhouseError, FileNotFoundError):
        raise
    except Exception as e:
        # Every back end of fsspec has errors of its own.
        raise Unavailable(f"{what} cannot be used now: {e!r}"[:500]) from e
