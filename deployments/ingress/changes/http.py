"""HTTP of the operations that change adapters, and of uploads."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from adapter_store.files.uploads import PART_BYTES, Uploads
from cluster.errors import InvalidRequest, RoundhouseError, parse
from cluster.requests import AliasRequest, Registration, RollbackRequest, RolloutRequest
from deployments.ingress.bodies import read_json
from deployments.ingress.changes.admin import AdapterAdmin, Tell, nobody
from deployments.ingress.changes.vllm import add_vllm
from deployments.ingress.views import describe

# Does something, tells of its progress, returns the answer's status and body.
Operation = Callable[[Tell], Coroutine[Any, Any, tuple[int, dict[str, Any]]]]

logger = logging.getLogger(__name__)

_TUS = {"tus-resumable": "1.0.0"}
_TUS_BODY = "application/offset+octet-stream"
# Nobody hears it; the access log does.
_GONE = 499


def add_changes(router: APIRouter, admin: AdapterAdmin, max_body_bytes: int) -> None:
    async def body_of(request: Request, *, may_be_empty: bool = False) -> dict[str, Any]:
        return await read_json(request, max_body_bytes, may_be_empty=may_be_empty)

    _add_registration(router, admin, body_of)
    _add_versions(router, admin, body_of)
    add_vllm(router, admin, body_of)

    @router.patch("/v1/adapters/{name:path}")
    async def edit(name: str, request: Request) -> dict[str, Any]:
        return describe(await admin.edit(name, await body_of(request)))

    @router.delete("/v1/adapters/{name:path}")
    async def delete(name: str, revision: int | None = None) -> dict[str, Any]:
        await admin.delete(name, revision=revision)
        return {"name": name, "deleted": True}

    @router.put("/v1/adapters/{name:path}/aliases/{alias}")
    async def set_alias(name: str, alias: str, request: Request) -> dict[str, Any]:
        wanted = parse(AliasRequest, await body_of(request))
        return describe(await admin.set_alias(name, alias, wanted))

    @router.delete("/v1/adapters/{name:path}/aliases/{alias}")
    async def delete_alias(name: str, alias: str) -> dict[str, Any]:
        return describe(await admin.delete_alias(name, alias))


Body = Callable[..., Awaitable[dict[str, Any]]]


def _add_registration(router: APIRouter, admin: AdapterAdmin, body_of: Body) -> None:
    async def register(request: Request, mode: str, wait: bool, **fixed: str) -> Response:
        sent = parse(Registration, {**await body_of(request), **fixed})

        async def operation(tell: Tell) -> tuple[int, dict[str, Any]]:
            stored = await admin.register(
                sent, mode=mode, wait=wait, tell=tell, tenant=request.state.viewer.owner
            )
            status = 200 if mode == "upsert" and not stored.is_new_version else 201
            return status, {**describe(stored.adapter), "notices": stored.version.notices}

        return await _answer(request, operation)

    @router.post("/v1/adapters")
    async def add(request: Request, wait: bool = False, replace: bool = False) -> Response:
        return await register(request, "upsert" if replace else "create", wait)

    @router.put("/v1/adapters/{name:path}")
    async def put(name: str, request: Request, wait: bool = False) -> Response:
        return await register(request, "upsert", wait, name=name)

    @router.post("/v1/adapters/{name:path}/versions")
    async def add_version(name: str, request: Request, wait: bool = False) -> Response:
        return await register(request, "update", wait, name=name)


def _add_versions(router: APIRouter, admin: AdapterAdmin, body_of: Body) -> None:
    @router.delete("/v1/adapters/{name:path}/versions/{version}")
    async def delete_version(name: str, version: str) -> dict[str, Any]:
        return describe(await admin.delete_version(name, version))

    @router.post("/v1/adapters/{name:path}/rollout")
    async def roll_out(name: str, request: Request, wait: bool = False) -> Response:
        wanted = parse(RolloutRequest, await body_of(request))

        async def operation(tell: Tell) -> tuple[int, dict[str, Any]]:
            return 200, describe(await admin.roll_out(name, wanted, wait=wait, tell=tell))

        return await _answer(request, operation)

    @router.post("/v1/adapters/{name:path}/rollback")
    async def roll_back(name: str, request: Request, wait: bool = False) -> dict[str, Any]:
        # A rollback is made in a hurry: without a body it goes back by one.
        wanted = parse(RollbackRequest, await body_of(request, may_be_empty=True))
        return describe(await admin.roll_back(name, wanted, wait=wait))


def add_uploads(router: APIRouter, uploads: Uploads) -> None:
    """The core of tus 1.0 (resumable uploads), with its creation and termination extensions."""

    @router.options("/v1/uploads")
    async def abilities() -> Response:
        about = {"tus-version": "1.0.0", "tus-extension": "creation,termination"}
        return Response(status_code=204, headers=_TUS | about)

    @router.post("/v1/uploads")
    async def create(request: Request) -> JSONResponse:
        length = _number(request, "upload-length")
        upload_id = await asyncio.to_thread(uploads.create, length, _filename(request))
        headers = _TUS | {"location": f"/v1/uploads/{upload_id}"}
        body = {"id": upload_id, "source": f"upload://{upload_id}", "length": length}
        return JSONResponse(body, 201, headers)

    @router.head("/v1/uploads/{upload_id}")
    async def state(upload_id: str) -> Response:
        there, length = await asyncio.to_thread(uploads.state, upload_id)
        known = {"upload-offset": str(there), "upload-length": str(length)}
        return Response(headers=_TUS | known | {"cache-control": "no-store"})

    @router.patch("/v1/uploads/{upload_id}")
    async def append(upload_id: str, request: Request) -> Response:
        if request.headers.get("content-type") != _TUS_BODY:
            raise InvalidRequest(f"send the header 'content-type: {_TUS_BODY}'")
        offset = _number(request, "upload-offset")
        async for part in _parts(request):
            offset = await asyncio.to_thread(uploads.append, upload_id, offset, part)
        return Response(status_code=204, headers=_TUS | {"upload-offset": str(offset)})

    @router.delete("/v1/uploads/{upload_id}")
    async def remove(upload_id: str) -> Response:
        await asyncio.to_thread(uploads.remove, upload_id)
        return Response(status_code=204, headers=_TUS)


async def _parts(request: Request) -> AsyncIterator[bytes]:
    """The body in parts that fit into memory; at least one, which may be empty."""
    part = bytearray()
    async for chunk in request.stream():
        part += chunk
        if len(part) >= PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _filename(request: Request) -> str:
    """From tus's metadata: ``filename BASE64, ...``."""
    for pair in request.headers.get("upload-metadata", "").split(","):
        key, _, value = pair.strip().partition(" ")
        if key == "filename":
            try:
                return base64.b64decode(value, validate=True).decode()[:255]
            except ValueError as e:
                raise InvalidRequest(
                    f"upload-metadata: filename is not base64: {e}", param="upload-metadata"
                ) from e
    return ""


