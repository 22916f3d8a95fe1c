"""One engine, the adapters it holds, and its part in the cluster. Knows nothing of Ray."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

from adapter_store.catalogue import Changes
from adapter_store.files.blob_stores import open_blobs
from adapter_store.files.node_cache import NodeCache
from adapter_store.plans import Plans
from cluster.adapters import Adapter, AdapterRef, BaseModelFacts, Tier, Version
from cluster.errors import AdapterLoadFailed, ModelNotFound, StoreUnavailable
from cluster.means import MovingMean
from cluster.members import Member
from cluster.placement import holders
from cluster.plans import ModelPlan
from cluster.settings import BaseModelSettings, Settings
from cluster.tasks import cancel, check
from deployments.engines.engine import Engine
from deployments.process import metrics
from deployments.process.call import Call, ResponseStart
from deployments.process.membership import Participant
from deployments.process.telemetry import Export, Telemetry
from deployments.replica.adapter_cache import AdapterCache
from deployments.replica.adapter_files import AdapterFiles
from deployments.replica.serve_call import serve_call

logger = logging.getLogger(__name__)

_CATCH_UP_S = 5.0
_RETRY_S = 0.5


class ModelServer:
    """Serves one base model and every adapter of it that is asked for."""

    def __init__(
        self,
        settings: Settings,
        model_id: str,
        replica_id: str,
        node: str,
        export: Export = lambda families: None,
    ) -> None:
        self._model: BaseModelSettings = settings.model(model_id)
        self._id = replica_id
        self._node = node
        self.engine = make_engine(self._model)
        self._facts: BaseModelFacts | None = None
        self._service_s = MovingMean()
        self._background: set[asyncio.Task] = set()
        self._cache = NodeCache(settings.node_cache.root, settings.node_cache.max_bytes)
        self._files = AdapterFiles(open_blobs(settings.store), self._cache, self.engine)
        self._adapters = AdapterCache(
            self.engine,
            self._files,
            self._model.lora.host_entries,
            self._is_pinned,
            lambda: self._participant.announce(),
            settings.placement.usage_half_life_s,
            model_id,
            self._model.lora.host_bytes or math.inf,
        )
        # What was loaded on behalf of the registry or of a request, by name and version.
        self._loaded: dict[str, dict[int, AdapterRef]] = {}
        self._peers: frozenset[str] = frozenset()
        # The adapters of this base model that want a number of replicas, by name.
        self._counted: set[str] = set()
        # The peers among whom they were last shared out.
        self._shared_among: frozenset[str] = frozenset()
        self._participant = Participant(settings.store, self._report, self._follow, self._refresh)
        self._telemetry = Telemetry(settings.store, replica_id, self._measure, export)
        self._plans = Plans(settings.store)
        self._plan = ModelPlan()
        self._prefetches = settings.placement.prefetch
        self._moves = settings.placement.moves_per_replica
        self._planning: asyncio.Task | None = None
        self._preparing: asyncio.Task | None = None
        self._to_prepare: asyncio.Queue[tuple[AdapterRef, int]] | None = (
            asyncio.Queue() if settings.node_cache.prepare_ahead else None
        )

    async def start(self) -> None:
        self._facts = await self.engine.start()
        await asyncio.to_thread(self._cache.sweep)
        await self._participant.store.put_base_model(self._facts)
        await self._adapters.refresh()
        await self._participant.start()
        self._telemetry.start()
        self._planning = asyncio.create_task(self._follow_plans(), name="plans")
        if self._to_prepare is not None:
            self._preparing = asyncio.create_task(self._prepare_ahead(), name="prepare ahead")

    async def stop(self) -> None:
        await cancel(self._planning, self._preparing)
        await self._plans.close()
        await self._telemetry.stop()
        await self._participant.stop()
        await self.engine.stop()

    async def check_health(self) -> None:
        await self.engine.check_health()
        self._participant.check()
        self._telemetry.check()
        check(self._planning, self._preparing)

    async def answer(self, call: Call) -> AsyncIterator[ResponseStart | bytes]:
        """Stream the engine's answer."""
        answer = serve_call(self.engine, self._adapters, self._admit, call, self._id)
        started = time.monotonic()
        async with contextlib.aclosing(answer):
            async for item in answer:
                yield item
        self._service_s.add(time.monotonic() - started)

    async def _admit(self, call: Call) -> None:
        """Before it takes its lease: what it asks for is there, what others wait for is known."""
        if call.adapter is not None:
            await self._check(call)
        self._adapters.expect(call.waiting, used=call.key)
        if call.missing and self._prefetches and call.replica == self._id:
            self._load_missing(call)

    async def _check(self, call: Call) -> None:
        """Refuse a version that was deleted while the request waited in a queue.

        Loading it again would keep it for ever: no further event would tell to drop it.
        """
        catalogue = self._participant.catalogue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_S):
                await catalogue.wait_for(call.position)
        adapter = catalogue.adapters.get(call.adapter.name)
        if adapter is None or call.adapter.version not in adapter.versions:
            raise ModelNotFound(call.adapter.key)
        self._check_base(adapter, adapter.versions[call.adapter.version])
        self._remember(call.adapter)

    def _check_base(self, adapter: Adapter, version: Version) -> None:
        """Weights that were checked against another base model would answer with noise."""
        if version.base_fingerprint in ("", self._facts.fingerprint):
            return
        raise AdapterLoadFailed(
            f"{adapter.name}@{version.number} was registered for a base model with fingerprint "
            f"{version.base_fingerprint}, {self._model.id} now has {self._facts.fingerprint}; "
            "register it again for this one"
        )

    async def _follow(self, changes: Changes) -> None:
        """Keep what is loaded in step with the store: drop what is gone, load what is new."""
        mine = {
            name: adapter
            for name, adapter in changes.items()
            if adapter is not None and adapter.card.base_model == self._model.id
        }
        for name in changes:
            kept = mine[name].versions if name in mine else {}
            self._adapters.clear_problems(name)
            for number, ref in list(self._loaded.get(name, {}).items()):
                if number not in kept:
                    self._forget(ref)
        self._counted -= changes.keys()
        self._counted |= {n for n, adapter in mine.items() if adapter.card.replicas != "auto"}
        if self._counted & changes.keys():
            await self._meet_peers()
        await self._load_wanted(mine.values())
        if self._to_prepare is not None:
            for adapter in mine.values():
                for version in adapter.serving:
                    ref = AdapterRef.of(adapter, version)
                    self._to_prepare.put_nowait((ref, version.size_bytes))

    async def _prepare_ahead(self) -> None:
        """Make what was registered ready on this node, as long as its cache has room."""
        while True:
            ref, size_bytes = await self._to_prepare.get()
            adapter = self._participant.catalogue.adapters.get(ref.name)
            if adapter is not None and ref.version in adapter.versions:
                await self._files.prepare_ahead(ref, size_bytes)

    async def _follow_plans(self) -> None:
        """Move toward every new plan; without the store, the last one holds."""
        while True:
            try:
                async for plan in self._plans.follow():
                    self._plan = plan.models.get(self._model.id, ModelPlan())
                    self._heed(self._plan)
            except StoreUnavailable as e:
                logger.warning("the plan stays as it was: %s", e)
                await asyncio.sleep(_RETRY_S)

    def _heed(self, plan: ModelPlan) -> None:
        """Keep what should be here, and load what should come: requests need not ask first."""
        # What is on one replica alone stays by its use, which the replica knows best.
        self._adapters.keep(
            name
            for name, replicas in plan.holders.items()
            if self._id in replicas and (len(replicas) > 1 or name in self._counted)
        )
        if not self._prefetches:
            return
        for name in plan.loads.get(self._id, ()):
            adapter = self._participant.catalogue.adapters.get(name)
            for version in adapter.serving if adapter else ():
                self._prefetch(adapter, version)

    def _load_missing(self, call: Call) -> None:
        """Begin to load what a request in the queue waits for, if that disturbs nobody."""
        name, _, number = call.missing.partition("@")
        adapter = self._participant.catalogue.adapters.get(name)
        version = adapter.versions.get(int(number)) if adapter else None
        if version is None or len(self._adapters.loading) >= self._moves:
            return
        if self._adapters.has_spare(version.size_bytes, beside=call.key):
            self._prefetch(adapter, version)

    def _prefetch(self, adapter: Adapter, version: Version) -> None:
        ref = AdapterRef.of(adapter, version)
        if not self._adapters.has(ref) and ref.key not in self._adapters.problems:
            self._remember(ref)  # now, or a removal that is told before the load begins misses it
            self._in_background(self._load_quietly(adapter, version), f"prefetch {ref.key}")

    async def _refresh(self) -> None:
        """Before each report; takes over from replicas that have died, and does again what a plan
        wants and has not got."""
        await self._adapters.refresh()
        self._heed(self._plan)
        if self._counted:
            await self._meet_peers()
        if self._peers != self._shared_among:
            self._shared_among = self._peers
            adapters = self._participant.catalogue.adapters
            found = (adapters.get(name) for name in self._counted)
            await self._load_wanted([adapter for adapter in found if adapter is not None])

    async def _meet_peers(self) -> None:
        """Look who is there; without the store, it stays at who was."""
        try:
            members = await self._participant.store.members()
        except StoreUnavailable:
            return
        alive = {m.id for m in members if m.kind == "replica" and m.model == self._model.id}
        self._peers = frozenset(alive | {self._id})

    async def _load_wanted(self, adapters: Iterable[Adapter]) -> None:
        """Load the versions that serve: of what is here, of what was assigned, and of anything
        while there is room."""
        room = self._adapters.room
        wanted: list[tuple[Adapter, Version]] = []
        for adapter in adapters:
            serving = [(adapter, version) for version in adapter.serving]
            if not self._has(adapter) and not self._is_assigned(adapter):
                if adapter.card.replicas != "auto" or room < len(serving):
                    continue
                room -= len(serving)
            wanted += serving
        await asyncio.gather(*(self._load_quietly(*one) for one in wanted))

    def _has(self, adapter: Adapter) -> bool:
        """Whether any version of it is here; one that was moved out is not."""
        return any(self._adapters.has(ref) for ref in self._loaded.get(adapter.name, {}).values())

    def _is_assigned(self, adapter: Adapter) -> bool:
        wanted = adapter.card.replicas
        return wanted != "auto" and self._id in holders(adapter.name, wanted, self._peers)

    async def _load_quietly(self, adapter: Adapter, version: Version) -> None:
        ref = AdapterRef.of(adapter, version)
        self._remember(ref)
        try:
            # Every version may be in use for minutes; the load goes on, the events must as well.
            async with asyncio.timeout(_CATCH_UP_S):
                await self._load(adapter, version, ref)
        except TimeoutError:
            # The report says that it is on its way; those who wait for it wait on.
            self._in_background(self._load(adapter, version, ref), f"await {ref.key}")

    async def _load(self, adapter: Adapter, version: Version, ref: AdapterRef) -> None:
        """Load a version, or keep why it could not be for the next report."""
        try:
            self._check_base(adapter, version)
            await self._adapters.ensure(ref)
        except AdapterLoadFailed as e:
            self._adapters.problems[ref.key] = e.message
            self._loaded.get(ref.name, {}).pop(ref.version, None)

    def _is_pinned(self, name: str) -> bool:
        adapter = self._participant.catalogue.adapters.get(name)
        return adapter is not None and adapter.card.pinned

    def _remember(self, ref: AdapterRef) -> None:
        self._loaded.setdefault(ref.name, {})[ref.version] = ref

    def _forget(self, ref: AdapterRef) -> None:
        self._loaded.get(ref.name, {}).pop(ref.version, None)
        # A request may hold its lease for minutes.
        self._in_background(self._adapters.drop(ref), f"drop {ref.key}")

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do it while events go on, and report when it is done."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(lambda _: self._participant.announce())

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

    def _report(self) -> Member:
        return Member(
            id=self._id,
            kind="replica",
            model=self._model.id,
            node=self._node,
            position=self._participant.catalogue.position,
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
        )


def make_engine(model: BaseModelSettings) -> Engine:
    if model.engine == "echo":
        from deployments.engines.echo import EchoEngine

        return EchoEngine(model)
    from deployments.engines.vllm_engine import VllmEngine

    return VllmEngine(model)
