"""A process's own copy of the registry: a snapshot, kept current by the event stream.

Requests resolve names here, without a round trip; while the store is down they go on from the
last state, and `is_stale` says so.
"""

import asyncio
import gc
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from adapter_store.registry import Event, Registry
from adapter_store.server import BLOCK_S, is_before
from cluster.adapters import STABLE, Adapter, Version
from cluster.errors import StoreUnavailable
from cluster.tasks import Background

logger = logging.getLogger(__name__)

Changes = dict[str, Adapter | None]
OnChange = Callable[[Changes], Awaitable[None]]

_RETRY_S = 0.5
_MANY = 1000


class Catalogue:
    """Adapters by name, as of `position`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._on_change: list[OnChange] = []
        self._on_moved: list[Callable[[], None]] = []
        self._moved = asyncio.Condition()
        self._background = Background()
        self.adapters: dict[str, Adapter] = {}
        # In order; None when adapters came or went since somebody asked.
        self._names: list[str] | None = None
        self.position = "0-0"
        self._sequence = 0
        self.is_stale = False

    def on_change(self, listener: OnChange) -> None:
        """Have it awaited with the adapters that changed, by name (None: deleted), before
        `position` moves past the change."""
        self._on_change.append(listener)

    def on_moved(self, listener: Callable[[], None]) -> None:
        """Have it called when `position` has moved."""
        self._on_moved.append(listener)

    async def start(self) -> None:
        """Read the snapshot (raises :class:`StoreUnavailable`), then follow in the background."""
        await self._catch_up()
        if len(self.adapters) >= _MANY:
            # They live long, and every full collection would look through all: 0.3 s of 10,000.
            gc.collect()
            gc.freeze()
        self._background.start("catalogue", self._follow())

    async def stop(self) -> None:
        await self._background.stop()

    def check(self) -> None:
        """Raise what ended the following, so that a health check sees it."""
        self._background.check()

    def ordered(self, after: str = "") -> Iterator[Adapter]:
        """The adapters whose names sort behind `after`, by name."""
        if self._names is None:
            self._names = sorted(self.adapters)
        for name in self._names[bisect_right(self._names, after) :]:
            yield self.adapters[name]

    def find(self, name: str) -> tuple[Adapter, Version] | None:
        """The adapter and version behind ``name``, ``name@3`` or ``name@alias``."""
        plain, _, selector = name.partition("@")
        adapter = self.adapters.get(plain)
        version = adapter.resolve(selector or STABLE) if adapter else None
        return (adapter, version) if adapter and version else None

    async def wait_for(self, position: str) -> None:
        """Return when every change up to `position` has been applied here."""
        async with self._moved:
            await self._moved.wait_for(lambda: not is_before(self.position, position))

    async def watch(self, name: str) -> AsyncIterator[Adapter | None]:
        """An adapter as it is now, and again after each change of anything."""
        while True:
            position = self.position
            yield self.adapters.get(name)
            await self._wait_until_past(position)

    async def _wait_until_past(self, position: str) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self.position != position)

    async def _catch_up(self) -> None:
        # The position is read first: an event in between is applied twice, never missed.
        position, sequence = await self._registry.position()
        current = {a.name: a async for a in self._registry.all()}
        names = self.adapters.keys() | current.keys()
        changes = {n: current.get(n) for n in names if self.adapters.get(n) != current.get(n)}
        await self._apply(changes, position, sequence)

    async def _follow(self) -> None:
        while True:
            try:
                if self.is_stale:
                    await self._catch_up()
                    logger.info("the adapter store answers again")
                    self.is_stale = False
                events = await self._registry.events_after(self.position, block_s=BLOCK_S)
                if await self._has_missed(events):
                    logger.warning("events are missing; reading a snapshot")
                    await self._catch_up()
                elif events:
                    names = list(dict.fromkeys(event.name for event in events))
                    changes = await self._registry.get_many(names)
                    await self._apply(changes, events[-1].position, events[-1].sequence)
            except StoreUnavailable as e:
                if not self.is_stale:
                    logger.warning("serving from the last snapshot: %s", e)
                self.is_stale = True
                await asyncio.sleep(_RETRY_S)

    async def _has_missed(self, events: list[Event]) -> bool:
        """Whether the stream was trimmed, or a failover has lost its end."""
        if events:
            return events[0].sequence != self._sequence + 1
        _, newest = await self._registry.position()
        return newest < self._sequence

    async def _apply(self, changes: Changes, position: str, sequence: int) -> None:
        if any((name in self.adapters) != (a is not None) for name, a in changes.items()):
            self._names = None
        for name, adapter in changes.items():
            if adapter is None:
                self.adapters.pop(name, None)
            else:
                self.adapters[name] = adapter
        if changes:
            for heed in self._on_change:
                await heed(changes)
        async with self._moved:
            self.position, self._sequence = position, sequence
            self._moved.notify_all()
        for tell in self._on_moved:
            tell()
