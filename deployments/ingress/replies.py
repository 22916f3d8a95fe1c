"""A reply over HTTP: whole, or as a stream that is closed whichever way it ends."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cluster.errors import RoundhouseError
from deployments.process.call import Reply


async def respond(reply: Reply, held: AsyncExitStack) -> Response:
    """The response; of a stream, it takes over what is `held`."""
    if reply.start.is_stream:
        return _Stream(reply, held.pop_all())
    return Response(await reply.read(), reply.start.status, reply.start.headers)


class _Stream(StreamingResponse):
    """A client that hangs up frees its place: what the reply holds ends with the response."""

    def __init__(self, reply: Reply, held: AsyncExitStack) -> None:
        super().__init__(_told(reply), reply.start.status, reply.start.headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _told(reply: Reply) -> AsyncIterator[bytes]:
    """The status line is out already, so an error in mid-stream is the stream's last event."""
    try:
        async for chunk in reply.body:
            yield chunk
    except RoundhouseError as e:
        yield b"data: " + json.dumps(e.body()).encode() + b"\n\n"
