"""A model replica: one engine, the adapters it holds, and its part in the cluster."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from ray import serve

from adapter_store.blobs import BlobStore
from adapter_store.catalogue import Catalogue, Changes
from adapter_store.store import AdapterStore
from cluster.errors import AdapterLoadFailed
from cluster.settings import BaseModelSettings, Settings
from cluster.state import Adapter, AdapterRef, Member
from deployments.adapter_cache import AdapterCache
from deployments.call import Call, serve_call
from deployments.engine import Engine, ResponseStart
from deployments.membership import Membership

logger = logging.getLogger(__name__)


class ModelReplica:
    """Serves one base model and every adapter of it that is asked for."""

    async def __init__(self, settings: Settings, model_id: str) -> None:
        self._model = settings.model(model_id)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._blobs = BlobStore(settings.store.root)
        self._store = AdapterStore.connect(
            settings.store.url, settings.store.namespace, lease_s=settings.store.lease_s
        )
        self._engine = make_engine(self._model)
        self._ongoing = 0
        self._drops: set[asyncio.Task] = set()
        self._adapters = AdapterCache(self._engine, self._locate)
        self._loaded: dict[str, dict[int, AdapterRef]] = {}
        self._catalogue = Catalogue(self._store, self._follow)
        self._membership = Membership(
            self._store, settings.store.lease_s, self._report, self._adapters.refresh
        )
        facts = await self._engine.start()
        await self._store.put_base_model(facts)
        await self._adapters.refresh()
        await self._catalogue.start()
        await self._membership.start()

    async def answer(self, call: Call) -> AsyncIterator[ResponseStart | bytes]:
        """Stream the engine's answer."""
        self._ongoing += 1
        if call.adapter is not None:
            self._remember(call.adapter)
        try:
            answer = serve_call(self._engine, self._adapters, call, self._model.id, self._id)
            async with contextlib.aclosing(answer):
                async for item in answer:
                    yield item
        finally:
            self._ongoing -= 1

    async def check_health(self) -> None:
        await self._engine.check_health()
        self._catalogue.check()
        self._membership.check()

    async def __del__(self) -> None:
        await self._membership.stop()
        await self._catalogue.stop()
        await self._store.close()
        await self._engine.stop()

    async def _follow(self, changes: Changes) -> None:
        """Keep what is loaded in step with the store: drop what is gone, load what is new."""
        for name, adapter in changes.items():
            mine = adapter is not None and adapter.card.base_model == self._model.id
            kept = adapter.versions if mine else {}
            for number, ref in list(self._loaded.get(name, {}).items()):
                if number not in kept:
                    self._forget(ref)
            if mine and self._wants(adapter):
                await self._load_quietly(AdapterRef.of(adapter, adapter.latest))
        self._membership.announce()

    def _wants(self, adapter: Adapter) -> bool:
        """A newer version of what is here, or anything while there is room."""
        held = self._adapters.residency
        has_room = len(held.slots) + len(held.host) < held.host_capacity
        return has_room or bool(self._loaded.get(adapter.name))

    async def _load_quietly(self, ref: AdapterRef) -> None:
        try:
            await self._adapters.ensure(ref)
        except AdapterLoadFailed:
            return  # kept in `problems`, which the next report carries
        self._remember(ref)

    def _remember(self, ref: AdapterRef) -> None:
        self._loaded.setdefault(ref.name, {})[ref.version] = ref

    def _forget(self, ref: AdapterRef) -> None:
        del self._loaded[ref.name][ref.version]
        # In the background: a request may hold its lease for minutes.
        drop = asyncio.create_task(self._adapters.drop(ref), name=f"drop {ref.key}")
        self._drops.add(drop)
        drop.add_done_callback(self._drops.discard)
        drop.add_done_callback(lambda _: self._membership.announce())

    def _locate(self, ref: AdapterRef) -> Path:
        if not self._blobs.has(ref.digest):
            raise AdapterLoadFailed(
                f"the files of {ref.key} are gone from the blob store; register it again"
            )
        return self._blobs.path(ref.digest)

    def _report(self) -> Member:
        return Member(
            id=self._id,
            kind="replica",
            model=self._model.id,
            node=ray.util.get_node_ip_address(),
            position=self._catalogue.position,
            residency=self._adapters.residency,
            ongoing=self._ongoing,
            problems=self._adapters.problems,
        )


def make_engine(model: BaseModelSettings) -> Engine:
    if model.engine == "echo":
        from deployments.echo_engine import EchoEngine

        return EchoEngine(model)
    from deployments.vllm_engine import VllmEngine

    return VllmEngine(model)


def replica_app(settings: Settings, model: BaseModelSettings) -> Any:
    """The deployment of one base model, bound."""
    return (
        serve.deployment(ModelReplica)
        .options(
            name=f"Model-{model.id}",
            num_replicas=model.replicas,
            max_ongoing_requests=model.max_ongoing,
            max_queued_requests=model.max_queued,
            health_check_timeout_s=60,
            graceful_shutdown_timeout_s=20,
            **_resources(model),
        )
        .bind(settings, model.id)
    )


def _resources(model: BaseModelSettings) -> dict[str, Any]:
    """What Ray reserves: on GPUs one bundle per tensor-parallel worker, packed on one node."""
    options = {"num_cpus": model.cpus_per_replica, "runtime_env": {"env_vars": dict(model.env)}}
    if not model.gpus_per_worker:
        return {"ray_actor_options": options}
    worker = {"GPU": model.gpus_per_worker, "CPU": 1}
    return {
        "ray_actor_options": {**options, "num_cpus": 0},
        "placement_group_bundles": [dict(worker) for _ in range(model.tensor_parallel_size)],
        "placement_group_strategy": "STRICT_PACK",
    }
