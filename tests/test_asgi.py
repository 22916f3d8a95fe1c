"""An application called in this process, as a server would."""

import asyncio
import json

import pytest

from deployments.engines.asgi import call_asgi


async def echo(scope, receive, send) -> None:
    body = (await receive())["body"]
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": True})
    await send({"type": "http.response.body", "body": body})


async def test_the_start_is_there_before_the_body():
    async with call_asgi(echo, "/v1/x", b"{}", {"x-request-id": "1"}) as reply:
        assert (reply.start.status, reply.start.headers["content-type"]) == (
            201,
            "application/json",
        )
        assert await reply.read() == b"/v1/x{}"


async def test_what_the_application_fails_with_before_it_answers_is_raised():
    async def fail(*_) -> None:
        raise ValueError("no model")

    with pytest.raises(ValueError, match="no model"):
        async with call_asgi(fail, "/", b"", {}):
            pass


async def test_what_it_fails_with_later_ends_the_body():
    async def fail(_, __, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise ValueError("the engine died")

    async with call_asgi(fail, "/", b"", {}) as reply:
        assert await anext(reply.body) == b"a"
        with pytest.raises(ValueError, match="the engine died"):
            await anext(reply.body)


async def test_an_application_that_says_nothing_is_a_fault():
    async def nothing(*_) -> None:
        return

    with pytest.raises(RuntimeError, match="without an answer"):
        async with call_asgi(nothing, "/", b"", {}):
            pass


async def test_the_end_of_the_block_is_a_client_that_has_left():
    left = asyncio.Event()

    async def generate(_, receive, send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(
            {"type": "http.response.body", "body": json.dumps(1).encode(), "more_body": True}
        )
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with call_asgi(generate, "/", b"", {}) as reply:
        assert await anext(reply.body) == b"1"
    assert left.is_set()
