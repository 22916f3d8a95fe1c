"""Other users of the machine read nothing of what `roundhouse` keeps.

What it writes now, it writes for its owner alone (`cli.main`); this is about what is there already.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cluster.settings import Settings

# As Ray names it; it is made at the first start.
_RAY_TOKEN = Path("~/.ray/auth_token")


def close_to_others(settings: Settings) -> None:
    """What an earlier release, or Ray outside of it, has left open.

    The data folder itself stays as it is, and so do those that are somebody else's, or everybody's
    as /dev/shm is.
    """
    for path in _kept(settings):
        if path.exists() and _is_ours(path.stat()):
            path.chmod(path.stat().st_mode & 0o700)


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.getuid() and not found.st_mode & stat.S_ISVTX


def _kept(settings: Settings) -> Iterator[Path]:
    for name in ("store", "blobs", "uploads", "staging"):
        yield settings.store.root / name
    yield settings.node_cache.root
    yield _RAY_TOKEN.expanduser()
