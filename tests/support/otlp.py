"""A real OTLP trace receiver for tests, and what Jaeger would make of the spans it got."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from typing_extensions import Self

    Attributes = dict[str, Any]
    Json = dict[str, Any]

_PROTOBUF = "application/x-protobuf"
_KINDS = ("", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("", "OK", "ERROR")
_MAX_SAFE_INTEGER = 2**53 - 1  # of JavaScript: Jaeger writes larger integers as strings


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came over the wire.

    Ids are lower-case hex, times nanoseconds since the epoch, `kind` and `status_code` the numbers
    of OTLP (internal is 1, error is 2), and arrays tuples, as the SDK keeps them.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    kind: int
    start_ns: int
    end_ns: int
    attributes: Attributes
    events: list[tuple[str, Attributes]]
    links: list[tuple[str, str, Attributes]]
    status_code: int
    scope: str
    scope_version: str
    service: str | None
    status_message: str = ""
    event_times_ns: list[int] = field(default_factory=list)
    resource: Attributes = field(default_factory=dict)


class Receiver:
    """Collects what exporters send to `endpoint` while the context is open.

    Attributes:
        endpoint: Where it listens.
        request: The message of an export.
        path: Where exports over HTTP go.
        add_to_server: Makes it a service of a gRPC server.
    """

    endpoint: str
    request: Any = ExportTraceServiceRequest
    path = "/v1/traces"
    add_to_server = add_TraceServiceServicer_to_server

    def __init__(self) -> None:
        self.resource_spans: list[ResourceSpans] = []

    def spans(self) -> list[ReceivedSpan]:
        """Return every span received so far, in the order of arrival."""
        return [span for group in list(self.resource_spans) for span in _received(group)]

    def accept(self, request: Any) -> Any:
        """Keep the spans of one export."""
        self.resource_spans.extend(request.resource_spans)
        return ExportTraceServiceResponse()

    def start(self) -> int:
        """Listen on a free loopback port and return it."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop listening, and wait for the server's threads to end."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.endpoint = f"http://127.0.0.1:{self.start()}"
        return self

    def __exit__(self, *exit_: object) -> None:
        self.stop()


class GrpcReceiver(Receiver):
    """Receives OTLP over gRPC, as port 4317 of Jaeger does, with the same 4 MB message limit."""

    def start(self) -> int:
        self._pool = ThreadPoolExecutor(max_workers=4)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        self.add_to_server(self._server)
        port: int = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return port

    def stop(self) -> None:
        self._server.stop(grace=None).wait()
        self._pool.shutdown()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Answer the one method of the service, by its own name."""
        return self.accept(request)


class HttpReceiver(Receiver):
    """Receives OTLP over HTTP at its path, as port 4318 of Jaeger does."""

    def start(self) -> int:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_HttpExport, self))
        self._server.daemon_threads = False  # so that closing joins them
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self._server.server_port

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _HttpExport(BaseHTTPRequestHandler):
    """One export over HTTP/1.0: the connection, and with it the thread, ends with the answer."""

    timeout = 5

    def __init__(self, receiver: Receiver, *connection: Any) -> None:
        self._receiver = receiver
        super().__init__(*connection)

    def do_POST(self) -> None:
        """Answer as a collector would: the spans are kept, or the status says why not."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != self._receiver.path:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif self.headers.get_content_type() != _PROTOBUF:
            self.send_error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        else:
            try:
                if self.headers.get("Content-Encoding") == "gzip":
                    body = zlib.decompress(body, wbits=zlib.MAX_WBITS | 16)
                request = self._receiver.request.FromString(body)
            except (zlib.error, DecodeError) as error:
                self.send_error(HTTPStatus.BAD_REQUEST, explain=str(error))
            else:
                self._answer(self._receiver.accept(request).SerializeToString())

    def _answer(self, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _PROTOBUF)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def problems(spans: Iterable[ReceivedSpan]) -> list[str]:
    """Name everything that would make Jaeger show a bad trace; empty when all is well."""
    traces: defaultdict[str, list[ReceivedSpan]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    return [problem for trace in traces.values() for problem in _problems_of_trace(trace)]


def to_jaeger(spans: Iterable[ReceivedSpan]) -> Json:
    """Convert the spans of one trace to the JSON of Jaeger's `/api/traces/{id}`.

    Follows the OpenTelemetry-to-Jaeger translation that Jaeger itself uses.

    Raises:
        ValueError: The spans are not those of exactly one trace.
    """
    spans = list(spans)
    (trace_id,) = {span.trace_id for span in spans}
    processes: list[Json] = []
    converted = []
    for span in spans:
        process = _process(span)
        if process not in processes:
            processes.append(process)
        converted.append(_jaeger_span(span, f"p{processes.index(process) + 1}"))
    numbered = {f"p{number}": process for number, process in enumerate(processes, 1)}
    return {"data": [{"traceID": trace_id, "spans": converted, "processes": numbered}]}


def _received(group: ResourceSpans) -> Iterator[ReceivedSpan]:
    resource = _attributes(group.resource.attributes)
    for scoped in group.scope_spans:
        for span in scoped.spans:
            yield ReceivedSpan(
                name=span.name,
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex() if any(span.parent_span_id) else None,
                kind=span.kind,
                start_ns=span.start_time_unix_nano,
                end_ns=span.end_time_unix_nano,
                attributes=_attributes(span.attributes),
                events=[(event.name, _attributes(event.attributes)) for event in span.events],
                links=[
                    (link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes))
                    for link in span.links
                ],
                status_code=span.status.code,
                scope=scoped.scope.name,
                scope_version=scoped.scope.version,
                service=resource.get("service.name"),
                status_message=span.status.message,
                event_times_ns=[event.time_unix_nano for event in span.events],
                resource=resource,
            )


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _problems_of_trace(spans: list[ReceivedSpan]) -> Iterator[str]:
    times = Counter(span.span_id for span in spans)
    for span in spans:
        who = f"span {span.name or span.span_id!r}"
        yield from (f"{who}: {problem}" for problem in _problems_of_span(span))
        if span.parent_id is not None and span.parent_id not in times:
            yield f"{who}: parent {span.parent_id} is not in its trace"
    yield from (f"span id {span_id} is used {n} times" for span_id, n in times.items() if n > 1)
    roots = sum(span.parent_id is None for span in spans)
    if roots != 1:
        yield f"trace {spans[0].trace_id} has {roots} roots"


