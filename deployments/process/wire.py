"""How a reply travels from a replica to the ingress: in few messages, the first one at once.

A message between two processes costs about as much as generating a token of a small model. What
comes within a few milliseconds of the last one goes together. The start waits for the first of the
body: until then nothing has reached the client, and another replica may take over.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from cluster.errors import ReplicaLost
from deployments.process.call import Reply, ResponseStart

# Shorter than the time between two tokens of nearly every engine.
_TOGETHER_S = 0.005


@dataclass(frozen=True)
class Part:
    """One message; the first one of a reply has its start."""

    start: ResponseStart | None
    body: bytes


async def packed(answering: AbstractAsyncContextManager[Reply]) -> AsyncGenerator[Part, None]:
    """The reply in parts; what it holds ends when this does."""
    start: ResponseStart | None = None
    ready: list[bytes] = []
    came = asyncio.Event()

    async def collect() -> None:
        nonlocal start
        try:
            async with answering as reply:
                start = reply.start
                async for chunk in reply.body:
                    ready.append(chunk)
                    came.set()
        finally:
            came.set()

    task = asyncio.create_task(collect(), name="reply")
    try:
        while ready or not task.done():
            await came.wait()
            came.clear()
            if ready:
                part = Part(start, b"".join(ready))
                start = None
                ready.clear()
                yield part
                await asyncio.wait([task], timeout=_TOGETHER_S)
        await task  # an error comes after what came before it
        if start is not None:
            yield Part(start, b"")
    finally:
        # In the task, and once: a second cancellation would end the cleaning up after the first.
        task.cancel()
        await asyncio.wait([task])


async def unpacked(parts: AsyncIterator[Part]) -> Reply:
    """What was packed, when its first part is there; whoever has the parts closes them.

    Raises:
        ReplicaLost: there is none.
    """
    first = await anext(parts, None)
    if first is None or first.start is None:
        raise ReplicaLost("the replica ended without an answer")
    return Reply(first.start, _body(first, parts))


async def _body(first: Part, rest: AsyncIterator[Part]) -> AsyncGenerator[bytes, None]:
    if first.body:
        yield first.body
    async for part in rest:
        yield part.body
