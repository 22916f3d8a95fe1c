"""The adapters of one replica: loads that share a flight, leases that hold a version in place."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.adapters import AdapterRef, Tier
from cluster.errors import AdapterLoadFailed, ModelNotFound
from cluster.means import MovingMean
from cluster.members import Residency, fewest_first
from deployments.engines.engine import Engine
from deployments.process import metrics
from deployments.replica.adapter_files import AdapterFiles

logger = logging.getLogger(__name__)

# An ingress tells with every call; what none has told of for so long was served, or has left.
_EXPECTED_S = 2.0


class AdapterCache:
    """What the engine holds, and who uses it.

    It decides what leaves the host memory, so that no version ever goes while a request uses it:
    the one that is worth least, among those without a lease. Where every version has one, loads
    wait in the order in which they came.

    Args:
        capacity: versions that the engine holds at most, in slots or in host memory.
        capacity_bytes: of their prepared files together.
        is_pinned: whether an adapter, by name, leaves only when nothing else can.
        on_change: called when something has moved, or is on its way in.
        usage_half_life_s: of the requests by which it chooses what leaves.
        model: the base model, as metrics name it.
    """

    def __init__(
        self,
        engine: Engine,
        files: AdapterFiles,
        capacity: int,
        is_pinned: Callable[[str], bool] = lambda name: False,
        on_change: Callable[[], None] = lambda: None,
        usage_half_life_s: float = 300.0,
        model: str = "",
        capacity_bytes: float = math.inf,
    ) -> None:
        self._capacity_bytes = capacity_bytes
        self._model = model
        self._engine = engine
        self._is_pinned = is_pinned
        self._on_change = on_change
        self._files = files
        self._capacity = capacity
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._leases: Counter[str] = Counter()
        # What the engine has for certain: a version is in here after its load and until its unload
        # begins. `_taken` and its bytes count the loads and unloads under way as well.
        self._held: dict[str, AdapterRef] = {}
        self._sizes: dict[str, int] = {}
        self._taken = self._taken_bytes = 0
        # Versions that requests wait for before they come here: their place in the queue, and
        # until when that is believed. Each ingress tells of its own.
        self._next: dict[str, tuple[int, float]] = {}
        self._room_lock = asyncio.Lock()
        self._changed = asyncio.Event()
        # Versions on their way out for good; the event is set when no lease is left.
        self._leaving: dict[str, asyncio.Event] = {}
        self._usage = UsageLog(usage_half_life_s)
        self._kept: frozenset[str] = frozenset()
        self._refresh: asyncio.Task[None] | None = None
        self._is_stale = False
        self.residency = Residency()
        # Of the loads that found their files on the node.
        self._load_s = MovingMean()
        self.loads = 0
        self.problems: dict[str, str] = {}

    @property
    def load_s(self) -> float:
        """Mean time of a load whose files were on the node."""
        return self._load_s.value

    @property
    def room(self) -> int:
        """How many more versions fit without moving another out."""
        return self._capacity - len(self._held.keys() | self._flights.keys())

    @property
    def loading(self) -> tuple[str, ...]:
        """Versions on their way in, by key."""
        return tuple(self._flights)

    @property
    def leaving(self) -> tuple[str, ...]:
        """Versions on their way out for good, by key."""
        return tuple(self._leaving)

    @property
    def running(self) -> tuple[str, ...]:
        """Versions that requests use or wait for, by key, those with the fewest first."""
        return tuple(fewest_first(self._leases))

    @property
    def leases(self) -> int:
        """Requests that hold a version in place, or wait for one."""
        return self._leases.total()

    def has(self, ref: AdapterRef) -> bool:
        """Whether a version is here, or on its way in."""
        return ref.key in self._held or ref.key in self._flights

    def has_spare(self, size_bytes: int, beside: str | None = None) -> bool:
        """Whether one more of that size would fit, if only what is neither wanted here nor needed
        soon moved out.

        Args:
            beside: a version that is about to be used.
        """
        spare = [r.key for r in self._unused() if r.key != beside and not any(self._need(r))]
        entries = self.room + len(spare)
        free_bytes = self._capacity_bytes - self._taken_bytes
        return entries > 0 and free_bytes + sum(self._sizes[k] for k in spare) >= size_bytes

    def expect(self, waiting: Iterable[str], used: str | None = None) -> None:
        """What requests in an ingress's queue wait for leaves last, the first of it the very last.

        Args:
            waiting: versions, by key, those that are needed first before the others.
            used: the one whose turn has come: it has no claim any more, unless others wait.
        """
        now = time.monotonic()
        self._next = {k: n for k, n in self._next.items() if n[1] > now and k != used}
        self._next |= {key: (i, now + _EXPECTED_S) for i, key in enumerate(waiting)}

    @asynccontextmanager
    async def lease(self, ref: AdapterRef) -> AsyncIterator[Tier]:
        """Hold a version loaded for the length of the block; yields the tier it was found in.

        Raises:
            AdapterLoadFailed: the files are gone or the engine refused them.
            ModelNotFound: the version is being removed.
        """
        if ref.key in self._leaving:
            raise ModelNotFound(ref.key)
        found = self._tier(ref)
        metrics.lookups.labels(self._model, metrics.named.use(ref.name), found.value).inc()
        self._usage.count(ref.key)
        self._leases[ref.key] += 1
        try:
            if ref.key not in self._held:
                await self.ensure(ref)
            yield found
        finally:
            self._release(ref.key)

    async def ensure(self, ref: AdapterRef) -> None:
        """Load a version; concurrent callers share one load, and none of them can cancel it."""
        if ref.key in self._held:
            return
        flight = self._flights.get(ref.key)
        if flight is None:
            flight = asyncio.create_task(self._load(ref), name=f"load {ref.key}")
            self._flights[ref.key] = flight
            self._on_change()
            flight.add_done_callback(lambda _: self._flights.pop(ref.key, None))
            flight.add_done_callback(_note)
        await asyncio.shield(flight)

    async def drop(self, ref: AdapterRef) -> None:
        """Take no new leases on a version, and unload it as soon as no request uses it."""
        free = self._leaving.setdefault(ref.key, asyncio.Event())
        try:
            # A load whose client has left goes on without a lease.
            if flight := self._flights.get(ref.key):
                await asyncio.wait([flight])
            if self._leases[ref.key]:
                await free.wait()
            if ref.key in self._held:
                await self._unload(ref)
            await self.refresh()
        finally:
            del self._leaving[ref.key]
            self._usage.forget(ref.key)

    async def refresh(self) -> None:
        """Ask the engine's worker where everything is, and tell it what is worth keeping."""
        worth = {
            key: math.inf if self._is_pinned(ref.name) else self._usage.worth(key)
            for key, ref in self._held.items()
        }
        before, self.residency = self.residency, await self._engine.residency(worth)
        if self.residency != before:
            self._on_change()

    def refresh_soon(self) -> None:
        """For when the engine has moved something by itself; many calls make one refresh."""
        self._is_stale = True
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._refresh_while_stale(), name="refresh")
            self._refresh.add_done_callback(_note)

    async def _refresh_while_stale(self) -> None:
        while self._is_stale:
            self._is_stale = False
            await self.refresh()

    def keep(self, names: Iterable[str]) -> None:
        """Adapters that others are moved out for, not they."""
        self._kept = frozenset(names)

    def clear_problems(self, name: str) -> None:
        """Forget the failed loads of an adapter: it was changed or removed since."""
        for key in [k for k in self.problems if k.partition("@")[0] == name]:
            del self.problems[key]

    def _tier(self, ref: AdapterRef) -> Tier:
        if ref.key in self._held:
            return self.residency.tier(ref.key) or Tier.HOST
        return self._files.tier(ref)

    async def _load(self, ref: AdapterRef) -> None:
        is_near = self._files.tier(ref) is Tier.NODE
        try:
            async with self._files.opened(ref) as folder:
                size_bytes = _size_bytes(folder)
                await self._make_room(ref.key, size_bytes)
                began = time.monotonic()
                await self._take(ref, folder, size_bytes)
        except AdapterLoadFailed as e:
            self._files.discard(ref)
            logger.error("%s", e)
            self._count_load(ref, "failed")
            self.problems[ref.key] = e.message
            raise
        self.problems.pop(ref.key, None)
        await self.refresh()
        taken_s = time.monotonic() - began
        self._count_load(ref, "ok")
        metrics.load_time.labels(self._model).observe(taken_s)
        if is_near:
            self._load_s.add(taken_s)

    async def _take(self, ref: AdapterRef, folder: Path, size_bytes: int) -> None:
        try:
            await self._engine.load(ref, folder)
        except BaseException:
            self._give_room(size_bytes)
            raise
        self._held[ref.key], self._sizes[ref.key] = ref, size_bytes
        self.loads += 1
        self._usage.cost(ref.key, size_bytes)
        metrics.load_bytes.labels(self._model).inc(size_bytes)

    async def _make_room(self, key: str, size_bytes: int) -> None:
        if size_bytes > self._capacity_bytes:
            raise AdapterLoadFailed(
                f"{key} takes {size_bytes} bytes of host memory; lora.host_bytes allows "
                f"{self._capacity_bytes} for all adapters"
            )
        async with self._room_lock:
            while not self._has_room(size_bytes):
                is_for_bytes = self._taken < self._capacity
                victim = self._least_worth(per_byte=is_for_bytes)
                if victim is None:
                    self._changed.clear()
                    await self._changed.wait()
                else:
                    await self._unload(victim)
                    metrics.evictions.labels(self._model, metrics.named.use(victim.name)).inc()
            self._taken += 1
            self._taken_bytes += size_bytes

    def _nearness(self, key: str) -> float:
        """Of its next use in a queue: 1 for the first there, less for those behind, else 0."""
        position, until = self._next.get(key, (0, 0.0))
        return 1 / (1 + position) if until > time.monotonic() else 0.0

    def _count_load(self, ref: AdapterRef, result: str) -> None:
        metrics.loads.labels(self._model, metrics.named.use(ref.name), result).inc()

    def _has_room(self, size_bytes: int) -> bool:
        has_bytes = self._taken_bytes + size_bytes <= self._capacity_bytes
        return self._taken < self._capacity and has_bytes

    def _least_worth(self, *, per_byte: bool) -> AdapterRef | None:
        """What leaves first of what no request uses.

        Args:
            per_byte: bytes are short, not entries: what is large must be worth more to stay.
        """
        return min(
            self._unused(),
            key=lambda ref: (*self._need(ref), self._usage.rank(ref.key, per_byte=per_byte)),
            default=None,
        )

    def _unused(self) -> list[AdapterRef]:
        """What no request uses."""
        return [ref for key, ref in self._held.items() if not self._leases[key]]

    def _need(self, ref: AdapterRef) -> tuple[bool, bool, float]:
        """Why a version should stay whatever its use, the strongest reason first; falsy is none."""
        return self._is_pinned(ref.name), ref.name in self._kept, self._nearness(ref.key)

    async def _unload(self, ref: AdapterRef) -> None:
        del self._held[ref.key]
        size_bytes = self._sizes.pop(ref.key)
        try:
            await self._engine.unload(ref)
        finally:
            self._give_room(size_bytes)

    def _give_room(self, size_bytes: int) -> None:
        self._taken -= 1
        self._taken_bytes -= size_bytes
        self._changed.set()

    def _release(self, key: str) -> None:
        self._leases[key] -= 1
        if not self._leases[key]:
            del self._leases[key]
            self._changed.set()
            if key in self._leaving:
                self._leaving[key].set()


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _note(task: asyncio.Task[None]) -> None:
    """Those who waited for the task may all have left."""
    if not task.cancelled() and (error := task.exception()):
        logger.debug("%s: %r", task.get_name(), error)


