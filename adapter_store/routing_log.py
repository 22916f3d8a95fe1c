"""What was decided about requests, and how well they were answered."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from adapter_store.records import read_or_none
from adapter_store.server import Server, answering, flat
from cluster.decisions import Held, Outcome, RoutedRequest
from cluster.errors import StoreUnavailable
from cluster.tasks import Background

logger = logging.getLogger(__name__)


# The newest are kept for the eye; each can be looked up by its request until it expires.
_SHOWN_DECISIONS = 1000
# As many as a predictor can learn from in seconds; fewer where each tenant has its own.
MAX_OUTCOMES, MAX_OF_TENANT = 20_000, 2000
# Of each tenant's turns, what answered; some 250 bytes each.
MAX_TURNS = 50_000
# The clock of a server that takes over may be so far behind.
_SKEW_MS = 60_000
_MAX_WAITING = 10_000
# The release that shares the store in an upgrade does not know these; left out where they say
# nothing.
_NEW_IN_DECISIONS = (
    *("rule", "narrowed_by", "conversation", "has_read"),
    *("left_out", "explored"),
)
_BATCH = 256
_RETRY_S = 1.0


class RoutingLog:
    """Decisions and outcomes in the store, by tenant: an id that one sends is its own.

    Every method raises :class:`StoreUnavailable` when the server does not answer.
    """

    def __init__(self, server: Server, *, keep_s: float, keep_conversations_s: float = 0) -> None:
        self._server = server
        self._keys = server.keys
        self._keep_s = keep_s
        self._keep_conversations_s = keep_conversations_s

    async def put(self, requests: list[RoutedRequest]) -> None:
        await self._note([request for request in requests if request.conversation])
        keys = self._keys
        pipe = self._server.redis.pipeline(transaction=False)
        for request in requests:
            record = _as_kept(request)
            # The first stays: an id that is sent again must not overwrite it.
            key = keys.decision(request.owner, request.request_id)
            keep_ms = round(self._keep_s * 1000)
            pipe.set(key, record, px=keep_ms, nx=True)
            pipe.xadd(keys.decisions, {"record": record}, maxlen=_SHOWN_DECISIONS)
        with answering():
            await pipe.execute()

    async def _note(self, turns: list[RoutedRequest]) -> None:
        """What answered turns of conversations, for the turns that follow."""
        if not self._keep_conversations_s:
            return
        keep_ms = round(self._keep_conversations_s * 1000)
        for owner in dict.fromkeys(turn.owner for turn in turns):
            said = {t.conversation: t.held.model_dump_json() for t in turns if t.owner == owner}
            keys = [self._keys.answered(owner), self._keys.answered_at(owner)]
            args = [keep_ms, MAX_TURNS, *flat(said)]
            await self._server.run("note_conversations", keys, args, is_precious=False)

    async def held(self, owner: str, marks: list[str]) -> dict[str, Held]:
        """What answered turns of a tenant's conversations, by mark, where that is known."""
        records = await self._server.some_fields(self._keys.answered(owner), marks)
        pairs = zip(marks, records, strict=True)
        found = {mark: read_or_none(Held, record) for mark, record in pairs if record}
        since = time.time() - self._keep_conversations_s
        return {mark: held for mark, held in found.items() if held and held.at >= since}

    async def find(self, request_id: str, owners: Iterable[str]) -> list[RoutedRequest]:
        """What is kept of the requests of that id, of these tenants."""
        records = await self._server.texts([self._keys.decision(o, request_id) for o in owners])
        found = (read_or_none(RoutedRequest, record) for record in records if record)
        return [request for request in found if request is not None]

    async def newest(self, limit: int) -> list[RoutedRequest]:
        """Everybody's, newest first."""
        entries = await self._server.read_back(self._keys.decisions, limit)
        found = (read_or_none(RoutedRequest, fields["record"]) for _, fields in entries)
        since = time.time() - self._keep_s
        return [request for request in found if request is not None and request.at >= since]

    async def add_outcome(
        self, request_id: str, answered: Outcome | None, others: Sequence[Outcome] = ()
    ) -> bool:
        """All or none: False when the request has one of a candidate already.

        Args:
            answered: of what answered the request.
            others: of other candidates on the same prompt, of the same tenant.
        """
        known = self._keys
        outcomes = [*([answered] if answered else []), *others]
        (owner,) = {outcome.owner for outcome in outcomes}
        rated = [known.rated(owner, request_id)] if answered else []
        rated += [known.rated_other(owner, request_id, o.candidate) for o in others]
        keys = [known.outcomes(owner), known.raters, self._server.once(), *rated]
        # Whose it is, the stream's key says, and its entry, when.
        records = [outcome.model_dump_json(exclude={"owner", "at"}) for outcome in outcomes]
        args = [round(self._keep_s * 1000), most_of(owner), owner, *records]
        return bool(await self._server.run("add_outcome", keys, args))

    async def outcomes(self, owner: str, after: str) -> list[tuple[str, Outcome | None]]:
        """A tenant's behind a position, with theirs; None for what this release cannot read."""
        entries = await self._server.read_all(self._keys.outcomes(owner), after)
        found = [(at, read_or_none(Outcome, fields["record"])) for at, fields in entries]
        return [(at, o and o.model_copy(update={"owner": owner})) for at, o in found]

    async def raters(self, since: float) -> dict[str, float]:
        """Tenants that have given feedback since (Unix time in ms, of the store's clock), and when
        they last did."""
        return await self._server.scored(self._keys.raters, since)


