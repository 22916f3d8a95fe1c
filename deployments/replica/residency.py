"""Where everything is, as the engine's worker itself says."""

import asyncio
from collections.abc import Callable, Mapping

from cluster.adapters import AdapterKey
from cluster.members import Residency
from cluster.tasks import Background
from deployments.engines.engine import Engine


class ResidencyView:
    """The newest residency of one engine.

    Args:
        worths: what is worth keeping in a slot, which the engine is told when it is asked.
        on_change: called when something has moved.
    """

    def __init__(
        self,
        engine: Engine,
        worths: Callable[[], Mapping[AdapterKey, float]],
        on_change: Callable[[], None],
        background: Background,
    ) -> None:
        self._engine = engine
        self._worths = worths
        self._on_change = on_change
        self._background = background
        self._refresh: asyncio.Task[None] | None = None
        self._is_stale = False
        self.newest = Residency()

    async def refresh(self) -> None:
        """Ask the engine's worker where everything is, and tell it what is worth keeping."""
        before, self.newest = self.newest, await self._engine.residency(self._worths())
        if self.newest != before:
            self._on_change()

    def refresh_soon(self) -> None:
        """For when the engine has moved something by itself; many calls make one refresh."""
        self._is_stale = True
        if self._refresh is None or self._refresh.done():
            self._refresh = self._background.spawn("refresh", self._refresh_while_stale())

    async def _refresh_while_stale(self) -> None:
        while self._is_stale:
            self._is_stale = False
            await self.refresh()
