"""A process's part in the cluster: its copy of the registry, and its lease with its report."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from adapter_store.catalogue import Catalogue, OnChange
from adapter_store.store import AdapterStore
from cluster.errors import StoreUnavailable
from cluster.members import Member
from cluster.settings import StoreSettings
from cluster.tasks import cancel, check
from deployments.process import metrics

logger = logging.getLogger(__name__)

Report = Callable[[], Member]


class Participant:
    """What every process has of the store: the connection, the catalogue, the lease.

    Args:
        report: makes the newest report.
        on_change: as :class:`Catalogue` has it; the report is renewed after each change.
        before: awaited before each periodic report, to refresh what it says; whoever announces a
            change knows it already.
    """

    def __init__(
        self,
        settings: StoreSettings,
        report: Report,
        on_change: OnChange | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.store = AdapterStore(settings)
        self._began = time.time()
        self._membership = Membership(self.store, report, before)
        self.catalogue = Catalogue(self.store, on_change, self._moved)

    async def start(self) -> None:
        """Raises StoreUnavailable, and ConfigError when a newer release wrote the store."""
        await self.store.migrate()
        await self.catalogue.start()
        await self._membership.start()

    def announce(self) -> None:
        """Renew the lease now: the report changed."""
        self._membership.announce()

    def _moved(self) -> None:
        metrics.adapters.set(len(self.catalogue.adapters))
        # What was there before this process began says nothing of how fast it follows.
        changed_at = int(self.catalogue.position.partition("-")[0]) / 1000
        if changed_at > self._began:
            metrics.event_lag.observe(max(0.0, time.time() - changed_at))
        self._membership.announce()

    def check(self) -> None:
        """Raise what ended a background task, so that a health check sees it."""
        self.catalogue.check()
        self._membership.check()

    async def stop(self) -> None:
        await self._membership.stop()
        await self.catalogue.stop()
        await self.store.close()


class Membership:
    """Renews the lease three times a term, and at once when there is something new to report."""

    def __init__(
        self,
        store: AdapterStore,
        report: Report,
        before: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._store = store
        self._period_s = store.lease_s / 3
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
        check(self._task)

    async def stop(self) -> None:
        if self._task is None:
            return
        await cancel(self._task)
        with contextlib.suppress(StoreUnavailable):
            await self._store.leave(self._report().id)

    async def _renew_for_ever(self) -> None:
        due = time.monotonic() + self._period_s
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), max(0.0, due - time.monotonic()))
            self._changed.clear()
            if time.monotonic() >= due:
                due = time.monotonic() + self._period_s
                await self._prepare()
            try:
                await self._store.renew(self._report())
            except StoreUnavailable as e:
                metrics.store_errors.inc()
                logger.warning("lease not renewed: %s", e)
                await asyncio.sleep(self._period_s)

    async def _prepare(self) -> None:
        if self._before is not None:
            # A busy engine answers late: the lease must not end for that.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._before(), self._period_s)
