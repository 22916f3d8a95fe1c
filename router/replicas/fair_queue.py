"""Who is next when not everybody can start: fair between tenants, then between adapters. Pure.

Virtual token counters (Sheng et al., OSDI 2024, "Fairness in Serving Large Language Models",
algorithm 2), at two levels: of the waiting tenants the one that got least is next, and of its
adapters the one that got least. Who comes back after a pause starts at the least of those who are
waiting, so that nobody saves up. Requests of one tenant and adapter stay in their order.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cluster.adapters import AdapterKey

# (tenant, adapter version or None for the base model)
Flow = tuple[str, AdapterKey | None]


@dataclass(eq=False)
class Waiting:
    """A request in the queue.

    Attributes:
        tokens: what it will cost: its prompt and the answer it may get.
        priority: higher ones come before all lower ones.
        since: when it came, in seconds of any clock.
        epoch: of the counters that it was charged to.
    """

    flow: Flow
    tokens: float = 1.0
    priority: int = 0
    since: float = 0.0
    epoch: int = -1


@dataclass
class _Counters:
    """Tokens that each flow of one priority got."""

    spent: dict[object, float] = field(default_factory=dict)

    def lift(self, who: object, others: Iterator[object]) -> None:
        """Let a newcomer in at the level of the others."""
        level = min((self.spent[o] for o in others if o in self.spent), default=0.0)
        self.spent[who] = max(self.spent.get(who, 0.0), level)


AnyWaiting = TypeVar("AnyWaiting", bound=Waiting)


class FairQueue(Generic[AnyWaiting]):
    """Requests that wait for a replica. Not safe for threads."""

    def __init__(self) -> None:
        self._flows: dict[int, dict[Flow, deque[AnyWaiting]]] = {}
        self._epoch = 0
        self._tenants = _Counters()
        self._adapters = _Counters()

    def __len__(self) -> int:
        return sum(len(line) for flows in self._flows.values() for line in flows.values())

    def __iter__(self) -> Iterator[AnyWaiting]:
        return (w for flows in self._flows.values() for line in flows.values() for w in line)

    def heads(self) -> Iterator[AnyWaiting]:
        """Of each flow the one that came first, in the order of their turns."""
        for priority in sorted(self._flows, reverse=True):
            flows = self._flows[priority]
            for flow in sorted(flows, key=self._level):
                yield flows[flow][0]

    def push(self, waiting: AnyWaiting) -> None:
        flows = self._flows.setdefault(waiting.priority, {})
        if waiting.flow not in flows:
            self._lift(waiting.flow)
            flows[waiting.flow] = deque()
        flows[waiting.flow].append(waiting)

    def pop(self, may_start: Callable[[AnyWaiting], bool]) -> AnyWaiting | None:
        """The next request that may start; None when none of the heads of the lines may."""
        found = next((waiting for waiting in self.heads() if may_start(waiting)), None)
        if found is not None:
            self._take(found)
        return found

    def settle(self, done: AnyWaiting, tokens: float) -> None:
        """It has ended and has cost so many: charge what that is more than was thought, or give
        back what is less. Counters that have begun anew since never had it."""
        if done.epoch == self._epoch:
            self._tenants.spent[done.flow[0]] += tokens - done.tokens
            self._adapters.spent[done.flow] += tokens - done.tokens

    def remove(self, waiting: AnyWaiting) -> None:
        """Take out one whose client has left, or whose time is over; it has spent nothing."""
        line = self._flows[waiting.priority][waiting.flow]
        line.remove(waiting)
        self._tidy(waiting.priority, waiting.flow)

    def ahead_of(self, waiting: AnyWaiting) -> int:
        """About how many will have their turn before it: those of higher priority, those of its own
        tenant before it, and of every other tenant as many as of its own."""
        peers = [w for w in self if w.priority == waiting.priority and w is not waiting]
        per_tenant = Counter(w.flow[0] for w in peers)
        own = sum(w.since <= waiting.since for w in peers if w.flow[0] == waiting.flow[0])
        del per_tenant[waiting.flow[0]]
        others = sum(min(count, own + 1) for count in per_tenant.values())
        return own + others + sum(w.priority > waiting.priority for w in self)

    def newest_of_most(self) -> AnyWaiting:
        """The newest request of the tenant that has most of them here, of the lowest priority."""
        lowest = self._flows[min(self._flows)]
        per_tenant: Counter[str] = Counter()
        for (tenant, _), line in lowest.items():
            per_tenant[tenant] += len(line)
        most = max(per_tenant, key=lambda tenant: per_tenant[tenant])
        waiting = (w for (tenant, _), line in lowest.items() if tenant == most for w in line)
        return max(waiting, key=lambda w: w.since)

    def _take(self, waiting: AnyWaiting) -> None:
        flow = waiting.flow
        self._flows[waiting.priority][flow].popleft()
        self._tenants.spent[flow[0]] += waiting.tokens
        self._adapters.spent[flow] += waiting.tokens
        waiting.epoch = self._epoch
        self._tidy(waiting.priority, flow)

    def _lift(self, flow: Flow) -> None:
        active = [f for flows in self._flows.values() for f in flows]
        if flow[0] not in {tenant for tenant, _ in active}:
            self._tenants.lift(flow[0], iter({tenant for tenant, _ in active}))
        self._adapters.lift(flow, iter([f for f in active if f[0] == flow[0]]))

    def _level(self, flow: Flow) -> tuple[float, float]:
        return self._tenants.spent[flow[0]], self._adapters.spent[flow]

    def _tidy(self, priority: int, flow: Flow) -> None:
        """Forget empty lines; counters mean nothing once nobody waits."""
        flows = self._flows[priority]
        if not flows[flow]:
            del flows[flow]
        if not flows:
            del self._flows[priority]
        if not self._flows:
            self._epoch += 1
            self._tenants.spent.clear()
            self._adapters.spent.clear()
