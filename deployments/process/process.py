"""What every process of the cluster has, once, and how its parts live."""

from contextlib import AsyncExitStack
from typing import Protocol, TypeVar

from adapter_store.catalogue import Catalogue
from adapter_store.store import Store
from cluster.settings import StoreSettings
from deployments.process import metrics
from deployments.process.telemetry import Export, Telemetry, nowhere


class Part(Protocol):
    """Something that runs as long as its process does."""

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Called once, also when it, or a part before it, could not be started."""

    def check(self) -> None:
        """Raise what ended it, so that a health check sees it."""


AnyPart = TypeVar("AnyPart", bound=Part)


class Process:
    """One connection to the store, one copy of the registry, one set of numbers; and the parts.

    Args:
        process_id: as the store and the logs name it.
        export: is handed each reading of the metrics, too.
    """

    def __init__(self, settings: StoreSettings, process_id: str, export: Export = nowhere) -> None:
        self.id = process_id
        self.store = Store(settings)
        self._parts: list[Part] = []
        self._running = AsyncExitStack()
        self.catalogue = self.add(Catalogue(self.store.registry))
        self.telemetry = self.add(Telemetry(self.store.telemetry, process_id, export))
        self.catalogue.on_moved(lambda: metrics.adapters.set(len(self.catalogue.adapters)))

    def add(self, part: AnyPart) -> AnyPart:
        """Have a part start behind those added before it, and stop before them."""
        self._parts.append(part)
        return part

    async def start(self) -> None:
        """Start all parts, or none: when one cannot, all are stopped.

        Raises:
            StoreUnavailable: the store does not answer.
            ConfigError: a newer release wrote it.
        """
        async with AsyncExitStack() as started:
            started.push_async_callback(self.store.close)
            for part in self._parts:
                started.push_async_callback(part.stop)
            await self.store.registry.migrate()
            for part in self._parts:
                await part.start()
            self._running = started.pop_all()

    def check(self) -> None:
        """Raise what ended a part, so that a health check sees it."""
        for part in self._parts:
            part.check()

    async def stop(self) -> None:
        await self._running.aclose()
