"""Which replica a request goes to: the one that should give the first token soonest. Pure.

Every replica gets an expected time, in seconds:

    cost = standing + queue - prefix - home

`standing` is the way of the adapter into a batch (below), `queue` what the requests before it take,
`prefix` what a cached prompt start saves, `home` a small bonus where rendezvous hashing puts the
adapter, so that processes that know nothing of each other agree.

Affinity is bounded (consistent hashing with bounded loads, Mirrokni et al. 2018): a replica with
more than (1 + spread) times the mean comes after all others, whatever it holds. So a hot adapter
gets further replicas as its load grows, and a cold one stays where it is.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache

from cluster.adapters import AdapterKey
from cluster.members import Residency
from cluster.placement import holders
from cluster.settings import DispatchSettings


class Standing(StrEnum):
    """How far an adapter is from a replica's batch, best first."""

    SLOT = "slot"
    HOST = "host"
    COMING = "coming"  # on its way in, for an earlier request
    ROOM = "room"  # not here, and nothing must leave for it
    EVICTABLE = "evictable"  # something unused leaves for it
    SATURATED = "saturated"  # every slot has an adapter that generates now, or is promised


@dataclass(frozen=True)
class Holding:
    """The adapter versions that a replica has, or will have soon, and how many it can have."""

    slots: frozenset[AdapterKey] = frozenset()
    host: frozenset[AdapterKey] = frozenset()
    loading: frozenset[AdapterKey] = frozenset()
    slot_capacity: int = 1
    host_capacity: int = 1

    @classmethod
    def of(cls, residency: Residency, loading: Iterable[AdapterKey]) -> "Holding":
        """As a report tells it."""
        return cls(
            frozenset(residency.slots),
            frozenset(residency.host),
            frozenset(loading),
            residency.slot_capacity,
            residency.host_capacity,
        )

    # Kept: many calls look at one report.
    @cached_property
    def all(self) -> frozenset[AdapterKey]:
        return self.slots | self.host | self.loading


@dataclass(frozen=True)
class ReplicaView:
    """A replica as the dispatcher sees it.

    Attributes:
        running: adapter versions of the requests under way, those with the fewest first.
        ongoing: requests under way, all of them.
        service_s: mean time of a request; load_s: of a load that found the files on the node.
        problems: versions that it could not load.
    """

    id: str
    node: str = ""
    held: Holding = Holding()
    running: Sequence[AdapterKey] = ()
    ongoing: int = 0
    max_ongoing: int = 1
    service_s: float = 0.0
    load_s: float = 0.0
    problems: Collection[AdapterKey] = ()

    @property
    def is_full(self) -> bool:
        return self.ongoing >= self.max_ongoing

    @property
    def gives_way(self) -> AdapterKey | None:
        """The version that gets no new requests here while another one waits for a slot: the one
        with the fewest, whose slot is free the soonest. Without it, adapters whose requests
        overlap would keep their slots for ever."""
        if len(self.running) <= self.held.slot_capacity:
            return None
        return next((key for key in self.running if key in self.held.slots), None)

    def standing(self, key: AdapterKey | None) -> Standing:
        """Where an adapter version stands here; the base model is always in place."""
        if key is None:
            return Standing.SLOT
        if key not in self.running and len(self.running) >= self.held.slot_capacity:
            return Standing.SATURATED
        if key == self.gives_way:
            return Standing.SATURATED
        if key in self.held.slots:
            return Standing.SLOT
        if key in self.held.host:
            return Standing.HOST
        if key in self.held.loading or key in self.running:
            return Standing.COMING
        has_room = len(self.held.all) < self.held.host_capacity
        return Standing.ROOM if has_room else Standing.EVICTABLE


@dataclass(frozen=True)
class Ask:
    """What a request needs of a replica.

    Attributes:
        key: adapter version (``name@version``), or None for the base model.
        cached: replica id -> prompt tokens whose keys and values it has, for this adapter.
    """

    key: AdapterKey | None
    cached: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """One replica for a request.

    Attributes:
        first_token_s: until its first token there; cost_s: that and what it costs others, less
            what agreement and nearness are worth.
        waits: how many adapters wait there for a slot.
    """

    replica: str
    standing: Standing
    first_token_s: float
    cost_s: float
    is_over_share: bool
    is_full: bool
    waits: int

    @property
    def may_start(self) -> bool:
        """Whether the request would be worked on, not wait there."""
        return not self.is_full and self.standing is not Standing.SATURATED

    @property
    def may_wait_there(self) -> bool:
        """Whether it may wait on the replica for a slot: one adapter at a time, or those that have
        one would find no place."""
        return not self.is_full and not self.waits


