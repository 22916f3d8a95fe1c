"""Who needs which blob: versions use them, registrations reserve them, the collector asks first."""

import uuid

from adapter_store.server import Server, answering

# Longer than any copy of an adapter into object storage should take.
_RESERVATION_S = 600.0


class BlobRefs:
    """Every method raises :class:`StoreUnavailable` when the server does not answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._keys = server.keys

    async def reserve(self, digest: str, *, for_s: float = _RESERVATION_S) -> str | None:
        """Keep the collector away from a blob; None while it is being removed.

        Returns:
            The reservation, for the call that records a version, or for :meth:`release`.
        """
        reservation = uuid.uuid4().hex
        keys = [self._keys.reserved(digest), self._keys.condemned]
        args = [digest, reservation, round(for_s * 1000)]
        return reservation if await self._server.run("reserve_blob", keys, args) else None

    async def release(self, digest: str, reservation: str) -> None:
        with answering():
            await self._server.redis.zrem(self._keys.reserved(digest), reservation)

    async def condemn(self, digest: str, *, for_s: float) -> bool:
        """Whether nothing uses or reserves a blob; with `for_s` > 0 nothing can until then."""
        keys = [self._keys.blob(digest), self._keys.reserved(digest), self._keys.condemned]
        return bool(await self._server.run("condemn_blob", keys, [digest, round(for_s * 1000)]))

    async def absolve(self, digest: str) -> None:
        """A condemned blob is gone: its content may come again."""
        with answering():
            await self._server.redis.zrem(self._keys.condemned, digest)
