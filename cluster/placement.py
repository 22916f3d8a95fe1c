"""Which replicas should hold which adapters. Pure.

`plan` gives every adapter replicas in proportion to its demand and takes them from rendezvous
hashing (Thaler and Ravishankar 1998), so that little moves when replicas come and go. Who holds an
adapter keeps it; the room goes first to pinned adapters and wanted numbers, then to what is asked
for most.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cluster.plans import ModelPlan
from cluster.settings import PlacementSettings

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
# Positions in the hash order that are worked out; a replica further down is taken in any order.
_CHOICES = 16
# Adapters whose order is kept, for each set of replicas.
_MOST_ORDERS = 20_000


@dataclass(frozen=True)
class Need:
    """An adapter as the plan sees it.

    Attributes:
        rate: requests a second; service_s: mean time of one, 0 where none is known.
        at_least: replicas that its card asks for.
        entries: versions that serve, each of which takes a place in host memory.
        bytes: of all of them.
    """

    rate: float = 0.0
    service_s: float = 0.0
    at_least: int = 0
    is_pinned: bool = False
    entries: int = 1
    bytes: int = 0


@dataclass(frozen=True)
class Host:
    """A replica as the plan sees it.

    Attributes:
        entries: adapter versions that it can hold; bytes likewise.
        places: requests that it takes at a time; service_s: mean time of one, for any adapter.
        held: adapters that are there, or on their way; refused: that it could not load.
        loading: how many are on their way.
    """

    id: str
    node: str = ""
    entries: int = 1
    bytes: float = math.inf
    places: int = 1
    service_s: float = 0.0
    held: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    loading: int = 0


def holders(name: str, count: int, replica_ids: Iterable[str]) -> list[str]:
    """The replicas that come first for an adapter: every process works out the same ones."""
    ids = sorted(replica_ids)
    if not ids:
        return []
    return [ids[i] for i in _orders([name], ids)[0, :count]]


def plan(
    needs: Mapping[str, Need],
    hosts: Sequence[Host],
    before: ModelPlan,
    settings: PlacementSettings,
) -> ModelPlan:
    """The next plan; unchanged needs and hosts give the same one.

    Args:
        before: the plan that this one replaces: its holders stay where they can.
    """
    wanted = _wanted(needs, hosts, before, settings)
    there = _holders_now(hosts, before)
    room = _Room(hosts)

    def urgency(name: str) -> tuple[bool, bool, float, str]:
        need = needs[name]
        # Who is there must be clearly less wanted to have to go.
        rate = need.rate / (settings.keep_below if name in before.holders else 1)
        return not need.is_pinned, not need.at_least, -rate / need.entries, name

    names = sorted(wanted, key=urgency)
    choices = room.choices(names)
    for name in names:
        room.claim(needs[name], there.get(name, ()))
    found: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, str] = {}
    for name, order in zip(names, choices, strict=True):
        stays = before.holders.get(name, ())
        where = room.place(needs[name], wanted[name], stays, there.get(name, ()), order)
        if where:
            found[name] = where
        if len(where) < min(wanted[name], len(hosts)):
            reasons[name] = (
                f"on {len(where)} of {wanted[name]} replicas: all room is taken by adapters that "
                "are pinned, have a wanted number, or are asked for more"
            )
    loads = _loads(found, names, needs, hosts, settings)
    return ModelPlan(holders=found, loads=loads, reasons=reasons)


def _holders_now(hosts: Sequence[Host], before: ModelPlan) -> dict[str, tuple[str, ...]]:
    """Adapter -> where it stays if it can: where the last plan has it, then where it is anyway."""
    there = {name: list(where) for name, where in before.holders.items()}
    for host in sorted(hosts, key=lambda h: h.id):
        for name in host.held:
            where = there.setdefault(name, [])
            if host.id not in where:
                where.append(host.id)
    return {name: tuple(where) for name, where in there.items()}


def _wanted(
    needs: Mapping[str, Need], hosts: Sequence[Host], before: ModelPlan, settings: PlacementSettings
) -> dict[str, int]:
    """Adapter -> replicas, by Little's law: rate times time is how many requests are under way."""
    if not hosts:
        return {}
    # Of those that have ended a request.
    known = [h.service_s for h in hosts if h.service_s]
    service_s = sum(known) / len(known) if known else 0.0
    places = sum(h.places for h in hosts) / len(hosts) * settings.share_of_replica
    found = {}
    for name, need in needs.items():
        per_replica = need.rate * (need.service_s or service_s) / places
        useful = max(1, math.ceil(per_replica)) if need.rate else 0
        had = len(before.holders.get(name, ()))
        if useful < had and per_replica > settings.keep_below * (had - 1):
            useful = had
        count = max(useful, need.at_least, int(need.is_pinned))
        if count:
            found[name] = min(count, len(hosts))
    return found


