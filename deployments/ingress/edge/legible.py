"""Before Ray Serve's own application: it is left only headers that it can read."""

from collections.abc import Iterable, Iterator

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.ingress.edge import request_ids

_Header = tuple[bytes, bytes]


class Legible:
    """Makes headers legible.

    Serve decodes some of them as UTF-8 before the application sees the request, and a request whose
    headers it cannot read would get a bare 500. The request's id it puts on the answer as it finds
    it: it finds the form under which all of us know the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = list(_legible(scope["headers"]))
        await self._app(scope, receive, send)


def _legible(headers: Iterable[_Header]) -> Iterator[_Header]:
    has_id = False
    for name, value in headers:
        if name == request_ids.HEADER:
            known = request_ids.known_as(value)
            if known and not has_id:
                yield name, known.encode()
            has_id = has_id or bool(known)
            continue
        try:
            value.decode()
        except UnicodeDecodeError:
            # As HTTP has it: bytes beyond ASCII stand for themselves.
            value = value.decode("latin-1").encode()
        yield name, value


def before_serve() -> list[Middleware]:
    """For Ray Serve, which calls it by its path (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`)."""
    return [Middleware(Legible)]