@dataclass(frozen=True)
class Opening:
    """What could start on any replica, without ranking them: there may be many who ask.

    Attributes:
        running: versions that run on a replica with a place free, and do not give way there.
        has_slot: some replica has a place, and a slot that no running version needs.
    """

    running: frozenset[AdapterKey]
    has_place: bool
    has_slot: bool

    @classmethod
    def of(cls, replicas: Collection[ReplicaView]) -> "Opening":
        free = [r for r in replicas if not r.is_full]
        return cls(
            frozenset().union(*({*r.running} - {r.gives_way} for r in free)),
            bool(free),
            any(len(r.running) < r.held.slot_capacity for r in free),
        )

    def admits(self, key: AdapterKey | None) -> bool:
        return self.has_place and (key is None or self.has_slot or key in self.running)


def rank(
    ask: Ask, replicas: Sequence[ReplicaView], settings: DispatchSettings, *, node: str = ""
) -> list[Option]:
    """All replicas, the best first; those that refused the adapter only when all did.

    Args:
        node: of the process that asks; between equals the nearer one is taken.
    """
    able = [r for r in replicas if ask.key not in r.problems] or list(replicas)
    if not able:
        return []
    share = (1 + settings.spread) * (sum(r.ongoing for r in able) + 1) / len(able)
    limit = max(math.ceil(share), settings.spread_from)
    homes = _homes(ask.key.name, tuple(sorted(r.id for r in able))) if ask.key else []
    if settings.policy == "hash" and homes:
        able = [r for r in able if r.id in homes]
    options = [
        Option(
            replica=r.id,
            standing=(standing := r.standing(ask.key)),
            first_token_s=(first_token_s := _first_token_s(ask, r, standing, settings)),
            cost_s=first_token_s
            + _eviction_s(r, standing, settings)
            - settings.home_s * (r.id == homes[0] if homes else 0)
            - settings.near_s * (r.node == node),
            is_over_share=r.ongoing >= limit,
            is_full=r.is_full,
            waits=max(0, len(r.running) - r.held.slot_capacity),
        )
        for r in able
    ]
    return sorted(options, key=lambda o: (o.is_full, o.is_over_share, o.cost_s, o.replica))


def first_missing(
    keys: Iterable[AdapterKey],
    replica: str,
    replicas: Sequence[ReplicaView],
    settings: DispatchSettings,
) -> AdapterKey | None:
    """What a replica should load for requests that still wait: the first of these versions that
    no replica has, if this one is the best place for it; else None."""
    there = frozenset().union(*(held for r in replicas for held in (r.held.all, r.running)))
    able = (k for k in keys if k not in there and any(k not in r.problems for r in replicas))
    key = next(able, None)
    if key is None or rank(Ask(key), replicas, settings)[0].replica != replica:
        return None
    return key


def _first_token_s(
    ask: Ask, replica: ReplicaView, standing: Standing, settings: DispatchSettings
) -> float:
    load_s = replica.load_s or settings.load_s
    # What is loaded still goes into a slot: no load, however fast, is nearer than host memory.
    way_s = {
        Standing.SLOT: 0.0,
        Standing.HOST: settings.swap_s,
        Standing.COMING: settings.swap_s + load_s * settings.coming,
        Standing.ROOM: settings.swap_s + load_s,
        Standing.EVICTABLE: settings.swap_s + load_s,
        # Half of a request's time passes, on average, before a slot's last request ends.
        Standing.SATURATED: settings.swap_s + load_s + replica.service_s / 2,
    }[standing]
    each_s = replica.service_s / replica.max_ongoing
    crowd_s = settings.crowding * each_s * replica.ongoing
    wait_s = each_s * max(0, replica.ongoing + 1 - replica.max_ongoing)
    saved_s = settings.prompt_token_s * ask.cached.get(replica.id, 0)
    return way_s + crowd_s + wait_s - saved_s


def _eviction_s(replica: ReplicaView, standing: Standing, settings: DispatchSettings) -> float:
    """What the adapter that leaves for this one pays later, as far as it counts."""
    if standing not in (Standing.EVICTABLE, Standing.SATURATED):
        return 0.0
    return (replica.load_s or settings.load_s) * settings.evict_weight


@lru_cache(maxsize=20_000)
def _homes(name: str, replica_ids: tuple[str, ...]) -> list[str]:
    return holders(name, 1, replica_ids)
