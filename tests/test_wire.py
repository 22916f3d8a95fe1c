"""How answers travel from a replica to the ingress."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deployments.process.call import ResponseStart
from deployments.process.wire import Part, packed, unpacked

START = ResponseStart(200, {"content-type": "text/event-stream"})


class Answer:
    """An engine's answer: each item when it is released, and whether it was closed."""

    def __init__(self, *items: ResponseStart | bytes | BaseException) -> None:
        self._items = items
        self.goes_on = asyncio.Semaphore(0)
        self.is_closed = False

    async def stream(self) -> AsyncIterator[ResponseStart | bytes]:
        try:
            for item in self._items:
                await self.goes_on.acquire()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.is_closed = True

    async def release(self, items: int) -> None:
        """Let so many come, and be collected."""
        for _ in range(items):
            self.goes_on.release()
        for _ in range(4 * items + 4):
            await asyncio.sleep(0)


async def test_the_first_token_goes_at_once_and_those_close_behind_it_together():
    answer = Answer(START, b"a", b"b", b"c", b"d")
    parts = packed(answer.stream())
    first = asyncio.create_task(anext(parts))
    await answer.release(2)
    assert await first == Part(START, b"a")
    rest = asyncio.create_task(anext(parts))
    for _ in range(3):
        await answer.release(1)
    assert await rest == Part(None, b"bcd")
    assert [part async for part in parts] == []
    assert answer.is_closed


async def test_tokens_that_come_apart_go_one_by_one():
    async def slow() -> AsyncIterator[ResponseStart | bytes]:
        yield START
        for token in (b"a", b"b", b"c"):
            yield token
            await asyncio.sleep(0.05)

    assert [part.body async for part in packed(slow())] == [b"a", b"b", b"c"]


async def test_the_start_waits_for_the_body():
    """Until then nothing has reached the client, and another replica may take over."""
    answer = Answer(START, b"a")
    parts = packed(answer.stream())
    first = asyncio.create_task(anext(parts))
    await answer.release(1)
    assert not first.done()
    await answer.release(1)
    assert await first == Part(START, b"a")
    await parts.aclose()


async def test_an_answer_without_a_body_has_its_start():
    answer = Answer(START)
    answer.goes_on.release()
    assert [item async for item in unpacked(packed(answer.stream()))] == [START]


async def test_no_answer_is_no_part():
    assert [part async for part in packed(Answer().stream())] == []


async def test_unpacked_is_what_was_packed():
    answer = Answer(START, b"a", b"b")
    await answer.release(3)
    items = [item async for item in unpacked(packed(answer.stream()))]
    assert items[0] == START
    assert b"".join(items[1:]) == b"ab"


async def test_an_error_comes_after_what_came_before_it():
    answer = Answer(START, b"a", ValueError("the engine died"))
    await answer.release(3)
    parts = packed(answer.stream())
    assert await anext(parts) == Part(START, b"a")
    with pytest.raises(ValueError, match="the engine died"):
        await anext(parts)
    assert answer.is_closed


async def test_an_error_before_the_body_is_no_answer():
    """Nothing has been sent, so another replica may be asked."""
    answer = Answer(START, ValueError("the engine died"))
    await answer.release(2)
    with pytest.raises(ValueError, match="the engine died"):
        await anext(packed(answer.stream()))


async def test_who_is_cancelled_gets_the_time_to_clean_up():
    """vLLM's application is given seconds to end its own tasks; nothing may end that early."""
    ended = asyncio.Event()

    async def slow_to_close() -> AsyncIterator[ResponseStart | bytes]:
        try:
            yield b"a"
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(1.2)
            ended.set()

    parts = packed(slow_to_close())
    await anext(parts)
    await parts.aclose()
    assert ended.is_set()


async def test_whoever_leaves_closes_the_answer():
    answer = Answer(START, b"a", b"never")
    await answer.release(2)
    parts = packed(answer.stream())
    await anext(parts)
    await parts.aclose()
    assert answer.is_closed


async def test_a_cancelled_wait_closes_the_answer():
    """As Serve ends the task of a client that has left."""
    answer = Answer(START, b"never")
    waiting = asyncio.create_task(anext(packed(answer.stream())))
    await answer.release(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert answer.is_closed
