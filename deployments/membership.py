"""A process's lease in the store: its report, renewed while the process lives."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from adapter_store.store import AdapterStore
from adapter_store.tasks import cancel
from cluster.errors import StoreUnavailable
from cluster.state import Member

logger = logging.getLogger(__name__)

Report = Callable[[], Member]


class Membership:
    """Renews the lease three times a term, and at once when something is announced.

    Args:
        report: makes the newest report.
        before: awaited before each report, to refresh what it says.
    """

    def __init__(
        self,
        store: AdapterStore,
        lease_s: float,
        report: Report,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._period_s = lease_s / 3
        self._report = report
        self._before = before
        self._changed = asyncio.Event()
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        await self._store.renew(self._report())
        self._task = asyncio.create_task(self._renew_for_ever(), name="membership")

    def announce(self) -> None:
        """Renew now: the report changed."""
        self._changed.set()

    def check(self) -> None:
        """Raise what ended the renewal, so that a health check sees it."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> None:
        if self._task is None:
            return
        await cancel(self._task)
        with contextlib.suppress(StoreUnavailable):
            await self._store.leave(self._report().id)

    async def _renew_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._period_s)
            self._changed.clear()
            if self._before is not None:
                # A busy engine answers late: the lease must not end for that.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._before(), self._period_s)
            try:
                await self._store.renew(self._report())
            except StoreUnavailable as e:
                logger.warning("lease not renewed: %s", e)
                await asyncio.sleep(self._period_s)
