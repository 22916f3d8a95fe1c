"""What clients order: files in, batches made, looked at and called off. A tenant sees its own."""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, StringConstraints

from adapter_store.batches.contents import Contents
from adapter_store.batches.ledger import Ledger
from cluster.adapters import Viewer
from cluster.batches import Batch, Order, StoredFile, new_id, now
from cluster.errors import Conflict, InvalidRequest, NotFound, PayloadTooLarge, parse
from cluster.settings import BatchSettings
from cluster.values import Value
from deployments.ingress.batches.runner import Runner

PURPOSE = "batch"
_LEAST_KEEP_S = 3600
_WINDOW = re.compile(r"^([1-9][0-9]{0,4})([mhd])$")
_UNITS = {"m": 60, "h": 3600, "d": 86_400}


class Expiry(Value):
    """When a file goes: so long after it was made."""

    anchor: Literal["created_at"] = "created_at"
    seconds: StrictInt = Field(ge=_LEAST_KEEP_S)


class BatchRequest(Value):
    """What `POST /v1/batches` takes."""

    input_file_id: str
    endpoint: str
    completion_window: Annotated[str, StringConstraints(pattern=_WINDOW.pattern)] = Field(
        "24h", description="minutes, hours or days, such as 24h: what is not done then is given up"
    )
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(max_length=64)],
                Annotated[str, StringConstraints(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: Expiry | None = None


class Jobs:
    """Files and batches of tenants.

    Every method raises StoreUnavailable when the store does not answer.

    Args:
        endpoints: that batches may be for.
    """

    def __init__(
        self,
        settings: BatchSettings,
        ledger: Ledger,
        contents: Contents,
        runner: Runner,
        endpoints: Collection[str],
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._contents = contents
        self._runner = runner
        self._endpoints = tuple(endpoints)

    @property
    def max_file_bytes(self) -> int:
        return self._settings.max_file_bytes

    # -- files --------------------------------------------------------------------------------

    async def add_file(
        self, viewer: Viewer, filename: str, pieces: AsyncIterator[bytes], expiry: Expiry | None
    ) -> StoredFile:
        """Keep a file; nothing of it stays when it does not come whole.

        Raises:
            PayloadTooLarge: it is, or all of the tenant's are.
            StorageFull, Unavailable: it cannot be kept now.
        """
        room = self._settings.max_tenant_bytes - sum(
            file.bytes for file in await self._ledger.files(viewer.owner)
        )
        file_id, size = new_id("file"), 0
        try:
            async for piece in pieces:
                size += len(piece)
                self._refuse_too_large(size, room)
                await asyncio.to_thread(self._contents.add, file_id, piece)
            if not size:
                raise InvalidRequest("file: it is empty", param="file")
            keep_s = min(expiry.seconds if expiry else self._keep_s, self._keep_s)
            file = StoredFile(
                id=file_id,
                owner=viewer.owner,
                bytes=size,
                expires_at=now() + keep_s,
                filename=filename[:255],
                purpose=PURPOSE,
            )
            await self._ledger.put_file(file)
        except BaseException:
            await asyncio.to_thread(self._contents.remove, file_id)
            raise
        return file

    def _refuse_too_large(self, size: int, room: int) -> None:
        most = self._settings.max_file_bytes
        if size > most:
            raise PayloadTooLarge(
                f"file: it has more than {most} bytes (batch.max_file_bytes); send several",
                param="file",
            )
        if size > room:
            raise PayloadTooLarge(
                "file: your files have no room for it (batch.max_tenant_bytes); delete some",
                param="file",
            )

    async def file(self, viewer: Viewer, file_id: str) -> StoredFile:
        """Raises NotFound."""
        found = await self._ledger.file(viewer.owner, file_id)
        if found is None:
            raise NotFound(f"there is no file {file_id[:80]!r}", param="file_id")
        return found

    async def files(self, viewer: Viewer, purpose: str | None) -> list[StoredFile]:
        """The newest first."""
        found = await self._ledger.files(viewer.owner)
        return [file for file in found if purpose in (None, file.purpose)]

    async def content(self, viewer: Viewer, file_id: str) -> Iterator[bytes]:
        """The content in pieces, read as they are taken; raises NotFound."""
        return self._contents.pieces((await self.file(viewer, file_id)).id)

    async def remove_file(self, viewer: Viewer, file_id: str) -> None:
        """Raises NotFound, or Conflict: a batch reads it."""
        file = await self.file(viewer, file_id)
        for batch in await self._ledger.open():
            if file.id == batch.order.input_file_id:
                raise Conflict(
                    f"batch {batch.order.id} reads this file; cancel it first", param="file_id"
                )
        await self._ledger.remove_file(viewer.owner, file.id)
        await asyncio.to_thread(self._contents.remove, file.id)

    # -- batches ------------------------------------------------------------------------------

    async def create(self, viewer: Viewer, body: dict[str, Any]) -> Batch:
        """Order a batch; its file is read later.

        Raises:
            InvalidRequest: names the field.
            NotFound: there is no such file.
        """
        sent = parse(BatchRequest, body)
        if sent.endpoint not in self._endpoints:
            known = ", ".join(self._endpoints)
            raise InvalidRequest(f"endpoint: batches are for {known}", param="endpoint")
        file = await self._ledger.file(viewer.owner, sent.input_file_id)
        if file is None or file.purpose != PURPOSE:
            raise NotFound(
                f"input_file_id: there is no file {sent.input_file_id[:80]!r} with the purpose "
                f"'{PURPOSE}'; POST /v1/files takes one",
                param="input_file_id",
            )
        expiry = sent.output_expires_after
        order = Order(
            id=new_id("batch"),
            viewer=viewer,
            endpoint=sent.endpoint,
            input_file_id=file.id,
            completion_window=sent.completion_window,
            expires_at=now() + _seconds(sent.completion_window),
            metadata=sent.metadata,
            keep_results_s=min(expiry.seconds if expiry else self._keep_s, self._keep_s),
        )
        batch = await self._ledger.put(order)
        self._runner.hear()
        return batch

    async def batch(self, viewer: Viewer, batch_id: str) -> Batch:
        """Raises NotFound."""
        found = await self._ledger.batch(viewer.owner, batch_id)
        if found is None:
            raise NotFound(f"there is no batch {batch_id[:80]!r}", param="batch_id")
        return found

    async def batches(self, viewer: Viewer) -> list[Batch]:
        """The newest first."""
        return await self._ledger.batches(viewer.owner)

    async def cancel(self, viewer: Viewer, batch_id: str) -> Batch:
        """Ask for the end of one; what is answered by then is kept.

        Raises:
            NotFound
            Conflict: it has ended.
        """
        batch = await self.batch(viewer, batch_id)
        if batch.status.is_final:
            raise Conflict(f"batch {batch.order.id} is {batch.status} already", param="batch_id")
        await self._ledger.cancel(batch)
        return await self.batch(viewer, batch_id)

    @property
    def _keep_s(self) -> int:
        return int(self._settings.keep_s)


def page(told: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """A page of a list as OpenAI's clients go through it.

    Raises:
        InvalidRequest: there is nothing of the id `after`.
    """
    ids = [item["id"] for item in told]
    start = 0
    if after is not None:
        if after not in ids:
            raise InvalidRequest(f"after: there is no {after[:80]!r} in this list", param="after")
        start = ids.index(after) + 1
    shown = told[start : start + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + limit < len(told),
    }


def _seconds(window: str) -> int:
    found = _WINDOW.match(window)
    assert found is not None
    return int(found[1]) * _UNITS[found[2]]
