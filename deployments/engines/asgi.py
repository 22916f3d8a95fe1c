"""Call an ASGI application in this process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from deployments.process.call import Reply, ResponseStart

_END = None
_DISCONNECT_S = 5.0


@asynccontextmanager
async def call_asgi(
    app: Any, path: str, body: bytes, headers: dict[str, str]
) -> AsyncIterator[Reply]:
    """POST `body` to `app`; the reply's body comes as the application sends it.

    The end of the block is for the application what a client that hangs up is.
    """
    out: asyncio.Queue[ResponseStart | bytes | None] = asyncio.Queue()
    gone = asyncio.Event()
    task = asyncio.create_task(_run(app, _scope(path, headers), body, out, gone))
    try:
        async with aclosing(_sent(out, task)) as sent:
            yield Reply(await _started(out, task), sent)
    finally:
        # As a closed socket is told: applications end their own tasks on it, and a cancellation
        # from outside would not reach those.
        gone.set()
        await asyncio.wait([task], timeout=_DISCONNECT_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _started(out: asyncio.Queue[Any], task: asyncio.Task[None]) -> ResponseStart:
    start = await out.get()
    if start is _END:
        await task  # what it failed with, if it has
        raise RuntimeError("the application has ended without an answer")
    return start


async def _sent(out: asyncio.Queue[Any], task: asyncio.Task[None]) -> AsyncGenerator[bytes, None]:
    while (chunk := await out.get()) is not _END:
        yield chunk
    await task


async def _run(
    app: Any, scope: dict[str, Any], body: bytes, out: asyncio.Queue, gone: asyncio.Event
) -> None:
    request = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if request:
            return request.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
            out.put_nowait(ResponseStart(message["status"], headers))
        elif message["type"] == "http.response.body" and message.get("body"):
            out.put_nowait(message["body"])

    try:
        await app(scope, receive, send)
    finally:
        out.put_nowait(_END)


def _scope(path: str, headers: dict[str, str]) -> dict[str, Any]:
    sent = {"content-type": "application/json", **headers}
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
        "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
