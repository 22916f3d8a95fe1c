"""What was decided about requests, and how well they were answered."""

import asyncio
import contextlib
import logging
import time
from collections import deque

from adapter_store.records import read_or_none
from adapter_store.server import Server, answering
from cluster.adapters import Viewer
from cluster.decisions import Outcome, RoutedRequest
from cluster.errors import NotFound, StoreUnavailable
from cluster.tasks import Background

logger = logging.getLogger(__name__)


# The newest are kept for the eye; each can be looked up by its request until it expires.
_SHOWN_DECISIONS = 1000
# As many as a predictor can learn from in seconds.
MAX_OUTCOMES = 20_000
_MAX_WAITING = 10_000
_BATCH = 256
_RETRY_S = 1.0


class RoutingLog:
    """Decisions and outcomes in the store.

    Every method raises :class:`StoreUnavailable` when the server does not answer.
    """

    def __init__(self, server: Server, *, keep_s: float) -> None:
        self._server = server
        self._keys = server.keys
        self._keep_s = keep_s

    async def put(self, requests: list[RoutedRequest]) -> None:
        keys = self._keys
        pipe = self._server.redis.pipeline(transaction=False)
        for request in requests:
            record = request.model_dump_json()
            # The first stays: an id that somebody else sends must not overwrite it.
            key, keep_ms = keys.decision(request.request_id), round(self._keep_s * 1000)
            pipe.set(key, record, px=keep_ms, nx=True)
            pipe.xadd(keys.decisions, {"record": record}, maxlen=_SHOWN_DECISIONS)
        with answering():
            await pipe.execute()

    async def get(self, request_id: str, viewer: Viewer) -> RoutedRequest:
        """Raises NotFound when it expired, never was, or is somebody else's."""
        record = await self._server.text(self._keys.decision(request_id))
        found = read_or_none(RoutedRequest, record) if record else None
        if found is None or not (viewer.sees_all or found.owner == viewer.owner):
            raise NotFound(
                f"no decision about request {request_id!r} is kept; give the x-request-id of an "
                f"answer to model 'auto' of the last {self._keep_s:g} s (router.keep_decisions_s)",
                param="request_id",
            )
        return found

    async def newest(self, limit: int) -> list[RoutedRequest]:
        """Everybody's, newest first."""
        entries = await self._server.read_back(self._keys.decisions, limit)
        found = (read_or_none(RoutedRequest, fields["record"]) for _, fields in entries)
        since = time.time() - self._keep_s
        return [request for request in found if request is not None and request.at >= since]

    async def add_outcome(self, request_id: str, outcome: Outcome) -> bool:
        """False when the request has one already."""
        keys = [self._keys.rated(request_id), self._keys.outcomes, self._server.once()]
        keep_ms = round(self._keep_s * 1000)
        args = [outcome.model_dump_json(), keep_ms, MAX_OUTCOMES]
        return bool(await self._server.run("add_outcome", keys, args))

    async def outcomes(self, after: str) -> list[tuple[str, Outcome | None]]:
        """Those behind a position, with theirs; None for what this release cannot read."""
        entries = await self._server.read_all(self._keys.outcomes, after)
        return [(at, read_or_none(Outcome, fields["record"])) for at, fields in entries]


class OutcomeReader:
    """Follows the outcomes."""

    def __init__(self, log: RoutingLog) -> None:
        self._log = log
        self._position = "0-0"
        self.known: deque[Outcome] = deque(maxlen=MAX_OUTCOMES)

    async def read(self) -> bool:
        """Take in what is new; whether there was any."""
        found = await self._log.outcomes(self._position)
        for self._position, outcome in found:
            if outcome is not None:
                self.known.append(outcome)
        return bool(found)


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