def _problems_of_span(span: ReceivedSpan) -> Iterator[str]:
    if not span.service or not isinstance(span.service, str):
        yield f"service.name is {span.service!r}"
    if not span.name:
        yield "the name is empty"
    trace_ids = [span.trace_id, *(trace_id for trace_id, _, _ in span.links)]
    span_ids = [span.span_id, span.parent_id, *(span_id for _, span_id, _ in span.links)]
    yield from (f"{i!r} is no trace id" for i in trace_ids if not _is_id(i, 16))
    yield from (f"{i!r} is no span id" for i in span_ids if i is not None and not _is_id(i, 8))
    if span.end_ns < span.start_ns:
        yield "it ends before it starts"
    if _failed(span) and not any(name == "exception" for name, _ in span.events):
        yield "an error without an exception event"
    for key, value in span.attributes.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key} is {value}, which JSON cannot say"


def _failed(span: ReceivedSpan) -> bool:
    return span.status_code == Status.STATUS_CODE_ERROR


def _is_id(text: str, size: int) -> bool:
    return len(text) == 2 * size and text.strip("0") != ""


def _process(span: ReceivedSpan) -> Json:
    tags = {key: value for key, value in span.resource.items() if key != "service.name"}
    name = "missing-service-name" if span.service is None else span.service
    return {"serviceName": name or "empty-service-name", "tags": _fields(tags)}


def _jaeger_span(span: ReceivedSpan, process_id: str) -> Json:
    parent = [("CHILD_OF", span.trace_id, span.parent_id)] if span.parent_id else []
    links = [("FOLLOWS_FROM", trace_id, span_id) for trace_id, span_id, _ in span.links]
    added = {
        "otel.scope.name": span.scope,
        "otel.scope.version": span.scope_version,
        "span.kind": _KINDS[span.kind],
        "otel.status_code": _STATUSES[span.status_code],
        "otel.status_description": span.status_message,
        "error": _failed(span),
    }
    return {
        "traceID": span.trace_id,
        "spanID": span.span_id,
        "operationName": span.name or "empty-span-name",
        "references": [
            {"refType": kind, "traceID": trace_id, "spanID": span_id}
            for kind, trace_id, span_id in parent + links
        ],
        "startTime": span.start_ns // 1000,
        "duration": max(0, span.end_ns - span.start_ns) // 1000,
        "tags": _fields(span.attributes | {key: value for key, value in added.items() if value}),
        "logs": [
            {"timestamp": time_ns // 1000, "fields": _fields({"event": name, **attributes})}
            for time_ns, (name, attributes) in zip(span.event_times_ns, span.events, strict=True)
        ],
        "processID": process_id,
        "warnings": None,
    }


def _fields(attributes: Attributes) -> list[Json]:
    return [_field(key, value) for key, value in attributes.items()]


def _field(key: str, value: Any) -> Json:
    match value:
        case bool():
            kind = "bool"
        case int():
            kind = "int64"
            value = value if abs(value) <= _MAX_SAFE_INTEGER else str(value)
        case float():
            kind = "float64"
        case bytes():
            kind, value = "binary", _base64(value)
        case str():
            kind = "string"
        case _:
            compact = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_base64)
            kind, value = "string", compact
    return {"key": key, "type": kind, "value": value}


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
