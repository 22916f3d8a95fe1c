"""HTTP: routes to the gateway's operations, and its errors in OpenAI's shape."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from adapter_store.search import Search
from cluster.calls import CALLS, Shape
from cluster.errors import InvalidRequest, RoundhouseError
from cluster.settings import AuthSettings, HttpSettings
from deployments.ingress.auth import ADMIN, CLIENT, Authoriser, key_in
from deployments.ingress.base_models import BaseModels
from deployments.ingress.batches.http import add_batches
from deployments.ingress.bodies import NameRoute, read_form, read_json, request_id_of
from deployments.ingress.calls.answers import error_body, error_event, reworded
from deployments.ingress.changes.http import add_changes, add_uploads
from deployments.ingress.completion import parse_constraints
from deployments.ingress.dashboard.http import add_dashboard, add_page
from deployments.ingress.directory import Directory
from deployments.ingress.edge.doors import doors
from deployments.ingress.edge.probes import add_probes
from deployments.ingress.edge.traced import Traced
from deployments.ingress.encoders.http import add_encoders
from deployments.ingress.feedback import Feedback
from deployments.ingress.gateway import Gateway
from deployments.ingress.openapi.document import document
from deployments.ingress.operations import Operations
from deployments.ingress.overview import Overview
from deployments.ingress.rules.book import Book
from deployments.ingress.rules.http import add_rules, tried
from deployments.ingress.views import cluster, describe
from deployments.process import metrics
from deployments.process.call import Reply
from deployments.process.tracing import current
from router.rules.matching import Asked

logger = logging.getLogger(__name__)

_MAX_ROUTE_INPUTS = 1024
_FIRST_ERROR = 400
_UNEXPECTED = "internal error; the log names this request id"

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_http(
    offered: Operations,
    http: HttpSettings,
    auth: AuthSettings,
    *,
    lifespan: Lifespan,
    is_traced: bool = False,
) -> FastAPI:
    """The ASGI application of the endpoint."""
    first = [Middleware(Traced)] if is_traced else []
    # No interactive docs: they would load scripts from outside the cluster.
    app = FastAPI(
        title="Roundhouse",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=first + doors(http, auth, _refusal),
    )
    _add_errors(app)
    authoriser, max_body_bytes = Authoriser(auth), http.max_body_bytes

    def asks_for(scope: str) -> list[Any]:
        # A coroutine, or every request would wait for a thread.
        async def check(request: Request) -> None:
            with current().child("authorise"):
                request.state.viewer = authoriser.check(key_in(request.headers), scope)

        check.scope = scope  # type: ignore[attr-defined]  # for the OpenAPI document
        return [Depends(check)]

    client = APIRouter(dependencies=asks_for(CLIENT), route_class=NameRoute)
    changes = APIRouter(dependencies=asks_for(ADMIN), route_class=NameRoute)
    _add_inference(client, offered.gateway, max_body_bytes)
    _add_route(client, offered.gateway, offered.rules, max_body_bytes)
    add_rules(changes, offered.rules, max_body_bytes)
    add_encoders(changes, offered.encoders, max_body_bytes)
    _add_models(client, offered.directory, offered.base_models)
    _add_reading(client, offered.directory)
    _add_feedback(client, changes, offered.feedback, max_body_bytes)
    add_changes(changes, offered.admin, max_body_bytes)
    add_uploads(changes, offered.admin.uploads)
    add_batches(client, offered.jobs, max_body_bytes)
    _add_overview(client, offered.overview)
    add_dashboard(client, changes, offered.dashboard)
    app.include_router(client)
    app.include_router(changes)
    add_probes(app, offered.overview)
    add_page(app)
    _add_document(app, asks_for_keys=auth.enabled)
    return app


def _add_document(app: FastAPI, *, asks_for_keys: bool) -> None:
    """What is offered; it says nothing of what is here."""
    made: list[dict[str, Any]] = []

    @app.get("/openapi.json")
    async def openapi() -> JSONResponse:
        if not made:
            made.append(document(app, asks_for_keys=asks_for_keys))
        return JSONResponse(made[0])


def _add_inference(router: APIRouter, gateway: Gateway, max_body_bytes: int) -> None:
    async def complete(request: Request) -> Response:
        path, asked_by = request.scope["path"], request.state.viewer
        if CALLS[path].shape is Shape.AUDIO:
            body = await read_form(request, max_body_bytes)
        else:
            body = await read_json(request, max_body_bytes, may_be_unsaid=True)
        request.state.is_counted = True  # by the gateway, from here on
        async with AsyncExitStack() as held:
            request_id = request_id_of(request)
            reply = await gateway.complete(path, body, request_id, asked_by, request.headers, held)
            return await _respond(path, reply, request_id, held)

    for path in CALLS:
        router.post(path)(complete)


def _add_route(router: APIRouter, gateway: Gateway, book: Book, max_body_bytes: int) -> None:
    @router.post("/v1/route")
    async def route(request: Request) -> dict[str, Any]:
        body = await read_json(request, max_body_bytes)
        rules, viewer = tried(body, book, request.state.viewer)
        constraints = parse_constraints(body.get("constraints"), viewer, request.headers)
        inputs = route_inputs(body.get("input"))
        asked = [Asked(value, request.headers, gateway.wrappers) for value in inputs]
        decisions = await gateway.route(asked, constraints, rules)
        return {"decisions": [d.model_dump(mode="json") for d in decisions]}


def _add_models(router: APIRouter, directory: Directory, bases: BaseModels) -> None:
    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        cards = directory.models(request.state.viewer, await bases.facts())
        return {"object": "list", "data": cards}

    @router.get("/v1/models/{model:path}")
    async def model(model: str, request: Request) -> dict[str, Any]:
        return directory.model(model, request.state.viewer, await bases.facts())


def _add_reading(router: APIRouter, directory: Directory) -> None:
    @router.get("/v1/adapters")
    async def index(
        request: Request,
        cursor: str = "",
        limit: int = Query(100, ge=1, le=1000),
        search: str = "",
        base_model: str = "",
        tag: str = "",
        owner: str = "",
    ) -> JSONResponse:
        page, following = directory.page(
            Search(text=search, base_model=base_model, tag=tag, owner=owner),
            request.state.viewer,
            after=cursor,
            limit=limit,
        )
        # Not by way of FastAPI's own conversion: it is JSON already, and may be long.
        return JSONResponse({"object": "list", "data": page, "next": following})

    @router.get("/v1/adapters/{name:path}")
    async def show(name: str, request: Request) -> dict[str, Any]:
        return describe(directory.adapter(name, request.state.viewer))

    @router.get("/v1/adapters/{name:path}/versions")
    async def versions(name: str, request: Request) -> dict[str, Any]:
        adapter = describe(directory.adapter(name, request.state.viewer))
        return {"object": "list", "data": adapter["versions"], "aliases": adapter["aliases"]}


def _add_feedback(
    client: APIRouter, admins: APIRouter, feedback: Feedback, max_body_bytes: int
) -> None:
    @client.post("/v1/feedback")
    async def take(request: Request) -> dict[str, Any]:
        body = await read_json(request, max_body_bytes)
        return await feedback.take(body, request.state.viewer)

    @client.get("/v1/decisions/{request_id:path}")
    async def show(request_id: str, request: Request, owner: str | None = None) -> dict[str, Any]:
        raw = request.scope.get("raw_path", b"").decode("latin-1").removeprefix("/v1/decisions/")
        found = await feedback.show(request_id, request.state.viewer, owner, raw=raw)
        return found.model_dump(mode="json")

    @admins.get("/v1/decisions")
    async def newest(limit: int = Query(100, ge=1, le=1000)) -> dict[str, Any]:
        found = await feedback.newest(limit)
        return {"object": "list", "data": [request.model_dump(mode="json") for request in found]}


def _add_overview(client: APIRouter, overview: Overview) -> None:
    @client.get("/v1/cluster")
    async def snapshot(request: Request) -> dict[str, Any]:
        return cluster(await overview.snapshot(request.state.viewer))


def _add_errors(app: FastAPI) -> None:
    app.exception_handler(RoundhouseError)(_ours)
    app.exception_handler(HTTPException)(_of_framework)
    app.exception_handler(RequestValidationError)(_of_query)
    app.exception_handler(Exception)(_unexpected)


async def _ours(request: Request, error: RoundhouseError) -> JSONResponse:
    return _refusal(request.scope, error)


def _refusal(scope: Scope, error: RoundhouseError) -> JSONResponse:
    """The error as an answer; counted unless the gateway has."""
    if scope["path"] in CALLS and not scope.get("state", {}).get("is_counted", False):
        metrics.requests.labels("", metrics.UNKNOWN, "", str(error.status)).inc()
    return JSONResponse(error_body(scope["path"], error), error.status, error.headers())


async def _of_framework(request: Request, error: HTTPException) -> JSONResponse:
    path = request.scope["path"]
    said = {
        404: "there is no such call; GET /openapi.json lists those that there are. Models answer "
        + ", ".join(CALLS),
        405: f"the path takes {(error.headers or {}).get('Allow', 'other methods')}",
    }.get(error.status_code, error.detail)
    wrapped = InvalidRequest(f"{request.method} {path}: {said}")
    return JSONResponse(error_body(path, wrapped), error.status_code, error.headers)


async def _of_query(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    param = str(first["loc"][-1])
    return await _ours(request, InvalidRequest(f"{param}: {first['msg']}", param=param))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("request %s failed", request_id_of(request), exc_info=error)
    return await _ours(request, RoundhouseError(_UNEXPECTED))


def route_inputs(value: Any) -> list[Any]:
    """Prompts to decide on: one string, one conversation, or a list of either."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise InvalidRequest("input must be a string, messages, or a list of these", param="input")
    if isinstance(value[0], dict):
        return [value]
    if len(value) > _MAX_ROUTE_INPUTS:
        raise InvalidRequest(f"input: at most {_MAX_ROUTE_INPUTS} prompts at once", param="input")
    if not all(isinstance(v, str | list) for v in value):
        raise InvalidRequest("input: every item must be a string or messages", param="input")
    return value


async def _respond(path: str, reply: Reply, request_id: str, held: AsyncExitStack) -> Response:
    """The response; of a stream, it takes over what is `held`."""
    if reply.start.is_stream:
        return _Stream(path, reply, request_id, held.pop_all())
    status, body = reply.start.status, await reply.read()
    if status >= _FIRST_ERROR:
        body = reworded(CALLS[path], status, body)
    return Response(body, status, reply.start.headers)


class _Stream(StreamingResponse):
    """A client that hangs up frees its place: what the reply holds ends with the response."""

    def __init__(self, path: str, reply: Reply, request_id: str, held: AsyncExitStack) -> None:
        super().__init__(_told(path, reply, request_id), reply.start.status, reply.start.headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _told(path: str, reply: Reply, request_id: str) -> AsyncIterator[bytes]:
    """The status line is out already, so an error in mid-stream is the stream's last event."""
    try:
        async for chunk in reply.body:
            yield chunk
    except RoundhouseError as e:
        yield error_event(path, e)
    except Exception:
        # Whatever it was: without an event, the client would take what it has for the whole.
        logger.exception("request %s failed in mid-stream", request_id)
        yield error_event(path, RoundhouseError(_UNEXPECTED))
