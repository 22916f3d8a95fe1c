"""Call an ASGI application in this process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from deployments.process.call import Reply, ResponseStart

# What an application has sent: a start, then the chunks of a body; None when it has ended.
_Sent = asyncio.Queue[ResponseStart | bytes | None]

_DISCONNECT_S = 5.0


@asynccontextmanager
async def call_asgi(
    app: Any, path: str, body: bytes, headers: dict[str, str]
) -> AsyncIterator[Reply]:
    """POST `body` to `app`; the reply's body comes as the application sends it.

    The end of the block is for the application what a client that hangs up is.
    """
    sent = _Sent()
    gone = asyncio.Event()
    task = asyncio.create_task(_run(app, _scope(path, headers), body, sent, gone))
    try:
        start = await _start(sent, task)
        async with aclosing(_body(sent, task)) as chunks:
            yield Reply(start, chunks)
    finally:
        # As a closed socket is told: applications end their own tasks on it, and a cancellation
        # from outside would not reach those.
        gone.set()
        await asyncio.wait([task], timeout=_DISCONNECT_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _start(sent: _Sent, task: asyncio.Task[None]) -> ResponseStart:
    start = await sent.get()
    if isinstance(start, ResponseStart):
        return start
    await task  # raises what it failed with, if it has
    raise RuntimeError("the application has ended without an answer")


async def _body(sent: _Sent, task: asyncio.Task[None]) -> AsyncGenerator[bytes, None]:
    while isinstance(chunk := await sent.get(), bytes):
        yield chunk
    await task


async def _run(
    app: Any, scope: dict[str, Any], body: bytes, sent: _Sent, gone: asyncio.Event
) -> None:
    request = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if request:
            return request.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = {
                k.decode("latin-1").lower(): v.decode("latin-1") for k, v in message["headers"]
            }
            sent.put_nowait(ResponseStart(message["status"], headers))
        elif message["type"] == "http.response.body" and message.get("body"):
            sent.put_nowait(bytes(message["body"]))

    try:
        await app(scope, receive, send)
    finally:
        sent.put_nowait(None)


def _scope(path: str, headers: dict[str, str]) -> dict[str, Any]:
    given = {"content-type": "application/json", **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in given.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
