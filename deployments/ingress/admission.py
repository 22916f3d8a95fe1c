"""The queue before the replicas of a base model: who starts next, where, and who is told to leave.

A request goes to a replica only when it would be worked on there: a place is free, and the adapter
is in a slot that is in use or can get one. Until then it waits here, where order can still be
chosen: requests for adapters that run pass those that need another slot (adapter clustering, S-LoRA
section 5), but not for longer than `admission.patience_s`. It leaves with 429 as soon as it is
known to be too late (early abort, S-LoRA section 5.2).

Idle work, which is what has the lowest priority, has a queue of its own: it starts when nobody else
waits and a share of a replica's places is free, and neither scales nor loads anything ahead.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from cluster.adapters import AdapterKey
from cluster.errors import Overloaded
from cluster.means import MovingMean
from cluster.settings import AdmissionSettings, BaseModelSettings, DispatchSettings
from deployments.ingress.first_tokens import FirstTokens, Sent
from deployments.ingress.fleet import Fleet
from deployments.ingress.terms import Terms
from deployments.process import metrics
from deployments.process.call import Call
from router.replicas.dispatch import (
    Ask,
    Opening,
    Option,
    ReplicaView,
    Standing,
    first_missing,
    rank,
)
from router.replicas.fair_queue import FairQueue, Waiting
from router.replicas.prefixes import PrefixIndex

# Of the adapters that wait, those that a replica is told of; it holds no more than a few dozen.
_MOST_WAITING = 64
# Of those that would be too late, one is sent.
_TRY_EVERY_S = 10.0
_LATER = "try again after the time in Retry-After"


@dataclass(eq=False)
class _Turn(Waiting):
    """A waiting request.

    Attributes:
        terms: how it wants to be served.
        until: when it is too late to start, of the monotonic clock.
        replica: that it is to go to, once there is one; "" leaves it to Ray Serve.
        loads: whether its adapter must be loaded there first.
        best_s: time to the first token on the replica that has it soonest, where that is too late.
        given: done when there is one: that replica, and the request on its way to its first token.
    """

    terms: Terms = field(default_factory=Terms)
    until: float = math.inf
    replica: str = ""
    loads: bool = False
    best_s: float | None = None
    given: asyncio.Future[tuple[str, Sent]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def key(self) -> AdapterKey | None:
        return self.flow[1]

    @property
    def needed_by(self) -> float:
        """When its first token is of no use any more, of the monotonic clock."""
        return self.terms.since + self.terms.first_token_s


@dataclass
class Place:
    """What a request got.

    Attributes:
        replica: "" when none is known: Ray Serve is to say.
        answer_tokens: that it has generated so far.
        is_answered: whether that was all of it.
        has_begun: that a stream's first token is there.
    """

    replica: str
    answer_tokens: int = 0
    is_answered: bool = False
    has_begun: Callable[[], None] = lambda: None


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
        self._queue: FairQueue[_Turn] = FairQueue()
        self._idle_work: FairQueue[_Turn] = FairQueue()
        self._prefixes = PrefixIndex(dispatch)
        self._ended_at = 0.0
        self._first_tokens = FirstTokens()
        # Until when no other request is sent that would be too late, by adapter version.
        self._tried: dict[AdapterKey | None, float] = {}
        # Between two requests that ended, while some waited.
        self._interval_s = MovingMean()
        fleet.on_change(self._let_in)

    @asynccontextmanager
    async def turn(self, call: Call, terms: Terms) -> AsyncIterator[Place]:
        """Wait until a replica would work on the request; yields where.

        Whoever passes the answer on counts its tokens there: fairness is by what was generated.

        Raises:
            Overloaded: the queue is full, or the request's turn would come too late.
        """
        began = time.monotonic()
        metrics.queued.labels(self._model.id).inc()
        try:
            turn = await self._wait(call, terms)
        finally:
            metrics.queued.labels(self._model.id).dec()
            metrics.queue_wait.labels(self._model.id).observe(time.monotonic() - began)
        replica, sent = turn.given.result()
        place = Place(replica, has_begun=partial(self._first_tokens.came, sent))
        try:
            yield place
            if call.key is not None and place.is_answered:
                self._fleet.took(call.key, time.monotonic() - sent.at)
        finally:
            self._line_of(terms).settle(turn, terms.prompt_tokens + place.answer_tokens)
            self._end(turn, replica, sent)

    def placed(self, call: Call, place: Place) -> Call:
        """The call as it goes to its replica: with what the replica should know of the queue."""
        waiting, missing = self._waiting(), None
        if waiting and self._settings.prefetch:
            replicas = self._replicas()
            missing = first_missing(waiting, place.replica, replicas, self._dispatch)
        return replace(call, replica=place.replica, waiting=waiting, missing=missing)

    def _waiting(self) -> tuple[AdapterKey, ...]:
        """The adapter versions that requests wait for, those whose turn comes first before the
        others."""
        keys = dict.fromkeys(w.key for w in self._queue.heads())
        return tuple(key for key in keys if key is not None)[:_MOST_WAITING]

    def queued(self) -> Counter[AdapterKey]:
        """How many wait for each adapter version."""
        return Counter(w.key for w in self._queue if w.key is not None)

    async def _wait(self, call: Call, terms: Terms) -> _Turn:
        now = time.monotonic()
        turn = _Turn(
            (terms.tenant, call.key),
            tokens=terms.tokens,
            priority=terms.priority,
            since=now,
            terms=terms,
        )
        turn.until = min(turn.needed_by, now + self._settings.max_wait_s)
        if not self._queue:
            self._ended_at = now
        line = self._line_of(terms)
        line.push(turn)
        try:
            self._let_in()
            if not turn.given.done():
                self._refuse_the_hopeless(turn)
            await self._given(turn)
            return turn
        except BaseException:
            if turn in line:
                line.remove(turn)
            elif turn.given.done() and not turn.given.exception():
                self._end(turn, *turn.given.result())
            raise

    async def _given(self, turn: _Turn) -> None:
        patience_ends = turn.since + self._settings.patience_s
        while not turn.given.done():
            now = time.monotonic()
            if now >= turn.until:
                raise self._overloaded("no replica could start it in time")
            wake = patience_ends if now < patience_ends < turn.until else turn.until
            if not (await asyncio.wait([turn.given], timeout=wake - now))[0]:
                self._let_in()
        turn.given.result()

    def _refuse_the_hopeless(self, turn: _Turn) -> None:
        """Say at once what would be known later.

        Raises:
            Overloaded: it is this one that has to go.
        """
        line = self._line_of(turn.terms)
        if len(line) > self._model.max_queued:
            why = f"every replica of {self._model.id} is busy and its queue is full"
            surplus = line.newest_of_most()
            if surplus is turn:
                raise self._overloaded(why)
            line.remove(surplus)
            surplus.given.set_exception(self._overloaded(why))
        if turn.terms.is_idle_work:
            return  # whoever can wait does not ask how long
        ahead = self._queue.ahead_of(turn)
        expected_s = (ahead + 1) * self._pace_s()
        # Whoever is next may wait: how else would a wrong estimate be found out?
        if ahead and turn.since + expected_s > turn.until:
            raise self._overloaded(
                f"its turn would come in about {expected_s:.1f} s, which is too late"
            )

    def _let_in(self) -> None:
        """Give everyone who may start now the replica to start on."""
        while self._queue and (turn := self._next(self._queue, self._replicas())):
            self._begin(turn)
        # Of what nobody else wants.
        while self._idle_work and not self._queue:
            if not (idle := self._idle_replicas()) or not (
                turn := self._next(self._idle_work, idle)
            ):
                return
            self._begin(turn)

    def _replicas(self) -> list[ReplicaView]:
        return self._fleet.replicas(self._model.id)

    def _idle_replicas(self) -> list[ReplicaView]:
        """Those with places that are free even for work that can wait."""
        share = self._settings.idle_share
        return [r for r in self._replicas() if r.ongoing < share * r.max_ongoing]

    def _next(self, line: FairQueue[_Turn], replicas: list[ReplicaView]) -> _Turn | None:
        """Who starts next on one of these replicas, or is told that it cannot be in time."""
        opening = Opening.of(replicas)
        return line.pop(partial(self._finds_place, replicas=replicas, opening=opening))

    def _begin(self, turn: _Turn) -> None:
        if turn.best_s is not None:
            self._line_of(turn.terms).settle(turn, 0)
            why = f"its first token would come in about {turn.best_s:.2f} s, which is too late"
            turn.given.set_exception(self._overloaded(why, turn.best_s))
            return
        replica = turn.replica
        sent = self._first_tokens.send(replica, counts=not turn.loads)
        if replica:
            # It counts from now on; its own task comes to that later.
            self._fleet.begin(replica, turn.key, turn.terms.sequences)
            self._prefixes.note(turn.key, turn.terms.prefix, replica)
        turn.given.set_result((replica, sent))

    def _line_of(self, terms: Terms) -> FairQueue[_Turn]:
        return self._idle_work if terms.is_idle_work else self._queue

    def _finds_place(self, turn: _Turn, replicas: list[ReplicaView], opening: Opening) -> bool:
        """Whether a request has waited long enough: notes where it may start now, or that wherever
        it may it would be too late."""
        if not replicas:
            turn.replica = ""  # nobody reports: Ray Serve knows who is there
            return True
        now = time.monotonic()
        out_of_patience = now - turn.since >= self._settings.patience_s
        if not opening.admits(turn.key) and not (out_of_patience and opening.has_place):
            return False
        ask = Ask(turn.key, self._prefixes.cached(turn.key, turn.terms.prefix))
        ranked = rank(ask, replicas, self._dispatch, node=self._node)
        ready = [o for o in ranked if o.may_start or (out_of_patience and o.may_wait_there)]
        if not ready:
            return False
        left_s = turn.needed_by - now
        chosen = next((o for o in ready if self._takes_s(o) <= left_s), None)
        if chosen is None:
            if any(self._takes_s(o) <= left_s for o in ranked):
                return False  # in time on a replica that is full now
            chosen = min(ready, key=self._takes_s)
            takes_s = self._takes_s(chosen)
            if left_s <= 0 or not self._is_tried(turn.key, takes_s, now):
                turn.best_s = takes_s
                return True
        turn.replica = chosen.replica
        turn.loads = chosen.standing not in (Standing.SLOT, Standing.HOST)
        return True

    def _takes_s(self, option: Option) -> float:
        """Until its first token there at the latest, with those that wait for theirs."""
        return option.first_token_s + self._first_tokens.takes_s(option.replica)

    def _is_tried(self, key: AdapterKey | None, takes_s: float, now: float) -> bool:
        """Whether one that would be too late goes all the same, as the first of its adapter for a
        while: it brings the adapter in for those who come after, and shows how long that takes."""
        self._tried = {k: until for k, until in self._tried.items() if until > now}
        if key in self._tried:
            return False
        self._tried[key] = now + max(takes_s, _TRY_EVERY_S)
        return True

    def _end(self, turn: _Turn, replica: str, sent: Sent) -> None:
        self._first_tokens.end(sent)
        if replica:
            self._fleet.end(replica, turn.key, turn.terms.sequences)
        now = time.monotonic()
        if self._queue:
            self._interval_s.add(now - self._ended_at)
        self._ended_at = now
        self._let_in()

    def _pace_s(self) -> float:
        """Time between two requests that end, while replicas are busy."""
        if self._interval_s.value:
            return self._interval_s.value
        replicas = self._replicas()
        each = [r.service_s / r.max_ongoing for r in replicas]
        return sum(each) / len(each) ** 2 if each else 0.0

    def _overloaded(self, why: str, at_least_s: float = 1.0) -> Overloaded:
        # Who comes back stands behind everybody; now it is one of them itself.
        wait_s = max(1.0, at_least_s, len(self._queue) * self._pace_s())
        return Overloaded(f"{why}; {_LATER}", retry_after_s=wait_s)
