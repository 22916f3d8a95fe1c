"""How much each adapter is asked for: decayed counts. Pure."""

import math
from collections.abc import Iterable, Mapping

from cluster.state import Member


class Demand:
    """Requests a second by adapter, the older ones counting less.

    A count that is halved every `half_life_s` settles, under a steady rate r, at
    r * half_life / ln 2; so the rate is the count times ln 2 / half_life.

    Args:
        most: adapters that are kept; of more, the least asked for are forgotten.
    """

    def __init__(self, half_life_s: float, most: int = 10_000) -> None:
        self._half_life_s = half_life_s
        self._most = most
        self._counts: dict[str, float] = {}
        self._at = 0.0

    def count(self, name: str, now: float, times: float = 1.0) -> None:
        """One request."""
        if not self._counts:
            self._at = now
        # Instead of decaying all others, the newcomer counts more.
        self._counts[name] = self._counts.get(name, 0.0) + times * self._growth(now)

    def rates(self, now: float) -> dict[str, float]:
        """Requests a second by adapter, without those asked for once five half-lives ago."""
        scale = math.log(2) / self._half_life_s / self._growth(now)
        least = math.log(2) / self._half_life_s * 2**-5
        rates = {name: c * scale for name, c in self._counts.items() if c * scale > least}
        kept = sorted(rates, key=lambda name: -rates[name])[: self._most]
        self._counts = {name: rates[name] * self._half_life_s / math.log(2) for name in kept}
        self._at = now
        return {name: rates[name] for name in kept}

    def _growth(self, now: float) -> float:
        return 2.0 ** ((now - self._at) / self._half_life_s)


def total_demand(members: Iterable[Member]) -> Mapping[str, float]:
    """Requests a second by adapter over all ingresses."""
    total: dict[str, float] = {}
    for member in members:
        for name, rate in member.demand.items():
            total[name] = total.get(name, 0.0) + rate
    return total
