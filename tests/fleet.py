"""A fleet of model servers with echo engines, in this process."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from adapter_store.registration import Registrar
from adapter_store.store import Store
from cluster.adapters import AdapterRef
from cluster.members import Replica
from cluster.requests import Registration
from cluster.settings import parse_settings
from deployments.process.call import Call
from deployments.process.process import Process
from deployments.replica.model_server import ModelServer
from tests.conftest import LEASE_S


class ServerFleet:
    """Some servers, and what changes adapters."""

    def __init__(self, redis_url: str, folder: Path, model: dict[str, Any], placement) -> None:
        model = {"id": "echo", "path": "none", "engine": "echo"} | model
        self.settings = parse_settings(
            {
                "models": [model],
                "store": {
                    "url": redis_url,
                    "namespace": f"fleet-{time.time_ns()}",
                    "lease_s": LEASE_S,
                    "data_dir": str(folder / "data"),
                },
                "node_cache": {"path": str(folder / "node")},
                "placement": placement,
            }
        )
        self.store = Store(self.settings.store)
        self.registrar = Registrar(self.store, self.settings.store)
        self.servers: dict[str, ModelServer] = {}
        self.processes: dict[str, Process] = {}

    async def join(self, name: str) -> ModelServer:
        process = self.processes[name] = Process(self.settings.store, name)
        server = ModelServer(self.settings, "echo", process, "node")
        await server.start()
        self.servers[name] = server
        return server

    async def add(self, folder, mode: str = "upsert", **fields):
        sent = Registration(source=str(folder), **fields)
        return await self.registrar.register(sent, mode=mode)

    async def held(self, key: str) -> set[str]:
        """Who has a version in a slot or in host memory, by the reports in the store."""
        replicas = (m for m in await self.store.members.all() if isinstance(m, Replica))
        return {m.id for m in replicas if m.residency.tier(key) is not None}

    async def converged(self, position: str):
        return await self.store.members.converged(
            position, timeout_s=10, at_least=len(self.servers)
        )


@asynccontextmanager
async def running(
    size: int,
    redis_url: str,
    folder: Path,
    *,
    slots: int = 2,
    host_entries: int = 4,
    placement: dict[str, Any] | None = None,
    engine_args: dict[str, Any] | None = None,
) -> AsyncIterator[ServerFleet]:
    """Servers r0, r1, ... that have joined."""
    lora = {"slots": slots, "host_entries": host_entries, "max_rank": 8}
    model = {"lora": lora, "engine_args": engine_args or {}}
    it = ServerFleet(redis_url, folder, model, placement or {})
    try:
        await asyncio.gather(*(it.join(f"r{i}") for i in range(size)))
        yield it
    finally:
        await asyncio.gather(*(server.stop() for server in it.servers.values()))
        await it.store.close()


async def ask(server: ModelServer, stored, text: str = "hello", **fields) -> tuple[int, bytes]:
    """`fields`: of the call, beside those that every one has."""
    ref = AdapterRef.of(stored.adapter, stored.version)
    body = f'{{"model": "{ref.key}", "messages": [{{"role": "user", "content": "{text}"}}]}}'
    call = Call("/v1/chat/completions", "id", body.encode(), ref, stored.position, **fields)
    async with server.answer(call) as reply:
        return reply.start.status, await reply.read()
