"""Runs a piece of work in a child process of its own, which may not take more than it is given.

The children are forks of a server that has imported what they need, so that one costs some
hundredths of a second; none does a second piece of work. What they return is JSON: their parent
reads nothing of theirs that could run.
"""

import asyncio
import atexit
import contextlib
import itertools
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adapter_store.files.inbound.guard import Reach
from cluster.errors import (
    AdapterRefused,
    ConfigError,
    Conflict,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    RoundhouseError,
    SourceMissing,
    StorageFull,
    Unavailable,
)

MODULE = "adapter_store.files.inbound.forkserver"
MB = 2**20
# The server's imports come before the first piece of work.
_START_S = 120.0
_LONGEST_LINE = 16 * MB
_END_S = 5.0
_AGAIN_S = 0.1
TOO_MUCH = "it asks for more memory, processor time or disk than it is given"
# One thread computes; memory is taken from where its bound counts it.
_ENVIRONMENT = {
    "HF_HUB_DISABLE_XET": "1",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Of this process's own, what work without network is told, and the server: no secrets.
_PLAIN = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|PYTHON\w*|(OMP|MKL|OPENBLAS|MALLOC)_\w+"
)
_OURS = "ROUNDHOUSE_"

# What the work raises on purpose.
_ERRORS: dict[str, type[RoundhouseError]] = {
    error.__name__: error
    for error in (
        AdapterRefused,
        ConfigError,
        Conflict,
        InvalidRequest,
        NotFound,
        PayloadTooLarge,
        SourceMissing,
        StorageFull,
        Unavailable,
    )
}

# Told what is being done, and of how many bytes how many are done (None: not known).
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Bounds:
    """What a child may take.

    Attributes:
        memory_bytes: of address space, beyond what every child begins with.
        file_bytes: of each file that it writes.
        wall_s: altogether.
        stall_s: without telling of progress.
        reach: where it may connect to; None: nowhere.
    """

    memory_bytes: int
    file_bytes: int
    cpu_s: int
    wall_s: float
    stall_s: float
    reach: Reach | None = None


@dataclass(frozen=True)
class Job:
    """What a child is told. The environment is what its parent has now, not what the server had."""

    work: Callable[..., Any]
    args: tuple[Any, ...]
    bounds: Bounds
    environment: dict[str, str]


class Overrun(Exception):
    """The work took more than it was given, and was ended."""


class _Lost(Exception):
    """Nobody knows what became of a child: the server died, and took it along."""


class TooSlow(Overrun):
    """It took longer than it may, with progress or without."""


async def confined(work: Callable[..., Any], *args: Any, bounds: Bounds, progress: Progress) -> Any:
    """Run `work(*args, progress)` in a child, which ends with the call, cancelled or not.

    Args:
        work: of a module, and its arguments can be pickled.

    Returns:
        What it returns, by way of JSON.

    Raises:
        RoundhouseError: as the work has raised it.
        Overrun: it was ended.
        Unavailable: there was no child to do it, and not because of the work.
    """
    job = pickle.dumps(Job(work, args, bounds, _environment(bounds.reach)))
    try:
        return await _done(job, bounds, progress)
    except _Lost:
        await asyncio.sleep(_AGAIN_S)  # what dies has not closed all its sockets at once
    try:
        return await _done(job, bounds, progress)
    except _Lost as e:
        raise Unavailable("the server of children died, twice; try again") from e


def _environment(reach: Reach | None) -> dict[str, str]:
    """What a child is told: where it connects, credentials and endpoints; settings it has."""
    told = {
        name: value
        for name, value in os.environ.items()
        if (not name.startswith(_OURS) if reach else _PLAIN.fullmatch(name))
    }
    return told | _ENVIRONMENT


