"""HTTP: routes to the gateway's operations, and its errors in OpenAI's shape."""

import json
import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from adapter_store.registration import Registration
from cluster.errors import InvalidRequest, PayloadTooLarge, RoundhouseError, Unavailable
from deployments.auth import ADMIN, CLIENT, Authoriser
from deployments.gateway import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    Answer,
    Gateway,
    parse_constraints,
)
from router.prompts import text_of

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._:-]{1,128}$")
_MAX_ROUTE_INPUTS = 1024

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_http(
    gateway: Gateway, authoriser: Authoriser, *, max_body_bytes: int, lifespan: Lifespan
) -> FastAPI:
    """The ASGI application of the endpoint."""
    # No interactive docs: they would load scripts from outside the cluster.
    app = FastAPI(
        title="Roundhouse", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    _add_errors(app)

    def asks_for(scope: str) -> list[Any]:
        def check(request: Request) -> None:
            authoriser.check(request.headers.get("authorization"), scope)

        return [Depends(check)]

    client = APIRouter(dependencies=asks_for(CLIENT))
    admin = APIRouter(dependencies=asks_for(ADMIN))
    _add_inference(client, gateway, max_body_bytes)
    _add_reading(client, gateway)
    _add_changes(admin, gateway, max_body_bytes)
    _add_probes(app, gateway)
    app.include_router(client)
    app.include_router(admin)
    return app


def _add_inference(router: APIRouter, gateway: Gateway, max_body_bytes: int) -> None:
    async def complete(request: Request) -> Response:
        body = await read_json(request, max_body_bytes)
        return await _to_response(
            await gateway.complete(request.url.path, body, request_id_of(request))
        )

    router.post(CHAT_PATH)(complete)
    router.post(COMPLETIONS_PATH)(complete)

    @router.post("/v1/route")
    async def route(request: Request) -> dict[str, Any]:
        body = await read_json(request, max_body_bytes)
        decisions = await gateway.route(
            route_inputs(body.get("input")), parse_constraints(body.get("constraints"))
        )
        return {"decisions": [d.model_dump(mode="json") for d in decisions]}


def _add_reading(router: APIRouter, gateway: Gateway) -> None:
    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": gateway.models()}

    @router.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        return gateway.model(model)

    @router.get("/v1/adapters")
    async def index(cursor: str = "", limit: int = Query(100, ge=1, le=1000)) -> dict[str, Any]:
        page, following = gateway.list_adapters(after=cursor, limit=limit)
        return {"object": "list", "data": page, "next": following}

    @router.get("/v1/adapters/{name}")
    async def show(name: str) -> dict[str, Any]:
        return gateway.show_adapter(name)

    @router.get("/v1/adapters/{name}/versions")
    async def versions(name: str) -> dict[str, Any]:
        adapter = gateway.show_adapter(name)
        return {"object": "list", "data": adapter["versions"], "aliases": adapter["aliases"]}

    @router.get("/v1/cluster")
    async def cluster() -> dict[str, Any]:
        return (await gateway.snapshot()).model_dump(mode="json")


def _add_changes(router: APIRouter, gateway: Gateway, max_body_bytes: int) -> None:
    async def registration(request: Request, **fixed: str) -> Registration:
        _check_content_type(request)
        body = await read_json(request, max_body_bytes)
        try:
            return Registration.model_validate({**body, **fixed})
        except ValidationError as e:
            raise InvalidRequest.of(e) from e

    @router.post("/v1/adapters", status_code=201)
    async def add(request: Request, wait: bool = False) -> dict[str, Any]:
        sent = await registration(request)
        adapter, _ = await gateway.register(sent, mode="create", wait=wait)
        return adapter

    @router.put("/v1/adapters/{name}")
    async def put(name: str, request: Request, wait: bool = False) -> JSONResponse:
        sent = await registration(request, name=name)
        adapter, is_new = await gateway.register(sent, mode="upsert", wait=wait)
        return JSONResponse(adapter, status_code=201 if is_new else 200)

    @router.post("/v1/adapters/{name}/versions", status_code=201)
    async def add_version(name: str, request: Request, wait: bool = False) -> dict[str, Any]:
        sent = await registration(request, name=name)
        adapter, _ = await gateway.register(sent, mode="update", wait=wait)
        return adapter

    @router.delete("/v1/adapters/{name}")
    async def delete(name: str) -> dict[str, Any]:
        await gateway.delete_adapter(name)
        return {"name": name, "deleted": True}


def _add_probes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        waiting = await gateway.not_ready()
        if waiting:
            raise Unavailable(f"waiting for {', '.join(waiting)}")
        return {"status": "ready"}


def _add_errors(app: FastAPI) -> None:
    async def ours(request: Request, error: RoundhouseError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    async def of_framework(request: Request, error: HTTPException) -> JSONResponse:
        wrapped = InvalidRequest(f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(wrapped.body(), error.status_code, error.headers)

    async def of_query(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return await ours(request, InvalidRequest(f"{param}: {first['msg']}", param=param))

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("request %s failed", request_id_of(request), exc_info=error)
        return await ours(request, RoundhouseError("internal error; the log names this request id"))

    app.add_exception_handler(RoundhouseError, ours)
    app.add_exception_handler(HTTPException, of_framework)
    app.add_exception_handler(RequestValidationError, of_query)
    app.add_exception_handler(Exception, unexpected)


def request_id_of(request: Request) -> str:
    """The id that Serve's proxy gave the request (the client's own, when it sent one).

    The proxy also puts it on the answer.
    """
    if not hasattr(request.state, "request_id"):
        sent = request.headers.get("x-request-id", "")
        request.state.request_id = sent if _REQUEST_ID.match(sent) else uuid.uuid4().hex
    return request.state.request_id


def _check_content_type(request: Request) -> None:
    """A web page elsewhere can post text to this address unasked, but not JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InvalidRequest("send the header 'content-type: application/json'")


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        PayloadTooLarge: it is longer than `max_bytes`; the rest is not read.
        InvalidRequest: it is not a JSON object.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PayloadTooLarge(
                f"the body is larger than {max_bytes} bytes (http.max_body_bytes)"
            )
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise InvalidRequest(f"the body is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def route_inputs(value: Any) -> list[str]:
    """Texts to decide on: one string, one conversation, or a list of either."""
    if isinstance(value, str):
        return [text_of(value)]
    if not isinstance(value, list) or not value:
        raise InvalidRequest("input must be a string, messages, or a list of these", param="input")
    if isinstance(value[0], dict):
        return [text_of(value)]
    if len(value) > _MAX_ROUTE_INPUTS:
        raise InvalidRequest(f"input: at most {_MAX_ROUTE_INPUTS} prompts at once", param="input")
    if not all(isinstance(v, str | list) for v in value):
        raise InvalidRequest("input: every item must be a string or messages", param="input")
    return [text_of(v) for v in value]


async def _to_response(answer: Answer) -> Response:
    passed = ("content-type", "retry-after", "x-roundhouse-replica", "x-roundhouse-residency")
    engine_headers = {k: v for k, v in answer.start.headers.items() if k in passed}
    headers = {**answer.headers, **engine_headers}
    status = int(answer.start.status)
    if engine_headers.get("content-type", "").startswith("text/event-stream"):
        return StreamingResponse(_closing(answer.body), status, headers)
    try:
        content = b"".join([chunk async for chunk in answer.body])
    finally:
        await answer.body.aclose()
    return Response(content, status, headers)


async def _closing(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Close the source whichever way the response ends: a client that hangs up frees its slot.

    The status line is out already, so an error in mid-stream is the stream's last event.
    """
    try:
        async for chunk in body:
            yield chunk
    except RoundhouseError as e:
        yield b"data: " + json.dumps(e.body()).encode() + b"\n\n"
    finally:
        await body.aclose()
