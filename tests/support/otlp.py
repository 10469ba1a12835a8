"""Receivers of OTLP traces on loopback, made of OpenTelemetry's messages and service classes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.servers import wait_for


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as a collector sees it; times in nanoseconds since 1970, ids as in ``traceparent``."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    trace_state: str
    start: int
    end: int
    attributes: dict[str, Any]
    status: int
    resource: dict[str, Any]


@dataclass
class Collector:
    """What has been received, and how exports are answered."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    num_exports: int = 0
    status: int = 200  # of an HTTP answer

    def take(self, request: ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        """Take a batch."""
        self.headers.append(headers)
        for group in request.resource_spans:
            resource = _values(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [_received(span, resource) for span in scope.spans]

    def trace(self, trace_id: str) -> tuple[ReceivedSpan, list[ReceivedSpan]]:
        """A request's span, which comes last, and those below it."""
        wait_for(lambda: any(span.kind == Span.SPAN_KIND_SERVER for span in self.of(trace_id)))
        spans = self.of(trace_id)
        [request] = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
        children = [span for span in spans if span is not request]
        assert {span.parent_id for span in children} <= {request.span_id}
        return request, children

    def of(self, trace_id: str) -> list[ReceivedSpan]:
        """What has come of a trace."""
        return [span for span in list(self.spans) if span.trace_id == trace_id]


def _received(span: Span, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        trace_state=span.trace_state,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        status=span.status.code,
        resource=resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def http_collector(status: int = 200) -> Iterator[Collector]:
    """OTLP over HTTP with protobuf."""
    collector = Collector(status=status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.num_exports += 1
            if collector.status == 200:
                request = ExportTraceServiceRequest.FromString(body)
                collector.take(request, {k.lower(): v for k, v in self.headers.items()})
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(collector.status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    """OTLP over gRPC."""
    collector = Collector()

    class Service(TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
            collector.num_exports += 1
            collector.take(request, dict(context.invocation_metadata()))
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)


@contextmanager
def silent_collector(*, listens: bool) -> Iterator[str]:
    """The URL of one that takes connections and never answers, or not even that."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if listens:
            listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
