"""Which cluster uses a data folder, and how another process asks it to stop: `roundhouse down`.

Imports nothing heavy: a cluster is not stopped the faster for loading what it runs.
"""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import Conflict, Unavailable
from cluster.values import Record

_STOP_TIMEOUT_S = 60


class Run(Record):
    """What the file `run.json` of a data folder says of the running cluster."""

    pid: int
    endpoint: str


def running(root: Path) -> Run | None:
    """The cluster that uses this data folder, or None."""
    try:
        run = Run.model_validate_json((root / "run.json").read_text())
    except FileNotFoundError:
        return None
    return run if _is_locked(root / "up.lock") else None


def stop_running(root: Path, *, timeout_s: float = _STOP_TIMEOUT_S) -> bool:
    """Ask the running cluster to stop and wait until it has; False when none runs.

    Raises:
        Unavailable: it is still there after `timeout_s`.
    """
    run = running(root)
    if run is None:
        return False
    os.kill(run.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while running(root) is not None:
        if time.monotonic() > deadline:
            raise Unavailable(f"process {run.pid} did not stop within {timeout_s:.0f} s")
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def only_one(root: Path, run: Run) -> Iterator[None]:
    """Hold the data folder for the length of the block, and say there who does.

    Raises:
        Conflict: another cluster holds it.
    """
    with (root / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = running(root)
            where = f" at {other.endpoint} (process {other.pid})" if other else ""
            raise Conflict(
                f"a cluster with the data folder {root} is running{where}; "
                "`roundhouse down` stops it, store.data_dir chooses another folder"
            ) from None
        file = root / "run.json"
        draft = root / "run.json.new"
        draft.write_text(run.model_dump_json())
        draft.replace(file)  # whole or not at all: `down` reads it at any time
        try:
            yield
        finally:
            file.unlink()


def _is_locked(path: Path) -> bool:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
