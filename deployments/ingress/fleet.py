"""What one ingress knows of the replicas: their newest reports, and its own requests on them."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapter_store.members import Members
from cluster.adapters import AdapterKey
from cluster.demand import Demand
from cluster.means import MovingMean
from cluster.members import Ingress, Replica, Report, fewest_first
from cluster.settings import PlacementSettings
from cluster.tasks import Background
from router.replicas.dispatch import Holding, ReplicaView


@dataclass(frozen=True)
class _Known:
    """The unchanging part of a view, made once per report.

    Attributes:
        mine: requests of this process that the report may count, too.
    """

    report: Replica
    mine: Counter[AdapterKey | None]
    held: Holding


class Fleet:
    """Follows the reports of all replicas; a change is here as soon as Redis tells it."""

    def __init__(self, members: Members, settings: PlacementSettings) -> None:
        self._members = members
        self._known: dict[str, _Known] = {}
        self._tasks: dict[str, frozenset[str]] = {}
        self._ingresses = 1
        # Requests that this process has under way, by replica and adapter version.
        self._mine: dict[str, Counter[AdapterKey | None]] = {}
        self._demand = Demand(settings.half_life_s)
        self._tenants = Demand(settings.half_life_s, most=1000)
        self._times: dict[str, MovingMean] = {}
        self._listeners: list[Callable[[], None]] = []
        self._background = Background()

    async def start(self) -> None:
        """Read the reports (raises :class:`StoreUnavailable`), then follow in the background."""
        self.take(await self._members.all())
        # What was known is as good as anything: a wrong guess costs a load, not an answer.
        self._background.repeat(
            "fleet", self._follow, otherwise="the reports of the replicas stay as they were"
        )

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call it after every change of the reports."""
        self._listeners.append(listener)

    def replicas(self, model: str) -> list[ReplicaView]:
        """The replicas of a base model now."""
        return [self._view(k) for k in self._known.values() if k.report.model == model]

    def tasks(self, model: str) -> frozenset[str]:
        """What the replicas of a base model can do; nothing where there are none."""
        return self._tasks.get(model, frozenset())

    def begin(self, replica: str, key: AdapterKey | None, sequences: int = 1) -> None:
        """A request of this process, for so many answers, goes to a replica."""
        self._mine.setdefault(replica, Counter())[key] += sequences

    def end(self, replica: str, key: AdapterKey | None, sequences: int = 1) -> None:
        mine = self._mine[replica]
        mine[key] -= sequences
        if not mine[key]:
            del mine[key]
        if not mine:
            del self._mine[replica]

    def want(self, adapter: str | None, tenant: str = "") -> None:
        """Somebody asked for an adapter, or for the base model (None), whether or not a replica has
        a place for it now."""
        now = time.monotonic()
        if adapter is not None:
            self._demand.count(adapter, now)
        self._tenants.count(tenant, now)

    def demand(self) -> dict[str, float]:
        """Requests a second by adapter, of this process."""
        return self._demand.rates(time.monotonic())

    def took(self, key: AdapterKey, seconds: float) -> None:
        """A request for an adapter version has been answered."""
        self._times.setdefault(key.name, MovingMean()).add(seconds)

    def times(self, demand: Mapping[str, float]) -> dict[str, float]:
        """Mean seconds of a request by adapter, of those in `demand`; the others' are forgotten."""
        self._times = {n: self._times[n] for n in demand.keys() & self._times.keys()}
        return {name: mean.value for name, mean in self._times.items()}

    def tenants(self) -> dict[str, float]:
        """Requests a second by tenant, of this process; "" are those without one."""
        return self._tenants.rates(time.monotonic())

    def _view(self, known: _Known) -> ReplicaView:
        member = known.report
        mine = self._mine.get(member.id, Counter())
        running = fewest_first({key: n for key, n in mine.items() if key is not None})
        ongoing = mine.total()
        if self._ingresses > 1:
            # The others' requests are known as of the last report only; and all ingresses take its
            # order, or what one lets end would be kept busy by another.
            reported = [k for k in member.running if k in mine or k not in known.mine]
            running = reported + [key for key in running if key not in reported]
            ongoing += max(0, member.ongoing - known.mine.total())
        return ReplicaView(
            id=member.id,
            node=member.node,
            held=known.held,
            running=running,
            ongoing=ongoing,
            max_ongoing=max(1, member.max_ongoing),
            service_s=member.service_s,
            load_s=member.load_s,
            problems=member.problems,
        )

    def take(self, members: list[Report]) -> None:
        """The newest reports."""
        self._known = {
            m.id: _Known(m, Counter(self._mine.get(m.id, {})), Holding.of(m.residency, m.loading))
            for m in members
            if isinstance(m, Replica)
        }
        replicas = [known.report for known in self._known.values()]
        self._tasks = {
            model: frozenset().union(*(r.tasks for r in replicas if r.model == model))
            for model in {replica.model for replica in replicas}
        }
        self._ingresses = sum(isinstance(m, Ingress) for m in members)
        for listener in self._listeners:
            listener()

    async def _follow(self) -> None:
        async for members in self._members.follow():
            self.take(members)
