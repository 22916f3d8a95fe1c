"""One engine, the adapters it holds, and its part in the cluster. Knows nothing of Ray."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.node_cache import NodeCache
from cluster.adapters import AdapterRef, Tier
from cluster.errors import ModelNotFound
from cluster.means import MovingMean
from cluster.members import Replica
from cluster.settings import BaseModelSettings, Settings, TelemetrySettings
from deployments.engines.engine import Engine
from deployments.process import metrics
from deployments.process.call import TRIAL_PATH, Call, Reply
from deployments.process.membership import Membership
from deployments.process.process import Process
from deployments.process.tracing import Tracing, for_engines
from deployments.replica.adapter_cache import AdapterCache
from deployments.replica.adapter_files import AdapterFiles
from deployments.replica.base_model import BaseModel
from deployments.replica.follower import Follower
from deployments.replica.prepare_ahead import PrepareAhead
from deployments.replica.serve_call import serve_call
from deployments.replica.sharing import Sharing
from deployments.replica.trials import Trials

_CATCH_UP_S = 5.0


class ModelServer:
    """Serves one base model and every adapter of it that is asked for.

    Args:
        process: that it is the main part of; started and stopped with this.
        node: whose files it shares with other replicas.
    """

    def __init__(self, settings: Settings, model_id: str, process: Process, node: str) -> None:
        self._model = settings.model(model_id)
        self._process = process
        self._node = node
        self._base = BaseModel(model_id)
        self._service_s = MovingMean()
        self.engine = make_engine(traced(self._model, settings.telemetry))
        process.add(Tracing(settings.telemetry, "replica", process.id))
        self._node_cache = NodeCache(settings.node_cache.root, settings.node_cache.max_bytes)
        files = AdapterFiles(open_blobs(settings.store), self._node_cache, self.engine)
        self._adapters = AdapterCache(
            self.engine,
            files,
            self._model.lora,
            is_pinned=self._is_pinned,
            usage_half_life_s=settings.placement.usage_half_life_s,
            model=model_id,
        )
        store, catalogue = process.store, process.catalogue
        self._follower = Follower(
            catalogue,
            store.plans,
            Sharing(store.members, model_id, process.id),
            self._adapters,
            self._base,
            settings.placement,
            process.id,
        )
        self._trials = Trials(self._adapters)
        ahead = PrepareAhead(
            catalogue, files, model_id, is_wanted=settings.node_cache.prepare_ahead
        )
        membership = Membership(store.members, catalogue, self.report, self._refresh)
        self._adapters.on_change(membership.announce)
        process.telemetry.on_reading(self._measure)
        for part in (membership, self._follower, ahead, self._trials):
            process.add(part)

    async def start(self) -> None:
        self._base.facts = await self.engine.start()
        await asyncio.to_thread(self._node_cache.sweep)
        await self._process.store.registry.put_base_model(self._base.facts)
        await self._adapters.refresh()
        await self._process.start()

    async def stop(self) -> None:
        await self._process.stop()
        await self._adapters.stop()
        await self.engine.stop()

    async def check_health(self) -> None:
        await self.engine.check_health()
        self._process.check()

    @contextlib.asynccontextmanager
    async def answer(self, call: Call) -> AsyncIterator[Reply]:
        """The engine's answer; what is read to its end counts as a request's time."""
        if call.path == TRIAL_PATH and call.adapter is not None:
            yield await self._trials.answer(call.adapter)
            return
        started = time.monotonic()
        async with contextlib.AsyncExitStack() as held:
            yield await serve_call(
                self.engine, self._adapters, self._admit, call, self._process.id, held
            )
        self._service_s.add(time.monotonic() - started)

    async def _admit(self, call: Call) -> None:
        """Before it takes its lease: what it asks for is there, what others wait for is known."""
        if call.adapter is not None:
            await self._check(call.adapter, call.position)
        self._adapters.expect(call.waiting, used=call.key)
        self._follower.load_missing(call)

    async def _check(self, ref: AdapterRef, position: str) -> None:
        """Refuse a version that was deleted while the request waited in a queue.

        Loading it again would keep it for ever: no further event would tell to drop it.
        """
        catalogue = self._process.catalogue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_S):
                await catalogue.wait_for(position)
        adapter = catalogue.adapters.get(ref.name)
        if adapter is None or ref.version not in adapter.versions:
            raise ModelNotFound(ref.key)
        self._base.check(adapter, adapter.versions[ref.version])
        self._follower.remember(ref)

    async def _refresh(self) -> None:
        """Before each report."""
        await self._adapters.refresh()
        await self._follower.catch_up()

    def _is_pinned(self, name: str) -> bool:
        adapter = self._process.catalogue.adapters.get(name)
        return adapter is not None and adapter.card.pinned

    def _measure(self) -> None:
        """Set the gauges of this replica."""
        model, held = self._model.id, self._adapters.residency
        for tier, there, room in (
            (Tier.SLOT, held.slots, held.slot_capacity),
            (Tier.HOST, held.host, held.host_capacity),
        ):
            metrics.resident.labels(model, tier.value).set(len(there))
            metrics.capacity.labels(model, tier.value).set(room)
        metrics.leases.labels(model).set(self._adapters.leases)
        if (kv_use := self.engine.kv_use()) is not None:
            metrics.kv_use.labels(model).set(kv_use)
        if self._model.is_elsewhere:
            metrics.endpoint_open.labels(model).set(bool(self.engine.trouble()))

    def report(self) -> Replica:
        """What the others should know of it now."""
        return Replica(
            id=self._process.id,
            model=self._model.id,
            node=self._node,
            position=self._process.catalogue.position,
            residency=self._adapters.residency,
            loading=self._adapters.loading,
            ongoing=self.engine.unfinished(),
            max_ongoing=self._model.max_ongoing,
            service_s=self._service_s.value,
            load_s=self._adapters.load_s,
            loads=self._adapters.loads,
            running=self._adapters.running,
            leaving=self._adapters.leaving,
            leases=self._adapters.leases,
            kv_use=self.engine.kv_use(),
            problems=self._adapters.problems,
            trouble=self.engine.trouble(),
            tasks=self.engine.tasks,
        )


def traced(model: BaseModelSettings, telemetry: TelemetrySettings) -> BaseModelSettings:
    """With vLLM's own spans sent where ours are, unless its arguments say otherwise."""
    if model.engine != "vllm":
        return model
    arguments = for_engines(telemetry) | model.engine_args
    return model.model_copy(update={"engine_args": arguments})


def make_engine(model: BaseModelSettings) -> Engine:
    if model.engine == "echo":
        from deployments.engines.echo import EchoEngine

        return EchoEngine(model)
    if model.is_elsewhere:
        from deployments.engines.endpoint.endpoint_engine import EndpointEngine

        return EndpointEngine(model)
    from deployments.engines.vllm_engine import VllmEngine

    return VllmEngine(model)
