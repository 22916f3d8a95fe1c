"""How much each adapter is asked for: decayed counts. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping

from cluster.members import Ingress, Report

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
        return math.pow(0.5, (now - self._at) / self._half_life_s)


class Day:
    """What is usual at a time of the day: means over the days, the older ones counting less.

    A day has 96 quarters of an hour; each is learned when it has ended.
    """

    QUARTER_S = 900
    _NEWEST = 0.5
    # Less than one request in a quarter that is four days old is forgotten.
    _LEAST = 1 / (QUARTER_S * 2**4)

    def __init__(self) -> None:
        self._requests: dict[str, float] = {}
        self._seen_s = 0.0
        self._last: float | None = None

    @classmethod
    def quarter(cls, at: float) -> int:
        """Of the Unix time `at`, 0 to 95."""
        return int(at % 86_400 // cls.QUARTER_S)

    def see(self, at: float, rates: Mapping[str, float]) -> int | None:
        """Take in the rates since the last look; the quarter that has ended since, if one has."""
        last, self._last = self._last, at
        if last is None:
            return None
        if self.quarter(at) != self.quarter(last):
            return self.quarter(last)
        self._seen_s += at - last
        for name, rate in rates.items():
            self._requests[name] = self._requests.get(name, 0.0) + rate * (at - last)
        return None

    def learn(self, usual: Mapping[str, float]) -> dict[str, float]:
        """What is usual now in the quarter that has ended, and a fresh start for the next.

        What was seen of a part of the quarter counts for that part.
        """
        seen_s, requests = self._seen_s, self._requests
        self._seen_s, self._requests = 0.0, {}
        if not seen_s:
            return dict(usual)
        weight = self._NEWEST * min(1.0, seen_s / self.QUARTER_S)
        found = {
            name: (1 - weight) * usual.get(name, 0.0) + weight * requests.get(name, 0.0) / seen_s
            for name in {*usual, *requests}
        }
        return {name: rate for name, rate in found.items() if rate > self._LEAST}


def foreseen(now: Mapping[str, float], usual: Mapping[str, float]) -> dict[str, float]:
    """Demand to plan for: what is asked for, or what is usual, whichever is more."""
    return {name: max(now.get(name, 0.0), usual.get(name, 0.0)) for name in {*now, *usual}}


def ingresses(members: Iterable[Report]) -> Iterator[Ingress]:
    """Those that see what is asked for."""
    return (member for member in members if isinstance(member, Ingress))


def mean_times(members: Iterable[Report]) -> Mapping[str, float]:
    """Seconds of a request by adapter: the ingresses' means, by how much each is asked for it."""
    seconds: dict[str, float] = {}
    rates: dict[str, float] = {}
    for member in ingresses(members):
        for name in member.times.keys() & member.demand.keys():
            seconds[name] = seconds.get(name, 0.0) + member.times[name] * member.demand[name]
            rates[name] = rates.get(name, 0.0) + member.demand[name]
    return {name: total / rates[name] for name, total in seconds.items() if rates[name]}


def total_demand(members: Iterable[Report]) -> Mapping[str, float]:
    """Requests a second by adapter over all ingresses."""
    total: dict[str, float] = {}
    for member in ingresses(members):
        for name, rate in member.demand.items():
            total[name] = total.get(name, 0.0) + rate
    return total
