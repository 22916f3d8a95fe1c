"""Background tasks, ended for sure."""

import asyncio

_ASK_AGAIN_S = 0.5


async def cancel(task: asyncio.Task) -> None:
    """Cancel a task and wait until it has ended; errors that it ended with are dropped.

    It asks more than once: the Redis client can swallow a cancellation that meets one of its own
    time-outs.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_ASK_AGAIN_S)
    if not task.cancelled():
        task.exception()
