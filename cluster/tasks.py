"""Background tasks, looked after and ended for sure; and waits for the store that end."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cluster.errors import RoundhouseError, StoreUnavailable

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5
_RETRY_S = 0.5
# Whoever looks at the cluster wants to know that the store hangs, not to wait for it.
PATIENCE_S = 2.0

Result = TypeVar("Result")


class Background:
    """Tasks that run beside what started them, until it stops them."""

    def __init__(self) -> None:
        self._lasting: list[asyncio.Task[None]] = []
        self._passing: set[asyncio.Task[Any]] = set()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run what never ends by itself; should it, `check` says so."""
        self._lasting.append(asyncio.create_task(work, name=name))

    def repeat(
        self,
        name: str,
        step: Callable[[], Awaitable[object]],
        *,
        otherwise: str | Callable[[], str],
        pause_s: float = 0.0,
        retry_s: float = _RETRY_S,
    ) -> None:
        """Do it again and again, also when the store has not answered.

        Args:
            otherwise: what is so meanwhile; logged with the store's error.
            pause_s: after a step; `retry_s` after one that the store has failed.
        """
        self.start(name, _repeated(step, otherwise, pause_s, retry_s))

    def spawn(self, name: str, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run what ends by itself. Errors are for whoever awaits it; what is no error of ours is
        logged, too, for it may be that nobody does."""
        task = asyncio.create_task(work, name=name)
        self._passing.add(task)
        task.add_done_callback(self._passed)
        return task

    def check(self) -> None:
        """Raise what ended a task that should not have, so that a health check sees it."""
        for task in self._lasting:
            if task.done():
                task.result()

    async def stop(self, *, patience_s: float = 0.0) -> None:
        """End all of them, those that were started first before the others.

        Args:
            patience_s: in which they may end by themselves.
        """
        tasks = [*self._lasting, *self._passing]
        if patience_s and tasks:
            await asyncio.wait(tasks, timeout=patience_s)
        await cancel(*tasks)

    def _passed(self, task: asyncio.Task[Any]) -> None:
        self._passing.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, RoundhouseError):
            logger.debug("%s: %s", task.get_name(), error)
        else:
            logger.error("%s failed", task.get_name(), exc_info=error)


async def _repeated(
    step: Callable[[], Awaitable[object]],
    otherwise: str | Callable[[], str],
    pause_s: float,
    retry_s: float,
) -> None:
    while True:
        try:
            await step()
        except StoreUnavailable as e:
            logger.warning("%s: %s", otherwise if isinstance(otherwise, str) else otherwise(), e)
            await asyncio.sleep(retry_s)
        else:
            await asyncio.sleep(pause_s)


@contextlib.asynccontextmanager
async def renewed(
    name: str, renew: Callable[[], Awaitable[object]], *, every_s: float
) -> AsyncIterator[None]:
    """Do something again and again as long as the block lasts, also when the store has not
    answered."""

    async def again() -> None:
        while True:
            await asyncio.sleep(every_s)
            with contextlib.suppress(StoreUnavailable):
                await renew()

    task = asyncio.create_task(again(), name=name)
    try:
        yield
    finally:
        await cancel(task)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks in turn and wait until each has ended; errors that they ended with are dropped.

    It asks more than once: the Redis client can swallow a cancellation that meets one of its own
    time-outs.
    """
    for task in tasks:
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_ASK_AGAIN_S)
        if not task.cancelled():
            task.exception()


async def soon(work: Awaitable[Result], *, within_s: float = PATIENCE_S) -> Result:
    """What the store says, if it does so in time.

    Raises:
        StoreUnavailable: it does not answer, or not soon.
    """
    try:
        async with asyncio.timeout(within_s):
            return await work
    except TimeoutError as e:
        raise StoreUnavailable(f"the adapter store does not answer within {within_s} s") from e
