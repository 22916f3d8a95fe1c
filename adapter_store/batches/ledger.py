"""Which batches and files there are, whose they are, and who works on what."""

import json
import time

from adapter_store.server import Server
from cluster.batches import Batch, Order, Progress, StoredFile, now

# Of all tenants, for the eye.
_SHOWN = 100
_ORDER, _PROGRESS, _CANCELLING = "order", "progress", "cancelling_at"


class Ledger:
    """Records of batches and their files, by tenant.

    Every method raises :class:`StoreUnavailable` when the server does not answer.

    Args:
        keep_s: how long a batch that has ended is remembered.
    """

    def __init__(self, server: Server, *, keep_s: float) -> None:
        self._server = server
        self._keys = server.keys
        self._keep_s = keep_s

    # -- files --------------------------------------------------------------------------------

    async def put_file(self, file: StoredFile) -> None:
        """Know a file from now on, until it expires or is removed."""
        keys = self._keys
        record = file.model_dump_json()
        await self._server.run(
            "put_file",
            [keys.batch_file(file.owner, file.id), keys.batch_files(file.owner), keys.expiring],
            [record, file.id, time.time(), file.expires_at, _place(file.owner, file.id)],
        )

    async def file(self, owner: str, file_id: str) -> StoredFile | None:
        text = await self._server.text(self._keys.batch_file(owner, file_id))
        return _file(text, owner) if text else None

    async def files(self, owner: str) -> list[StoredFile]:
        """A tenant's, the newest first."""
        ids = await self._server.members(self._keys.batch_files(owner))
        found = await self._server.texts([self._keys.batch_file(owner, i) for i in reversed(ids)])
        return [_file(text, owner) for text in found if text]

    async def remove_file(self, owner: str, file_id: str) -> None:
        keys = self._keys
        await self._server.run(
            "remove_file",
            [keys.batch_file(owner, file_id), keys.batch_files(owner), keys.expiring],
            [file_id, _place(owner, file_id)],
        )

    async def expired(self) -> list[tuple[str, str]]:
        """Owner and id of files whose time is over."""
        places = await self._server.due(self._keys.expiring, time.time())
        return [(owner, file_id) for owner, file_id in map(json.loads, places)]

    # -- batches ------------------------------------------------------------------------------

    async def put(self, order: Order) -> Batch:
        """A new batch, to be worked on."""
        keys, owner = self._keys, order.viewer.owner
        await self._server.run(
            "put_batch",
            [
                keys.batch(owner, order.id),
                keys.batches(owner),
                keys.open_batches,
                keys.newest_batches,
            ],
            [order.model_dump_json(), order.id, time.time(), _place(owner, order.id), _SHOWN],
        )
        return Batch(order=order)

    async def batch(self, owner: str, batch_id: str) -> Batch | None:
        return _batch(await self._server.fields(self._keys.batch(owner, batch_id)))

    async def batches(self, owner: str) -> list[Batch]:
        """A tenant's that are remembered, the newest first."""
        ids = await self._server.members(self._keys.batches(owner))
        found = await self._server.many_fields(self._keys.batch(owner, i) for i in reversed(ids))
        return [batch for batch in map(_batch, found) if batch is not None]

    async def cancel(self, batch: Batch) -> None:
        """Ask for its end; who works on it sees to that."""
        key = self._keys.batch(batch.order.viewer.owner, batch.order.id)
        await self._server.run("cancel_batch", [key], [_CANCELLING, now()])

    async def open(self) -> list[Batch]:
        """All that have not ended, of all tenants, the oldest first."""
        return await self._named(self._keys.open_batches)

    async def newest(self) -> list[Batch]:
        """Of all tenants, the newest first."""
        return (await self._named(self._keys.newest_batches))[::-1]

    async def _named(self, key: str) -> list[Batch]:
        places = await self._server.members(key)
        keys = [self._keys.batch(*json.loads(place)) for place in places]
        found = await self._server.many_fields(keys)
        return [batch for batch in map(_batch, found) if batch is not None]

    async def hold(self, batch: Batch, worker: str, *, for_s: float) -> bool:
        """Whether `worker` may work on it for so long."""
        key = self._keys.batch_worker(batch.order.id)
        return await self._server.hold(key, worker, for_s=for_s)

    async def report(self, order: Order, progress: Progress) -> Batch | None:
        """How far it is; one that has ended is remembered for a while. Returns it with what was
        asked for meanwhile; None: it is not there any more."""
        keys, owner = self._keys, order.viewer.owner
        keep_ms = round(self._keep_s * 1000) if progress.status.is_final else ""
        # Longer than any is open and kept: of older ones there is nothing but the id.
        forgotten = order.created_at - 2 * self._keep_s
        await self._server.run(
            "report_batch",
            [keys.batch(owner, order.id), keys.batches(owner), keys.open_batches],
            [progress.model_dump_json(), _place(owner, order.id), keep_ms, forgotten],
        )
        return await self.batch(owner, order.id)


def _file(text: str, owner: str) -> StoredFile:
    return StoredFile.model_validate_json(text).model_copy(update={"owner": owner})


def _batch(fields: dict[str, str]) -> Batch | None:
    if _ORDER not in fields:
        return None
    order = Order.model_validate_json(fields[_ORDER])
    kept, asked = fields.get(_PROGRESS), fields.get(_CANCELLING)
    progress = Progress.model_validate_json(kept) if kept else Progress()
    return Batch(order=order, progress=progress, cancelling_at=int(asked) if asked else None)


def _place(owner: str, what: str) -> str:
    return json.dumps([owner, what])
