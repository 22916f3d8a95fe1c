"""What a replica does with one request."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)

from cluster.adapters import Tier
from cluster.errors import RoundhouseError
from deployments.engines.engine import Engine
from deployments.process.call import REPLICA_HEADER, RESIDENCY_HEADER, Call, Reply
from deployments.replica.adapter_cache import AdapterCache

Admit = Callable[[Call], Awaitable[None]]


@asynccontextmanager
async def serve_call(
    engine: Engine, adapters: AdapterCache, admit: Admit, call: Call, replica_id: str
) -> AsyncIterator[Reply]:
    """One request on one replica: admit it, hold the adapter, generate.

    The start says where the adapter was found. Errors of ours before the body become an answer:
    none of them crosses to the ingress.
    """
    async with AsyncExitStack() as held:
        try:
            await admit(call)
            tier = await held.enter_async_context(_held(adapters, call))
            answer = engine.answer(call.path, call.body, {"x-request-id": call.request_id})
            reply = await held.enter_async_context(answer)
        except RoundhouseError as e:
            reply = Reply.refusal(e)
        else:
            found = {REPLICA_HEADER: replica_id, RESIDENCY_HEADER: tier}
            body = reply.body
            if tier is not Tier.SLOT:
                body = await held.enter_async_context(aclosing(_moving(body, adapters)))
            reply = Reply(reply.start.with_headers(found), body)
        yield reply


async def _moving(
    body: AsyncGenerator[bytes, None], adapters: AdapterCache
) -> AsyncGenerator[bytes, None]:
    """Once it generates, the engine has put the adapter into a slot."""
    is_first = True
    async for chunk in body:
        if is_first:
            adapters.refresh_soon()
            is_first = False
        yield chunk


def _held(adapters: AdapterCache, call: Call) -> AbstractAsyncContextManager[Tier]:
    """A lease; the base model needs none, it is always there."""
    if call.adapter is None:
        return nullcontext(Tier.SLOT)
    return adapters.lease(call.adapter)
