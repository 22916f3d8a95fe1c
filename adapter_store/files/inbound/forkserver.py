"""Where the children of :mod:`.confined` come from: a process that imports, and forks.

It ends when its parent does, and its children with it.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pickle
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

from adapter_store.files.inbound.confined import TOO_MUCH, Bounds, Job
from adapter_store.files.inbound.guard import Refused, hold
from cluster.errors import AdapterRefused, RoundhouseError

_PR_SET_PDEATHSIG = 1
# Heavy, and of use to most children.
_IMPORTED = (
    "adapter_store.files.inbound.fetching",
    "adapter_store.files.inbound.looking",
    "adapter_store.files.door",
    "model_signing.verifying",
)
# Progress is told so often, and always where something else begins.
_TELL_S = 0.1


def serve(control: socket.socket) -> None:
    """Fork a child for each `begin`, and see its end at each `end`."""
    children: dict[int, int] = {}
    own_id = os.getpid()
    while True:
        message, handles, *_ = socket.recv_fds(control, 64, 1)
        if not message:
            return
        what, number = message.split()
        if what == b"end":
            _end(children, int(number))
            continue
        child = os.fork()
        if child == 0:
            control.close()
            with socket.socket(fileno=handles[0]) as wire:
                _work(wire, own_id)
        os.close(handles[0])
        children[int(number)] = child


def _end(children: dict[int, int], number: int) -> None:
    child = children.pop(number, None)
    if child is not None:  # of the server that died before this one
        # Until it is waited for, its id is nobody else's.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _work(wire: socket.socket, parent: int) -> NoReturn:
    """As a child: what the parent sends, and no more."""
    status = 1
    try:
        _end_with(parent)
        with wire.makefile("rb") as sent:
            job: Job = pickle.load(sent)
        out = wire.makefile("wb")
        _say(out, begun=True)
        with contextlib.suppress(BrokenPipeError):
            _say(out, **_outcome(job, out))
        status = 0
    finally:
        os._exit(status)


def _outcome(job: Job, out: IO[bytes]) -> dict[str, Any]:
    os.environ.clear()
    os.environ.update(job.environment)
    _bound(job.bounds)
    hold(job.bounds.reach)
    try:
        return {"result": job.work(*job.args, _Told(out))}
    except MemoryError:
        return {"overrun": TOO_MUCH}
    except Exception as e:  # noqa: BLE001 (told to the parent, which raises it)
        e = _refusal_in(e) or e
        if isinstance(e, RoundhouseError):
            return {"error": [type(e).__name__, e.message, e.param]}
        if "allocate memory" in str(e):  # of PyTorch, and of what maps files
            return {"overrun": TOO_MUCH}
        return {"failure": traceback.format_exc()}


def _refusal_in(error: BaseException | None) -> AdapterRefused | None:
    """What a connection that was not made comes to, whatever a library has made of that."""
    while error is not None and not isinstance(error, Refused):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    return AdapterRefused(
        f"source leads to {error}, from where nothing is fetched: it is no public address; an "
        "operator who means it names it in store.allow_hosts",
        param="source",
    )


class _Told:
    """Tells the parent of progress, not too often."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._what = ""
        self._next = 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if what != self._what or now >= self._next or done == total:
            self._what, self._next = what, now + _TELL_S
            _say(self._out, progress=[what, done, total])


def _say(out: IO[bytes], **message: Any) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def _bound(bounds: Bounds) -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_AS: now + bounds.memory_bytes,
        resource.RLIMIT_CPU: bounds.cpu_s,
        resource.RLIMIT_FSIZE: bounds.file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    for what, limit in limits.items():
        resource.setrlimit(what, (limit, limit))
    # What the machine has too little of is taken from here first.
    Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with(parent: int) -> None:
    """The kernel ends this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to it
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # or each child would write to, and so copy, all that was imported
    with socket.socket(fileno=int(sys.argv[1])) as control:
        serve(control)