def _number(request: Request, header: str) -> int:
    value = request.headers.get(header, "")
    if not (value.isascii() and value.isdecimal() and len(value) < 19):
        raise InvalidRequest(f"the header {header} must be a number of bytes", param=header)
    return int(value)


async def _answer(request: Request, operation: Operation) -> Response:
    """The operation's answer; to those who accept an event stream, its progress first."""
    if "text/event-stream" not in request.headers.get("accept", ""):
        running = asyncio.create_task(operation(nobody))
        if not await _ended(running, request):
            return Response(status_code=_GONE)
        status, body = running.result()
        return JSONResponse(body, status)
    return StreamingResponse(_events(operation), media_type="text/event-stream")


async def _ended(running: asyncio.Task[Any], request: Request) -> bool:
    """Wait for an operation; False when the client has hung up, which cancels it."""
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait([running, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        is_done = running.done()
        running.cancel()
    return is_done


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(operation: Operation) -> AsyncIterator[bytes]:
    """Progress as it comes; the last event is the `result`, or the `error`."""
    told: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    running = asyncio.create_task(operation(told.put_nowait))
    running.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (event := await told.get()) is not None:
            yield _event(event)
    finally:
        # Who hangs up ends what is being fetched; what is being stored goes on.
        running.cancel()
    try:
        status, body = running.result()
    except RoundhouseError as e:
        yield _event({"event": "error", "status": e.status, **e.body()})
    except Exception:
        logger.exception("a change failed")
        error = RoundhouseError("internal error; the log says more")
        yield _event({"event": "error", "status": error.status, **error.body()})
    else:
        yield _event({"event": "result", "status": status, "adapter": body})


def _event(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"