def _loads(
    found: Mapping[str, tuple[str, ...]],
    names: Sequence[str],
    needs: Mapping[str, Need],
    hosts: Sequence[Host],
    settings: PlacementSettings,
) -> dict[str, tuple[str, ...]]:
    """What each replica should load now: a few at a time, for loads slow what runs.

    Of what is asked for so little that one replica will do, only as much as fits beside what is
    there: to move out what was asked for a minute ago for what was asked for two minutes ago gains
    nothing, and costs a load. The request that asks for it next decides.
    """
    out = {h.id: h.held | h.refused for h in hosts}
    room = {h.id: h.entries - len(h.held) for h in hosts}
    left = {h.id: settings.moves_per_replica - h.loading for h in hosts}
    loads: dict[str, list[str]] = {}
    for name in names:
        where, need = found.get(name, ()), needs[name]
        displaces = need.is_pinned or need.at_least or len(where) > 1
        for replica in where:
            fits = room[replica] >= need.entries
            if name not in out[replica] and left[replica] > 0 and (fits or displaces):
                left[replica] -= 1
                room[replica] -= need.entries
                loads.setdefault(replica, []).append(name)
    return {replica: tuple(names) for replica, names in loads.items()}


class _Room:
    """What is left on each replica while a plan is made.

    A claim is room where an adapter is that has not had its turn yet. Newcomers take it only where
    nothing else is left, so that one move does not set off a chain of them.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = sorted(hosts, key=lambda h: h.id)
        self._ids = [h.id for h in self._hosts]
        self._index = {h.id: i for i, h in enumerate(self._hosts)}
        self._entries = [h.entries for h in self._hosts]
        self._bytes = [h.bytes for h in self._hosts]
        self._claims = [0] * len(hosts)
        # Those with any room at all.
        self._open = {i for i, h in enumerate(self._hosts) if h.entries > 0}

    def claim(self, need: Need, before: Collection[str]) -> None:
        for i in self._known(before):
            self._claims[i] += need.entries

    def choices(self, names: Sequence[str]) -> list[list[int]]:
        """For each adapter the replicas in its order, the first few of them."""
        if not self._ids:
            return [[] for _ in names]
        known = _known_orders(tuple(self._ids))
        if new := [name for name in names if name not in known]:
            if len(known) > _MOST_ORDERS:
                known.clear()
                new = list(names)
            known.update(zip(new, _orders(new, self._ids, _CHOICES).tolist(), strict=True))
        return [known[name] for name in names]

    def place(
        self,
        need: Need,
        count: int,
        planned: Collection[str],
        there: Collection[str],
        order: Sequence[int],
    ) -> tuple[str, ...]:
        """Take room on up to `count` replicas: where it was planned, then where it is anyway, then
        on nodes without it."""
        chosen: list[int] = []
        for i in self._by_preference(planned, there, order):
            self._claims[i] -= need.entries
            self._take((i,), need, count, chosen)
        if len(chosen) < count and self._open:
            for i in order:
                if self._hosts[i].node not in {self._hosts[c].node for c in chosen}:
                    self._take((i,), need, count, chosen, spare=True)
        if len(chosen) < count and self._open:
            rest = (*order, *sorted(self._open))
            self._take(rest, need, count, chosen, spare=True)
            self._take(rest, need, count, chosen)
        return tuple(self._ids[i] for i in chosen)

    def _by_preference(
        self, planned: Collection[str], there: Collection[str], order: Sequence[int]
    ) -> list[int]:
        first = self._known(planned)
        others = [i for i in self._known(there) if i not in first]
        if len(others) > 1:
            # In its own order: what is everywhere is not to be planned for the same replica.
            ranks = {i: rank for rank, i in enumerate(order)}
            others.sort(key=lambda i: ranks.get(i, len(ranks)))
        return first + others

    def _known(self, replicas: Collection[str]) -> list[int]:
        return [i for replica in replicas if (i := self._index.get(replica)) is not None]

    def _take(
        self,
        among: Iterable[int],
        need: Need,
        count: int,
        chosen: list[int],
        *,
        spare: bool = False,
    ) -> None:
        for i in among:
            if len(chosen) == count:
                return
            left = self._entries[i] - (self._claims[i] if spare else 0)
            if left >= need.entries and self._bytes[i] >= need.bytes and i not in chosen:
                self._entries[i] -= need.entries
                self._bytes[i] -= need.bytes
                chosen.append(i)
                if not self._entries[i]:
                    self._open.discard(i)


@lru_cache(maxsize=16)
def _known_orders(ids: tuple[str, ...]) -> dict[str, list[int]]:  # noqa: ARG001  (the cache's key)
    """Adapter -> what `_orders` said before of it and these replicas: it is half of a plan's time,
    and never changes."""
    return {}


def _orders(names: Sequence[str], ids: Sequence[str], first: int | None = None) -> np.ndarray:
    """(n, first) for each name the positions of the ids, by falling hash of the pair."""
    pairs = np.array([_hash(n) for n in names], dtype=np.uint64)[:, None] ^ np.array(
        [_hash(i) for i in ids], dtype=np.uint64
    )
    # The finaliser of splitmix64: every bit of the pair moves every bit of the weight.
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1])):
        pairs = (pairs ^ (pairs >> np.uint64(shift))) * factor
    weights = ~(pairs ^ (pairs >> np.uint64(31)))
    if first is not None and first < len(ids):
        best = np.argpartition(weights, first, axis=1)[:, :first]
        order = np.argsort(np.take_along_axis(weights, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)
    return np.argsort(weights, axis=1)


@lru_cache(maxsize=100_000)
def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
