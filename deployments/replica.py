"""A model replica: one engine, the adapters it holds, and its part in the cluster."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve

from adapter_store.blobs import BlobStore
from adapter_store.catalogue import Catalogue, Changes
from adapter_store.node_cache import NodeCache
from adapter_store.store import AdapterStore
from cluster.errors import AdapterLoadFailed, ModelNotFound
from cluster.settings import BaseModelSettings, Settings
from cluster.state import Adapter, AdapterRef, Member
from deployments.adapter_cache import AdapterCache
from deployments.adapter_files import AdapterFiles
from deployments.call import Call, serve_call
from deployments.engine import Engine, ResponseStart
from deployments.membership import Membership
from deployments.vllm_plugin import IN_REPLICA

logger = logging.getLogger(__name__)

_CATCH_UP_S = 5.0
# Serve replaces a replica that fails three checks in a row.
_HEALTH_PERIOD_S = 2.0


class ModelReplica:
    """Serves one base model and every adapter of it that is asked for."""

    async def __init__(self, settings: Settings, model_id: str) -> None:
        self._model = settings.model(model_id)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._store = AdapterStore.connect(settings.store)
        self._engine = make_engine(self._model)
        self._drops: set[asyncio.Task] = set()
        self._cache = NodeCache(settings.node_cache.root, settings.node_cache.max_bytes)
        files = AdapterFiles(BlobStore(settings.store.root), self._cache, self._engine)
        self._adapters = AdapterCache(self._engine, files, self._model.lora.host_entries)
        self._loaded: dict[str, dict[int, AdapterRef]] = {}
        self._catalogue = Catalogue(self._store, self._follow)
        self._membership = Membership(
            self._store, settings.store.lease_s, self._report, self._adapters.refresh
        )
        facts = await self._engine.start()
        await asyncio.to_thread(self._cache.sweep)
        await self._store.put_base_model(facts)
        await self._adapters.refresh()
        await self._catalogue.start()
        await self._membership.start()

    async def answer(self, call: Call) -> AsyncIterator[ResponseStart | bytes]:
        """Stream the engine's answer."""
        await self._end_if_dead()
        answer = serve_call(self._engine, self._adapters, self._admit, call, self._id)
        async with contextlib.aclosing(answer):
            async for item in answer:
                yield item

    async def _end_if_dead(self) -> None:
        """A replica whose engine has died ends at once: the ingress then asks another one, which
        it cannot know to do from an error that the engine's own HTTP layer makes of it."""
        try:
            await self._engine.check_health()
        except Exception:
            logger.exception("the engine is dead; so is this replica")
            os._exit(1)

    async def check_health(self) -> None:
        await self._engine.check_health()
        self._catalogue.check()
        self._membership.check()

    async def __del__(self) -> None:
        await self._membership.stop()
        await self._catalogue.stop()
        await self._store.close()
        await self._engine.stop()

    async def _admit(self, call: Call) -> None:
        """Refuse a version that was deleted while the request waited in a queue.

        Loading it again would keep it for ever: no further event would tell to drop it.
        """
        if call.adapter is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_S):
                await self._catalogue.wait_for(call.position)
        adapter = self._catalogue.adapters.get(call.adapter.name)
        if adapter is None or call.adapter.version not in adapter.versions:
            raise ModelNotFound(call.adapter.key)
        self._remember(call.adapter)

    async def _follow(self, changes: Changes) -> None:
        """Keep what is loaded in step with the store: drop what is gone, load what is new."""
        for name, adapter in changes.items():
            mine = adapter is not None and adapter.card.base_model == self._model.id
            kept = adapter.versions if mine else {}
            self._adapters.clear_problems(name)
            for number, ref in list(self._loaded.get(name, {}).items()):
                if number not in kept:
                    self._forget(ref)
            if mine and self._wants(adapter):
                await self._load_quietly(AdapterRef.of(adapter, adapter.latest))
        self._membership.announce()

    def _wants(self, adapter: Adapter) -> bool:
        """A newer version of what is here, or anything while there is room."""
        return self._adapters.has_room or bool(self._loaded.get(adapter.name))

    async def _load_quietly(self, ref: AdapterRef) -> None:
        self._remember(ref)
        try:
            # Every version may be in use for minutes; the load goes on, the events must as well.
            async with asyncio.timeout(_CATCH_UP_S):
                await self._adapters.ensure(ref)
        except TimeoutError:
            logger.info("%s waits for room", ref.key)
        except AdapterLoadFailed:
            self._loaded[ref.name].pop(ref.version)  # kept in `problems`, for the next report

    def _remember(self, ref: AdapterRef) -> None:
        self._loaded.setdefault(ref.name, {})[ref.version] = ref

    def _forget(self, ref: AdapterRef) -> None:
        del self._loaded[ref.name][ref.version]
        # In the background: a request may hold its lease for minutes.
        drop = asyncio.create_task(self._adapters.drop(ref), name=f"drop {ref.key}")
        self._drops.add(drop)
        drop.add_done_callback(self._drops.discard)
        drop.add_done_callback(lambda _: self._membership.announce())

    def _report(self) -> Member:
        return Member(
            id=self._id,
            kind="replica",
            model=self._model.id,
            node=ray.util.get_node_ip_address(),
            position=self._catalogue.position,
            residency=self._adapters.residency,
            ongoing=self._engine.unfinished(),
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
            health_check_period_s=_HEALTH_PERIOD_S,
            health_check_timeout_s=60,
            graceful_shutdown_timeout_s=20,
            **_resources(model),
        )
        .bind(settings, model.id)
    )


def _resources(model: BaseModelSettings) -> dict[str, Any]:
    """What Ray reserves for a replica.

    Without GPUs, vLLM's workers are child processes of the replica's actor. With GPUs they are
    actors, each in a bundle of one placement group on one node; the replica's own actor, which
    needs no GPU, is in the first bundle. vLLM finds the group by itself, as the one it is in.
    """
    env = dict(model.env) | {IN_REPLICA: "1"}
    actor = {"num_cpus": model.cpus_per_replica, "runtime_env": {"env_vars": env}}
    if not model.gpus_per_worker:
        return {"ray_actor_options": actor}
    env["VLLM_RAY_PER_WORKER_GPUS"] = str(model.gpus_per_worker)
    worker = {"GPU": model.gpus_per_worker}
    first = worker | {"CPU": model.cpus_per_replica}
    return {
        "ray_actor_options": actor,
        "placement_group_bundles": [first] + [worker] * (model.tensor_parallel_size - 1),
        "placement_group_strategy": "STRICT_PACK",
    }
