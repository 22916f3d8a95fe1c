"""HTTP of batches and their files, as OpenAI's clients speak it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cluster.batches import StoredFile
from cluster.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType, parse
from deployments.ingress.batches.jobs import PURPOSE, Expiry, Jobs, page
from deployments.ingress.bodies import read_json

_PIECE_BYTES = 4 * 2**20
# Of a form, what is beside the file.
_BESIDE_BYTES = 2**20
_EXPIRY = ("expires_after[anchor]", "expires_after[seconds]")


def add_batches(router: APIRouter, jobs: Jobs, max_body_bytes: int) -> None:
    _add_files(router, jobs)

    @router.post("/v1/batches")
    async def create(request: Request) -> dict[str, Any]:
        body = await read_json(request, max_body_bytes)
        return (await jobs.create(request.state.viewer, body)).told()

    @router.get("/v1/batches")
    async def index(
        request: Request, after: str | None = None, limit: int = Query(20, ge=1, le=100)
    ) -> dict[str, Any]:
        found = await jobs.batches(request.state.viewer)
        return page([batch.told() for batch in found], after, limit)

    @router.get("/v1/batches/{batch_id}")
    async def show(batch_id: str, request: Request) -> dict[str, Any]:
        return (await jobs.batch(request.state.viewer, batch_id)).told()

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str, request: Request) -> dict[str, Any]:
        return (await jobs.cancel(request.state.viewer, batch_id)).told()


def _add_files(router: APIRouter, jobs: Jobs) -> None:
    @router.post("/v1/files")
    async def add(request: Request) -> dict[str, Any]:
        form = await _form(request, jobs.max_file_bytes)
        try:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise InvalidRequest("file: the form must have one file", param="file")
            if purpose != PURPOSE:
                raise InvalidRequest(f"purpose: only '{PURPOSE}' is known here", param="purpose")
            name = file.filename or "batch.jsonl"
            pieces, expiry = _pieces(file), _expiry(form)
            return _told(await jobs.add_file(request.state.viewer, name, pieces, expiry))
        finally:
            await form.close()

    @router.get("/v1/files")
    async def index(
        request: Request,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = Query(10_000, ge=1, le=10_000),
    ) -> dict[str, Any]:
        found = await jobs.files(request.state.viewer, purpose)
        return page([_told(file) for file in found], after, limit)

    @router.get("/v1/files/{file_id}")
    async def show(file_id: str, request: Request) -> dict[str, Any]:
        return _told(await jobs.file(request.state.viewer, file_id))

    @router.get("/v1/files/{file_id}/content")
    async def content(file_id: str, request: Request) -> Response:
        pieces = await jobs.content(request.state.viewer, file_id)
        return StreamingResponse(_read(pieces), media_type="application/octet-stream")

    @router.delete("/v1/files/{file_id}")
    async def remove(file_id: str, request: Request) -> dict[str, Any]:
        await jobs.remove_file(request.state.viewer, file_id)
        return {"id": file_id, "object": "file", "deleted": True}


def _told(file: StoredFile) -> dict[str, Any]:
    return file.model_dump(mode="json")


async def _form(request: Request, max_file_bytes: int) -> FormData:
    """The form; what of it is large lies on disk. Whoever takes it closes it.

    Raises:
        InvalidRequest: it is none.
        PayloadTooLarge: the rest is not read.
        UnsupportedMediaType: it is sent as something else.
    """
    sent = request.headers.get("content-type", "")
    if sent.partition(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType(
            f"the body is sent as {sent[:80] or 'nothing in particular'}; send a form: "
            f"curl -F purpose={PURPOSE} -F file=@requests.jsonl"
        )

    async def bounded() -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_file_bytes + _BESIDE_BYTES:
                raise PayloadTooLarge(
                    f"file: it has more than {max_file_bytes} bytes (batch.max_file_bytes); send "
                    "several",
                    param="file",
                )
            yield chunk

    headers = Headers({"content-type": sent})
    parser = MultiPartParser(headers, bounded(), max_files=1, max_fields=8)  # type: ignore[arg-type]
    try:
        return await parser.parse()
    except (MultiPartException, KeyError) as e:
        raise InvalidRequest(f"the form cannot be read: {e}") from e


def _expiry(form: FormData) -> Expiry | None:
    anchor, seconds = (form.get(name) for name in _EXPIRY)
    if anchor is None and seconds is None:
        return None
    number = int(seconds) if isinstance(seconds, str) and seconds.isdecimal() else seconds
    fields = {"anchor": anchor or "created_at", "seconds": number}
    return parse(Expiry, fields, "expires_after")


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(_PIECE_BYTES):
        yield piece


async def _read(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece
