"""One run of Ray and the application, in a process of its own that `upkeep.py` starts.

Ray can take the process along that has started it, and cannot be trusted to come up again in one
where it has died.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from adapter_store.embedded import die_with_parent, how_it_ended
from adapter_store.registration import Registrar
from adapter_store.store import Store
from cluster.addresses import host_problem, is_loopback, port_problem
from cluster.errors import ConfigError, Conflict, RoundhouseError, StoreUnavailable, Unavailable
from cluster.preload import Preload
from cluster.requests import Registration
from cluster.settings import Settings
from deployments.command.haproxy import proxy_environment
from deployments.command.watching import watching
from deployments.process.ray_health import gcs_answers
from deployments.process.ray_options import (
    ENVIRONMENT,
    ON_LOOPBACK,
    SERVE_LOGGING,
    beside_others,
    ray_folder,
)
from deployments.process.serve_status import APP, logged_error, why_not_running

logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 900
_POLL_S = 0.5
# Ray's processes give up a server that does not answer after twice as long.
_SILENT_S = 30
# Without one of these nothing is started or replaced any more, and a minute later nothing is left.
_NEEDED = ("gcs_server", "raylet")

_OBJECT_STORE_BYTES = 256 * 2**20

Progress = Callable[[str], None]


class Problem(NamedTuple):
    """What a run says of something that did not work, and does not keep it from being up."""

    said: str


def run(settings: Settings, address: str | None, folder: Path, owner: Connection) -> None:
    """Start all, and keep it until the owner hangs up, or until Ray has died.

    Args:
        address: of a Ray cluster to join; without one, a local cluster is started.
        folder: for the files of this run.
        owner: is told what is being waited for in a few words, each :class:`Problem`, None when all
            is up, and the error that has ended it.
    """
    die_with_parent(signal.SIGKILL)
    _heed_no_signals()
    # An owner that has left needs no answer.
    with contextlib.suppress(BrokenPipeError):
        try:
            with _ray(settings, address, folder), watched(owner, is_ours=address is None):
                from deployments.app import in_this_cluster

                settings = in_this_cluster(settings)
                with _serving(settings, folder, owner.send):
                    asyncio.run(preload(settings, owner.send))
                    owner.send(None)
                    owner.poll(None)
        except RoundhouseError as e:
            owner.send(e)


def _heed_no_signals() -> None:
    """Ctrl-C in a terminal, and a service's end, are for the owner, who hangs up then. What this
    process starts does not inherit it."""

    def heed_not(_number: int, _frame: object) -> None:
        pass

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, heed_not)


@contextlib.contextmanager
def watched(owner: Connection, *, is_ours: bool) -> Iterator[None]:
    """End the process when Ray has died: to go on, or to stop in good order, would be to wait for
    what is dead."""

    def watch(ended: threading.Event) -> None:
        answered = time.monotonic()
        while not ended.wait(_POLL_S):
            problem = None
            try:
                problem = _dead_of_ray()
                if not problem and (not is_ours or asyncio.run(gcs_answers())):
                    answered = time.monotonic()
            except Exception:  # without a watcher Ray would stay dead
                logger.warning("Ray could not be asked how it is", exc_info=True)
            if not problem and time.monotonic() - answered > _SILENT_S:
                problem = f"Ray's gcs_server has not answered for {_SILENT_S} s"
            if problem:
                with contextlib.suppress(BrokenPipeError):
                    owner.send(Unavailable(problem))
                os._exit(1)

    with watching("ray-watcher", watch):
        yield


def _dead_of_ray() -> str | None:
    """Which of Ray's processes, of those that it needs, has died, and how."""
    from ray._private.worker import global_worker

    for kind, process in global_worker.node.dead_processes():
        if kind in _NEEDED:
            return f"Ray's {kind} has died ({how_it_ended(process.returncode)})"
    return None


@contextlib.contextmanager
def _ray(settings: Settings, address: str | None, temp_dir: Path) -> Iterator[None]:
    _set_where_unset(ENVIRONMENT | proxy_environment(settings.http))
    if address is None and is_loopback(settings.http.host):
        _set_where_unset(ON_LOOPBACK)
    # It reads its environment as it is imported.
    import ray

    if address is None:
        _check_cpus(settings)
        if problem := port_problem(settings.http.host, settings.http.port):
            raise ConfigError(problem)
        # Its sockets go where everything of this run goes, and with it.
        _set_where_unset({"VLLM_RPC_BASE_PATH": str(temp_dir)} | beside_others(temp_dir))
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(ray_folder(temp_dir)),
        )
    else:
        _check_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as e:
            raise Unavailable(
                f"cannot join the Ray cluster at {address}: {e}. Does it run (`ray status`)? One "
                "that asks for a token needs RAY_AUTH_MODE=token and the token here, too"
            ) from e
    # Ray has put its own handlers in place.
    _heed_no_signals()
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())
        if problem := host_problem(settings.http.host, nodes):
            raise ConfigError(problem)
        yield
    finally:
        ray.shutdown()


