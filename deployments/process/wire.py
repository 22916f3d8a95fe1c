"""How an answer travels from a replica to the ingress: in few messages, the first one at once.

A message between two processes costs about as much as generating a token of a small model. What
comes within a few milliseconds of the last one goes together. The start waits for the first of the
body: until then nothing has reached the client, and another replica may take over.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from deployments.process.call import ResponseStart

# Shorter than the time between two tokens of nearly every engine.
_TOGETHER_S = 0.005


@dataclass(frozen=True)
class Part:
    """One message; the first one of an answer has its start."""

    start: ResponseStart | None
    body: bytes


async def packed(answer: AsyncGenerator[ResponseStart | bytes, None]) -> AsyncIterator[Part]:
    """The answer in parts; it is closed when this is."""
    start: ResponseStart | None = None
    ready: list[bytes] = []
    came = asyncio.Event()

    async def collect() -> None:
        nonlocal start
        try:
            async with contextlib.aclosing(answer):
                async for item in answer:
                    if isinstance(item, ResponseStart):
                        start = item
                    else:
                        ready.append(item)
                        came.set()
        finally:
            came.set()

    task = asyncio.create_task(collect(), name="answer")
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
        # Once: a second cancellation would end the cleaning up after the first.
        task.cancel()
        await asyncio.wait([task])


async def unpacked(parts: AsyncIterator[Part]) -> AsyncIterator[ResponseStart | bytes]:
    """What was packed: the start, then the body as it comes."""
    async for part in parts:
        if part.start is not None:
            yield part.start
        if part.body:
            yield part.body
