"""The placement controller: reads what is asked for, plans what should be where, tells replicas.

Nothing waits for it. Without it the last plan stays, replicas load what they are asked for, and the
dispatcher goes by what is really there. Only the leader's plans are taken (`adapter_store.plans`).
"""

import math
import time
from collections.abc import Iterable, Mapping

from cluster.adapters import Adapter
from cluster.demand import mean_times, total_demand
from cluster.members import Replica, Report
from cluster.placement import Host, Need, plan
from cluster.plans import ModelPlan, PlacementPlan
from cluster.settings import BaseModelSettings, Settings
from cluster.tasks import Background
from deployments.planner.foresight import Foresight
from deployments.planner.news import News
from deployments.process import metrics
from deployments.process.process import Process

# Of periods: a leader that is silent for so long is replaced.
_TERM = 5


class Planner:
    """One controller. Any number may run: one of them leads. Knows nothing of Ray.

    Args:
        process: that it is a part of.
    """

    def __init__(self, settings: Settings, process: Process) -> None:
        self._settings = settings
        self._process = process
        self._store = process.store
        self._news = News(process.store.telemetry, process.catalogue)
        self._foresight = Foresight(process.store.plans, settings.placement.ahead_s)
        self._last = PlacementPlan()
        self._leader = 0
        self._background = Background()

    async def start(self) -> None:
        self._news.start(await self._store.members.all())
        self._background.repeat(
            "planner",
            self.step,
            otherwise="the plan stays as it was",
            pause_s=self._settings.placement.period_s,
            retry_s=self._settings.placement.period_s,
        )

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    async def step(self) -> PlacementPlan | None:
        """Plan once, and publish what is new; None when another one leads.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        term_s = _TERM * self._settings.placement.period_s
        leader = await self._store.plans.lead(self._process.id, for_s=term_s)
        members = await self._store.members.all()
        self._news.look(members)
        if not leader:
            self._news.leave_to_others()
            return None
        began = time.monotonic()
        found = await self._plan_all(leader, members)
        metrics.plan_time.observe(time.monotonic() - began)
        await self._news.write()
        return found

    async def _plan_all(self, leader: int, members: list[Report]) -> PlacementPlan | None:
        if leader != self._leader:
            # What the one before has planned stays where it is.
            self._last = await self._store.plans.newest()
            self._leader = leader
        demand = await self._foresight.of(total_demand(members))
        times = mean_times(members)
        models = {m.id: self._plan(m, members, demand, times) for m in self._settings.models}
        if models != self._last.models:
            demand = {k: round(v, 4) for k, v in demand.items()}
            who = self._process.id
            new = PlacementPlan(leader=who, at=time.time(), demand=demand, models=models)
            if not await self._store.plans.put(leader, new):
                return None
            _count_moves(self._last.models, models)
            self._last = new
        return self._last

    def _plan(
        self,
        model: BaseModelSettings,
        members: list[Report],
        demand: Mapping[str, float],
        times: Mapping[str, float],
    ) -> ModelPlan:
        known = self._process.catalogue.adapters.values()
        adapters = [a for a in known if a.card.base_model == model.id]
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


def _count_moves(before: Mapping[str, ModelPlan], after: Mapping[str, ModelPlan]) -> None:
    for model, planned in after.items():
        already = before.get(model, ModelPlan()).loads
        moves = sum(len(set(n) - set(already.get(r, ()))) for r, n in planned.loads.items())
        metrics.plan_moves.labels(model).inc(moves)


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


def _hosts(model: BaseModelSettings, members: Iterable[Report]) -> Iterable[Host]:
    for member in members:
        if isinstance(member, Replica) and member.model == model.id:
            there = (*member.residency.slots, *member.residency.host, *member.loading)
            yield Host(
                id=member.id,
                node=member.node,
                entries=model.lora.host_entries,
                bytes=model.lora.host_bytes or math.inf,
                places=model.max_ongoing,
                service_s=member.service_s,
                held=frozenset(key.name for key in there),
                refused=frozenset(key.name for key in member.problems),
                loading=len(member.loading),
            )
