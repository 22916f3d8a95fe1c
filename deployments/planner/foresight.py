"""Demand to plan for: what is asked for, or what is usual soon, whichever is more."""

import time
from collections.abc import Mapping

from adapter_store.plans import Plans
from cluster.demand import Day, foreseen


class Foresight:
    """Learns what is usual at a time of the day, and foresees it.

    Args:
        ahead_s: how far it looks; 0 is not at all.
    """

    def __init__(self, plans: Plans, ahead_s: float) -> None:
        self._plans = plans
        self._ahead_s = ahead_s
        self._day = Day()
        # What is usual in the quarter hour that comes next.
        self._coming: int | None = None
        self._usual: Mapping[str, float] = {}

    async def of(self, demand: Mapping[str, float]) -> Mapping[str, float]:
        """The demand, raised to what is usual at the time of the day that comes next.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        if not self._ahead_s:
            return demand
        now = time.time()
        ended = self._day.see(now, demand)
        if ended is not None:
            learned = self._day.learn(await self._plans.usual(ended))
            await self._plans.put_usual(ended, learned)
        coming = Day.quarter(now + self._ahead_s)
        if coming != self._coming:
            self._usual = await self._plans.usual(coming)
            self._coming = coming
        return foreseen(demand, self._usual)
