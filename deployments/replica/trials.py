"""Adapters on trial: loaded once, before anything is registered, and let go again."""

import asyncio

from cluster.adapters import AdapterRef
from cluster.errors import RoundhouseError, Unavailable
from cluster.tasks import Background
from deployments.process.call import Reply, ResponseStart
from deployments.replica.adapter_cache import AdapterCache

# For a place in host memory: requests that run may hold them all.
_PATIENCE_S = 60.0


class Trials:
    """Of one replica."""

    def __init__(self, adapters: AdapterCache) -> None:
        self._adapters = adapters
        self._background = Background()

    async def start(self) -> None:
        """There is nothing to start."""

    def check(self) -> None:
        self._background.check()

    async def stop(self) -> None:
        await self._background.stop()

    async def answer(self, ref: AdapterRef) -> Reply:
        """Whether the engine takes an adapter, as an answer: 200, or why not."""
        try:
            await self._load(ref)
        except RoundhouseError as e:
            return Reply.refusal(e)
        except Exception as e:  # noqa: BLE001  (a dead engine says anything)
            return Reply.refusal(Unavailable(f"the replica cannot try it: {e!r}"[:500]))
        return Reply.whole(ResponseStart(200, {}), b"")

    async def _load(self, ref: AdapterRef) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._adapters.ensure(ref)
        except TimeoutError as e:
            raise Unavailable(
                f"every place for adapters was in use for {_PATIENCE_S:.0f} s, so this one could "
                "not be tried; try again"
            ) from e
        finally:
            # The load may still be under way.
            self._background.spawn(f"end of {ref.key}", self._end(ref))

    async def _end(self, ref: AdapterRef) -> None:
        await self._adapters.drop(ref)
        self._adapters.clear_problems(ref.name)
