"""`roundhouse up`: who owns the processes, and starts Ray again when it has died.

The owner holds the data folder and the store server, which live as long as it does. Ray and the
application are a run (`lifecycle.py`): a process of its own, and all that comes from it, which ends
with it however it ends (`keeper.py`).
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from adapter_store.embedded import EmbeddedServer, embedded_server
from cluster.errors import ConfigError, RoundhouseError, Unavailable
from cluster.settings import Settings, door_problem
from deployments.command import lifecycle
from deployments.command.first_key import with_first_key
from deployments.command.keeper import kept
from deployments.command.lifecycle import Problem, Progress
from deployments.command.private import close_to_others
from deployments.command.runs import Run, only_one
from deployments.command.watching import watching

logger = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")
_POLL_S = 0.5
# Of replicas that finish what they are at; `roundhouse down` waits for longer.
_STOP_S = 45
_STEADY_S = 600.0
_MOST_IN_A_ROW = 5


class Restarts:
    """How often a run may be started again: soon after the first death, later after each that
    follows at once, and not for ever."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._began = time.monotonic()

    def pause_s(self, stood_s: float) -> float | None:
        """For how long to wait after a run that stood for so long; None: it has been enough."""
        self._in_a_row = 1 if stood_s >= _STEADY_S else self._in_a_row + 1
        return None if self._in_a_row > _MOST_IN_A_ROW else 2.0 ** (self._in_a_row - 1)

    def wait_after(self, died: RoundhouseError) -> None:
        """Wait until the next run may start; raises :class:`Unavailable` when none may."""
        pause_s = self.pause_s(time.monotonic() - self._began)
        if pause_s is None:
            raise Unavailable(
                f"Ray died {self._in_a_row} times in a row; at last: {died}"
            ) from died
        logger.warning("%s; Ray and the application start again in %d s", died, pause_s)
        time.sleep(pause_s)
        self._began = time.monotonic()


def keep_up(
    settings: Settings,
    *,
    address: str | None,
    progress: Progress,
    warn: Callable[[str], None],
    ready: Callable[[str], None],
    show_key: Callable[[str], None],
) -> None:
    """Run everything until Ctrl-C or SIGTERM, and stop it all on the way out.

    Args:
        address: of a Ray cluster to join; without one, a local cluster is started.
        progress: told in a few words what is being waited for.
        warn: told what does not work, and keeps nothing else from it.
        ready: told the endpoint's URL when it answers, again after each new start.
        show_key: told the first admin's key, when one is made.

    Raises:
        Conflict: a cluster with the same data folder is running.
        ConfigError, Unavailable: something could not start, or died again and again; the message
            says what and why.
        KeyboardInterrupt: it was stopped before it was ready.
    """
    # Where keys are asked for and there are none, the first is made.
    if not settings.auth.enabled and (problem := door_problem(settings)):
        raise ConfigError(problem)
    _interrupt_on_signals()
    root = settings.store.root
    root.mkdir(parents=True, exist_ok=True)
    close_to_others(settings)
    endpoint = f"http://{settings.http.host}:{settings.http.port}"
    with (
        only_one(root, Run(pid=os.getpid(), endpoint=endpoint)),
        _with_store(with_first_key(settings, show_key), progress) as settings,
    ):
        heed = partial(_heed, progress=progress, warn=warn)
        stand = partial(_stand, address=address, heed=heed, ready=lambda: ready(endpoint))
        restarts = Restarts()
        died = stand(settings)
        # What was preloaded may have been removed since.
        settings = settings.model_copy(update={"preload": ()})
        with contextlib.suppress(KeyboardInterrupt):
            while died is not None:
                restarts.wait_after(died)
                try:
                    died = stand(settings)
                except RoundhouseError as e:
                    died = e


@contextlib.contextmanager
def _with_store(settings: Settings, progress: Progress) -> Iterator[Settings]:
    """Settings whose store answers: an embedded server runs where they name none."""
    if settings.store.url is not None:
        yield settings
        return
    progress("starting the store server")
    with embedded_server(settings.store.root / "store") as server, _kept_alive(server):
        store = settings.store.model_copy(update={"url": server.url})
        yield settings.model_copy(update={"store": store})


@contextlib.contextmanager
def _kept_alive(server: EmbeddedServer) -> Iterator[None]:
    """Start the store server again whenever it dies."""

    def watch(ended: threading.Event) -> None:
        while not ended.wait(_POLL_S):
            try:
                if cause := server.revive():
                    logger.warning("the store server had died and was started again: %s", cause)
            except Unavailable as e:
                logger.error("%s", e)

    with watching("store-watcher", watch):
        yield


def _heed(said: str | Problem, *, progress: Progress, warn: Callable[[str], None]) -> None:
    if isinstance(said, Problem):
        warn(said.said)
    else:
        progress(said)


Heed = Callable[[str | Problem], None]


def _stand(
    settings: Settings, *, address: str | None, heed: Heed, ready: Callable[[], None]
) -> RoundhouseError | None:
    """One run, from its start to its end; returns what it died of, None when it was stopped.

    Raises what kept it from being ready.
    """
    is_ready = False
    try:
        with _run(settings, address, heed) as run:
            ready()
            is_ready = True
            _hear(run)  # its next word is its last
    except (KeyboardInterrupt, RoundhouseError) as ended:
        if not is_ready:
            raise
        return ended if isinstance(ended, RoundhouseError) else None
    return None


@contextlib.contextmanager
def _run(settings: Settings, address: str | None, heed: Heed) -> Iterator[Connection]:
    """A run that is up, and what it says; it ends with the block, and all that came from it."""
    # Short: a socket's path has at most 107 characters, and Ray and Serve add most of them.
    folder = Path(tempfile.mkdtemp(prefix="rh-"))
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=lifecycle.run, args=(settings, address, folder, theirs))
    process.start()
    theirs.close()
    with kept(process.pid or 0, folder):
        try:
            heed("starting Ray")
            while (said := _hear(ours)) is not None:
                heed(said)
            yield ours
        except KeyboardInterrupt:
            # Stopping takes seconds; an impatient second Ctrl-C would leave it half done.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            heed("stopping")
            raise
        finally:
            ours.close()
            process.join(_STOP_S)
            process.kill()
            process.join()


def _hear(run: Connection) -> str | Problem | None:
    """What a run waits for, or what does not work; None when it is up. Raises what it has ended
    with."""
    try:
        said: str | Problem | RoundhouseError | None = run.recv()
    except (EOFError, OSError):
        raise Unavailable("the process that had started Ray has died") from None
    if isinstance(said, RoundhouseError):
        raise said
    return said


def _interrupt_on_signals() -> None:
    """Make SIGTERM, and a terminal that closes, end it as Ctrl-C does: unwinding, with everything
    stopped on the way."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
