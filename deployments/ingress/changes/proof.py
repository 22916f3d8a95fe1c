"""Proof that a replica can load an adapter, before it becomes what a name answers."""

import asyncio
import json
import logging
import uuid
from collections.abc import Mapping

from cluster.adapters import AdapterRef
from cluster.errors import AdapterRefused, EngineRefused, RoundhouseError, Unavailable
from deployments.ingress.answering.pools import ReplicaPool
from deployments.process.call import TRIAL_PATH, Call

logger = logging.getLogger(__name__)

# One replica may be ill; when two refuse the same files, it is the files.
_REPLICAS = 2
# A replica itself waits a minute for a place; the load comes on top.
_PATIENCE_S = 120.0


class Proof:
    """Has replicas load what is to be registered.

    Args:
        pools: by base model.
    """

    def __init__(self, pools: Mapping[str, ReplicaPool]) -> None:
        self._pools = pools

    async def prove(self, base_model: str, digest: str) -> bool:
        """See :data:`adapter_store.registration.Prove`."""
        pool = self._pools.get(base_model)
        replicas = pool.running() if pool is not None else []
        if pool is None or not replicas:
            return False
        refusals: list[RoundhouseError] = []
        for replica in replicas[:_REPLICAS]:
            try:
                await self._try(pool, replica, digest)
            except RoundhouseError as e:
                logger.warning("replica %s did not load %s: %s", replica, digest, e.message)
                refusals.append(e)
            else:
                return True
        raise _refusal(refusals)

    async def _try(self, pool: ReplicaPool, replica: str, digest: str) -> None:
        ref = AdapterRef.on_trial(digest)
        call = Call(TRIAL_PATH, uuid.uuid4().hex, b"", ref, position="", replica=replica)
        try:
            async with asyncio.timeout(_PATIENCE_S), pool.sent(call) as reply:
                body = await reply.read()
        except TimeoutError as e:
            raise Unavailable(f"replica {replica} did not say in {_PATIENCE_S:.0f} s") from e
        if reply.start.status == 200:
            return
        error = json.loads(body)["error"]
        is_refused = error["code"] == EngineRefused.code
        message = error["message"].replace(ref.key, "it")
        raise (EngineRefused if is_refused else Unavailable)(message)


def _refusal(refusals: list[RoundhouseError]) -> RoundhouseError:
    """What a client is told; that the files are at fault only when an engine has said so."""
    for refusal in refusals:
        if not isinstance(refusal, EngineRefused):
            return Unavailable(f"it could not be tried on a replica: {refusal.message}")
    return AdapterRefused(f"no replica can load it: {refusals[0].message}", param="source")
