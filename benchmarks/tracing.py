"""`python -m benchmarks.tracing`: what traces cost a request, in CPU of the process that serves it.

The whole ASGI application, with an echo engine in the process and no Ray: a smaller whole than a
real ingress, so a share of it is an upper bound. Off and on are measured in turns, with
`--before FOLDER` another checkout, too; each in a process of its own, the collector in another.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapter_store.embedded import embedded_server
from adapter_store.store import Store
from benchmarks.report import RESULTS
from cluster.settings import StoreSettings
from tests.conftest import ECHO_FACTS, free_port
from tests.test_http import World, world

ROUNDS = 3
_WARM, _REQUESTS, _REPEATS = 300, 1500, 4
_TEXT = "the quick brown fox jumps over a lazy dog"
_BODY = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": _TEXT}]}
_PATH = "/v1/chat/completions"
_SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "method": "POST",
    "scheme": "http",
    "path": _PATH,
    "raw_path": _PATH.encode(),
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 80),
}
_HEADERS = [
    (b"host", b"localhost"),
    (b"content-type", b"application/json"),
    (b"x-request-id", b"r"),
]


class _NoRouter:
    """Nothing asks for `auto` here."""

    def update(self, adapters: Any) -> None:
        pass


async def _ask(rh: World) -> None:
    sent = [{"type": "http.request", "body": json.dumps(_BODY).encode(), "more_body": False}]
    said: list[Any] = []

    async def receive() -> Any:
        if sent:
            return sent.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(message)

    await rh.app({**_SCOPE, "headers": list(_HEADERS), "state": {}}, receive, send)
    assert said[0]["status"] == 200


async def _cpu_us(settings: dict[str, Any]) -> float:
    """Of a request, the least of a few times."""
    with tempfile.TemporaryDirectory() as folder, embedded_server(Path(folder) / "store") as server:
        own = StoreSettings(url=server.url, namespace="bench", lease_s=10)
        async with Store(own) as store:
            await store.registry.put_base_model(ECHO_FACTS)
        async with world(own, _NoRouter(), Path(folder), **settings) as rh:
            for _ in range(_WARM):
                await _ask(rh)
            found = []
            for _ in range(_REPEATS):
                began = time.process_time()
                for _ in range(_REQUESTS):
                    await _ask(rh)
                found.append((time.process_time() - began) / _REQUESTS * 1e6)
    return min(found)


def _child(settings: dict[str, Any], code: Path) -> float:
    # Without its own folder, whose modules have our packages' names.
    command = [sys.executable, "-P", __file__, "--child", json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": str(code)}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=code
    )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, help="another checkout, measured beside")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        logging.disable(logging.CRITICAL)
        print(asyncio.run(_cpu_us(json.loads(args.child))))
    else:
        _measure(args.before)


def _measure(before: Path | None) -> None:
    # Not in other checkouts.
    from tests.collector import collecting

    port, here = free_port(), Path(__file__).parent.parent
    on = {"telemetry": {"otlp_endpoint": f"http://127.0.0.1:{port}"}}
    subjects = {"off": ({}, here), "on": (on, here)}
    if before is not None:
        subjects = {"before": ({}, before), **subjects}
    found: dict[str, list[float]] = {name: [] for name in subjects}
    with collecting(port):
        for _ in range(ROUNDS):
            for name, (settings, code) in subjects.items():
                found[name].append(round(_child(settings, code), 1))
    packages = ("opentelemetry-sdk", "fastapi", "starlette")
    report = {
        "command": "python -m benchmarks.tracing" + (" --before FOLDER" if before else ""),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in packages},
        "load": round(os.getloadavg()[1], 1),
        "requests": _REQUESTS * _REPEATS,
        "cpu_us_per_request": {name: statistics.median(v) for name, v in found.items()},
        "rounds": found,
    }
    (RESULTS / "tracing.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["cpu_us_per_request"]))


if __name__ == "__main__":
    main()
