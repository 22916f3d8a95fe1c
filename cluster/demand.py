"""How much each adapter is asked for: decayed counts. Pure."""

import math
from collections.abc import Iterable, Mapping

from cluster.state import Member

# Half-lives after which counts are brought to the present, before they get too large.
_REBASE = 50


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

    def count(self, name: str, now: float) -> None:
        """One request."""
        if not self._counts or now - self._at > _REBASE * self._half_life_s:
            self.rates(now)
        # Instead of decaying all others, the newcomer counts more.
        self._counts[name] = self._counts.get(name, 0.0) + 1 / self._decay(now)

    def rates(self, now: float) -> dict[str, float]:
        """Requests a second by adapter, without those asked for once five half-lives ago."""
        per_count = math.log(2) / self._half_life_s
        scale, least = per_count * self._decay(now), per_count * 2**-5
        rates = {name: c * scale for name, c in self._counts.items() if c * scale > least}
        kept = sorted(rates, key=lambda name: -rates[name])[: self._most]
        self._counts = {name: rates[name] / per_count for name in kept}
        self._at = now
        return {name: rates[name] for name in kept}

    def _decay(self, now: float) -> float:
        """Of what was counted at the last look."""
        return 0.5 ** ((now - self._at) / self._half_life_s)


def total_demand(members: Iterable[Member]) -> Mapping[str, float]:
    """Requests a second by adapter over all ingresses."""
    total: dict[str, float] = {}
    for member in members:
        for name, rate in member.demand.items():
            total[name] = total.get(name, 0.0) + rate
    return total
