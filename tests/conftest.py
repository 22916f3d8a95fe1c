"""Shared fixtures: a real store server, adapters made on the spot, clusters by the real command."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from safetensors.torch import save_file

from adapter_store.embedded import embedded_server
from adapter_store.files.filesystems import open_filesystem
from adapter_store.store import Store
from cluster.adapters import BaseModelFacts
from cluster.addresses import free_ports
from cluster.settings import RouterSettings, StoreSettings
from router.adapters.encoder import SentenceEncoder
from router.adapters.prompt_router import PromptRouter
from tests.storage import gcs_server, s3_server

LEASE_S = 1.0
COMMAND = Path(sys.executable).with_name("roundhouse")
_namespaces = itertools.count()

ECHO_FACTS = BaseModelFacts(
    id="echo",
    architecture="Echo",
    fingerprint="echo-8x1",
    max_rank=8,
    linear_shapes={"model.layers.0.q_proj": (8, 8), "model.layers.0.v_proj": (8, 8)},
)


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


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def s3_bucket(s3: None) -> str:
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
def make_world(store, store_settings, prompt_router, tmp_path) -> Callable[..., Any]:
    """Opens what is behind an HTTP client, on one store; keyword arguments are settings."""
    from tests.test_http import world

    return partial(world, store, store_settings, prompt_router, tmp_path)


MakeAdapter = Callable[..., Path]


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    """Writes the folder of an adapter for the echo model; keyword arguments change it."""

    def make(
        name: str = "cron",
        *,
        seed: int = 0,
        rank: int = 4,
        size: int = 8,
        config: dict[str, Any] | None = None,
        tensors: dict[str, torch.Tensor] | None = None,
        **card: Any,
    ) -> Path:
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir(exist_ok=True)
        save_file(
            random_tensors(rank, size, seed) if tensors is None else tensors,
            folder / "adapter_model.safetensors",
        )
        base = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(base | (config or {})))
        fields = {"name": name, "base_model": "echo", "examples": [f"an example for {name}"]}
        (folder / "card.json").write_text(json.dumps(fields | card))
        return folder

    return make


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


class Running:
    """A cluster started by the real command, in a process of its own."""

    def __init__(self, config: Path, port: int, log: Path) -> None:
        self.config = config
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
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
    tree = {
        "store": {"data_dir": str(folder / "data")},
        "node_cache": {"path": str(folder / "node")},
    } | settings
    tree["http"] = {"port": port} | tree.get("http", {})
    config = folder / "roundhouse.yaml"
    config.write_text(yaml.safe_dump(tree))
    return Running(config, port, folder / "up.log")
