"""Background tasks, looked after and ended for sure; and waits for the store that end."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from cluster.errors import StoreUnavailable

_ASK_AGAIN_S = 0.5
# Whoever looks at the cluster wants to know that the store hangs, not to wait for it.
PATIENCE_S = 2.0

Result = TypeVar("Result")


def check(*tasks: asyncio.Task[Any] | None) -> None:
    """Raise what ended a background task; None is one that was not started."""
    for task in tasks:
        if task is not None and task.done():
            task.result()


async def cancel(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks in turn and wait until each has ended; errors that they ended with are dropped.

    It asks more than once: the Redis client can swallow a cancellation that meets one of its own
    time-outs.
    """
    for task in tasks:
        if task is None:
            continue
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_ASK_AGAIN_S)
        if not task.cancelled():
            task.exception()


async def soon(work: Awaitable[Result]) -> Result:
    """What the store says, if it does so within `PATIENCE_S`.

    Raises:
        StoreUnavailable: it does not answer, or not soon.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await work
    except TimeoutError as e:
        raise StoreUnavailable(f"the adapter store does not answer within {PATIENCE_S} s") from e
