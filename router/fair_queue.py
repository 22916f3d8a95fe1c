"""Who is next when not everybody can start: fair between tenants, then between adapters. Pure.

Virtual token counters (Sheng et al., OSDI 2024, "Fairness in Serving Large Language Models",
algorithm 2), at two levels: of the waiting tenants the one that got least is next, and of its
adapters the one that got least. Who comes back after a pause starts at the least of those who are
waiting, so that nobody saves up. Requests of one tenant and adapter stay in their order.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# (tenant, adapter version or None for the base model)
Flow = tuple[str, str | None]


@dataclass(eq=False)
class Waiting:
    """A request in the queue.

    Attributes:
        tokens: what it will cost: its prompt and the answer it may get.
        priority: higher ones come before all lower ones.
        since: when it came, in seconds of any clock; until: when it is too late, of the same.
    """

    flow: Flow
    tokens: float = 1.0
    priority: int = 0
    since: float = 0.0
    until: float = float("inf")


@dataclass
class _Counters:
    """Tokens that each flow of one priority got."""

    spent: dict[object, float] = field(default_factory=dict)

    def lift(self, who: object, others: Iterator[object]) -> None:
        """Let a newcomer in at the level of the others."""
        level = min((self.spent[o] for o in others if o in self.spent), default=0.0)
        self.spent[who] = max(self.spent.get(who, 0.0), level)


class FairQueue:
    """Requests that wait for a replica. Not safe for threads."""

    def __init__(self) -> None:
        self._flows: dict[int, dict[Flow, deque[Waiting]]] = {}
        self._tenants = _Counters()
        self._adapters = _Counters()

    def __len__(self) -> int:
        return sum(len(line) for flows in self._flows.values() for line in flows.values())

    def __iter__(self) -> Iterator[Waiting]:
        return (w for flows in self._flows.values() for line in flows.values() for w in line)

    def push(self, waiting: Waiting) -> None:
        flows = self._flows.setdefault(waiting.priority, {})
        if waiting.flow not in flows:
            self._lift(waiting.flow)
            flows[waiting.flow] = deque()
        flows[waiting.flow].append(waiting)

    def pop(self, may_start: Callable[[Waiting], bool]) -> Waiting | None:
        """The next request that may start; None when none of the heads of the lines may."""
        for priority in sorted(self._flows, reverse=True):
            flows = self._flows[priority]
            for flow in sorted(flows, key=self._level):
                if may_start(flows[flow][0]):
                    return self._take(priority, flow)
        return None

    def remove(self, waiting: Waiting) -> None:
        """Take out one whose client has left, or whose time is over; it has spent nothing."""
        line = self._flows[waiting.priority][waiting.flow]
        line.remove(waiting)
        self._tidy(waiting.priority, waiting.flow)

    def late(self, now: float) -> list[Waiting]:
        """Those whose time is over."""
        return [waiting for waiting in self if waiting.until <= now]

    def ahead_of(self, waiting: Waiting) -> int:
        """How many of the others are certainly not behind it."""
        return sum(
            other.priority > waiting.priority
            or (other.priority == waiting.priority and other.since <= waiting.since)
            for other in self
            if other is not waiting
        )

    def _take(self, priority: int, flow: Flow) -> Waiting:
        waiting = self._flows[priority][flow].popleft()
        self._tenants.spent[flow[0]] += waiting.tokens
        self._adapters.spent[flow] += waiting.tokens
        self._tidy(priority, flow)
        return waiting

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
            self._tenants.spent.clear()
            self._adapters.spent.clear()
