"""Who is there: each process holds a lease on its report, and tells when it has changed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from pydantic import TypeAdapter

from adapter_store.server import BLOCK_S, Server, answering, is_before
from cluster.adapters import AdapterKey
from cluster.errors import StoreUnavailable, Unavailable
from cluster.members import Arrival, Ingress, Replica, Report, read_report
from cluster.preload import Preload

_RETRY_S = 0.5
_ARRIVALS = TypeAdapter(tuple[Arrival, ...])


class Members:
    """The processes of this Ray cluster.

    Every method raises :class:`StoreUnavailable` when the server does not answer.
    """

    def __init__(self, server: Server, lease_s: float) -> None:
        self._server = server
        self._keys = server.keys
        self.lease_s = lease_s

    async def renew(self, member: Report) -> None:
        """Publish the member's report and hold its lease for another term."""
        keys, lease_ms = self._keys, round(self.lease_s * 1000)
        beside = member.arrivals if isinstance(member, Ingress) else ()
        await self._server.run(
            "renew_member",
            [keys.members, keys.member(member.id), keys.reports, keys.arrivals(member.id)],
            [
                member.id,
                member.model_dump_json(exclude={"arrivals"}),
                lease_ms,
                _ARRIVALS.dump_json(beside).decode() if beside else "",
            ],
        )

    async def leave(self, member_id: str) -> None:
        with answering():
            await self._server.redis.delete(self._keys.member(member_id))
            await self._server.redis.delete(self._keys.arrivals(member_id))
            await self._server.redis.zrem(self._keys.members, member_id)

    async def put_preload(self, preload: Preload) -> None:
        with answering():
            await self._server.redis.set(self._keys.preload, preload.model_dump_json())

    async def preload(self) -> Preload | None:
        """None before `roundhouse up` has begun with it."""
        found = await self._server.text(self._keys.preload)
        return Preload.model_validate_json(found) if found else None

    async def all(self) -> list[Report]:
        """Those whose lease has not ended, of the kinds that this release knows, ordered by id."""
        ids = sorted(await self._server.members(self._keys.members))
        places = [self._keys.member(i) for i in ids] + [self._keys.arrivals(i) for i in ids]
        texts = await self._server.texts(places)
        both = zip(texts[: len(ids)], texts[len(ids) :], strict=True)
        found = (_read(report, arrivals) for report, arrivals in both if report)
        return [report for report in found if report is not None]

    async def follow(self) -> AsyncIterator[list[Report]]:
        """The members now, and again whenever a report has changed or a lease may have ended."""
        while True:
            seen = await self._server.newest(self._keys.reports)
            yield await self.all()
            # A lease that ends tells nobody.
            await self._server.read(
                self._keys.reports, seen, block_s=min(self.lease_s / 3, BLOCK_S)
            )

    async def confirmations(
        self,
        position: str,
        *,
        timeout_s: float,
        at_least: int = 0,
        loaded: AdapterKey | None = None,
    ) -> AsyncIterator[Report]:
        """Each live member, as soon as it has applied the change at `position`; ends when all have.

        Args:
            at_least: how many members there must be; a busy one may have lost its lease for a
                moment.
            loaded: a version (`name@number`) that must not be on its way into a replica any more.

        Raises:
            Unavailable: some have not within `timeout_s`; the message names them.
        """

        def is_loading(member: Report) -> bool:
            return isinstance(member, Replica) and loaded in member.loading

        deadline = time.monotonic() + timeout_s
        confirmed: set[str] = set()
        seen = await self._server.newest(self._keys.reports)
        while True:
            try:
                members = await self.all()
            except StoreUnavailable:
                # What is waited for is stored; a server that is away for a moment comes back.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_RETRY_S)
                continue
            behind = []
            for member in members:
                if is_before(member.position, position) or is_loading(member):
                    behind.append(member)
                elif member.id not in confirmed:
                    confirmed.add(member.id)
                    yield member
            if not behind and len(members) >= at_least:
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                names = ", ".join(f"{m.kind} {m.id}" for m in behind) or "members that are missing"
                raise Unavailable(f"stored, but not taken in within {timeout_s:.0f} s by {names}")
            # A lease that ends tells nobody.
            block_s = max(0.001, min(left_s, self.lease_s / 3, BLOCK_S))
            with contextlib.suppress(StoreUnavailable):
                entries = await self._server.read(self._keys.reports, seen, block_s=block_s)
                seen = entries[-1][0] if entries else seen

    async def converged(
        self,
        position: str,
        *,
        timeout_s: float,
        at_least: int = 0,
        loaded: AdapterKey | None = None,
    ) -> list[Report]:
        """Wait until every live member has applied the change at `position`; returns them.

        Raises as :meth:`confirmations`.
        """
        confirmed = self.confirmations(
            position, timeout_s=timeout_s, at_least=at_least, loaded=loaded
        )
        return [member async for member in confirmed]


def _read(report: str, arrivals: str | None) -> Report | None:
    read = read_report(report)
    if arrivals and isinstance(read, Ingress):
        return read.model_copy(update={"arrivals": _ARRIVALS.validate_json(arrivals)})
    return read
