"""How often an endpoint may be asked, and for how many tokens."""

import asyncio
import time
from collections.abc import Callable

from cluster.errors import Overloaded
from cluster.settings import EndpointSettings

# What was not used is kept for so long: enough for a burst, little enough for limits by the minute.
_BURST_S = 5.0


class Bucket:
    """So many a minute. What is taken beyond what there is, is waited for by those who come next.

    Args:
        per_minute: None for as many as you like.
    """

    def __init__(
        self, per_minute: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s = per_minute / 60 if per_minute is not None else None
        self._clock = clock
        self._level = 0.0
        self._at = clock()

    def take(self, amount: float) -> float:
        """Take it; returns the seconds until it is there. Negative amounts are given back."""
        if self._per_s is None:
            return 0.0
        now = self._clock()
        most = self._per_s * _BURST_S
        self._level = min(most, self._level + (now - self._at) * self._per_s)
        self._at = now
        wait_s = max(0.0, -self._level / self._per_s)
        self._level -= amount
        return wait_s


class Limits:
    """Of requests and tokens."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = Bucket(requests_per_minute, clock)
        self._tokens = Bucket(tokens_per_minute, clock)

    @classmethod
    def of(cls, endpoint: EndpointSettings, replicas: int) -> "Limits":
        """The share that each of so many replicas has."""
        asked = (endpoint.requests_per_minute, endpoint.tokens_per_minute)
        requests, tokens = (limit and limit / replicas for limit in asked)
        return cls(requests, tokens)

    async def take(self, tokens: float, patience_s: float) -> None:
        """Wait until a request for about so many tokens may be sent.

        Raises:
            Overloaded: that would be later than `patience_s`.
        """
        wait_s = max(self._requests.take(1), self._tokens.take(tokens))
        try:
            if wait_s > patience_s:
                raise Overloaded(
                    f"its limits allow the next request in {wait_s:.1f} s; try again after the "
                    "time in Retry-After",
                    retry_after_s=wait_s,
                )
            await asyncio.sleep(wait_s)
        except BaseException:
            self._requests.take(-1)
            self._tokens.take(-tokens)
            raise

    def settle(self, taken: float, used: float) -> None:
        """Of a request that was sent: it has used other than what was taken for it."""
        self._tokens.take(used - taken)