def _as_kept(request: RoutedRequest) -> str:
    """Without what the release before does not know; the mark stands in what conversations are
    found by, and the text that decided is the input, where prompts are kept."""
    quiet = {name for name in _NEW_IN_DECISIONS if not getattr(request.decision, name)}
    quiet.add("decided_by")
    return request.model_dump_json(exclude={"conversation": True, "decision": quiet})


def most_of(owner: str) -> int:
    """How many outcomes of a tenant are kept; "" are those that teach everybody."""
    return MAX_OF_TENANT if owner else MAX_OUTCOMES


class OutcomeReader:
    """Follows the outcomes of all tenants."""

    def __init__(self, log: RoutingLog) -> None:
        self._log = log
        self._positions: dict[str, str] = {}
        self._known: dict[str, deque[Outcome]] = {}
        self._rated_at = 0.0

    @property
    def known(self) -> Iterator[Outcome]:
        """Each tenant's newest, oldest first."""
        return chain.from_iterable(self._known.values())

    async def read(self) -> bool:
        """Take in what is new; whether there was any."""
        raters = await self._log.raters(self._rated_at - _SKEW_MS)
        # What the release before takes in stands under nobody's name, in no list.
        news = [await self._read(owner) for owner in {"", *raters}]
        self._rated_at = max(raters.values(), default=self._rated_at)
        return any(news)

    async def _read(self, owner: str) -> bool:
        found = await self._log.outcomes(owner, self._positions.get(owner, "0-0"))
        known = self._known.setdefault(owner, deque(maxlen=most_of(owner)))
        for position, outcome in found:
            self._positions[owner] = position
            if outcome is not None:
                known.append(outcome.model_copy(update={"at": _time_of(position)}))
        return bool(found)


def _time_of(position: str) -> float:
    """Unix time in seconds of a stream's entry, by the store's clock."""
    return int(position.partition("-")[0]) / 1000


class RoutingRecorder:
    """Writes decisions in the background: no request waits for it, and none fails for it."""

    def __init__(self, log: RoutingLog) -> None:
        self._log = log
        self._waiting: deque[RoutedRequest] = deque(maxlen=_MAX_WAITING)
        self._writing: list[RoutedRequest] = []
        self._some = asyncio.Event()
        self._background = Background()

    async def start(self) -> None:
        self._background.repeat(
            "routing recorder",
            self._write_some,
            otherwise=lambda: f"{len(self._waiting)} decisions wait to be kept",
            retry_s=_RETRY_S,
        )

    def record(self, request: RoutedRequest) -> None:
        """Beyond ten thousand that could not be written yet, the oldest are forgotten."""
        self._waiting.append(request)
        self._some.set()

    def check(self) -> None:
        """Raise what ended the writing, so that a health check sees it."""
        self._background.check()

    async def stop(self) -> None:
        """Write what is left, if the store takes it."""
        await self._background.stop()
        with contextlib.suppress(StoreUnavailable):
            await self._write()

    async def _write_some(self) -> None:
        if not (self._writing or self._waiting):
            await self._some.wait()
        self._some.clear()
        await self._write()

    async def _write(self) -> None:
        while self._writing or self._waiting:
            if not self._writing:
                count = min(_BATCH, len(self._waiting))
                self._writing = [self._waiting.popleft() for _ in range(count)]
            await self._log.put(self._writing)
            self._writing = []
