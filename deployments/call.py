"""One request as it goes from the ingress to a replica, and what the replica does with it."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from cluster.errors import RoundhouseError
from cluster.state import AdapterRef, Tier
from deployments.adapter_cache import AdapterCache
from deployments.engine import Engine, ResponseStart

REPLICA_HEADER = "x-roundhouse-replica"
RESIDENCY_HEADER = "x-roundhouse-residency"


@dataclass(frozen=True)
class Call:
    """One request as the ingress hands it over: already authorised and routed.

    `body` is the JSON for the engine, with the engine's name of the model in it. `position` is how
    far the ingress had followed the store when it resolved the adapter. `replica` is the one that
    it should go to; empty leaves that to Ray Serve. `waiting` are the adapter versions that
    requests behind it wait for; `missing` is the one of them that this replica should load next.
    """

    path: str
    request_id: str
    body: bytes
    adapter: AdapterRef | None
    position: str
    replica: str = ""
    waiting: tuple[str, ...] = ()
    missing: str = ""

    @property
    def key(self) -> str | None:
        """Of the adapter's version; None for the base model."""
        return self.adapter.key if self.adapter else None


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
