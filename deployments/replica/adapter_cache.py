"""The adapters of one replica: loads that share a flight, leases that hold a version in place."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.adapters import AdapterKey, AdapterRef, Tier
from cluster.errors import AdapterLoadFailed, ModelNotFound
from cluster.means import MovingMean
from cluster.members import Residency, fewest_first
from cluster.settings import LoraSettings
from cluster.tasks import Background
from deployments.engines.engine import Engine
from deployments.process import metrics
from deployments.replica.adapter_files import AdapterFiles
from deployments.replica.residency import ResidencyView
from deployments.replica.room import Amount, Room
from deployments.replica.worth import UsageLog

logger = logging.getLogger(__name__)


def _nobody(_: str) -> bool:
    return False


class LoadCounts:
    """Loads of one replica, as metrics and reports tell them.

    Attributes:
        done: loads into the engine since it started.
        near_s: of those that found their files on the node, the mean time.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.done = 0
        self.near_s = MovingMean()

    def ended(self, ref: AdapterRef, result: str) -> None:
        if not ref.is_on_trial:  # nobody's adapter has failed
            metrics.loads.labels(self.model, metrics.named.use(ref.name), result).inc()

    def took(self, seconds: float, *, is_near: bool) -> None:
        metrics.load_time.labels(self.model).observe(seconds)
        if is_near:
            self.near_s.add(seconds)

    def filled(self, size_bytes: int) -> None:
        self.done += 1
        metrics.load_bytes.labels(self.model).inc(size_bytes)


