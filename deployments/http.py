"""HTTP: routes to the gateway's operations, and its errors in OpenAI's shape."""

import json
import logging
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from adapter_store.registration import Registration
from cluster.errors import InvalidRequest, NotFound, PayloadTooLarge, RoundhouseError, Unavailable
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


def build_http(gateway: Gateway, *, max_body_bytes: int, lifespan: Lifespan) -> FastAPI:
    """The ASGI application of the endpoint."""
    app = FastAPI(title="Roundhouse", version="1", lifespan=lifespan)
    _add_errors(app)
    _add_inference(app, gateway, max_body_bytes)
    _add_adapters(app, gateway, max_body_bytes)
    _add_operations(app, gateway)
    return app


def _add_inference(app: FastAPI, gateway: Gateway, max_body_bytes: int) -> None:
    async def complete(request: Request) -> Response:
        body = await read_json(request, max_body_bytes)
        answer = await gateway.complete(
            request.url.path, body, request_id_of(request), request.headers.get("authorization")
        )
        return await _to_response(answer)

    app.post(CHAT_PATH)(complete)
    app.post(COMPLETIONS_PATH)(complete)

    @app.post("/v1/route")
    async def route(request: Request) -> dict[str, Any]:
        body = await read_json(request, max_body_bytes)
        decisions = await gateway.route(
            route_inputs(body.get("input")),
            parse_constraints(body.get("constraints")),
            request.headers.get("authorization"),
        )
        return {"decisions": [d.model_dump(mode="json") for d in decisions]}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        return {
            "object": "list",
            "data": gateway.models(request.headers.get("authorization")),
        }

    @app.get("/v1/models/{model}")
    async def model(model: str, request: Request) -> dict[str, Any]:
        return gateway.model(model, request.headers.get("authorization"))


def _add_adapters(app: FastAPI, gateway: Gateway, max_body_bytes: int) -> None:
    async def registration(request: Request, **fixed: str) -> Registration:
        body = await read_json(request, max_body_bytes)
        try:
            return Registration.model_validate({**body, **fixed})
        except ValidationError as e:
            raise InvalidRequest.of(e) from e

    @app.post("/v1/adapters", status_code=201)
    async def add(request: Request, wait: bool = False) -> dict[str, Any]:
        adapter, _ = await gateway.register(
            await registration(request),
            mode="create",
            wait=wait,
            authorization=request.headers.get("authorization"),
        )
        return adapter

    @app.put("/v1/adapters/{name}")
    async def put(name: str, request: Request, wait: bool = False) -> JSONResponse:
        adapter, is_new = await gateway.register(
            await registration(request, name=name),
            mode="upsert",
            wait=wait,
            authorization=request.headers.get("authorization"),
        )
        return JSONResponse(adapter, status_code=201 if is_new else 200)

    @app.post("/v1/adapters/{name}/versions", status_code=201)
    async def add_version(name: str, request: Request, wait: bool = False) -> dict[str, Any]:
        adapter, _ = await gateway.register(
            await registration(request, name=name),
            mode="update",
            wait=wait,
            authorization=request.headers.get("authorization"),
        )
        return adapter

    @app.get("/v1/adapters")
    async def index(
        request: Request, cursor: str = "", limit: int = Query(100, ge=1, le=1000)
    ) -> dict[str, Any]:
        page, following = gateway.list_adapters(
            after=cursor, limit=limit, authorization=request.headers.get("authorization")
        )
        return {"object": "list", "data": page, "next": following}

    @app.get("/v1/adapters/{name}")
    async def show(name: str, request: Request) -> dict[str, Any]:
        return gateway.show_adapter(name, request.headers.get("authorization"))

    @app.get("/v1/adapters/{name}/versions")
    async def versions(name: str, request: Request) -> dict[str, Any]:
        adapter = gateway.show_adapter(name, request.headers.get("authorization"))
        return {"object": "list", "data": adapter["versions"], "aliases": adapter["aliases"]}

    @app.delete("/v1/adapters/{name}")
    async def delete(name: str, request: Request) -> dict[str, Any]:
        await gateway.delete_adapter(name, request.headers.get("authorization"))
        return {"name": name, "deleted": True}


def _add_operations(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/cluster")
    async def cluster(request: Request) -> dict[str, Any]:
        snapshot = await gateway.snapshot(request.headers.get("authorization"))
        return snapshot.model_dump(mode="json")

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
        wrapped = NotFound(f"{request.method} {request.url.path}: {error.detail}")
        wrapped.status = error.status_code
        return await ours(request, wrapped)

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
