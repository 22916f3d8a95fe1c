"""Adapters that were fetched because somebody asked for them: who fetches, what failed, what is
still asked for."""

import time
from collections.abc import Iterable

from adapter_store.server import Server, answering


class Resolutions:
    """Every method raises :class:`StoreUnavailable` when the server does not answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._keys = server.keys

    async def begin(self, name: str, process: str, *, for_s: float) -> bool:
        """Whether `process` is the one that fetches an adapter now; again, to go on with it."""
        return await self._server.hold(self._keys.resolving(name), process, for_s=for_s)

    async def end(self, name: str) -> None:
        with answering():
            await self._server.redis.delete(self._keys.resolving(name))

    async def fail(self, places: str, why: str, *, for_s: float) -> None:
        """Remember for a while that no adapter can be had there; `why` is "" when there is none."""
        key, ms = self._keys.unresolved(places), round(for_s * 1000)
        with answering():
            # A message may quote half a character of a file.
            await self._server.redis.set(key, why.encode(errors="replace"), px=ms)

    async def failure(self, places: str) -> str | None:
        """Why none could be had there a while ago; None when it was not tried."""
        return await self._server.text(self._keys.unresolved(places))

    async def used(self, names: Iterable[str]) -> None:
        """Somebody asks for adapters that were fetched so."""
        now = time.time()
        if scores := dict.fromkeys(names, now):
            with answering():
                await self._server.redis.zadd(self._keys.resolved, scores)

    async def know(self, names: Iterable[str]) -> None:
        """Count from now for those of which it is not known when somebody asked."""
        if scores := dict.fromkeys(names, time.time()):
            with answering():
                await self._server.redis.zadd(self._keys.resolved, scores, nx=True)

    async def idle(self, for_s: float) -> list[str]:
        """Those that nobody has asked for in so many seconds."""
        with answering():
            found = await self._server.redis.zrangebyscore(
                self._keys.resolved, "-inf", time.time() - for_s
            )
        return [str(name) for name in found]

    async def forget(self, name: str) -> None:
        with answering():
            await self._server.redis.zrem(self._keys.resolved, name)
