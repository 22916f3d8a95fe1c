"""The newest plan of what is where: one leader writes it, every replica follows it."""

from collections.abc import AsyncIterator, Mapping

from adapter_store.server import BLOCK_S, Server, answering, flat
from cluster.plans import PlacementPlan

_A_WEEK_S = 7 * 86_400


class Plans:
    """The plan in the store.

    Every method raises :class:`StoreUnavailable` when the server does not answer.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._keys = server.keys

    async def lead(self, who: str, *, for_s: float) -> int:
        """Become or stay the leader for a while; its number, or 0 when somebody else leads."""
        keys = [self._keys.leader, self._keys.fence, self._keys.plan, self._keys.plans]
        number: int = await self._server.run("lead", keys, [who, round(for_s * 1000)])
        return number

    async def put(self, leader: int, plan: PlacementPlan) -> bool:
        """Publish a plan; False when `leader` leads no more."""
        keys = [self._keys.plan, self._keys.plans, self._keys.fence]
        return bool(await self._server.run("put_plan", keys, [leader, plan.model_dump_json()]))

    async def newest(self) -> PlacementPlan:
        """An empty one before the first."""
        raw = await self._server.text(self._keys.plan)
        return PlacementPlan.model_validate_json(raw) if raw else PlacementPlan()

    async def usual(self, quarter: int) -> dict[str, float]:
        """Requests a second by adapter that are usual in a quarter hour of the day."""
        rates = await self._server.fields(self._keys.usual(quarter))
        return {name: float(rate) for name, rate in rates.items()}

    async def put_usual(self, quarter: int, rates: Mapping[str, float]) -> None:
        """Replace them. They end when they were not seen for a week."""
        key = self._keys.usual(quarter)
        pipe = self._server.redis.pipeline(transaction=True)
        pipe.delete(key)
        if rates:
            pipe.hset(key, items=flat(rates))
            pipe.expire(key, _A_WEEK_S)
        with answering():
            await pipe.execute()

    async def follow(self) -> AsyncIterator[PlacementPlan]:
        """The plan now, and every newer one as soon as it is there."""
        while True:
            seen = await self._server.newest(self._keys.plans)
            yield await self.newest()
            while not await self._server.read(self._keys.plans, seen, block_s=BLOCK_S):
                pass
