"""The queue before the replicas of a base model: who starts next, where, and who is told to leave.

A request goes to a replica only when it would be worked on there: a place is free, and the adapter
is in a slot that is in use or can get one. Until then it waits here, where order can still be
chosen: requests for adapters that run pass those that need another slot (adapter clustering, S-LoRA
section 5), but not for longer than `admission.patience_s`. It leaves with 429 as soon as it is
known to be too late (early abort, S-LoRA section 5.2).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cluster.errors import Overloaded
from cluster.settings import AdmissionSettings, BaseModelSettings, DispatchSettings
from deployments.call import Call
from deployments.fleet import Fleet
from deployments.terms import Terms
from router.dispatch import Ask, ReplicaView, rank
from router.fair_queue import FairQueue, Waiting
from router.prefixes import PrefixIndex

# Weight of the newest interval between two requests that ended.
_NEWEST = 0.1
_LATER = "try again after the time in Retry-After"


@dataclass(eq=False)
class _Turn(Waiting):
    """A waiting request; `given` is the replica that it is to go to, as soon as there is one."""

    prefix: tuple[bytes, ...] = ()
    given: asyncio.Future[str] | None = None

    @property
    def key(self) -> str | None:
        return self.flow[1]


@dataclass(frozen=True)
class _Opening:
    """What could start on any replica, without ranking them: there may be many who ask.

    Attributes:
        running: versions that run on a replica with a place free.
        has_slot: some replica has a place, and a slot that no running version needs.
    """

    running: frozenset[str]
    has_place: bool
    has_slot: bool

    @classmethod
    def of(cls, replicas: list[ReplicaView]) -> "_Opening":
        free = [r for r in replicas if not r.is_full]
        return cls(
            frozenset(key for r in free for key in r.running),
            bool(free),
            any(len(r.running) < r.slot_capacity for r in free),
        )

    def admits(self, key: str | None) -> bool:
        return self.has_place and (key is None or self.has_slot or key in self.running)


class Admission:
    """One per base model and ingress."""

    def __init__(
        self,
        fleet: Fleet,
        model: BaseModelSettings,
        dispatch: DispatchSettings,
        settings: AdmissionSettings,
        node: str,
    ) -> None:
        self._fleet = fleet
        self._model = model
        self._dispatch = dispatch
        self._settings = settings
        self._node = node
        self._queue = FairQueue()
        self._prefixes = PrefixIndex()
        self._ended_at = 0.0
        self._interval_s = 0.0
        fleet.on_change(self._let_in)

    @asynccontextmanager
    async def turn(self, call: Call, terms: Terms) -> AsyncIterator[str]:
        """Wait until a replica would work on the request; yields its id, "" when none is known.

        Raises:
            Overloaded: the queue is full, or the request's turn would come too late.
        """
        if not self._fleet.replicas(self._model.id):
            yield ""  # no reports: Ray Serve knows who is there
            return
        replica = await self._wait(call, terms)
        try:
            yield replica
        finally:
            self._end(replica, call.key)

    async def _wait(self, call: Call, terms: Terms) -> str:
        now = time.monotonic()
        turn = _Turn(
            (terms.tenant, call.key),
            tokens=terms.tokens,
            priority=terms.priority,
            since=now,
            until=now + min(terms.first_token_s, self._settings.max_wait_s),
            prefix=terms.prefix,
            given=asyncio.get_running_loop().create_future(),
        )
        if not self._queue:
            self._ended_at = now
        self._queue.push(turn)
        self._let_in()
        if not turn.given.done():
            self._refuse_if_hopeless(turn)
        try:
            return await self._given(turn)
        except BaseException:
            if turn.given.done():
                self._end(turn.given.result(), call.key)
            else:
                self._queue.remove(turn)
            raise

    async def _given(self, turn: _Turn) -> str:
        patience_ends = turn.since + self._settings.patience_s
        while not turn.given.done():
            now = time.monotonic()
            if now >= turn.until:
                raise self._overloaded("no replica could start it in time", turn)
            wake = patience_ends if now < patience_ends < turn.until else turn.until
            try:
                await asyncio.wait_for(asyncio.shield(turn.given), wake - now)
            except TimeoutError:
                self._let_in()
        return turn.given.result()

    def _refuse_if_hopeless(self, turn: _Turn) -> None:
        """Raise at once what would be known later."""
        if len(self._queue) > self._model.max_queued:
            self._queue.remove(turn)
            raise self._overloaded(
                f"every replica of {self._model.id} is busy and its queue is full", turn
            )
        expected_s = self._expected_wait_s(turn)
        if turn.since + expected_s > turn.until:
            self._queue.remove(turn)
            raise self._overloaded(
                f"its turn would come in about {expected_s:.1f} s, which is too late", turn
            )

    def _let_in(self) -> None:
        """Give everyone who may start now the replica to start on."""
        while self._queue:
            replicas = self._fleet.replicas(self._model.id)
            opening = _Opening.of(replicas)
            turn = self._queue.pop(lambda t, o=opening: self._may_start(t, o))
            if turn is None:
                return
            replica = self._best(turn, replicas, opening)
            # It counts from now on; its own task comes to that later.
            self._fleet.begin(replica, turn.key)
            self._prefixes.note(turn.key, turn.prefix, replica)
            turn.given.set_result(replica)

    def _may_start(self, turn: _Turn, opening: "_Opening") -> bool:
        return opening.admits(turn.key) or (
            opening.has_place and time.monotonic() - turn.since >= self._settings.patience_s
        )

    def _best(self, turn: _Turn, replicas: list[ReplicaView], opening: "_Opening") -> str:
        ask = Ask(turn.key, self._prefixes.cached(turn.key, turn.prefix))
        options = rank(ask, replicas, self._dispatch, node=self._node)
        # Out of patience, a place will do.
        able = [o for o in options if o.may_start or not opening.admits(turn.key)]
        return (able or options)[0].replica

    def _end(self, replica: str, key: str | None) -> None:
        self._fleet.end(replica, key)
        now = time.monotonic()
        if self._queue:
            taken_s = now - self._ended_at
            self._interval_s += (
                _NEWEST * (taken_s - self._interval_s) if self._interval_s else taken_s
            )
        self._ended_at = now
        self._let_in()

    def _expected_wait_s(self, turn: _Turn) -> float:
        """Those before it, at the pace at which requests end now."""
        return (self._queue.ahead_of(turn) + 1) * self._pace_s()

    def _pace_s(self) -> float:
        """Time between two requests that end, while replicas are busy."""
        if self._interval_s:
            return self._interval_s
        replicas = self._fleet.replicas(self._model.id)
        each = [r.service_s / r.max_ongoing for r in replicas]
        return sum(each) / len(each) ** 2 if each else 0.0

    def _overloaded(self, why: str, turn: _Turn) -> Overloaded:
        wait_s = max(1.0, self._expected_wait_s(turn))
        return Overloaded(f"{why}; {_LATER}", retry_after_s=wait_s)
