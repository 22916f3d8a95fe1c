"""How a stream begins: with its first token, whatever an application says before it."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

from cluster.calls import RESPONSES_PATH
from deployments.process.call import Reply

# What vLLM sends of a response as soon as it is asked for one.
_BEFORE_TOKENS = re.compile(rb"event: response\.(?:created|in_progress|queued)\n")


@asynccontextmanager
async def with_first_token(
    path: str, answering: AbstractAsyncContextManager[Reply]
) -> AsyncIterator[Reply]:
    """The reply, whose stream begins with the first token.

    As long as nothing of it has come, another replica may answer, and the time to the first token
    is what was waited for the first byte.
    """
    async with answering as reply:
        if path != RESPONSES_PATH or not reply.start.is_stream:
            yield reply
            return
        async with aclosing(_from_first_token(reply.body)) as body:
            yield Reply(reply.start, body)


async def _from_first_token(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    held = b""
    async for event in events:
        held += event
        if not _BEFORE_TOKENS.match(event):
            yield held
            held = b""
    if held:
        yield held
