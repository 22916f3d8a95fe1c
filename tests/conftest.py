"""Shared fixtures: a real store server, adapters made on the spot, clusters by the real command."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import torch
import yaml
from safetensors.torch import save_file

from adapter_store.embedded import embedded_server
from adapter_store.files.filesystems import open_filesystem
from adapter_store.registration import Registrar
from adapter_store.store import Store
from cluster.adapters import BaseModelFacts
from cluster.addresses import free_ports
from cluster.settings import RouterSettings, StoreSettings
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from tests.storage import gcs_server, s3_server

LEASE_S = 1.0
# What takes long to fetch or to make is kept there.
CACHE = Path(os.environ.get("ROUNDHOUSE_CACHE", "~/.cache/roundhouse")).expanduser()
COMMAND = Path(sys.executable).with_name("roundhouse")
_namespaces = itertools.count()

ECHO_FACTS = BaseModelFacts(
    id="echo",
    architecture="Echo",
    fingerprint="echo-8x1",
    max_rank=8,
    linear_shapes={"model.layers.0.q_proj": (8, 8), "model.layers.0.v_proj": (8, 8)},
)

# The model of the clusters that tests start.
ECHO = {
    "id": "echo",
    "path": "none",
    "engine": "echo",
    "replicas": 2,
    "cpus_per_replica": 0.1,
    "max_ongoing": 2,
    "max_queued": 16,
    "lora": {"slots": 2, "host_entries": 8},
    "engine_args": {"token_s": 0.01},
}
READY_S = 150
# Who is gone is off the list after so many seconds; busy replicas report in time all the same.
SHORT_S = 4


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_server(tmp_path_factory.mktemp("store")) as server:
        yield server.url


@pytest.fixture
def store_settings(redis_url: str) -> StoreSettings:
    """Of a fresh namespace."""
    return StoreSettings(url=redis_url, namespace=f"test-{next(_namespaces)}", lease_s=LEASE_S)


@pytest.fixture
def connect(store_settings: StoreSettings) -> Callable[[], Store]:
    """Opens stores on one fresh namespace."""
    return lambda: Store(store_settings)


@pytest.fixture
async def store(connect: Callable[[], Store]) -> AsyncIterator[Store]:
    store = connect()
    await store.registry.put_base_model(ECHO_FACTS)
    yield store
    await store.close()


@pytest.fixture
def registrar(store: Store, store_settings: StoreSettings, tmp_path: Path) -> Registrar:
    return Registrar(store, store_settings.model_copy(update={"data_dir": tmp_path / "data"}))


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def s3_bucket(s3: None) -> str:  # noqa: ARG001  (it runs)
    """The URL of a fresh bucket on a real S3 server."""
    url = f"s3://bucket-{next(_namespaces)}"
    files, root = open_filesystem(url)
    files.mkdir(root)
    return url


@pytest.fixture(scope="session")
def gcs_bucket() -> Iterator[str]:
    with gcs_server(free_port(), "adapters"):
        yield "gs://adapters"


@pytest.fixture(scope="session")
def trained_once() -> PromptRouter:
    return PromptRouter(SentenceEncoder.of(RouterSettings()), RouterSettings())


@pytest.fixture
def prompt_router(trained_once: PromptRouter) -> PromptRouter:
    """The real router, knowing no adapters. What it embedded before stays embedded."""
    trained_once.update({})
    return trained_once


@pytest.fixture
def make_world(
    store,  # noqa: ARG001  (it puts the base model)
    store_settings,
    prompt_router,
    tmp_path,
) -> Callable[..., Any]:
    """Opens what is behind an HTTP client, on one store; keyword arguments are settings."""
    from tests.test_http import world

    return partial(world, store_settings, prompt_router, tmp_path)


MakeAdapter = Callable[..., Path]


def write_adapter(
    parent: Path,
    name: str = "cron",
    *,
    seed: int = 0,
    rank: int = 4,
    size: int = 8,
    config: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None,
    **card: Any,
) -> Path:
    """Write the folder of an adapter for the echo model; keyword arguments change it."""
    folder = parent / f"{name}-{seed}"
    folder.mkdir(exist_ok=True)
    save_file(
        random_tensors(rank, size, seed) if tensors is None else tensors,
        folder / "adapter_model.safetensors",
    )
    base = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(base | (config or {})))
    fields = {"name": name, "base_model": "echo", "examples": [f"an example for {name}"]}
    (folder / "card.json").write_text(json.dumps(fields | card))
    return folder


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    """Writes adapters into the test's own folder."""
    return partial(write_adapter, tmp_path)


