"""Several answers to one request, each to some of its prompts: sent for together, told as one.

One that fails ends all: its error is the answer. So does a client that leaves.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, NamedTuple, TypeVar

from cluster.errors import Unavailable
from deployments.ingress.answering.fallback import Answered
from deployments.ingress.answering.merging import (
    Events,
    Json,
    Places,
    event_of,
    is_usage,
    merged,
    placed,
    summed,
)
from deployments.ingress.answering.start import start_of_all
from deployments.ingress.directory import Chosen
from deployments.process.call import Reply

T = TypeVar("T")

_OK = 200
_DONE = b"[DONE]"
# Of each stream, what waits to be told.
_MOST_WAITING = 64


class Share(NamedTuple):
    """Prompts of a request that the same model answers with the same adapter.

    Attributes:
        prompts: their places in the request.
    """

    chosen: Chosen
    prompts: tuple[int, ...]


class Told(NamedTuple):
    """What one share got."""

    share: Share
    answered: Answered


class _Refused(Exception):
    """An engine's answer is an error."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self.told = told


# Sends a share to a model; the reply lives as long as the block.
Send = Callable[[int, Share, AsyncExitStack], Awaitable[Answered]]


def shares_of(chosen: Sequence[Chosen]) -> list[Share]:
    """Which prompts go together, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, one in enumerate(chosen):
        is_ruled = one.decision is not None and bool(one.decision.rule)
        key = (one.base_model, one.adapter, one.route, is_ruled)
        groups.setdefault(key, []).append(place)
    return [Share(chosen[places[0]], tuple(places)) for places in groups.values()]


async def all_answers(shares: Sequence[Share], send: Send, held: AsyncExitStack) -> list[Told]:
    """What each share got, when all have begun to be answered; of one whose answer is an error,
    this alone.

    Raises:
        RoundhouseError: what the first of them met that has met one.
    """

    async def one(number: int, share: Share, own: AsyncExitStack) -> Told:
        told = Told(share, await send(number, share, own))
        if told.answered.reply.start.status != _OK:
            raise _Refused(told)
        return told

    stacks = [await held.enter_async_context(AsyncExitStack()) for _ in shares]
    rows = enumerate(zip(shares, stacks, strict=True))
    try:
        return await _each(one(number, share, own) for number, (share, own) in rows)
    except _Refused as e:
        return [e.told]


async def _each(these: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return; the first that fails cancels the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in these]
    except ExceptionGroup as e:
        raise e.exceptions[0] from None
    return [task.result() for task in tasks]


def as_one(told: Sequence[Told], request_id: str, choices: int) -> Reply:
    """One reply out of several.

    Args:
        choices: answers to each prompt.
    """
    start = start_of_all([one.answered for one in told])
    names = dict.fromkeys(one.answered.chosen.name for one in told)
    head = {"id": f"cmpl-{request_id}", "created": int(time.time())}
    parts = [(Places(one.share.prompts, choices), one.answered.reply) for one in told]
    if start.is_stream:
        return Reply(start, _streamed(parts, head))
    return Reply(start, _whole(parts, head | {"model": ",".join(names)}))


async def _whole(parts: Sequence[tuple[Places, Reply]], head: Json) -> AsyncGenerator[bytes, None]:
    bodies = await _each(reply.read() for _, reply in parts)
    try:
        read = [(places, json.loads(b)) for (places, _), b in zip(parts, bodies, strict=True)]
        yield json.dumps(merged(read, head)).encode()
    except (ValueError, LookupError, TypeError) as e:
        raise _unreadable() from e


async def _streamed(
    parts: Sequence[tuple[Places, Reply]], head: Json
) -> AsyncGenerator[bytes, None]:
    """The chunks as they come, under one id; usage at the end, added up."""
    usages: list[Json] = []
    last: Json = {}
    async with aclosing(_as_they_come([reply for _, reply in parts])) as events:
        async for number, data in events:
            if data == _DONE:
                continue
            try:
                chunk = json.loads(data)
                if "error" in chunk:
                    yield event_of(chunk)
                    return
                chunk |= head
                if is_usage(chunk):
                    usages.append(chunk["usage"])
                    last = chunk
                    continue
                event = event_of(placed(chunk, parts[number][0]))
            except (ValueError, LookupError, TypeError) as e:
                raise _unreadable() from e
            yield event
    if usages:
        yield event_of({**last, "usage": summed(usages)})
    yield b"data: " + _DONE + b"\n\n"


async def _as_they_come(replies: Sequence[Reply]) -> AsyncGenerator[tuple[int, bytes], None]:
    """The events of several streams, with the number of each one's stream."""
    waiting: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(_MOST_WAITING)

    async def follow(number: int, reply: Reply) -> None:
        events = Events()
        async for piece in reply.body:
            for data in events.of(piece):
                await waiting.put((number, data))

    async def follow_all() -> None:
        try:
            await _each(follow(i, reply) for i, reply in enumerate(replies))
        finally:
            ended.set()
            with contextlib.suppress(asyncio.QueueFull):
                waiting.put_nowait(None)  # whoever waits for more

    ended = asyncio.Event()
    task = asyncio.create_task(follow_all(), name="streams")
    try:
        while not (ended.is_set() and waiting.empty()):
            if (found := await waiting.get()) is not None:
                yield found
        await task  # an error comes after what came before it
    finally:
        task.cancel()
        await asyncio.wait([task])


def _unreadable() -> Unavailable:
    return Unavailable("an engine has sent what is no answer")
