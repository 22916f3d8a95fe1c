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
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

from fsspec.config import conf, set_conf_env

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


class Children:
    """Those that run; on the wire of one that ends is said how."""

    def __init__(self) -> None:
        # By number: the process, and its wire, which closes when this and the child have.
        self._running: dict[int, tuple[int, socket.socket]] = {}

    def begin(self, number: int, wire: socket.socket) -> bool:
        """Fork one; whether this is it."""
        try:
            child = os.fork()
        except OSError as e:
            with wire:
                _tell(wire, error=["Unavailable", f"no child can be made: {e.strerror}", None])
            return False
        if child == 0:
            # Of the others it has nothing.
            for _, other in self._running.values():
                other.close()
            return True
        self._running[number] = child, wire
        return False

    def end(self, number: int) -> None:
        if number in self._running:  # or it has ended, or is of the server before this one
            # Until it is waited for, its id is nobody else's.
            os.kill(self._running[number][0], signal.SIGKILL)

    def reap(self) -> None:
        """Wait for those that have ended, and for no other: the kernel can hold one for long."""
        for number, (child, wire) in list(self._running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del self._running[number]
                with wire:
                    _tell(wire, ended=status)


def serve(control: socket.socket) -> None:
    """Fork a child for each `begin`, and see its end at each `end`."""
    children = Children()
    own_id = os.getpid()
    woken, waking = _woken_by_ends()
    events = select.poll()
    for source in (control, woken):
        events.register(source, select.POLLIN)
    while True:
        ready = {source for source, _ in events.poll()}
        if woken.fileno() in ready:
            woken.recv(4096)
            children.reap()
        if control.fileno() not in ready:
            continue
        message, handles, *_ = socket.recv_fds(control, 64, 1)
        if not message:
            signal.set_wakeup_fd(-1)
            return
        what, number = message.split()
        if what == b"end":
            children.end(int(number))
        elif handles:  # without: there are too many open, and who asks sees the other end closed
            wire = socket.socket(fileno=handles[0])
            if children.begin(int(number), wire):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                woken.close()
                waking.close()
                _work(wire, own_id)


def _woken_by_ends() -> tuple[socket.socket, socket.socket]:
    """The first can be read when a child has ended."""
    woken, waking = socket.socketpair()
    woken.setblocking(False)
    waking.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    return woken, waking


def _tell(wire: socket.socket, **message: Any) -> None:
    """To whoever listens; the child may have died in the middle of a line."""
    with contextlib.suppress(OSError):  # nobody does any more
        wire.send(b"\n" + json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)


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
    set_conf_env(conf)  # it was read when the server began, which has no credentials
    _bound(job.bounds)
    hold(job.bounds.reach)
    try:
        return {"result": job.work(*job.args, _Told(out))}
    except (MemoryError, SystemError):  # as extensions say it that do not look
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
