"""The first span of a request for tokens, or for a decision, from its head to its last byte.

Only where `telemetry.otlp_endpoint` is set: without, it is not in the way.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.calls import CALLS
from deployments.process import logs, tracing
from deployments.process.call import REPLICA_HEADER, RESIDENCY_HEADER

# Header of the answer -> attribute.
_TOLD = {
    "x-roundhouse-model": "model",
    "x-roundhouse-adapter": "adapter",
    "x-roundhouse-version": "version",
    "x-roundhouse-route": "route",
    "x-roundhouse-fallback": "fallback",
    REPLICA_HEADER: "replica",
    RESIDENCY_HEADER: "tier",
}
_FAILED = 500


class Traced:
    """Opens the span; answers say by `traceparent` which it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What else is asked is asked by pages and probes, each second.
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        span = tracing.server_span(_name(scope["path"]), headers)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                _note(span, told, message["status"])
                told.update(span.carried)
            await send(message)

        with span, tracing.being(span):
            span.note(request_id=headers.get("x-request-id", ""))
            logs.about_trace(span.trace_id)
            await self._app(scope, receive, tell)


def _note(span: tracing.Span, headers: MutableHeaders, status: int) -> None:
    told = {attribute: headers.get(header) for header, attribute in _TOLD.items()}
    span.note(status=status, **told)
    if status >= _FAILED:
        span.failed(f"HTTP {status}")


def _name(path: str) -> str:
    """Of what is asked, without the names in it."""
    parts = path.split("/")
    is_below = len(parts) > 3 and path not in CALLS
    return f"POST {'/'.join(parts[:3])}/..." if is_below else f"POST {path[:40]}"
