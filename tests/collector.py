"""An OTLP collector on loopback, over gRPC or HTTP: OpenTelemetry's own service; it keeps spans."""

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.conftest import wait_until


@dataclass(frozen=True)
class Seen:
    """A span as it came in; times in ns."""

    name: str
    trace: str
    id: str
    parent: str
    service: str
    attributes: dict[str, Any]
    start: int
    end: int
    is_error: bool


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What has come in."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []

    def Export(self, request: ExportTraceServiceRequest, _: Any) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            about = _plain(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_seen(span, about.get("service.name", "")) for span in scope.spans]
        return ExportTraceServiceResponse()

    def of_trace(self, trace_id: str, *names: str, timeout_s: float = 20) -> dict[str, Seen]:
        """The spans of a trace by name, when those are all there."""

        def found() -> dict[str, Seen]:
            return {s.name: s for s in self.spans if s.trace == trace_id}

        wait_until(lambda: set(names) <= found().keys(), timeout_s)
        return found()


def _plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def _seen(span: Any, service: str) -> Seen:
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    told = _plain(span.attributes)
    times = (span.start_time_unix_nano, span.end_time_unix_nano)
    return Seen(span.name, *ids, service, told, *times, span.status.code == 2)


@contextmanager
def collecting(port: int, *, over_http: bool = False) -> Iterator[Collector]:
    collector = Collector()
    with (_http if over_http else _grpc)(collector, port):
        yield collector


@contextmanager
def _grpc(collector: Collector, port: int) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


@contextmanager
def _http(collector: Collector, port: int) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.Export(ExportTraceServiceRequest.FromString(body), None)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