def _set_where_unset(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def _check_reachable(address: str) -> None:
    """Ray would try for minutes to reach a cluster that is not there."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        raise Unavailable(f"no Ray cluster answers at {address}: {e}") from e


def processes(settings: Settings) -> int:
    """How many members the store should list when all is up."""
    replicas = sum(m.replicas for m in settings.models)
    return settings.http.ingress_replicas + settings.router.replicas + replicas


def cpus_reserved(settings: Settings) -> float:
    """What all deployments together ask Ray to reserve."""
    return (
        0.1 * settings.http.ingress_replicas
        + settings.router.replicas * settings.router.cpus_per_replica
        + sum(m.replicas * m.cpus_per_replica for m in settings.models)
    )


def _check_cpus(settings: Settings) -> None:
    """Serve would wait for ever for CPUs that a single machine does not have."""
    needed, there = cpus_reserved(settings), os.cpu_count() or 1
    if needed > there:
        raise ConfigError(
            f"the settings reserve {needed:.1f} CPUs, this machine has {there}; lower "
            "models[].replicas or models[].cpus_per_replica (a reservation, not a limit)"
        )


@contextlib.contextmanager
def _serving(settings: Settings, temp_dir: Path, progress: Progress) -> Iterator[None]:
    from ray import serve

    from deployments.app import wire

    # Its log lines belong into its log files; the terminal shows our own progress.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options={
            "host": settings.http.host,
            "port": settings.http.port,
            "request_timeout_s": settings.http.request_timeout_s,
        },
        logging_config=SERVE_LOGGING,
    )
    try:
        serve.run_many(
            [serve.RunTarget(wire(settings), name=APP, route_prefix="/")],
            wait_for_applications_running=False,
        )
        _wait_until_running(temp_dir, progress)
        yield
    finally:
        # Lets the replicas finish what they are at, and stop their engines.
        serve.delete(APP)


def _wait_until_running(temp_dir: Path, progress: Progress) -> None:
    from ray import serve

    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        app = serve.status().applications[APP]
        if app.status == "RUNNING":
            return
        if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            why = logged_error(ray_folder(temp_dir)) or why_not_running(app)
            raise Unavailable(f"the application did not start: {why}")
        waiting = [name for name, d in app.deployments.items() if d.status != "HEALTHY"]
        progress(f"starting {', '.join(waiting) or 'the application'}")
        time.sleep(_POLL_S)
    raise Unavailable(f"the application did not start within {READY_TIMEOUT_S} s")


async def preload(settings: Settings, say: Callable[[str | Problem], None]) -> None:
    """Register the adapters that the settings name; the ones that are there already stay.

    One that cannot be registered is told, here and by `/readyz`, and keeps no other from it.
    """
    if not settings.preload:
        return
    async with Store(settings.store) as store:
        registrar = Registrar(store, settings.store)
        told = Preload(of=len(settings.preload))
        await store.members.put_preload(told)
        for source in settings.preload:
            folder = Path(source).resolve()
            say(f"registering adapter {told.done + 1} of {told.of}: {folder.name}")
            failed = dict(told.failed)
            if why := await _why_not_registered(registrar, folder):
                say(Problem(f"preload: {folder}: {why}"))
                # Whoever asks for `/readyz` needs no key.
                failed[folder.name] = why.replace(str(folder), folder.name)
            told = told.model_copy(update={"done": told.done + 1, "failed": failed})
            await store.members.put_preload(told)
        position, _ = await store.registry.position()
        await store.members.converged(
            position, timeout_s=READY_TIMEOUT_S, at_least=processes(settings)
        )
        await store.members.put_preload(told.model_copy(update={"is_in_place": True}))


async def _why_not_registered(registrar: Registrar, folder: Path) -> str:
    """Empty when it is there now; what was there may have been updated since, and stays as it is.

    Raises StoreUnavailable.
    """
    try:
        await registrar.register(Registration(source=str(folder)), mode="create")
    except Conflict:
        return ""
    except StoreUnavailable:
        raise
    except RoundhouseError as e:
        return e.message
    return ""
