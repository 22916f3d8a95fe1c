"""Which trained encoders there are and which one is held, as every prompt router follows it."""

from collections.abc import AsyncIterator, Callable

from redis.exceptions import ResponseError

from adapter_store.records import read_or_none
from adapter_store.server import BLOCK_S, Server
from cluster.encoders.kept import Encoders
from cluster.errors import Stale

# In the set of who uses a blob: a name with a version has an @.
_USER = "router"


class EncoderStore:
    """Every method raises :class:`StoreUnavailable` when the server does not answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._key = server.keys.encoders

    async def newest(self) -> Encoders:
        entries = await self._server.read_back(self._key, 1)
        if not entries:
            return Encoders()
        fields = entries[0][1]
        found = read_or_none(Encoders, fields["record"]) or Encoders()
        return found.model_copy(update={"revision": int(fields["revision"])})

    async def change(self, change: Callable[[Encoders], Encoders]) -> Encoders:
        """Replace what is there by what `change` makes of it; it is asked again when somebody else
        was faster. Blobs of encoders that are kept are kept, of others they may be collected."""
        while True:
            before = await self.newest()
            after = change(before)
            if after == before:
                return before
            try:
                return await self._put(before, after)
            except Stale:
                continue

    async def _put(self, before: Encoders, after: Encoders) -> Encoders:
        old, new = ({e.digest for e in encoders.kept} for encoders in (before, after))
        used, unused = sorted(new - old), sorted(old - new)
        blobs = [self._server.keys.blob(digest) for digest in (*used, *unused)]
        keys = [self._key, self._server.once(), *blobs]
        args = [before.revision, after.model_dump_json(), _USER, len(used)]
        try:
            revision = await self._server.run("put_encoders", keys, args)
        except ResponseError as e:
            if not str(e).endswith("STALE"):
                raise
            raise Stale("the encoders were changed meanwhile") from e
        return after.model_copy(update={"revision": int(revision)})

    async def follow(self) -> AsyncIterator[Encoders]:
        """What there is now, and newer states as soon as they are there."""
        while True:
            seen = await self._server.newest(self._key)
            yield await self.newest()
            while not await self._server.read(self._key, seen, block_s=BLOCK_S):
                pass

    async def may_train(self, who: str, *, for_s: float) -> bool:
        """Whether nobody else trains; then nobody else may for so long."""
        return await self._server.hold(self._server.keys.training, who, for_s=for_s)

    async def has_trained(self, who: str) -> None:
        """Others may."""
        await self.may_train(who, for_s=0.001)
