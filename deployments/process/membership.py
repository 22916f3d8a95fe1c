"""A process's lease, with its report of itself."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from adapter_store.catalogue import Catalogue
from adapter_store.members import Members
from cluster.errors import StoreUnavailable
from cluster.members import Report
from cluster.tasks import Background
from deployments.process import metrics

logger = logging.getLogger(__name__)


class Membership:
    """Renews the lease three times a term, and at once when there is something new to report.

    Args:
        catalogue: whose position the report tells; it is renewed whenever that moves.
        report: makes the newest report.
        before: awaited before each periodic report, to refresh what it says; whoever announces a
            change knows it already.
    """

    def __init__(
        self,
        members: Members,
        catalogue: Catalogue,
        report: Callable[[], Report],
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._members = members
        self._period_s = members.lease_s / 3
        self._report = report
        self._before = before
        self._changed = asyncio.Event()
        self._background = Background()
        self._is_member = False
        self._catalogue = catalogue
        self._began = time.time()
        catalogue.on_moved(self._moved)

    async def start(self) -> None:
        await self._members.renew(self._report())
        self._is_member = True
        self._background.start("membership", self._renew_for_ever())

    def announce(self) -> None:
        """Renew now: the report changed."""
        self._changed.set()

    def check(self) -> None:
        """Raise what ended the renewal, so that a health check sees it."""
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()
        if self._is_member:
            with contextlib.suppress(StoreUnavailable):
                await self._members.leave(self._report().id)

    def _moved(self) -> None:
        # What was there before this process began says nothing of how fast it follows.
        changed_at = int(self._catalogue.position.partition("-")[0]) / 1000
        if changed_at > self._began:
            metrics.event_lag.observe(max(0.0, time.time() - changed_at))
        self.announce()

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
                await self._members.renew(self._report())
            except StoreUnavailable as e:
                metrics.store_errors.inc()
                logger.warning("lease not renewed: %s", e)
                await asyncio.sleep(self._period_s)

    async def _prepare(self) -> None:
        if self._before is not None:
            # A busy engine answers late: the lease must not end for that.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._before(), self._period_s)
