"""What a replica does with one request."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack

from cluster.adapters import Tier
from cluster.errors import RoundhouseError
from deployments.engines.engine import Engine
from deployments.process.call import REPLICA_HEADER, RESIDENCY_HEADER, Call, Reply
from deployments.replica.adapter_cache import AdapterCache

Admit = Callable[[Call], Awaitable[None]]


async def serve_call(
    engine: Engine,
    adapters: AdapterCache,
    admit: Admit,
    call: Call,
    replica_id: str,
    held: AsyncExitStack,
) -> Reply:
    """One request on one replica: admit it, hold the adapter, generate, as long as `held` lasts.

    The start says where the adapter was found. Errors of ours before the body become an answer:
    none of them crosses to the ingress.
    """
    try:
        await admit(call)
        tier = Tier.SLOT  # of the base model, which needs no lease
        if call.adapter is not None:
            tier = await held.enter_async_context(adapters.lease(call.adapter))
        headers = {"x-request-id": call.request_id, "content-type": call.content_type}
        answer = engine.answer(call.path, call.body, headers)
        reply = await held.enter_async_context(answer)
    except RoundhouseError as e:
        return Reply.refusal(e)
    body = reply.body if tier is Tier.SLOT else _moving(reply.body, adapters)
    found = {REPLICA_HEADER: replica_id, RESIDENCY_HEADER: tier}
    return Reply(reply.start.with_headers(found), body)


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