async def _done(job: bytes, bounds: Bounds, progress: Progress) -> Any:
    try:
        number, wire = _server.begin()
    except OSError as e:
        raise Unavailable(f"what reads adapters' files cannot be started ({e}); try again") from e
    try:
        reader, writer = await asyncio.open_connection(sock=wire, limit=_LONGEST_LINE)
        try:
            writer.write(job)
            writer.write_eof()
            return await _followed(reader, bounds, progress)
        finally:
            writer.transport.abort()
    finally:
        _server.end(number)


async def _followed(reader: asyncio.StreamReader, bounds: Bounds, progress: Progress) -> Any:
    try:
        first = await _message(reader, _START_S, "to begin")
    except TooSlow as e:
        raise Unavailable(f"the machine is busy: {e}; try again") from e
    if "ended" in first:
        raise Unavailable(f"a child ended before its work began (status {first['ended']})")
    if "begun" not in first:
        return _result(first)
    try:
        async with asyncio.timeout(bounds.wall_s):
            while True:
                message = await _message(reader, bounds.stall_s, "without progress")
                if "progress" not in message:
                    return _result(message)
                progress(*message["progress"])
    except TimeoutError as e:
        raise TooSlow(f"it took longer than {bounds.wall_s:g} s") from e


async def _message(reader: asyncio.StreamReader, patience_s: float, what: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(patience_s):
            while (line := await reader.readline()).endswith(b"\n"):
                with contextlib.suppress(json.JSONDecodeError):  # of who died while it spoke
                    message: dict[str, Any] = json.loads(line)
                    return message
    except TimeoutError as e:
        raise TooSlow(f"it took longer than {patience_s:g} s {what}") from e
    except ValueError as e:  # a line beyond the limit
        raise Overrun(TOO_MUCH) from e
    except ConnectionError as e:
        raise _Lost from e
    raise _Lost


def _result(message: dict[str, Any]) -> Any:
    if "error" in message:
        kind, text, param = message["error"]
        raise _ERRORS[kind](text, param=param)
    if "overrun" in message:
        raise Overrun(message["overrun"])
    if "ended" in message:
        raise Overrun(TOO_MUCH)
    if "failure" in message:
        raise RuntimeError(f"work in a child failed:\n{message['failure']}")
    return message["result"]


class _Server:
    """This process's server of children: started when it is needed, and again when it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._turn = threading.Lock()
        self._numbers = itertools.count()

    def begin(self) -> tuple[int, socket.socket]:
        """A child's number, and the socket to it; raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs, self._turn:
            number = next(self._numbers)
            message = f"begin {number}".encode()
            try:
                self._tell(message, theirs)
            except OSError:
                self._stop()
                try:
                    self._tell(message, theirs)
                except OSError:
                    ours.close()
                    raise
        return number, ours

    def _tell(self, message: bytes, theirs: socket.socket) -> None:
        socket.send_fds(self._running(), [message], [theirs.fileno()])

    def end(self, number: int) -> None:
        """Nothing is left of a child."""
        with self._turn, contextlib.suppress(OSError):  # a server that died has none
            if self._control is not None:
                self._control.send(f"end {number}".encode())

    def stop(self) -> None:
        with self._turn:
            self._stop()

    def _running(self) -> socket.socket:
        if self._control is None:
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    self._process = _started(theirs)
            except OSError:
                control.close()
                raise
            self._control = control
        return self._control

    def _stop(self) -> None:
        if self._control is None or self._process is None:
            return
        self._control.close()
        try:
            self._process.wait(_END_S)  # it ends when its socket does
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


def _started(control: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, str(control.fileno())],
        env={**_environment(None), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[control.fileno()],
    )


_server = _Server()
atexit.register(_server.stop)


async def warm() -> None:
    """Have this process's server there, so that the first piece of work need not wait for it.

    Raises:
        Unavailable: it does not come up.
    """
    await confined(nothing, bounds=_LITTLE, progress=lambda *_: None)


def nothing(_progress: Progress) -> None:
    """The least piece of work."""


_LITTLE = Bounds(memory_bytes=64 * MB, file_bytes=MB, cpu_s=60, wall_s=60, stall_s=60)
