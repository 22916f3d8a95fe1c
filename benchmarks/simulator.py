"""A fleet in virtual time: the real choice of the replica, the real plan, engines by their costs.

What the cluster does over processes and Redis happens here at once: reports are never late, and
requests are one tenant's. That is enough to compare settings with each other; times are the running
cluster's to tell.
"""

import heapq
import itertools
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.trace import Request
from cluster.adapters import AdapterKey
from cluster.demand import Demand
from cluster.means import MovingMean
from cluster.members import fewest_first
from cluster.placement import Host, Need, plan
from cluster.plans import ModelPlan
from cluster.settings import AdmissionSettings, DispatchSettings, PlacementSettings
from deployments.replica.worth import UsageLog
from router.replicas.dispatch import Ask, Holding, Opening, ReplicaView, first_missing, rank


@dataclass(frozen=True)
class Costs:
    """Of an engine, in seconds, as `EchoEngine` takes them."""

    prefill_s: float
    token_s: float
    crowd: float
    load_s: float
    swap_s: float


@dataclass
class Outcome:
    """What a trace gave."""

    ttft_s: list[float] = field(default_factory=list)
    hits: int = 0
    loads: int = 0

    def summary(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.ttft_s, [50, 99])
        return {
            "ttft_p50_ms": round(1000 * float(p50), 1),
            "ttft_p99_ms": round(1000 * float(p99), 1),
            "hit_ratio": round(100 * self.hits / len(self.ttft_s), 1),
            "loads": self.loads,
        }


class Replica:
    """One engine: slots, host memory, and what runs."""

    def __init__(self, name: str, lora: dict[str, int], places: int, usage: UsageLog) -> None:
        self.name = name
        self.slot_capacity, self.host_capacity = lora["slots"], lora["host_entries"]
        self.places = places
        self.usage = usage
        self.slots: OrderedDict[str, None] = OrderedDict()
        self.host: set[str] = set()
        self.loading: dict[str, float] = {}
        self.running: Counter[str] = Counter()
        self.expected: Sequence[str] = ()  # what requests in the queue wait for
        self.service_s = MovingMean()

    def view(self) -> ReplicaView:
        return ReplicaView(
            id=self.name,
            node=self.name,
            held=Holding(
                frozenset(self.slots),
                frozenset(self.host - self.slots.keys()),
                frozenset(self.loading),
                self.slot_capacity,
                self.host_capacity,
            ),
            running=fewest_first(self.running),
            ongoing=self.running.total(),
            max_ongoing=self.places,
            service_s=self.service_s.value,
        )

    def as_host(self) -> Host:
        return Host(
            id=self.name,
            node=self.name,
            entries=self.host_capacity,
            places=self.places,
            service_s=self.service_s.value,
            held=frozenset(self.host | self.loading.keys()),
            loading=len(self.loading),
        )

    def make_room(self) -> None:
        """For one more, moving out what is worth least of what no request uses."""
        if len(self.host) + len(self.loading) < self.host_capacity:
            return
        if unused := self._unused():
            victim = min(unused, key=lambda k: (-self._turn_of(k), self.usage.rank(k), k))
            self.host.discard(victim)
            self.slots.pop(victim, None)

    def has_spare(self) -> bool:
        """Whether one more would fit without moving out what is needed soon."""
        if len(self.host) + len(self.loading) < self.host_capacity:
            return True
        return any(key not in self.expected for key in self._unused())

    def _turn_of(self, key: str) -> float:
        """Its place among what is waited for."""
        return self.expected.index(key) if key in self.expected else math.inf

    def _unused(self) -> list[str]:
        return [key for key in self.host if not self.running[key]]

    def take_slot(self, key: str) -> None:
        self.slots[key] = None
        self.slots.move_to_end(key)
        while len(self.slots) > self.slot_capacity:
            self.slots.pop(next(k for k in self.slots if not self.running[k]))