class AdapterCache:
    """What the engine holds, and who uses it. What leaves, and for what, is `Room`'s to say.

    Args:
        is_pinned: whether an adapter, by name, leaves only when nothing else can.
        usage_half_life_s: of the requests by which it is chosen what leaves.
        model: the base model, as metrics name it.

    Attributes:
        problems: version, by key -> why it could not be loaded.
    """

    def __init__(
        self,
        engine: Engine,
        files: AdapterFiles,
        lora: LoraSettings,
        *,
        is_pinned: Callable[[str], bool] = _nobody,
        usage_half_life_s: float = 300.0,
        model: str = "",
    ) -> None:
        self._engine = engine
        self._files = files
        self._room = Room(
            Amount(lora.host_entries, lora.host_bytes or math.inf),
            UsageLog(usage_half_life_s),
            lambda key: self._leases[key] > 0,
            is_pinned,
        )
        self._background = Background()
        self._where = ResidencyView(engine, self._room.worths, self._tell, self._background)
        self._counts = LoadCounts(model)
        self._flights: dict[AdapterKey, asyncio.Task[None]] = {}
        self._leases: Counter[AdapterKey] = Counter()
        # Versions on their way out for good; the event is set when no lease is left.
        self._leaving: dict[AdapterKey, asyncio.Event] = {}
        self._on_change: list[Callable[[], None]] = []
        self.problems: dict[AdapterKey, str] = {}

    async def stop(self) -> None:
        """End what is under way; the engine stops next."""
        await self._background.stop()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have it called when something has moved, is on its way in, or cannot come."""
        self._on_change.append(listener)

    @property
    def residency(self) -> Residency:
        """Where everything is, as the engine's worker has last said."""
        return self._where.newest

    @property
    def loads(self) -> int:
        """Loads into the engine since it started."""
        return self._counts.done

    @property
    def load_s(self) -> float:
        """Mean time of a load whose files were on the node."""
        return self._counts.near_s.value

    @property
    def room(self) -> int:
        """How many more versions fit without moving another out."""
        return self._room.left(self._flights)

    @property
    def loading(self) -> tuple[AdapterKey, ...]:
        """Versions on their way in, by key."""
        return tuple(self._flights)

    @property
    def leaving(self) -> tuple[AdapterKey, ...]:
        """Versions on their way out for good, by key."""
        return tuple(self._leaving)

    @property
    def running(self) -> tuple[AdapterKey, ...]:
        """Versions that requests use or wait for, by key, those with the fewest first."""
        return tuple(fewest_first(self._leases))

    @property
    def leases(self) -> int:
        """Requests that hold a version in place, or wait for one."""
        return self._leases.total()

    def has(self, ref: AdapterRef) -> bool:
        """Whether a version is here, or on its way in."""
        return ref.key in self._room or ref.key in self._flights

    def has_spare(self, size_bytes: int, beside: AdapterKey | None = None) -> bool:
        """Whether one more of that size would fit, if only what is neither wanted here nor needed
        soon moved out.

        Args:
            beside: a version that is about to be used.
        """
        return self._room.has_spare(size_bytes, self._flights, beside)

    def keep(self, keys: Iterable[AdapterKey]) -> None:
        """Versions that others are moved out for, not they."""
        self._room.keep(keys)

    def expect(self, waiting: Iterable[AdapterKey], used: AdapterKey | None = None) -> None:
        """What requests in an ingress's queue wait for leaves last, the first of it the very last;
        see :meth:`Expected.tell`."""
        self._room.expected.tell(waiting, used)

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
        metrics.lookups.labels(self._counts.model, metrics.named.use(ref.name), found.value).inc()
        self._room.usage.count(ref.key)
        self._leases[ref.key] += 1
        try:
            if ref.key not in self._room:
                await self.ensure(ref)
            yield found
        finally:
            self._release(ref.key)

    async def ensure(self, ref: AdapterRef) -> None:
        """Load a version; concurrent callers share one load, and none of them can cancel it."""
        if ref.key in self._room:
            return
        flight = self._flights.get(ref.key)
        if flight is None:
            flight = self._background.spawn(f"load {ref.key}", self._load(ref))
            self._flights[ref.key] = flight
            self._tell()
            flight.add_done_callback(lambda _: self._landed(ref.key))
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
            if ref.key in self._room:
                await self._unload(ref)
            await self.refresh()
        finally:
            self._leaving.pop(ref.key, None)  # two may drop the same
            self._room.usage.forget(ref.key)
            self._tell()

    async def refresh(self) -> None:
        """Ask the engine's worker where everything is, and tell it what is worth keeping."""
        await self._where.refresh()

    def refresh_soon(self) -> None:
        """For when the engine has moved something by itself; many calls make one refresh."""
        self._where.refresh_soon()

    def refuse(self, ref: AdapterRef, why: str) -> None:
        """Tell that a version cannot be used here."""
        self.problems[ref.key] = why
        self._tell()

    def clear_problems(self, name: str) -> None:
        """Forget the failed loads of an adapter: it was changed or removed since."""
        for key in [k for k in self.problems if k.name == name]:
            del self.problems[key]

    def _landed(self, key: AdapterKey) -> None:
        self._flights.pop(key, None)
        self._tell()

    def _tell(self) -> None:
        for listener in self._on_change:
            listener()

    def _tier(self, ref: AdapterRef) -> Tier:
        if ref.key in self._room:
            return self.residency.tier(ref.key) or Tier.HOST
        return self._files.tier(ref)

    async def _load(self, ref: AdapterRef) -> None:
        is_near = self._files.tier(ref) is Tier.NODE
        try:
            async with self._files.opened(ref) as folder:
                size_bytes = _size_bytes(folder)
                await self._room.make(ref.key, size_bytes, self._move_out)
                began = time.monotonic()
                await self._take(ref, folder, size_bytes)
        except AdapterLoadFailed as e:
            self._files.discard(ref)
            logger.error("%s", e)
            self._counts.ended(ref, "failed")
            self.refuse(ref, e.message)
            raise
        self.problems.pop(ref.key, None)
        await self.refresh()
        self._counts.ended(ref, "ok")
        self._counts.took(time.monotonic() - began, is_near=is_near)

    async def _take(self, ref: AdapterRef, folder: Path, size_bytes: int) -> None:
        try:
            await self._engine.load(ref, folder)
        except BaseException:
            self._room.give_back(size_bytes)
            raise
        self._room.fill(ref, size_bytes)
        self._counts.filled(size_bytes)

    async def _move_out(self, ref: AdapterRef) -> None:
        await self._unload(ref)
        metrics.evictions.labels(self._counts.model, metrics.named.use(ref.name)).inc()

    async def _unload(self, ref: AdapterRef) -> None:
        with self._room.leaving(ref):
            await self._engine.unload(ref)

    def _release(self, key: AdapterKey) -> None:
        self._leases[key] -= 1
        if not self._leases[key]:
            del self._leases[key]
            self._room.is_free()
            if key in self._leaving:
                self._leaving[key].set()


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
