"""The registry in Redis: cards, versions, aliases, members, events; every change is one script."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from adapter_store.keys import Keys
from cluster.errors import Conflict, ModelNotFound, StoreUnavailable, Unavailable
from cluster.settings import StoreSettings
from cluster.state import Adapter, BaseModelFacts, Card, Member, Value, Version

_POLL_S = 0.05
_TRANSIENT = (OutOfMemoryError, ReadOnlyError, ClusterDownError, MasterDownError, TryAgainError)
_TRANSIENT_REPLIES = ("MISCONF", "NOREPLICAS", "BUSY", "LOADING")
_LUA = Path(__file__).parent / "lua"


class Stored(Value):
    """What a registration did."""

    adapter: Adapter
    version: Version
    position: str
    is_new_version: bool


class AdapterStore:
    """Reads and atomic writes. One instance per process; safe for concurrent tasks.

    Every method raises :class:`StoreUnavailable` when the server does not answer.
    """

    def __init__(self, client: Redis, namespace: str, *, lease_s: float) -> None:
        self._redis = client
        self._keys = Keys(namespace)
        self._lease_ms = round(lease_s * 1000)
        self._scripts = {f.stem: client.register_script(f.read_text()) for f in _LUA.glob("*.lua")}

    @classmethod
    def connect(cls, settings: StoreSettings) -> "AdapterStore":
        """Open lazily: the first command connects."""
        client = Redis.from_url(
            settings.url,
            decode_responses=True,
            socket_connect_timeout=2,
            socket_timeout=5,
            health_check_interval=15,
        )
        return cls(client, settings.namespace, lease_s=settings.lease_s)

    async def close(self) -> None:
        await self._redis.aclose()

    # -- adapters ---------------------------------------------------------------------------

    async def put(self, card: Card, version: Version, *, mode: str) -> Stored:
        """Store a card with one version and move `latest` to it.

        Weights that the adapter already has (same digest) keep their version number.

        Args:
            mode: ``create`` (the name must be free), ``update`` (it must exist) or ``upsert``.
        """
        keys = self._keys
        with _translated():
            try:
                number, _, position, is_new = await self._scripts["put_version"](
                    keys=[
                        keys.adapter(card.name),
                        keys.names,
                        keys.events,
                        keys.blob(version.digest),
                        keys.issued,
                    ],
                    args=[
                        card.name,
                        card.model_dump_json(),
                        version.model_dump_json(exclude={"number"}),
                        version.digest,
                        mode,
                    ],
                )
            except ResponseError as e:
                raise _refusal(e, card.name) from e
        adapter = await self.get(card.name)
        if adapter is None:
            raise Conflict(f"adapter {card.name!r} was deleted while it was being registered")
        return Stored(
            adapter=adapter,
            version=adapter.versions[number],
            position=position,
            is_new_version=bool(is_new),
        )

    async def get(self, name: str) -> Adapter | None:
        with _translated():
            fields = await self._redis.hgetall(self._keys.adapter(name))
        return _adapter(fields) if fields else None

    async def page(self, *, after: str = "", limit: int = 100) -> list[Adapter]:
        """Up to `limit` adapters whose names sort behind `after`, ordered by name."""
        with _translated():
            names = await self._redis.zrangebylex(
                self._keys.names, f"({after}" if after else "-", "+", start=0, num=limit
            )
            return await self._get_many(names)

    async def all(self) -> list[Adapter]:
        with _translated():
            return await self._get_many(await self._redis.zrange(self._keys.names, 0, -1))

    async def delete(self, name: str) -> str:
        """Remove an adapter with all its versions; returns the event's position."""
        adapter = await self.get(name)
        if adapter is None:
            raise ModelNotFound(name, param="name")
        keys = self._keys
        versions = list(adapter.versions.values())
        with _translated():
            try:
                return await self._scripts["delete_adapter"](
                    keys=[
                        keys.adapter(name),
                        keys.names,
                        keys.events,
                        *(keys.blob(v.digest) for v in versions),
                    ],
                    args=[name, adapter.revision, *(f"{name}@{v.number}" for v in versions)],
                )
            except ResponseError as e:
                raise _refusal(e, name) from e

    async def _get_many(self, names: list[str]) -> list[Adapter]:
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(self._keys.adapter(name))
        return [_adapter(fields) for fields in await pipe.execute() if fields]

    # -- base models ------------------------------------------------------------------------

    async def put_base_model(self, facts: BaseModelFacts) -> None:
        with _translated():
            await self._redis.hset(self._keys.base_models, facts.id, facts.model_dump_json())

    async def base_model(self, model_id: str) -> BaseModelFacts | None:
        with _translated():
            raw = await self._redis.hget(self._keys.base_models, model_id)
        return BaseModelFacts.model_validate_json(raw) if raw else None

    # -- members ----------------------------------------------------------------------------

    async def renew(self, member: Member) -> None:
        """Publish the member's report and hold its lease for another term."""
        with _translated():
            await self._scripts["renew_member"](
                keys=[self._keys.members, self._keys.member(member.id)],
                args=[member.id, member.model_dump_json(), self._lease_ms],
            )

    async def leave(self, member_id: str) -> None:
        with _translated():
            await self._redis.delete(self._keys.member(member_id))
            await self._redis.zrem(self._keys.members, member_id)

    async def members(self) -> list[Member]:
        """The members whose lease has not ended, ordered by id."""
        with _translated():
            ids = sorted(await self._redis.zrange(self._keys.members, 0, -1))
            raw = await self._redis.mget([self._keys.member(i) for i in ids]) if ids else []
        return [Member.model_validate_json(r) for r in raw if r]

    async def converged(
        self, position: str, *, timeout_s: float, at_least: int = 0
    ) -> list[Member]:
        """Wait until every live member has applied the change at `position`; returns them.

        Args:
            at_least: how many members there must be; a busy one may have lost its lease for a
                moment.

        Raises:
            Unavailable: some have not within `timeout_s`; the message names them.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            members = await self.members()
            behind = [m for m in members if is_before(m.position, position)]
            if not behind and len(members) >= at_least:
                return members
            if time.monotonic() > deadline:
                names = ", ".join(f"{m.kind} {m.id}" for m in behind) or "members that are missing"
                raise Unavailable(f"stored, but not taken in within {timeout_s:.0f} s by {names}")
            await asyncio.sleep(_POLL_S)

    # -- events -----------------------------------------------------------------------------

    async def position(self) -> str:
        """The id of the newest event, ``0-0`` before the first."""
        with _translated():
            newest = await self._redis.xrevrange(self._keys.events, count=1)
        return newest[0][0] if newest else "0-0"

    async def events_after(self, position: str, *, block_s: float) -> list[tuple[str, str]]:
        """Events behind `position`, in order, as ``(position, name)``; waits for the first."""
        with _translated():
            streams = await self._redis.xread(
                {self._keys.events: position}, count=1000, block=round(block_s * 1000)
            )
        return [
            (event_id, fields["name"]) for _, entries in streams for event_id, fields in entries
        ]


def new_version(
    *, digest: str, size_bytes: int, rank: int, target_modules: tuple[str, ...]
) -> Version:
    """A version not yet numbered (0): the store numbers it when it is put."""
    return Version(
        number=0,
        digest=digest,
        size_bytes=size_bytes,
        rank=rank,
        target_modules=target_modules,
        created_at=time.time(),
    )


def is_before(a: str, b: str) -> bool:
    """Whether stream position `a` lies before `b` (``milliseconds-sequence``)."""
    return _order(a) < _order(b)


def _order(position: str) -> tuple[int, int]:
    ms, _, seq = position.partition("-")
    return int(ms), int(seq)


def name_taken(name: str) -> Conflict:
    remedy = f"POST /v1/adapters/{name}/versions adds a version to it"
    return Conflict(f"adapter {name!r} exists; {remedy}", param="name")


def _adapter(fields: Mapping[str, str]) -> Adapter:
    versions, aliases = {}, {}
    for field, value in fields.items():
        kind, _, rest = field.partition(":")
        if kind == "version":
            versions[int(rest)] = Version.model_validate_json(value)
        elif kind == "alias":
            aliases[rest] = int(value)
    return Adapter(
        card=Card.model_validate_json(fields["card"]),
        versions=dict(sorted(versions.items())),
        aliases=aliases,
        revision=int(fields["revision"]),
    )


def _refusal(error: ResponseError, name: str) -> Exception:
    match str(error).split()[-1]:
        case "EXISTS":
            return name_taken(name)
        case "MISSING":
            return ModelNotFound(name, param="name")
        case "STALE":
            return Conflict(f"adapter {name!r} changed meanwhile; read it and try again")
        case _:
            return error


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as e:
        raise StoreUnavailable(
            "the adapter store does not answer; what is loaded is still served, changes must wait"
        ) from e
    except ResponseError as e:
        if isinstance(e, _TRANSIENT) or str(e).startswith(_TRANSIENT_REPLIES):
            raise StoreUnavailable(f"the adapter store cannot take this now: {e}") from e
        raise
