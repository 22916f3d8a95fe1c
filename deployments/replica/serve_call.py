"""What a replica does with one request."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack

from cluster.adapters import Tier
from cluster.errors import RoundhouseError
from deployments.engines.engine import Engine
from deployments.process.call import REPLICA_HEADER, RESIDENCY_HEADER, Call, Reply
from deployments.process.tracing import Span, resumed
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
    span = held.enter_context(resumed("replica", call.trace))
    span.note(replica=replica_id, model_key=call.key)
    try:
        await admit(call)
        tier = Tier.SLOT  # of the base model, which needs no lease
        if call.adapter is not None:
            with span.child(
                "load", adapter=call.adapter.name, version=call.adapter.version
            ) as load:
                tier = await held.enter_async_context(adapters.lease(call.adapter))
                load.note(tier=tier.value)
        phases = Phases(span)
        held.callback(phases.end)
        told = {"x-request-id": call.request_id, "content-type": call.content_type}
        answer = engine.answer(call.path, call.body, {**told, **span.carried})
        reply = await held.enter_async_context(answer)
    except RoundhouseError as e:
        span.failed(e.message)
        return Reply.refusal(e)
    body = reply.body if tier is Tier.SLOT else _moving(reply.body, adapters)
    if span:
        body = phases.told(body, is_stream=reply.start.is_stream)
    found = {REPLICA_HEADER: replica_id, RESIDENCY_HEADER: tier}
    return Reply(reply.start.with_headers(found), body)


class Phases:
    """An answer's way through the engine: prefill until its first token, then decode; what comes in
    one piece does not tell them apart, and is one, generate."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._phase = span.child("prefill")

    async def told(
        self, body: AsyncGenerator[bytes, None], *, is_stream: bool
    ) -> AsyncGenerator[bytes, None]:
        is_first = is_stream
        if not is_stream:
            self._phase.rename("generate")
        async for chunk in body:
            if is_first:
                self._phase.end()
                self._phase = self._span.child("decode")
                is_first = False
            yield chunk

    def end(self) -> None:
        self._phase.end()


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
