"""`roundhouse up`: one process owns the store server and the Ray cluster it started.

When that process ends, however it ends, everything that it started ends with it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from adapter_store.embedded import EmbeddedServer, embedded_server
from adapter_store.registration import Registrar, sweep
from adapter_store.store import Store
from cluster.addresses import host_problem, is_loopback, port_problem
from cluster.errors import ConfigError, Conflict, Unavailable
from cluster.requests import Registration
from cluster.settings import Settings, door_problem
from deployments.command.haproxy import proxy_environment
from deployments.command.keeper import kept
from deployments.command.private import close_to_others
from deployments.command.runs import Run, only_one
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

_OBJECT_STORE_BYTES = 256 * 2**20

Progress = Callable[[str], None]


@contextlib.contextmanager
def cluster_up(settings: Settings, *, address: str | None, progress: Progress) -> Iterator[str]:
    """Start everything and yield the endpoint's URL when it answers; stop it all on the way out.

    Args:
        address: of a Ray cluster to join; without one, a local cluster is started.
        progress: told in a few words what is being waited for.

    Raises:
        Conflict: a cluster with the same data folder is running.
        ConfigError, Unavailable: something could not start; the message says what and why.
    """
    if problem := door_problem(settings):
        raise ConfigError(problem)
    root = settings.store.root
    root.mkdir(parents=True, exist_ok=True)
    close_to_others(settings)
    _interrupt_on_sigterm()
    with contextlib.ExitStack() as stack:
        endpoint = f"http://{settings.http.host}:{settings.http.port}"
        stack.enter_context(only_one(root, Run(pid=os.getpid(), endpoint=endpoint)))
        # Short: a socket's path has at most 107 characters, and Ray and Serve add most of them.
        temp_dir = Path(tempfile.mkdtemp(prefix="rh-"))
        stack.enter_context(kept(os.getpid(), temp_dir))
        if settings.store.url is None:
            progress("starting the store server")
            server = stack.enter_context(embedded_server(root / "store"))
            store = settings.store.model_copy(update={"url": server.url})
            settings = settings.model_copy(update={"store": store})
            stack.enter_context(_kept_alive(server))
        progress("starting Ray")
        stack.enter_context(_ray(settings, address, temp_dir))
        from deployments.app import in_this_cluster

        settings = in_this_cluster(settings)
        sweep(settings.store)
        stack.enter_context(_serving(settings, temp_dir, progress))
        asyncio.run(_preload(settings, progress))
        try:
            yield endpoint
        finally:
            _ignore_signals()


def wait_for_signal() -> None:
    """Sleep until Ctrl-C or SIGTERM."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)


def _interrupt_on_sigterm() -> None:
    """Make SIGTERM end the run as Ctrl-C does: unwinding, with everything stopped on the way."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


def _ignore_signals() -> None:
    """Stopping takes seconds; an impatient second Ctrl-C would leave it half done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def _kept_alive(server: EmbeddedServer) -> Iterator[None]:
    """Start the store server again whenever it dies."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            try:
                if server.revive():
                    logger.warning("the store server had died and was started again")
            except Unavailable as e:
                logger.error("%s", e)

    watcher = threading.Thread(target=watch, name="store-watcher", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


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
    _interrupt_on_sigterm()
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


async def _preload(settings: Settings, progress: Progress) -> None:
    """Register the adapters that the settings name; the ones that are there already stay."""
    if not settings.preload:
        return
    async with Store(settings.store) as store:
        registrar = Registrar(store, settings.store)
        for i, source in enumerate(settings.preload, 1):
            folder = Path(source).resolve()
            progress(f"registering adapter {i} of {len(settings.preload)}: {folder.name}")
            # What is there may have been updated since: it stays as it is.
            with contextlib.suppress(Conflict):
                await registrar.register(Registration(source=str(folder)), mode="create")
        position, _ = await store.registry.position()
        await store.members.converged(
            position, timeout_s=READY_TIMEOUT_S, at_least=processes(settings)
        )
