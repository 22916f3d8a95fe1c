"""The registry in Redis: cards, versions, aliases, events; every change is one script."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

from redis.exceptions import ResponseError

from adapter_store.records import adapter_of, card_as_kept, fields_of, version_as_kept
from adapter_store.server import Server, answering, flat
from cluster.adapters import Adapter, BaseModelFacts, Card, Version
from cluster.errors import ConfigError, Conflict, ModelNotFound, Stale
from cluster.names import in_address
from cluster.values import Value

# The layout of keys and records that this release writes; `lua/migrate.lua` brings older ones here.
SCHEMA = 3
# Writers that meet on one adapter take turns; this many lost turns in a row are not chance.
_MAX_TRIES = 100
_PAGE = 500
# Of a base model, what the release knows that may share the store in an upgrade.
_FACTS_BEFORE = {"id", "architecture", "fingerprint", "max_rank", "linear_shapes"}

Result = TypeVar("Result")


class Stored(Value):
    """What a registration did."""

    adapter: Adapter
    version: Version
    position: str
    is_new_version: bool


class Changed(Value):
    """An adapter after a change, and the position of the change in the stream."""

    adapter: Adapter
    position: str


class Event(Value):
    """One entry of the stream of changes."""

    position: str
    sequence: int
    name: str


class BlobUnreserved(Exception):
    """The reservation of a blob ran out before its version was recorded; reserve and check anew."""


class Registry:
    """Reads and atomic writes of adapters; safe for concurrent tasks.

    Every method raises :class:`StoreUnavailable` when the server does not answer.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._keys = server.keys

    async def migrate(self) -> None:
        """Bring what an older release wrote to the layout of this one.

        Raises:
            ConfigError: a newer release wrote it.
        """
        if await self._server.text(self._keys.schema) == str(SCHEMA):
            return
        names = await self._server.members(self._keys.names)
        adapters = [self._keys.adapter(name) for name in names]
        keys = [self._keys.schema, self._keys.names, self._keys.events, *adapters]
        found: int = await self._server.run("migrate", keys, [SCHEMA])
        if found > SCHEMA:
            raise ConfigError(
                f"the adapter store was written by a newer release (schema {found}, this one knows "
                f"{SCHEMA}); upgrade Roundhouse, or use another store.namespace"
            )

    # -- adapters as they are -------------------------------------------------------------

    async def get(self, name: str) -> Adapter | None:
        found = await self.get_many([name])
        return found[name]

    async def get_many(self, names: list[str]) -> dict[str, Adapter | None]:
        """Adapters by name; None for those that are not there."""
        found = await self._server.many_fields(self._keys.adapter(name) for name in names)
        return {
            name: adapter_of(fields) if fields else None
            for name, fields in zip(names, found, strict=True)
        }

    async def all(self) -> AsyncIterator[Adapter]:
        """Every adapter, ordered by name."""
        after = ""
        while names := await self._server.members_after(self._keys.names, after, limit=_PAGE):
            for adapter in (await self.get_many(names)).values():
                if adapter is not None:
                    yield adapter
            after = names[-1]

    async def is_empty(self) -> bool:
        with answering():
            return not await self._server.redis.zcard(self._keys.names)

    # -- changes --------------------------------------------------------------------------

    async def put(
        self,
        card: Card,
        version: Version,
        reservation: str,
        *,
        mode: str,
        promote: bool = True,
        revision: int | None = None,
    ) -> Stored:
        """Store a card with one version, whose blob is reserved, and move `latest` to it.

        Weights that the adapter already has, with the same claims (base model, signature, lineage),
        keep their version number.

        Args:
            reservation: of the version's blob, from :meth:`BlobRefs.reserve`; it ends with this
                call.
            mode: ``create`` (the name must be free), ``update`` (it must exist) or ``upsert``.
            promote: whether the plain name is answered by this version from now on; the first
                version always is.
            revision: of the adapter that the caller has read, 0 when there was none; None takes
                any.

        Raises:
            Conflict: the name is taken, or a rollout is under way.
            ModelNotFound: no such adapter.
            Stale: the adapter has another revision.
            BlobUnreserved: reserve the blob again, and see that its files are there.
        """
        keys = self._keys
        written = [
            keys.adapter(card.name),
            keys.names,
            keys.events,
            keys.sequence,
            keys.blob(version.digest),
            keys.issued,
            keys.reserved(version.digest),
            self._server.once(),
        ]
        put = version_as_kept(version, numbered=False)
        expected = "" if revision is None else revision
        args = [card.name, card_as_kept(card), put, reservation, mode, expected, int(promote)]
        args.append(json.dumps(version.notices))
        reply: tuple[int, str, int, list[str]]
        try:
            reply = await self._server.run("put_version", written, args)
        except ResponseError as e:
            raise _refusal(e, card.name) from e
        number, position, is_new, fields = reply
        # As it was right after the change: it may have been changed again, or deleted, since.
        adapter = adapter_of(dict(zip(fields[::2], fields[1::2], strict=True)))
        return Stored(
            adapter=adapter,
            version=adapter.versions[number],
            position=position,
            is_new_version=bool(is_new),
        )

    async def change(
        self, name: str, edit: Callable[[Adapter], Adapter], *, revision: int | None = None
    ) -> Changed:
        """Replace an adapter by what `edit` makes of it; `edit` may be called more than once.

        Args:
            revision: of the adapter that the caller has read. None takes any, and makes the change
                anew when another writer was faster.

        Raises:
            ModelNotFound: no such adapter.
            Stale: it has another revision.
            Conflict: an alias would point to no version.
        """

        async def write(before: Adapter) -> Changed:
            after = edit(before)
            position, now = await self._replace(before, after)
            return Changed(adapter=after.model_copy(update={"revision": now}), position=position)

        return await self._write(name, revision, write)

    async def delete(self, name: str, *, revision: int | None = None) -> str:
        """Remove an adapter with all its versions; returns the event's position.

        Raises ModelNotFound and Stale as :meth:`change`.
        """

        async def write(adapter: Adapter) -> str:
            keys, versions = self._keys, adapter.versions.values()
            written = [keys.adapter(name), keys.names, keys.events, keys.sequence]
            blobs = [keys.blob(v.digest) for v in versions]
            position: str = await self._server.run(
                "delete_adapter",
                [*written, self._server.once(), *blobs],
                [name, adapter.revision, *(adapter.key(v) for v in versions)],
            )
            return position

        return await self._write(name, revision, write)

    async def _write(
        self, name: str, revision: int | None, write: Callable[[Adapter], Awaitable[Result]]
    ) -> Result:
        """Read an adapter and write on what was read; anew when another writer was faster, unless
        the caller wants one revision."""
        for _ in range(_MAX_TRIES):
            adapter = await self.get(name)
            if adapter is None:
                raise ModelNotFound(name, param="name")
            if revision is not None and adapter.revision != revision:
                raise _stale(name)
            try:
                return await write(adapter)
            except ResponseError as e:
                if revision is not None or not str(e).endswith("STALE"):
                    raise _refusal(e, name) from e
        raise _stale(name)

    async def _replace(self, before: Adapter, after: Adapter) -> tuple[str, int]:
        """Returns the event's position and the new revision."""
        old, new = fields_of(before), fields_of(after)
        changed = {k: v for k, v in new.items() if old.get(k) != v}
        removed = [k for k in old if k not in new]
        gone = [before.versions[n] for n in before.versions if n not in after.versions]
        keys, name = self._keys, before.name
        written = [keys.adapter(name), keys.events, keys.sequence, self._server.once()]
        blobs = [keys.blob(v.digest) for v in gone]
        args = [name, before.revision, len(changed), *flat(changed), *removed]
        done: tuple[str, int] = await self._server.run("change_adapter", [*written, *blobs], args)
        return done

    # -- the stream of changes ------------------------------------------------------------

    async def position(self) -> tuple[str, int]:
        """Id and sequence number of the newest event; ``0-0`` and 0 before the first."""
        newest = await self._server.read_back(self._keys.events, 1)
        return (newest[0][0], int(newest[0][1]["sequence"])) if newest else ("0-0", 0)

    async def events_after(self, position: str, *, block_s: float) -> list[Event]:
        """Events behind `position`, in order; waits for the first up to `block_s`."""
        entries = await self._server.read(self._keys.events, position, block_s=block_s)
        return [
            Event(position=at, sequence=int(fields["sequence"]), name=fields["name"])
            for at, fields in entries
        ]

    # -- rollouts -------------------------------------------------------------------------

    async def drive(self, name: str, driver: str, *, for_s: float) -> bool:
        """Whether `driver` is the one process that moves the adapter's rollout on, for a while."""
        return await self._server.hold(self._keys.driver(name), driver, for_s=for_s)

    # -- base models ----------------------------------------------------------------------

    async def put_base_model(self, facts: BaseModelFacts) -> None:
        """What its newest replica says; since when it is known stays."""
        known = await self.base_model(facts.id)
        since = (known and known.created_at) or facts.created_at or time.time()
        facts = facts.model_copy(update={"created_at": since})
        brief = facts.model_dump_json(include=_FACTS_BEFORE)
        with answering():
            await self._server.redis.hset(self._keys.base_models, facts.id, brief)
            await self._server.redis.hset(self._keys.facts, facts.id, facts.model_dump_json())

    async def base_model(self, model_id: str) -> BaseModelFacts | None:
        facts = await self._server.field(self._keys.facts, model_id)
        if facts is None:  # only a replica of the release before has told of it yet
            facts = await self._server.field(self._keys.base_models, model_id)
        return BaseModelFacts.model_validate_json(facts) if facts else None

    async def base_models(self) -> dict[str, BaseModelFacts]:
        """All that replicas of this release have told of, by id."""
        found = await self._server.fields(self._keys.facts)
        return {name: BaseModelFacts.model_validate_json(facts) for name, facts in found.items()}

    # -- backup ---------------------------------------------------------------------------

    async def issued(self) -> dict[str, int]:
        """The highest version number that each adapter ever had, removed ones included."""
        issued = await self._server.fields(self._keys.issued)
        return {name: int(number) for name, number in issued.items()}

    async def raise_issued(self, issued: Mapping[str, int]) -> None:
        """Never again give a number that was given elsewhere."""
        if issued:
            await self._server.run("raise_issued", [self._keys.issued], flat(issued))

    async def restore(self, adapter: Adapter, reservations: Mapping[str, str]) -> str:
        """Put an adapter back as it was, versions with their numbers; returns the event's position.

        Args:
            reservations: of the versions' blobs, by digest; they end with this call.

        Raises:
            Conflict: the name is taken.
            BlobUnreserved: as for :meth:`put`.
        """
        keys, versions, name = self._keys, list(adapter.versions.values()), adapter.name
        written = [keys.adapter(name), keys.names, keys.events, keys.sequence]
        blobs = [k for v in versions for k in (keys.blob(v.digest), keys.reserved(v.digest))]
        users = [a for v in versions for a in (reservations[v.digest], adapter.key(v))]
        try:
            position: str = await self._server.run(
                "restore_adapter",
                [*written, self._server.once(), *blobs],
                [name, len(versions), *users, *flat(fields_of(adapter))],
            )
        except ResponseError as e:
            raise _refusal(e, name) from e
        return position


def name_taken(name: str) -> Conflict:
    remedy = f"POST /v1/adapters/{in_address(name)}/versions adds a version to it"
    return Conflict(f"adapter {name!r} exists; {remedy}", param="name")


def _refusal(error: ResponseError, name: str) -> Exception:
    match str(error).split()[-1]:
        case "EXISTS":
            return name_taken(name)
        case "MISSING":
            return ModelNotFound(name, param="name")
        case "STALE":
            return _stale(name)
        case "ROLLING":
            return Conflict(
                f"a rollout of {name!r} is under way; let it end, roll it back, or register the "
                "version without making it stable"
            )
        case "DANGLING":
            return Conflict(f"an alias of {name!r} would point to a version that is not there")
        case "UNRESERVED":
            return BlobUnreserved(name)
        case _:
            return error


def _stale(name: str) -> Stale:
    return Stale(f"adapter {name!r} was changed meanwhile; read it and try again", param="revision")
