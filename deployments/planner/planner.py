"""The placement controller: reads what is asked for, plans what should be where, tells replicas.

Nothing waits for it. Without it the last plan stays, replicas load what they are asked for, and the
dispatcher goes by what is really there. Only the leader's plans are taken (`adapter_store.plans`).
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping

from adapter_store.catalogue import Catalogue, Changes
from adapter_store.plans import Plans
from adapter_store.store import AdapterStore
from cluster.adapters import Adapter
from cluster.demand import Day, foreseen, mean_times, total_demand
from cluster.errors import StoreUnavailable
from cluster.members import Member
from cluster.placement import Host, Need, plan
from cluster.plans import Happening, ModelPlan, PlacementPlan
from cluster.settings import BaseModelSettings, Settings
from cluster.tasks import cancel, check
from deployments.planner.journal import adapter_news, member_news
from deployments.process import metrics
from deployments.process.telemetry import Export, Telemetry

logger = logging.getLogger(__name__)

# Of periods: a leader that is silent for so long is replaced.
_TERM = 5
# Happenings that one who does not lead remembers, for should it have to.
_BACKLOG = 20


class Planner:
    """One controller. Any number may run: one of them leads. Knows nothing of Ray."""

    def __init__(
        self, settings: Settings, who: str, export: Export = lambda families: None
    ) -> None:
        self._settings = settings
        self._who = who
        self._store = AdapterStore(settings.store)
        self._plans = Plans(settings.store)
        self._catalogue = Catalogue(self._store, self._read_news)
        self._telemetry = Telemetry(settings.store, who, export=export)
        # What happened since the journal was last written, and what it was told from.
        self._news: list[Happening] = []
        self._known: dict[str, Adapter] = {}
        self._members: list[Member] = []
        self._last = PlacementPlan()
        self._day = Day()
        # What is usual in the quarter hour that comes next.
        self._coming: int | None = None
        self._usual: Mapping[str, float] = {}
        self._leader = 0
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        await self._catalogue.start()
        # What was there before is no news.
        self._known = dict(self._catalogue.adapters)
        metrics.adapters.set(len(self._known))
        self._members = await self._store.members()
        self._news.clear()
        self._telemetry.start()
        self._task = asyncio.create_task(self._plan_for_ever(), name="planner")

    async def stop(self) -> None:
        await cancel(self._task)
        await self._telemetry.stop()
        await self._catalogue.stop()
        await self._plans.close()
        await self._store.close()

    def check(self) -> None:
        """Raise what ended a background task, so that a health check sees it."""
        self._catalogue.check()
        self._telemetry.check()
        check(self._task)

    async def step(self) -> PlacementPlan | None:
        """Plan once, and publish what is new; None when another one leads.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        leader = await self._plans.lead(self._who, for_s=_TERM * self._settings.placement.period_s)
        members = await self._store.members()
        self._look(members)
        if not leader:
            # The one that leads writes them; should it be gone, these are what it had no time for.
            self._news = self._news[-_BACKLOG:]
            return None
        began = time.monotonic()
        found = await self._plan_all(leader, members)
        metrics.plan_time.observe(time.monotonic() - began)
        await self._write_journal()
        return found

    def _look(self, members: list[Member]) -> None:
        had, has = (any(m.kind == "replica" for m in of) for of in (self._members, members))
        if had and not has:
            return  # not everybody at once: the store has lost their leases for a moment
        self._news += member_news(self._members, members)
        self._members = members

    async def _write_journal(self) -> None:
        news, self._news = self._news, []
        if not news:
            return
        try:
            await self._telemetry.store.note(news)
        except StoreUnavailable:
            self._news = news + self._news
            raise

    async def _plan_all(self, leader: int, members: list[Member]) -> PlacementPlan | None:
        if leader != self._leader:
            # What the one before has planned stays where it is.
            self._last = await self._plans.newest()
            self._leader = leader
        demand = await self._foresee(total_demand(members))
        times = mean_times(members)
        models = {m.id: self._plan(m, members, demand, times) for m in self._settings.models}
        if models != self._last.models:
            demand = {k: round(v, 4) for k, v in demand.items()}
            new = PlacementPlan(leader=self._who, at=time.time(), demand=demand, models=models)
            if not await self._plans.put(leader, new):
                return None
            for model, planned in models.items():
                already = self._last.models.get(model, ModelPlan()).loads
                moves = sum(len(set(n) - set(already.get(r, ()))) for r, n in planned.loads.items())
                metrics.plan_moves.labels(model).inc(moves)
            self._last = new
        return self._last

    async def _foresee(self, demand: Mapping[str, float]) -> Mapping[str, float]:
        """The demand, raised to what is usual at the time of the day that comes next."""
        ahead_s = self._settings.placement.ahead_s
        if not ahead_s:
            return demand
        now = time.time()
        ended = self._day.see(now, demand)
        if ended is not None:
            learned = self._day.learn(await self._plans.usual(ended))
            await self._plans.put_usual(ended, learned)
        coming = Day.quarter(now + ahead_s)
        if coming != self._coming:
            self._usual = await self._plans.usual(coming)
            self._coming = coming
        return foreseen(demand, self._usual)

    async def _read_news(self, changes: Changes) -> None:
        self._news += adapter_news(self._known, changes)
        self._known |= {name: adapter for name, adapter in changes.items() if adapter is not None}
        for name in [name for name, adapter in changes.items() if adapter is None]:
            self._known.pop(name, None)
        metrics.adapters.set(len(self._known))

    def _plan(
        self,
        model: BaseModelSettings,
        members: list[Member],
        demand: Mapping[str, float],
        times: Mapping[str, float],
    ) -> ModelPlan:
        adapters = [a for a in self._catalogue.adapters.values() if a.card.base_model == model.id]
        hosts = list(_hosts(model, members))
        before = self._last.models.get(model.id, ModelPlan())
        if not hosts:
            # They start, or the store has lost them for a moment: they will want to go on.
            return before
        return plan(
            {a.name: _need(a, demand.get(a.name, 0.0), times.get(a.name, 0.0)) for a in adapters},
            hosts,
            before,
            self._settings.placement,
        )

    async def _plan_for_ever(self) -> None:
        while True:
            try:
                await self.step()
            except StoreUnavailable as e:
                logger.warning("the plan stays as it was: %s", e)
            await asyncio.sleep(self._settings.placement.period_s)


def _need(adapter: Adapter, rate: float, service_s: float) -> Need:
    wanted = adapter.card.replicas
    return Need(
        rate=rate,
        service_s=service_s,
        at_least=0 if wanted == "auto" else wanted,
        is_pinned=adapter.card.pinned,
        entries=len(adapter.serving),
        bytes=sum(version.size_bytes for version in adapter.serving),
    )


def _hosts(model: BaseModelSettings, members: Iterable[Member]) -> Iterable[Host]:
    for member in members:
        if member.kind == "replica" and member.model == model.id:
            there = (*member.residency.slots, *member.residency.host, *member.loading)
            yield Host(
                id=member.id,
                node=member.node,
                entries=model.lora.host_entries,
                bytes=model.lora.host_bytes or math.inf,
                places=model.max_ongoing,
                service_s=member.service_s,
                held=frozenset(key.partition("@")[0] for key in there),
                refused=frozenset(key.partition("@")[0] for key in member.problems),
                loading=len(member.loading),
            )
