"""What a replica does with one request."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

from cluster.adapters import Tier
from cluster.errors import RoundhouseError
from deployments.engines.engine import Engine
from deployments.process.call import REPLICA_HEADER, RESIDENCY_HEADER, Call, ResponseStart
from deployments.replica.adapter_cache import AdapterCache

Admit = Callable[[Call], Awaitable[None]]


async def serve_call(
    engine: Engine, adapters: AdapterCache, admit: Admit, call: Call, replica_id: str
) -> AsyncIterator[ResponseStart | bytes]:
    """One request on one replica: admit it, hold the adapter, generate.

    Yields the start, with where the adapter was found, then the body. Errors of ours become an
    answer: none crosses to the ingress.
    """
    try:
        await admit(call)
        async with _held(adapters, call) as tier:
            answer = engine.answer(call.path, call.body, {"x-request-id": call.request_id})
            moved = tier is not Tier.SLOT
            async with contextlib.aclosing(answer):
                async for item in answer:
                    if isinstance(item, ResponseStart):
                        item.headers[REPLICA_HEADER] = replica_id
                        item.headers[RESIDENCY_HEADER] = tier
                    elif moved:
                        # It generates, so the engine has put the adapter into a slot.
                        adapters.refresh_soon()
                        moved = False
                    yield item
    except RoundhouseError as e:
        yield ResponseStart(e.status, {"content-type": "application/json", **e.headers()})
        yield json.dumps(e.body()).encode()


def _held(adapters: AdapterCache, call: Call) -> contextlib.AbstractAsyncContextManager[Tier]:
    """A lease; the base model needs none, it is always there."""
    if call.adapter is None:
        return contextlib.nullcontext(Tier.SLOT)
    return adapters.lease(call.adapter)
