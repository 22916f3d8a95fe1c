"""What processes count, kept for a while: their metrics, the history, the journal of events.

The history needs no Prometheus: every process adds its counts to buckets of time, so sums over the
cluster are there for whoever reads a bucket, and memory is bounded by the buckets' time to live.
"""

import base64
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adapter_store.records import read_or_none
from adapter_store.server import Server, answering, flat
from cluster.plans import Happening

# Happenings that are kept.
JOURNAL_LENGTH, LOADS = 2000, 500
# Another cluster's planner sees the same news within this time.
_NOTED_MS = 600_000


@dataclass(frozen=True)
class Step:
    """A resolution of the history.

    Attributes:
        width_s: of a bucket; keep_s: how far back it goes.
        has_adapters: whether single adapters are told apart.
    """

    width_s: int
    keep_s: int
    has_adapters: bool

    def bucket(self, at: float) -> int:
        """The Unix time at which the bucket of a moment begins."""
        return int(at // self.width_s) * self.width_s


STEPS = (Step(5, 3600, has_adapters=True), Step(60, 86_400, has_adapters=False))

Counts = dict[str, float]


class TelemetryStore:
    """Every method raises :class:`StoreUnavailable` when the server does not answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._keys = server.keys

    # -- metrics ----------------------------------------------------------------------------

    async def put_metrics(self, member_id: str, exposition: str, *, for_s: float) -> None:
        """Leave a process's metrics, in Prometheus's text format, for the endpoint."""
        packed = base64.b85encode(zlib.compress(exposition.encode(), level=1)).decode()
        now = time.time()
        pipe = self._server.redis.pipeline(transaction=False)
        pipe.set(self._keys.metrics(member_id), packed, px=round(for_s * 1000))
        pipe.zadd(self._keys.measured, {member_id: now + for_s})
        pipe.zremrangebyscore(self._keys.measured, "-inf", now)
        with answering():
            await pipe.execute()

    async def all_metrics(self) -> dict[str, str]:
        """The newest metrics of each process that lives."""
        ids = await self._server.members(self._keys.measured)
        found = await self._server.texts([self._keys.metrics(i) for i in ids])
        return {
            member_id: zlib.decompress(base64.b85decode(packed)).decode()
            for member_id, packed in zip(ids, found, strict=True)
            if packed
        }

    # -- history ----------------------------------------------------------------------------

    async def add_counts(
        self, who: str, batch: int, at: float, counts: Mapping[Step, Counts]
    ) -> None:
        """Add to the buckets of a moment (Unix time), per resolution.

        Args:
            batch: grows from one call of `who` to the next; one that was added is not again.
        """
        keys = [self._keys.counted(who)]
        args: list[str | int | float] = [batch, STEPS[0].keep_s]
        for step, amounts in counts.items():
            keys.append(self._keys.history(step.width_s, step.bucket(at)))
            args += [step.keep_s + 2 * step.width_s, len(amounts)]
            args += flat(amounts)
        await self._server.run("add_history", keys, args, is_precious=False)

    async def counts(self, step: Step, buckets: Iterable[int]) -> dict[int, Counts]:
        """What was counted in each bucket."""
        starts = list(buckets)
        keys = [self._keys.history(step.width_s, start) for start in starts]
        found = await self._server.many_fields(keys)
        return {
            start: {field: float(amount) for field, amount in fields.items()}
            for start, fields in zip(starts, found, strict=True)
        }

    # -- journal ----------------------------------------------------------------------------

    async def note(self, happenings: Iterable[Happening]) -> None:
        """Append to the journal; what was done to an adapter, once for the planners of all
        clusters."""
        pipe = self._server.redis.pipeline(transaction=False)
        for happening in happenings:
            entry = _entry_of(happening)
            if happening.revision:
                await self._note_once(happening, entry)
                continue
            is_load = happening.kind == "load"
            key, most = self._keys.journal(loads=is_load), LOADS if is_load else JOURNAL_LENGTH
            pipe.xadd(key, entry, maxlen=most)
        with answering():
            await pipe.execute()

    async def _note_once(self, happening: Happening, entry: Mapping[Any, Any]) -> None:
        # The number first: a name may have a colon.
        what = f"{happening.revision}:{happening.subject}:{happening.text}"
        keys = [self._keys.journal(loads=False), self._keys.noted(what)]
        args = [JOURNAL_LENGTH, _NOTED_MS, *flat(entry)]
        await self._server.run("note", keys, args, is_precious=False)

    async def journal(self, limit: int) -> list[Happening]:
        """Newest first: up to so many loads, and so many of all else, which are rarer."""
        found: list[Happening] = []
        for loads in (False, True):
            entries = await self._server.read_back(self._keys.journal(loads=loads), limit)
            for at, fields in entries:
                if news := read_or_none(Happening, fields["record"]):
                    beside = {"id": at, "owner": fields.get("owner")}
                    found.append(news.model_copy(update=beside))
        return sorted(found, key=lambda happening: -happening.at)


def _entry_of(happening: Happening) -> dict[Any, Any]:
    """Whose it is stands beside the record: the release before knows of no owner."""
    record = happening.model_dump_json(exclude={"id", "revision", "owner"})
    beside = {} if happening.owner is None else {"owner": happening.owner}
    return {"record": record, **beside}
