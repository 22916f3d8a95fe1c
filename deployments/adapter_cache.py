"""The adapters of one replica: loads that share a flight, leases that hold a version in place."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.errors import AdapterLoadFailed, ModelNotFound
from cluster.state import AdapterRef, Residency, Tier
from deployments.engine import Engine

logger = logging.getLogger(__name__)


class AdapterCache:
    """What the engine holds, and who uses it.

    Args:
        locate: folder of a version's files; raises :class:`AdapterLoadFailed` when it is not there.
    """

    def __init__(self, engine: Engine, locate: Callable[[AdapterRef], Path]) -> None:
        self._engine = engine
        self._locate = locate
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._leases: Counter[str] = Counter()
        # Versions on their way out; the event is set when no lease is left.
        self._leaving: dict[str, asyncio.Event] = {}
        self.residency = Residency()
        self.problems: dict[str, str] = {}

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
        self._leases[ref.key] += 1
        try:
            if found is not Tier.SLOT:
                await self.ensure(ref)
            yield found
        finally:
            self._release(ref.key)

    async def ensure(self, ref: AdapterRef) -> None:
        """Load a version; concurrent callers share one load, and none of them can cancel it."""
        flight = self._flights.get(ref.key)
        if flight is None:
            flight = asyncio.create_task(self._load(ref), name=f"load {ref.key}")
            self._flights[ref.key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(ref.key, None))
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
            await self._engine.unload(ref)
            await self.refresh()
        finally:
            del self._leaving[ref.key]

    async def refresh(self) -> None:
        """Ask the engine's worker where everything is."""
        self.residency = await self._engine.residency()

    def clear_problems(self, name: str) -> None:
        """Forget the failed loads of an adapter: it was changed or removed since."""
        for key in [k for k in self.problems if k.partition("@")[0] == name]:
            del self.problems[key]

    def _tier(self, ref: AdapterRef) -> Tier:
        # A blob store on this node's disk is all there is today: whatever is not loaded is there.
        return self.residency.tier(ref.key) or Tier.NODE

    async def _load(self, ref: AdapterRef) -> None:
        try:
            await self._engine.load(ref, await asyncio.to_thread(self._locate, ref))
        except AdapterLoadFailed as e:
            logger.error("%s", e)
            self.problems[ref.key] = e.message
            raise
        self.problems.pop(ref.key, None)
        await self.refresh()

    def _release(self, key: str) -> None:
        self._leases[key] -= 1
        if not self._leases[key]:
            del self._leases[key]
            if key in self._leaving:
                self._leaving[key].set()