class Simulation:
    """Plays traces on a fleet."""

    def __init__(
        self,
        replicas: int,
        lora: dict[str, int],
        places: int,
        costs: Costs,
        dispatch: DispatchSettings,
        placement: PlacementSettings,
        admission: AdmissionSettings,
    ) -> None:
        self._costs = costs
        self._dispatch, self._placement, self._admission = dispatch, placement, admission
        self._now = 0.0
        logs = (UsageLog(placement.usage_half_life_s, lambda: self._now) for _ in range(replicas))
        self._replicas = {
            f"r{i}": Replica(f"r{i}", lora, places, log) for i, log in enumerate(logs)
        }
        self._demand = Demand(placement.half_life_s)
        self._plan = ModelPlan()
        self._queue: deque[Request] = deque()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._outcome = Outcome()

    def play(self, trace: Sequence[Request]) -> Outcome:
        for request in trace:
            self._at(request.at_s, self._arrive, request)
        ends_at = trace[-1].at_s
        for step in range(1, math.ceil(ends_at / self._placement.period_s)):
            self._at(step * self._placement.period_s, self._replan)
        while self._events:
            self._now, _, happens, args = heapq.heappop(self._events)
            happens(*args)
        return self._outcome

    def _at(self, at: float, happens: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (at, next(self._order), happens, args))

    def _arrive(self, request: Request) -> None:
        self._demand.count(_name(request), self._now)
        self._queue.append(request)
        self._let_in()

    def _let_in(self) -> None:
        """As `Admission`: whoever may start now does, in the order of arrival."""
        if not self._queue:
            return
        waiting, self._queue = self._queue, deque()
        views = {name: replica.view() for name, replica in self._replicas.items()}
        opening = Opening.of(views.values())
        started: set[str] = set()
        for request in waiting:
            chosen = None
            if opening.admits(_key(request)):
                options = rank(Ask(_key(request)), list(views.values()), self._dispatch)
                chosen = next((o for o in options if o.may_start), None)
            if chosen is None:
                self._queue.append(request)
            else:
                replica = self._replicas[chosen.replica]
                self._start(request, replica)
                views[replica.name] = replica.view()
                opening = Opening.of(views.values())
                started.add(replica.name)
        if self._queue and self._placement.prefetch and self._admission.prefetch:
            self._load_ahead(started, list(views.values()))

    def _load_ahead(self, started: Iterable[str], views: Sequence[ReplicaView]) -> None:
        """As each call brings along what waits behind it."""
        waiting = list(dict.fromkeys(map(_key, self._queue)))
        for name in started:
            replica = self._replicas[name]
            replica.expected = waiting
            key = first_missing(waiting, name, views, self._dispatch)
            is_idle = len(replica.loading) < self._placement.moves_per_replica
            if key and is_idle and replica.has_spare():
                self._load(replica, key)

    def _start(self, request: Request, replica: Replica) -> None:
        key, costs = _key(request), self._costs
        crowd = 1 + costs.crowd * replica.running.total()
        replica.usage.count(key)
        replica.running[key] += 1
        there_at = self._now
        if key in replica.host:
            self._outcome.hits += 1
            there_at += 0.0 if key in replica.slots else costs.swap_s
        else:
            there_at = self._load(replica, key) + costs.swap_s
        replica.take_slot(key)
        first_at = there_at + costs.prefill_s * crowd
        self._outcome.ttft_s.append(first_at - request.at_s)
        ends_at = first_at + costs.token_s * crowd * request.answer_tokens
        self._at(ends_at, self._end, replica, key, ends_at - self._now)

    def _load(self, replica: Replica, key: str) -> float:
        """Begin a load unless one is under way; when the adapter will be there."""
        if key not in replica.loading:
            replica.make_room()
            self._outcome.loads += 1
            replica.loading[key] = self._now + self._costs.load_s
            self._at(replica.loading[key], self._loaded, replica, key)
        return replica.loading[key]

    def _loaded(self, replica: Replica, key: str) -> None:
        del replica.loading[key]
        replica.host.add(key)

    def _end(self, replica: Replica, key: str, took_s: float) -> None:
        replica.running[key] -= 1
        if not replica.running[key]:
            del replica.running[key]
        replica.service_s.add(took_s)
        self._let_in()

    def _replan(self) -> None:
        rates = self._demand.rates(self._now)
        hosts = [replica.as_host() for replica in self._replicas.values()]
        needs = {f"{name}@1": Need(rate=rate) for name, rate in rates.items()}
        self._plan = plan(needs, hosts, self._plan, self._placement)
        if self._placement.prefetch:
            for name, keys in self._plan.loads.items():
                for key in keys:
                    self._load(self._replicas[name], key)


def _name(request: Request) -> str:
    return f"a{request.adapter}"


def _key(request: Request) -> AdapterKey:
    return AdapterKey.of(_name(request), 1)
