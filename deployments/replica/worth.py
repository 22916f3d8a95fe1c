"""What a version is worth to keep: how it is used, and what waits for it."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.adapters import AdapterKey

# An ingress tells with every call; what none has told of for so long was served, or has left.
_EXPECTED_S = 2.0


@dataclass
class Usage:
    """Requests of late, and what it would cost to load again."""

    requests: float = 0.0  # decayed to `at`
    at: float = 0.0
    cost_bytes: int = 1


class UsageLog:
    """What each version is worth to keep: how often it is asked for, times the bytes of a load.

    Counts are halved every `half_life_s`, so that yesterday's favourites leave. Versions that are
    not loaded are counted too: one that comes back is known.
    """

    _MOST = 10_000

    def __init__(self, half_life_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._usage: dict[AdapterKey, Usage] = {}

    def count(self, key: AdapterKey) -> None:
        now = self._clock()
        usage = self._usage.pop(key, None) or Usage()
        usage.requests = self._decayed(usage, now) + 1
        usage.at = now
        self._usage[key] = usage  # at the end: in order of last use
        if len(self._usage) > self._MOST:
            del self._usage[next(iter(self._usage))]

    def cost(self, key: AdapterKey, size_bytes: int) -> None:
        self._usage.setdefault(key, Usage()).cost_bytes = size_bytes

    def forget(self, key: AdapterKey) -> None:
        self._usage.pop(key, None)

    def worth(self, key: AdapterKey) -> float:
        usage = self._usage.get(key)
        return self._decayed(usage, self._clock()) * usage.cost_bytes if usage else 0.0

    def rank(self, key: AdapterKey, *, per_byte: bool = False) -> tuple[float, float]:
        """Orders what to give up first: by worth, then by last use."""
        usage = self._usage.get(key)
        if usage is None:
            return 0.0, 0.0
        return self.worth(key) / (usage.cost_bytes if per_byte else 1), usage.at

    def _decayed(self, usage: Usage, now: float) -> float:
        return usage.requests * float(0.5 ** ((now - usage.at) / self._half_life_s))


class Expected:
    """Versions that requests wait for before they come here: their place in the queue, and until
    when that is believed. Each ingress tells of its own."""

    def __init__(self) -> None:
        self._next: dict[AdapterKey, tuple[int, float]] = {}

    def tell(self, waiting: Iterable[AdapterKey], used: AdapterKey | None = None) -> None:
        """What requests in an ingress's queue wait for.

        Args:
            waiting: versions, by key, those that are needed first before the others.
            used: the one whose turn has come: it has no claim any more, unless others wait.
        """
        now = time.monotonic()
        self._next = {k: n for k, n in self._next.items() if n[1] > now and k != used}
        self._next |= {key: (i, now + _EXPECTED_S) for i, key in enumerate(waiting)}

    def nearness(self, key: AdapterKey) -> float:
        """Of its next use in a queue: 1 for the first there, less for those behind, else 0."""
        position, until = self._next.get(key, (0, 0.0))
        return 1 / (1 + position) if until > time.monotonic() else 0.0
