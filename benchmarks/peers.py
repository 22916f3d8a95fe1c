"""Clusters that play traces, ours and Ray Serve LLM, each started as its users would."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from adapter_store.store import Store
from benchmarks.ray_serve_llm import COUNT_IN
from cluster.members import Ingress
from cluster.settings import StoreSettings
from deployments.command.client import Client
from deployments.command.keeper import kept
from deployments.process.ray_options import beside_others

ROOT = Path(__file__).parent.parent
# Of an engine without our plugin: vLLM as it is installed.
STOCK = {"VLLM_PLUGINS": ""}


class Peer(Protocol):
    """What plays a trace."""

    url: str
    replicas: int

    def loads(self) -> int:
        """Adapters that the engines have taken into their memory so far."""

    def fetches(self) -> int:
        """Adapters that came from the storage behind the cluster so far."""


class Roundhouse:
    def __init__(self, url: str, replicas: int, store: StoreSettings, node_cache: Path) -> None:
        self.url = url
        self.replicas = replicas
        self._node_cache = node_cache
        self._client = Client(url)
        self._store = store
        self._demand: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def loads(self) -> int:
        time.sleep(5)  # until everybody has reported
        return sum(m["loads"] for m in self._client.get("/v1/cluster")["members"])

    def fetches(self) -> int:
        # Entries come and go meanwhile, which `os.walk` does not mind.
        files = (name for _, _, names in os.walk(self._node_cache) for name in names)
        return sum(name.endswith(".safetensors") for name in files)

    def foretell(self, demand: dict[str, float]) -> None:
        """Tell the planner what will be asked for, as if an ingress had seen it."""
        self._demand = demand
        if self._thread is None:
            self._thread = threading.Thread(target=lambda: asyncio.run(self._report()))
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    async def _report(self) -> None:
        store = Store(self._store)
        while not self._ended.is_set():
            await store.members.renew(Ingress(id="oracle", demand=self._demand))
            await asyncio.sleep(1)
        await store.close()


@contextmanager
def roundhouse(
    folder: Path, model: dict[str, Any], sources: list[Path], changes: dict[str, Any]
) -> Iterator[Roundhouse]:
    """A cluster by the real command, its adapters registered as a0, a1, ..."""
    from tests.conftest import start_cluster

    folder.mkdir(parents=True)
    running = start_cluster(folder, {"models": [model]} | changes)
    peer = None
    try:
        running.wait_until_ready(900)
        client = Client(running.url, timeout_s=120)
        for i, source in enumerate(sources):
            card = {"source": str(source), "name": f"a{i}", "base_model": model["id"]}
            client.post("/v1/adapters", card)
        (file,) = (folder / "data").rglob("url")
        store = StoreSettings(url=file.read_text().strip())
        peer = Roundhouse(running.url, model["replicas"], store, folder / "node")
        yield peer
    finally:
        if peer is not None:
            peer.stop()
        running.stop()


class RayServeLlm:
    def __init__(self, url: str, replicas: int, downloads: list[str], counted: Path) -> None:
        self.url = url
        self.replicas = replicas
        self._downloads = downloads
        self._counted = counted

    def loads(self) -> int:
        return self._counted.stat().st_size

    def fetches(self) -> int:
        return len(self._downloads)


@contextmanager
def ray_serve_llm(
    folder: Path,
    model: dict[str, Any],
    sources: list[Path],
    *,
    env: dict[str, str] | None = None,
    **config: Any,
) -> Iterator[RayServeLlm]:
    """Ray Serve LLM in a process of its own, its adapters in a local S3: smol:a0, smol:a1, ...

    Args:
        model: as in our settings file.
        env: of its replicas, beside the model's.
        config: more of what `benchmarks.ray_serve_llm` reads.
    """
    import boto3

    from tests.conftest import free_port
    from tests.storage import s3_server

    folder.mkdir(parents=True)
    counted = folder / "loads"
    counted.touch()
    common = {COUNT_IN: str(counted), "PYTHONPATH": str(ROOT)} | beside_others(folder)
    config = {
        "env": model["env"] | common | (env or {}),
        "temp_dir": str(folder / "ray"),
        "port": free_port(),
        "model": "smol",
        "path": model["path"],
        "engine_args": model["engine_args"],
        "adapters": "s3://adapters/l",
        "replicas": model["replicas"],
        "max_ongoing": model["max_ongoing"],
        **model["lora"],
        **config,
    }
    with s3_server(), _downloads() as downloads:
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="adapters")
        for source in sources:
            for file in source.iterdir():
                s3.upload_file(str(file), "adapters", f"l/{source.name}/{file.name}")
        url = f"http://127.0.0.1:{config['port']}"
        with _process(folder, config):
            yield RayServeLlm(url, model["replicas"], downloads, counted)


@contextmanager
def _process(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """The peer's process, ready."""
    path, log = folder / "config.json", folder / "log"
    path.write_text(json.dumps(config))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ray_serve_llm", str(path)],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
    # It leaves vLLM's shared memory behind, too.
    with kept(process.pid, Path(config["temp_dir"])):
        try:
            deadline = time.monotonic() + 600
            while "ready" not in log.read_text().splitlines():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"Ray Serve LLM did not start:\n{log.read_text()[-3000:]}")
                time.sleep(1)
            yield
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def _downloads() -> Iterator[list[str]]:
    """Grows by the weights that are fetched from the S3 server of this process."""
    seen: list[str] = []

    class Counter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if '"GET ' in line and "adapter_model.safetensors" in line:
                seen.append(line)

    logger, counter = logging.getLogger("werkzeug"), Counter()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(counter)
    try:
        yield seen
    finally:
        logger.removeHandler(counter)
