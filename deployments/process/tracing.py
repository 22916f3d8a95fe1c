"""Traces of requests, by OpenTelemetry; none while `telemetry.otlp_endpoint` is not set.

A request's spans are children of the one that its ingress opens (:mod:`..ingress.edge.traced`),
in whatever process they are: W3C's `traceparent` crosses with the call, and goes on to the engine.
Without an endpoint nothing of OpenTelemetry is imported, and every span is :data:`NOTHING`.
"""

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from cluster.settings import TelemetrySettings

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
_HTTP, _GRPC = "http/protobuf", "grpc"
_OURS = "roundhouse."

Attribute = str | int | float | bool


class Span:
    """A stretch of a request's time; ended by its block, with the error that ends that."""

    def child(self, name: str, **attributes: Attribute) -> "Span":  # noqa: ARG002
        """A span within this one."""
        return self

    def note(self, **attributes: Attribute | None) -> None:
        """Say more of it: attributes `roundhouse.<name>`; None says nothing."""

    def rename(self, name: str) -> None:
        """Call it otherwise than when it began."""

    def failed(self, problem: str) -> None:
        """Mark it as an error."""

    def end(self) -> None:
        """Close it where that is no block's end."""

    @property
    def carried(self) -> Mapping[str, str]:
        """Headers by which others continue the trace."""
        return {}

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty where nothing is traced."""
        return ""

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.failed(str(error) or repr(error))
        self.end()


NOTHING = Span()
_current: ContextVar[Span] = ContextVar("span", default=NOTHING)
_tracing: "Tracing | None" = None


def current() -> Span:
    """Of the request that the running task serves."""
    return _current.get()


def server_span(name: str, headers: Mapping[str, str]) -> Span:
    """Of a request that has come in, within what the client's `traceparent` names."""
    return NOTHING if _tracing is None else _tracing.begun(name, headers, is_first=True)


def resumed(name: str, carried: Mapping[str, str]) -> Span:
    """Within a span of another process, that has been `carried` here."""
    return NOTHING if _tracing is None or not carried else _tracing.begun(name, carried)


def trace_id_of(carried: Mapping[str, str]) -> str:
    """Of a span that has been carried here; empty where there is none."""
    return carried.get("traceparent", "--").split("-")[1]


@contextmanager
def being(span: Span) -> Iterator[None]:
    """Have it be the running task's current one, and that of the tasks that it starts."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


class _Traced(Span):
    """One that is kept."""

    def __init__(self, tracing: "Tracing", span: "trace.Span") -> None:
        self._tracing = tracing
        self._span = span

    def child(self, name: str, **attributes: Attribute) -> Span:
        span = self._tracing.within(self._span, name)
        span.note(**attributes)
        return span

    def note(self, **attributes: Attribute | None) -> None:
        for name, value in attributes.items():
            if value is not None and value != "":
                self._span.set_attribute(_OURS + name, value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def failed(self, problem: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, problem))

    def end(self) -> None:
        self._span.end()

    @property
    def carried(self) -> Mapping[str, str]:
        return self._tracing.headers(self._span)

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def __bool__(self) -> bool:
        return True


class Tracing:
    """A process's way out for its spans; a part of the process, so that the last ones are sent.

    Args:
        role: what the process is: ingress, replica.
        process_id: as the store and the logs name it.
    """

    def __init__(self, settings: TelemetrySettings, role: str, process_id: str) -> None:
        global _tracing
        self._provider: TracerProvider | None = None
        if settings.otlp_endpoint is None:
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider as Provider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about = {"service.name": f"roundhouse-{role}", "service.instance.id": process_id}
        # Its sampler is what OTEL_TRACES_SAMPLER says.
        self._provider = Provider(resource=Resource.create(about), shutdown_on_exit=False)
        exporter = _exporter(settings.otlp_endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("roundhouse")
        self._propagator = TraceContextTextMapPropagator()
        _tracing = self

    async def start(self) -> None:
        """Spans are sent from the first on."""

    def check(self) -> None:
        """A collector that does not answer loses spans, and keeps no request from being served."""

    async def stop(self) -> None:
        global _tracing
        if self._provider is not None:
            if _tracing is self:
                _tracing = None
            await asyncio.to_thread(self._provider.shutdown)

    def begun(self, name: str, headers: Mapping[str, str], *, is_first: bool = False) -> Span:
        from opentelemetry.trace import SpanKind

        kind = SpanKind.SERVER if is_first else SpanKind.INTERNAL
        around = self._propagator.extract(headers)
        return self._kept(self._tracer.start_span(name, context=around, kind=kind))

    def within(self, span: "trace.Span", name: str) -> Span:
        return self._kept(self._tracer.start_span(name, context=_around(span)))

    def _kept(self, span: "trace.Span") -> Span:
        return _Traced(self, span)

    def headers(self, span: "trace.Span") -> Mapping[str, str]:
        found: dict[str, str] = {}
        self._propagator.inject(found, context=_around(span))
        return found


def _around(span: "trace.Span") -> "Context":
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


def for_engines(settings: TelemetrySettings) -> dict[str, str]:
    """vLLM's own arguments for it; by its environment it is told the protocol."""
    if settings.otlp_endpoint is None:
        return {}
    os.environ.setdefault(_PROTOCOL, _protocol(settings.otlp_endpoint))
    return {"otlp_traces_endpoint": settings.otlp_endpoint}


def _protocol(endpoint: str) -> str:
    """A collector's address for gRPC has no path."""
    return _HTTP if urlsplit(endpoint).path.strip("/") else _GRPC


def _exporter(endpoint: str) -> "SpanExporter":
    if _protocol(endpoint) == _HTTP:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpExporter,
        )

        return HttpExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
        OTLPSpanExporter as GrpcExporter,
    )

    return GrpcExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
