"""Which calls vLLM's application answers for a model, and how their streams begin."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

from vllm.config import ModelConfig
from vllm.entrypoints.pooling.utils import enable_scoring_api
from vllm.tasks import SupportedTask

from cluster.calls import GENERATES, RESPONSES_PATH, Task
from deployments.process.call import Reply

# What vLLM sends of a response as soon as it is asked for one.
_BEFORE_TOKENS = re.compile(rb"event: response\.(?:created|in_progress|queued)\n")


def tasks_of(supported: tuple[SupportedTask, ...], config: ModelConfig) -> tuple[str, ...]:
    """What it can do, by the tasks that vLLM says a model has."""
    found: list[str] = [*GENERATES] if Task.GENERATE in supported else [Task.TOKENIZE]
    pooling = config.get_pooling_task(supported)
    if pooling is not None:
        found.append(Task.POOL)
    if pooling in (Task.EMBED, Task.CLASSIFY):  # of several, vLLM serves the one
        found.append(pooling)
    if enable_scoring_api(supported, config):
        found.append(Task.SCORE)
    if Task.TRANSCRIBE in supported:
        found.append(Task.TRANSCRIBE)
    return tuple(map(str, found))


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
