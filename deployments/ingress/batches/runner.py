"""Who works on which batch: every ingress looks for those that nobody has.

A lease in the store gives a batch to one process; when that dies, another one goes on.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from functools import partial

from adapter_store.batches.contents import Contents
from adapter_store.batches.ledger import Ledger
from cluster.batches import Batch
from cluster.errors import RoundhouseError, StoreUnavailable
from cluster.settings import BatchSettings
from cluster.tasks import Background
from deployments.ingress.batches.run import Ask, Run
from deployments.process import metrics

logger = logging.getLogger(__name__)

_LEASE_S = 15.0
_LOOK_S = 2.0
_SWEEP_S = 600.0
_PAUSE_S = 15.0
# One process's; the others wait for its places anyway.
_AT_ONCE = 8


class Runner:
    """One process's part in the work.

    Args:
        worker_id: names this process in the store.
    """

    def __init__(
        self, settings: BatchSettings, ledger: Ledger, contents: Contents, ask: Ask, worker_id: str
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._contents = contents
        self._ask = ask
        self._id = worker_id
        self._busy: dict[str, Batch] = {}
        # When to look again at one that could not go on; by the monotonic clock.
        self._paused_until: dict[str, float] = {}
        self._heard = asyncio.Event()
        self._background = Background()

    async def start(self) -> None:
        self._background.repeat("batches", self._look, otherwise="batches wait")
        self._background.repeat(
            "batch files", self._sweep, otherwise="old files stay", pause_s=_SWEEP_S
        )

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    def hear(self) -> None:
        """There is a new one."""
        self._heard.set()

    async def _look(self) -> None:
        """Take what nobody works on, then wait for a while, or until something is heard of."""
        found = await self._ledger.open()
        self._paused_until = {
            b.order.id: self._paused_until[b.order.id]
            for b in found
            if b.order.id in self._paused_until
        }
        running = Counter(batch.order.viewer.owner for batch in self._busy.values())
        # Of each tenant the oldest first; who has none here comes before who has.
        for batch in sorted(found, key=lambda b: running[b.order.viewer.owner]):
            if len(self._busy) >= _AT_ONCE:
                break
            await self._take(batch)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._heard.wait()
        self._heard.clear()

    async def _take(self, batch: Batch) -> None:
        batch_id = batch.order.id
        is_paused = time.monotonic() < self._paused_until.get(batch_id, 0.0)
        if batch_id in self._busy or is_paused:
            return
        renew = partial(self._ledger.hold, batch, self._id, for_s=_LEASE_S)
        if not await renew():
            return
        self._busy[batch_id] = batch
        metrics.batches_running.set(len(self._busy))
        run = Run(batch, self._ledger, self._contents, self._ask, self._settings, renew)
        task = self._background.spawn(f"batch {batch_id}", self._work(batch_id, run))
        task.add_done_callback(lambda _: self._ended(batch_id))

    async def _work(self, batch_id: str, run: Run) -> None:
        try:
            await run.go()
        except StoreUnavailable as e:
            logger.warning("batch %s waits: %s", batch_id, e)
        except RoundhouseError as e:
            logger.warning("batch %s waits: %s", batch_id, e)
            self._pause(batch_id)
        except Exception:
            # Whatever it is, it must not be tried at every look, and not end other batches.
            logger.exception("batch %s cannot go on yet", batch_id)
            self._pause(batch_id)

    def _pause(self, batch_id: str) -> None:
        self._paused_until[batch_id] = time.monotonic() + _PAUSE_S

    def _ended(self, batch_id: str) -> None:
        self._busy.pop(batch_id, None)
        metrics.batches_running.set(len(self._busy))
        self._heard.set()

    async def _sweep(self) -> None:
        """Remove files whose time is over."""
        being_read = {batch.order.input_file_id for batch in await self._ledger.open()}
        for owner, file_id in await self._ledger.expired():
            if file_id in being_read:
                continue
            await asyncio.to_thread(self._contents.remove, file_id)
            await self._ledger.remove_file(owner, file_id)