def random_tensors(rank: int, size: int, seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in ("q_proj", "v_proj"):
        prefix = f"base_model.model.model.layers.0.{module}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, size, generator=random)
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(size, rank, generator=random)
    return tensors


async def until(condition: Callable[[], Any], timeout_s: float = 5) -> None:
    """Wait until a condition holds (it may be a coroutine function)."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], Any], timeout_s: float = 20) -> None:
    """`until` for tests that are no coroutines."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def temporary_folders() -> set[Path]:
    """Of all clusters and commands of ours on this machine."""
    return set(Path(tempfile.gettempdir()).glob("rh-*"))


class Running:
    """A cluster started by the real command, in a process of its own.

    Attributes:
        folders: the temporary ones that its start has made.
    """

    def __init__(self, config: Path, port: int, log: Path) -> None:
        self.config = config
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.folders: set[Path] = set()
        self._before = temporary_folders()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [COMMAND, "up", str(config)],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while "is ready" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        self.folders = self.folders or temporary_folders() - self._before

    def command(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `roundhouse ARGS` against this cluster."""
        environment = {**os.environ, "ROUNDHOUSE_URL": self.url, "COLUMNS": "200"}
        return subprocess.run(
            [COMMAND, *args],
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
            env=environment,
        )

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> None:
        """End it in peace; nothing where it has ended."""
        self.process.terminate()
        self.process.wait(60)


def free_port() -> int:
    """None that the kernel gives to others by chance before it is used, nor one of Ray's own."""
    return free_ports(1)[0]


@contextmanager
def running_cluster(folder: Path, settings: dict[str, Any], ready_s: float) -> Iterator[Running]:
    """A cluster that is ready, stopped at the end."""
    running = start_cluster(folder, settings)
    try:
        running.wait_until_ready(ready_s)
        yield running
    finally:
        running.stop()


def start_cluster(folder: Path, settings: dict[str, Any]) -> Running:
    """Start `roundhouse up` with its data in `folder`; the caller waits and stops."""
    port = free_port()
    ours = {
        "store": {"data_dir": str(folder / "data")},
        "node_cache": {"path": str(folder / "node")},
        "http": {"port": port},
    }
    tree = settings | {section: own | settings.get(section, {}) for section, own in ours.items()}
    config = folder / "roundhouse.yaml"
    config.write_text(yaml.safe_dump(tree))
    return Running(config, port, folder / "up.log")


class Standing:
    """A cluster that tests share: it starts when one asks for it, and again where one has ended it.

    Each start has the folder and the settings of the first.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._settings = settings
        self._running: Running | None = None

    def up(self) -> Running:
        """It, ready."""
        if self._running is None or self._running.process.poll() is not None:
            self._running = start_cluster(self._folder, self._settings)
        self._running.wait_until_ready(READY_S)
        return self._running

    def stop(self) -> None:
        """Nothing where it has ended."""
        if self._running is not None:
            self._running.stop()


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """It registers the adapter "moved" as it starts."""
    folder = tmp_path_factory.mktemp("standing")
    settings = {
        "models": [ECHO],
        "store": {"lease_s": SHORT_S},
        "preload": [str(write_adapter(folder, "moved"))],
    }
    it = Standing(folder, settings)
    yield it
    it.stop()


@pytest.fixture(scope="session")
def admin_key() -> tuple[str, str]:
    """What `locked` lets in, and its digest."""
    from deployments.ingress.auth import new_key

    return new_key()


@pytest.fixture(scope="session")
def far_port() -> int:
    """Where `locked` looks for its model `far`; who needs it there serves it."""
    return free_port()


@pytest.fixture(scope="session")
def trace_port() -> int:
    """Where `locked` sends its traces; who wants to see them collects them there."""
    return free_port()


@pytest.fixture(scope="session")
def standing_locked(
    tmp_path_factory: pytest.TempPathFactory,
    admin_key: tuple[str, str],
    far_port: int,
    trace_port: int,
) -> Iterator[Standing]:
    from tests.elsewhere import KEY, far_model

    keys = [{"name": "ops", "sha256": admin_key[1], "scope": "admin"}]
    auth = {"enabled": True, "keys": keys}
    endpoint = {"key_env": "ROUNDHOUSE_FAR_KEY", "retries": 0, "breaker_failures": 3}
    far = far_model(f"http://127.0.0.1:{far_port}/v1", **endpoint)
    settings = {"models": [ECHO | {"replicas": 1}, far], "auth": auth}
    settings["telemetry"] = {"otlp_endpoint": f"http://127.0.0.1:{trace_port}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROUNDHOUSE_FAR_KEY", KEY)
        it = Standing(tmp_path_factory.mktemp("locked"), settings)
        yield it
    it.stop()


@pytest.fixture
def locked(standing_locked: Standing) -> Running:
    """One that asks for a key, and has one replica."""
    return standing_locked.up()


@pytest.fixture
def cluster(standing: Standing) -> Iterator[Running]:
    """The one that stands, whole; what a test registers there goes with the test."""
    running = standing.up()
    with running.http() as http:
        wait_until(lambda: _is_whole(http), timeout_s=60)
        yield running
        if running.process.poll() is None:
            _remove_adapters(http)


@pytest.fixture
def http(cluster: Running) -> Iterator[httpx.Client]:
    with cluster.http() as client:
        yield client


def _is_whole(http: httpx.Client) -> bool:
    """All that its settings name reports, and nothing that is gone."""
    cluster = http.get("/v1/cluster").json()
    kinds = sorted(member["kind"] for member in cluster["members"])
    expected = ["ingress", "ingress", "replica", "replica", "router"]
    return kinds == expected and cluster["store"] == "ok"


def _remove_adapters(http: httpx.Client) -> None:
    for adapter in http.get("/v1/adapters", params={"limit": 1000}).json()["data"]:
        if adapter["name"] != "moved":
            name = quote(adapter["name"], safe="")
            answer = http.delete(f"/v1/adapters/{name}")
            assert answer.is_success, answer.text
