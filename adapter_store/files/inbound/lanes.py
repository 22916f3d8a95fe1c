"""Whose turn it is: what one asks for, be it slow or much, keeps nobody else waiting for long."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Hashable

from cluster.errors import Unavailable

_MOST_WAITING = 64


class Lanes:
    """Lets a few pass at a time, in each lane.

    Args:
        each: how many in one lane.
        waiting: what they do there, for those who are turned away.
    """

    def __init__(self, each: int, waiting: str) -> None:
        self._each = each
        self._waiting = waiting
        self._lanes: defaultdict[Hashable, _Lane] = defaultdict(lambda: _Lane(each))

    @contextlib.asynccontextmanager
    async def turn(self, lane: Hashable) -> AsyncIterator[None]:
        """Wait for one's turn, and have it for the length of the block.

        Raises:
            Unavailable: too many wait in this lane.
        """
        it = self._lanes[lane]
        if it.users >= self._each + _MOST_WAITING:
            raise Unavailable(f"{it.users} adapters {self._waiting}; try again")
        it.users += 1
        try:
            async with it.turns:
                yield
        finally:
            it.users -= 1
            if not it.users:
                self._lanes.pop(lane, None)


class _Lane:
    def __init__(self, each: int) -> None:
        self.turns = asyncio.Semaphore(each)
        self.users = 0
