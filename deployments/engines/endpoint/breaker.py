"""When an endpoint is left alone: after failures in a row, and for as long as it says itself."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.errors import EndpointUnavailable, Overloaded, RoundhouseError

_FIRST_S, _LONGEST_S = 1.0, 60.0
# What it may ask for by Retry-After; who says more is asked again after that.
_LONGEST_TOLD_S = 600.0
_AGAIN_S = 1.0
_MOMENT_S = 1e-3


class Failed(Exception):
    """A try that brought no answer.

    Attributes:
        error: as the client is told.
        again: whether it is worth another try at once: nothing of it was worked on.
        told_s: how long the endpoint says that it wants to be left alone.
        counts: whether others would fare the same.
    """

    def __init__(
        self,
        error: EndpointUnavailable | Overloaded,
        *,
        again: bool = False,
        told_s: float | None = None,
        counts: bool = True,
    ) -> None:
        super().__init__(error.message)
        self.counts = counts
        self.error = error
        self.again = again
        self.told_s = None if told_s is None else min(told_s, _LONGEST_TOLD_S)


class Breaker:
    """Closed while requests succeed; open after `most_failures` in a row, for twice as long each
    time, with one request to try it in between (the circuit breaker of Nygard's "Release It!",
    2007)."""

    def __init__(
        self,
        most_failures: int,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1),
    ) -> None:
        self._most = most_failures
        self._clock = clock
        self._jitter = jitter
        self._in_a_row = 0
        self._until = 0.0
        self._is_tried = False
        self._last: RoundhouseError | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has failed so often that only a single request may try it, or none."""
        return self._in_a_row >= self._most

    @property
    def wait_s(self) -> float:
        """How long it is to be left alone."""
        left_s = self._until - self._clock()
        # Who has slept until then may have woken a moment too soon.
        if left_s > _MOMENT_S:
            return left_s
        return _AGAIN_S if self._is_tried else 0.0

    @property
    def trouble(self) -> str:
        """Why it is not asked now; empty when it is."""
        if not self.wait_s or self._last is None:
            return ""
        return f"left alone for {self.wait_s:.0f} s: {self._last.message}"

    def check(self) -> None:
        """Raise, as the last failure was, when it may not be asked now."""
        if not self.wait_s or self._last is None:
            return
        kind = Overloaded if isinstance(self._last, Overloaded) else EndpointUnavailable
        raise kind(self._last.message, retry_after_s=self.wait_s)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """One request, until its first byte; the block raises :class:`Failed` when none comes.

        Whoever leaves before that is told by nobody whether it would have come.
        """
        tries = self.is_open
        self._is_tried = self._is_tried or tries
        try:
            yield
        except Failed as e:
            if e.counts:
                self._has_failed(e)
            raise
        else:
            self._in_a_row, self._until, self._last = 0, 0.0, None
        finally:
            if tries:
                self._is_tried = False

    def _has_failed(self, failure: Failed) -> None:
        self._in_a_row += 1
        self._last = failure.error
        alone_s = failure.told_s or 0.0
        if self.is_open:
            longer = 2.0 ** min(self._in_a_row - self._most, 16)
            alone_s = max(alone_s, min(_LONGEST_S, _FIRST_S * longer) * self._jitter())
        self._until = max(self._until, self._clock() + alone_s)
