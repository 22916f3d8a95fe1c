"""What the endpoint reads out of a request."""

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any, NoReturn

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from cluster.errors import (
    InvalidRequest,
    PayloadTooLarge,
    RequestTimedOut,
    UnsupportedMediaType,
)
from cluster.names import is_whole
from deployments.ingress.calls.form import fields_of_form
from deployments.ingress.edge import request_ids

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# For all of a body: the proxy ends clients that are silent, but not those that drip.
_BODY_S = 60.0
_LONGEST_PLACE = 200
# The part of an address that is the id of a request.
REQUEST_ID = "request_id"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"numbers must be finite; {name} is not")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


class NameRoute(APIRoute):
    """Takes `{name:path}` for a name, slashes and all, only where it can be one.

    So `PATCH /v1/adapters/x/versions` is no change of an adapter `x/versions`, whatever the order
    of the routes, and an address with a slash at its end is redirected as any other.

    Where it answers GET it answers HEAD: with the same start, and no body.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(
            self._read(scope) if scope.get("method") == "HEAD" else scope
        )
        if match is Match.NONE:
            return match, found
        values = found.get("path_params", {})
        names = (value for place, value in values.items() if place != REQUEST_ID)
        # The id of a request may be anything at all.
        is_one = bool(values.get(REQUEST_ID, True)) and all(map(is_whole, names))
        return (match, found) if is_one else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = self._read(scope)
        await super().handle(read, receive, send if read is scope else _without_body(send))

    def _read(self, scope: Scope) -> Scope:
        is_ours = scope["method"] == "HEAD" and "GET" in self.methods and "HEAD" not in self.methods
        return {**scope, "method": "GET"} if is_ours else scope


def _without_body(send: Send) -> Send:
    async def send_start(message: Message) -> None:
        is_body = message["type"] == "http.response.body"
        await send({**message, "body": b""} if is_body else message)

    return send_start


def request_id_of(request: Request) -> str:
    """The id that Serve gave the request (the client's own, when it sent one).

    Serve also puts it on the answer.
    """
    if not hasattr(request.state, "request_id"):
        sent = request.headers.get("x-request-id", "").encode("latin-1")
        request.state.request_id = request_ids.known_as(sent) or uuid.uuid4().hex
    return str(request.state.request_id)


def check_content_type(request: Request, *, may_be_unsaid: bool = False) -> None:
    """A web page elsewhere can post text to this address unasked, but not JSON.

    Nothing at all it can send, too, but not without its origin (:mod:`.edge.doors`).

    Raises:
        UnsupportedMediaType: the body is sent as something else.
    """
    if packed := request.headers.get("content-encoding"):
        raise UnsupportedMediaType(f"content-encoding {packed[:80]!r}; send the body as it is")
    sent = request.headers.get("content-type", "")
    if may_be_unsaid and not sent:
        return
    if sent.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(
            f"the body is sent as {sent[:80] or 'nothing in particular'}; send the header "
            "'content-type: application/json' (curl: -H 'content-type: application/json')"
        )


async def read_json(
    request: Request, max_bytes: int, *, may_be_empty: bool = False, may_be_unsaid: bool = False
) -> dict[str, Any]:
    """The body as a JSON object; where it may be empty, that is an empty one.

    Args:
        may_be_unsaid: a request without a content-type is taken for JSON.

    Raises:
        PayloadTooLarge: it is longer than `max_bytes`; the rest is not read.
        RequestTimedOut: it comes too slowly.
        UnsupportedMediaType: it is sent as something else.
        InvalidRequest: it is not a JSON object.
    """
    body = await _read(request, max_bytes)
    if may_be_empty and not body:
        return {}
    check_content_type(request, may_be_unsaid=may_be_unsaid)
    return parse_json(body)


def parse_json(text: bytes | bytearray, what: str = "the body") -> dict[str, Any]:
    """A JSON object that a client has sent, as `what`; raises InvalidRequest."""
    try:
        decoded = text.decode("utf-8-sig")
        value = _JSON.decode(decoded)
        if _SURROGATE.search(decoded):
            _check_characters(value)
    except (ValueError, RecursionError) as e:
        raise InvalidRequest(f"{what} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} must be a JSON object")
    return value


async def read_form(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as the fields of a form; raises as `read_json` does."""
    body = bytes(await _read(request, max_bytes))
    return await fields_of_form(body, request.headers.get("content-type", ""))


async def _read(request: Request, max_bytes: int) -> bytearray:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise PayloadTooLarge(
                        f"the body is larger than {max_bytes} bytes (http.max_body_bytes)"
                    )
    except TimeoutError as e:
        raise RequestTimedOut(f"the body did not come within {_BODY_S:g} s") from e
    return body


def _check_characters(value: Any) -> None:
    """Refuse half characters (lone surrogates), which no store and no file name can hold."""
    for place, text in _texts(value, ""):
        try:
            text.encode()
        except UnicodeEncodeError as e:
            found = e.object[e.start : e.start + 1].encode("unicode_escape").decode()
            name = place.encode(errors="replace").decode()[:_LONGEST_PLACE]
            said = f"{name or 'the body'} holds half a character ({found}); send whole ones"
            raise InvalidRequest(said, param=name or None) from e


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text of a body, names of fields too, and where it is."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield place, name
            yield from _texts(part, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _texts(part, f"{place}[{i}]")