@dataclass
class Usage:
    """Requests of late, and what it would cost to load again."""

    requests: float = 0.0  # decayed to `at`
    at: float = 0.0
    cost_bytes: int = 1


class UsageLog:
    """What each version is worth to keep: how often it is asked for, times the bytes of a load.

    Counts are halved every `half_life_s`, so that yesterday's favourites leave. Versions that are
    not loaded are counted too: one that comes back is known.
    """

    _MOST = 10_000

    def __init__(self, half_life_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._usage: dict[str, Usage] = {}

    def count(self, key: str) -> None:
        now = self._clock()
        usage = self._usage.pop(key, None) or Usage()
        usage.requests = self._decayed(usage, now) + 1
        usage.at = now
        self._usage[key] = usage  # at the end: in order of last use
        if len(self._usage) > self._MOST:
            del self._usage[next(iter(self._usage))]

    def cost(self, key: str, size_bytes: int) -> None:
        self._usage.setdefault(key, Usage()).cost_bytes = size_bytes

    def forget(self, key: str) -> None:
        self._usage.pop(key, None)

    def worth(self, key: str) -> float:
        usage = self._usage.get(key)
        return self._decayed(usage, self._clock()) * usage.cost_bytes if usage else 0.0

    def rank(self, key: str, *, per_byte: bool = False) -> tuple[float, float]:
        """Orders what to give up first: by worth, then by last use."""
        usage = self._usage.get(key)
        if usage is None:
            return 0.0, 0.0
        return self.worth(key) / (usage.cost_bytes if per_byte else 1), usage.at

    def _decayed(self, usage: Usage, now: float) -> float:
        return usage.requests * 0.5 ** ((now - usage.at) / self._half_life_s)
