"""What should be on a replica: as the registry changes, as plans come, as requests wait."""

import asyncio
from collections.abc import Iterable

from adapter_store.catalogue import Catalogue, Changes
from adapter_store.plans import Plans
from cluster.adapters import Adapter, AdapterRef, Version
from cluster.errors import AdapterLoadFailed
from cluster.plans import ModelPlan
from cluster.settings import PlacementSettings
from cluster.tasks import Background
from deployments.process.call import Call
from deployments.replica.adapter_cache import AdapterCache
from deployments.replica.base_model import BaseModel
from deployments.replica.sharing import Sharing

# A load may wait for minutes until a version has lost its last lease; events do not.
_LOAD_SOON_S = 5.0


class Follower:
    """Keeps what is loaded in step with the store: drops what is gone, loads what is new, or
    planned, or waited for.

    Args:
        base: the base model that the engine has.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        plans: Plans,
        sharing: Sharing,
        adapters: AdapterCache,
        base: BaseModel,
        placement: PlacementSettings,
        replica_id: str,
    ) -> None:
        self._catalogue = catalogue
        self._plans = plans
        self._sharing = sharing
        self._adapters = adapters
        self._base = base
        self._placement = placement
        self._id = replica_id
        # What was loaded on behalf of the registry or of a request, by name and version.
        self._loaded: dict[str, dict[int, AdapterRef]] = {}
        self._plan = ModelPlan()
        self._background = Background()
        catalogue.on_change(self._follow)

    async def start(self) -> None:
        self._background.repeat("plans", self._follow_plans, otherwise="the plan stays as it was")

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    def remember(self, ref: AdapterRef) -> None:
        """A version is loaded, or will be: to be dropped when it is removed."""
        self._loaded.setdefault(ref.name, {})[ref.version] = ref

    def load_missing(self, call: Call) -> None:
        """Begin to load what a request in the queue waits for, if that disturbs nobody."""
        if call.missing is None or not self._placement.prefetch or call.replica != self._id:
            return
        adapter = self._catalogue.adapters.get(call.missing.name)
        version = adapter.versions.get(call.missing.version) if adapter else None
        if adapter is None or version is None:
            return
        if len(self._adapters.loading) >= self._placement.moves_per_replica:
            return
        if self._adapters.has_spare(version.size_bytes, beside=call.key):
            self._prefetch(adapter, version)

    async def catch_up(self) -> None:
        """Take over from replicas that have died, and do again what a plan wants and has not
        got."""
        self._heed(self._plan)
        if await self._sharing.has_changed():
            found = (self._catalogue.adapters.get(name) for name in self._sharing.counted)
            await self._load_wanted([adapter for adapter in found if adapter is not None])

    async def _follow(self, changes: Changes) -> None:
        mine = {
            name: adapter
            for name, adapter in changes.items()
            if adapter is not None and adapter.card.base_model == self._base.id
        }
        for name in changes:
            kept = mine[name].versions if name in mine else {}
            self._adapters.clear_problems(name)
            for number, ref in list(self._loaded.get(name, {}).items()):
                if number not in kept:
                    self._forget(ref)
        await self._sharing.heed(changes, mine.values())
        await self._load_wanted(mine.values())

    async def _follow_plans(self) -> None:
        """Move toward every new plan; without the store, the last one holds."""
        async for plan in self._plans.follow():
            self._plan = plan.models.get(self._base.id, ModelPlan())
            self._heed(self._plan)

    def _heed(self, plan: ModelPlan) -> None:
        """Keep what should be here, and load what should come: requests need not ask first."""
        # What is on one replica alone stays by its use, which the replica knows best.
        names = [
            name
            for name, replicas in plan.holders.items()
            if self._id in replicas and (len(replicas) > 1 or name in self._sharing.counted)
        ]
        kept = (self._catalogue.adapters.get(name) for name in names)
        # Versions that were replaced go by their use.
        self._adapters.keep(a.key(v) for a in kept if a is not None for v in a.serving)
        if not self._placement.prefetch:
            return
        for name in plan.loads.get(self._id, ()):
            adapter = self._catalogue.adapters.get(name)
            if adapter is not None:
                for version in adapter.serving:
                    self._prefetch(adapter, version)

    def _prefetch(self, adapter: Adapter, version: Version) -> None:
        ref = AdapterRef.of(adapter, version)
        if not self._adapters.has(ref) and ref.key not in self._adapters.problems:
            self.remember(ref)  # now, or a removal that is told before the load begins misses it
            self._background.spawn(f"prefetch {ref.key}", self._load_soon(adapter, version))

    async def _load_wanted(self, adapters: Iterable[Adapter]) -> None:
        """Load the versions that serve: of what is here, of what was assigned, and of anything
        while there is room."""
        room = self._adapters.room
        wanted: list[tuple[Adapter, Version]] = []
        for adapter in adapters:
            serving = [(adapter, version) for version in adapter.serving]
            if not self._has(adapter) and not self._sharing.is_assigned(adapter):
                if adapter.card.replicas != "auto" or room < len(serving):
                    continue
                room -= len(serving)
            wanted += serving
        await asyncio.gather(*(self._load_soon(*one) for one in wanted))

    def _has(self, adapter: Adapter) -> bool:
        """Whether any version of it is here; one that was moved out is not."""
        return any(self._adapters.has(ref) for ref in self._loaded.get(adapter.name, {}).values())

    async def _load_soon(self, adapter: Adapter, version: Version) -> None:
        ref = AdapterRef.of(adapter, version)
        self.remember(ref)
        try:
            # Every version may be in use for minutes; the load goes on, the events must as well.
            async with asyncio.timeout(_LOAD_SOON_S):
                await self._load(adapter, version, ref)
        except TimeoutError:
            # The report says that it is on its way; those who wait for it wait on.
            self._background.spawn(f"await {ref.key}", self._load(adapter, version, ref))

    async def _load(self, adapter: Adapter, version: Version, ref: AdapterRef) -> None:
        """Load a version, or keep why it could not be for the next report."""
        try:
            self._base.check(adapter, version)
            await self._adapters.ensure(ref)
        except AdapterLoadFailed as e:
            self._adapters.refuse(ref, e.message)
            self._loaded.get(ref.name, {}).pop(ref.version, None)

    def _forget(self, ref: AdapterRef) -> None:
        self._loaded.get(ref.name, {}).pop(ref.version, None)
        # A request may hold its lease for minutes.
        self._background.spawn(f"drop {ref.key}", self._adapters.drop(ref))
