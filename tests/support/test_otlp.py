"""The receivers against the real SDK and its real exporters."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcExporter,
)
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpExporter,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, format_span_id, format_trace_id

from tests.support.otlp import GrpcReceiver, HttpReceiver, ReceivedSpan, problems, to_jaeger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.sdk.trace.export import SpanExporter

    from tests.support.otlp import Receiver

PROTOBUF = "application/x-protobuf"
ATTRIBUTES = {
    "text": "Gödel",
    "flag": True,
    "count": 3,
    "large": 2**60,
    "score": 0.5,
    "names": ("a", "b"),
    "error": "none",
}
WIRES = {
    "grpc": (GrpcReceiver, GrpcExporter),
    "grpc-gzip": (
        GrpcReceiver,
        lambda url: GrpcExporter(url, compression=grpc.Compression.Gzip),
    ),
    "http": (HttpReceiver, lambda url: HttpExporter(f"{url}/v1/traces")),
    "http-gzip": (
        HttpReceiver,
        lambda url: HttpExporter(f"{url}/v1/traces", compression=Compression.Gzip),
    ),
}


@pytest.fixture(params=WIRES.values(), ids=WIRES)
def wire(request) -> Iterator[tuple[Receiver, Callable[[str], SpanExporter]]]:
    """A receiver that listens, and how to make an exporter for it."""
    receiver, exporter = request.param
    with receiver() as listening:
        yield listening, exporter


def sent_to(exporter: SpanExporter) -> list[ReadableSpan]:
    """Send one trace of a root, a good child and a failed child, linked to a trace of its own."""
    provider = TracerProvider(
        resource=Resource({"service.name": "shop", "replica": 2}), shutdown_on_exit=False
    )
    kept = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("library", "1.2")
    batch = tracer.start_span("batch")
    batch.end()
    with tracer.start_as_current_span("query", attributes=ATTRIBUTES) as root:
        with tracer.start_as_current_span(
            "search", kind=SpanKind.CLIENT, links=[Link(batch.get_span_context(), {"index": 1})]
        ):
            root.add_event("cache.miss", {"level": "exact"})
        with pytest.raises(LookupError), tracer.start_as_current_span("fail"):
            raise LookupError("no such document")
    provider.shutdown()
    return list(kept.get_finished_spans())


def as_received(span: ReadableSpan) -> ReceivedSpan:
    """What must come out of the wire for a span of the SDK."""
    return ReceivedSpan(
        name=span.name,
        trace_id=format_trace_id(span.context.trace_id),
        span_id=format_span_id(span.context.span_id),
        parent_id=span.parent and format_span_id(span.parent.span_id),
        kind=span.kind.value + 1,
        start_ns=span.start_time,
        end_ns=span.end_time,
        attributes=dict(span.attributes),
        events=[(event.name, dict(event.attributes)) for event in span.events],
        links=[
            (
                format_trace_id(link.context.trace_id),
                format_span_id(link.context.span_id),
                dict(link.attributes),
            )
            for link in span.links
        ],
        status_code=span.status.status_code.value,
        scope=span.instrumentation_scope.name,
        scope_version=span.instrumentation_scope.version,
        service=span.resource.attributes["service.name"],
        status_message=span.status.description or "",
        event_times_ns=[event.timestamp for event in span.events],
        resource=dict(span.resource.attributes),
    )


@pytest.fixture(scope="module")
def trace() -> list[ReceivedSpan]:
    """The three spans of the trace under `query`, received in the order of their ends."""
    with GrpcReceiver() as receiver:
        sent_to(GrpcExporter(receiver.endpoint))
        _, *spans = receiver.spans()
    return spans


def test_spans_come_back_equal(wire):
    """Every field of every span survives the real exporter and the receiver."""
    receiver, exporter = wire
    sent = sent_to(exporter(receiver.endpoint))
    assert [span.name for span in sent] == ["batch", "search", "fail", "query"]
    assert receiver.spans() == [as_received(span) for span in sent]
    assert problems(receiver.spans()) == []


def test_leaving_frees_threads_and_port(wire):
    """A receiver that was used leaves neither a thread nor a listening socket."""
    receiver, exporter = wire
    before = set(threading.enumerate())
    with type(receiver)() as short:
        sent_to(exporter(short.endpoint))
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(short.endpoint.rpartition(":")[2])), timeout=5)


@pytest.mark.parametrize(
    ("path", "kind", "encoding", "body", "status"),
    [
        ("/v1/logs", PROTOBUF, "identity", b"", HTTPStatus.NOT_FOUND),
        ("/v1/traces", "application/json", "identity", b"{}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
        ("/v1/traces", PROTOBUF, "identity", b"\xff", HTTPStatus.BAD_REQUEST),
        ("/v1/traces", PROTOBUF, "gzip", gzip.compress(b"cut")[:-9], HTTPStatus.BAD_REQUEST),
    ],
    ids=["path", "type", "protobuf", "gzip"],
)
def test_http_refuses_what_is_not_a_trace(path, kind, encoding, body, status):
    """The HTTP receiver answers a bad request with the status a collector gives."""
    headers = {"Content-Type": kind, "Content-Encoding": encoding}
    with HttpReceiver() as receiver:
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(receiver.endpoint + path, body, headers), timeout=5)
        with refused.value:
            assert refused.value.code == status
        assert receiver.spans() == []


def test_a_good_trace_has_no_problems(trace):
    """A trace of the SDK, with its error recorded, is a good one."""
    assert problems(trace) == []


def test_an_orphan_is_a_problem(trace):
    """A child whose parent never arrived is named, and so is the missing root."""
    search, _, query = trace
    assert problems([search]) == [
        f"span 'search': parent {query.span_id} is not in its trace",
        f"trace {query.trace_id} has 0 roots",
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"service": None}, "service.name is None"),
        ({"service": ""}, "service.name is ''"),
        ({"name": ""}, "the name is empty"),
        ({"trace_id": "ab"}, "'ab' is no trace id"),
        ({"span_id": "0" * 16}, "'0000000000000000' is no span id"),
        ({"parent_id": "ab"}, "'ab' is no span id"),
        ({"links": [("ab", "1" * 16, {})]}, "'ab' is no trace id"),
        ({"end_ns": 0}, "it ends before it starts"),
        ({"status_code": 2}, "an error without an exception event"),
        ({"attributes": {"score": float("nan")}}, "score is nan, which JSON cannot say"),
        ({"parent_id": None}, "has 2 roots"),
    ],
)
def test_every_other_problem_is_found(trace, change, problem):
    """One changed field of a good trace is one named problem."""
    search, *rest = trace
    assert any(found.endswith(problem) for found in problems([replace(search, **change), *rest]))


def test_a_repeated_span_id_is_a_problem(trace):
    """A span that was sent twice is named by its id."""
    assert problems([*trace, trace[0]]) == [f"span id {trace[0].span_id} is used 2 times"]


def test_jaeger_shows_the_trace(trace):
    """The conversion has the shape, the references, the tags and the logs of Jaeger's JSON."""
    search, fail, query = trace
    (shown,) = json.loads(json.dumps(to_jaeger(trace)))["data"]
    assert shown["traceID"] == query.trace_id
    replica = {"key": "replica", "type": "int64", "value": 2}
    assert shown["processes"] == {"p1": {"serviceName": "shop", "tags": [replica]}}
    spans = {span["operationName"]: span for span in shown["spans"]}
    assert spans["search"] == {
        "traceID": query.trace_id,
        "spanID": search.span_id,
        "operationName": "search",
        "references": [
            {"refType": "CHILD_OF", "traceID": query.trace_id, "spanID": query.span_id},
            {
                "refType": "FOLLOWS_FROM",
                "traceID": search.links[0][0],
                "spanID": search.links[0][1],
            },
        ],
        "startTime": search.start_ns // 1000,
        "duration": (search.end_ns - search.start_ns) // 1000,
        "tags": [
            {"key": "otel.scope.name", "type": "string", "value": "library"},
            {"key": "otel.scope.version", "type": "string", "value": "1.2"},
            {"key": "span.kind", "type": "string", "value": "client"},
        ],
        "logs": [],
        "processID": "p1",
        "warnings": None,
    }
    assert spans["query"]["references"] == []
    (miss,) = spans["query"]["logs"]
    assert miss == {
        "timestamp": query.event_times_ns[0] // 1000,
        "fields": [
            {"key": "event", "type": "string", "value": "cache.miss"},
            {"key": "level", "type": "string", "value": "exact"},
        ],
    }
    failed = {tag["key"]: tag["value"] for tag in spans["fail"]["tags"]}
    assert failed["otel.status_code"] == "ERROR"
    assert failed["error"] is True
    assert failed["otel.status_description"] == fail.status_message
    assert spans["fail"]["logs"][0]["fields"][0]["value"] == "exception"


def test_jaeger_types_the_tags(trace):
    """Every kind of attribute becomes a tag of Jaeger's type, large integers and lists as text."""
    query = replace(trace[-1], attributes=ATTRIBUTES | {"blob": b"\x00\xff", "map": {"a": 1}})
    (shown,) = to_jaeger([query])["data"]
    tags = {tag["key"]: (tag["type"], tag["value"]) for tag in shown["spans"][0]["tags"]}
    assert {key: tags[key] for key in query.attributes} == {
        "text": ("string", "Gödel"),
        "flag": ("bool", True),
        "count": ("int64", 3),
        "large": ("int64", str(2**60)),
        "score": ("float64", 0.5),
        "names": ("string", '["a","b"]'),
        "error": ("string", "none"),
        "blob": ("binary", "AP8="),
        "map": ("string", '{"a":1}'),
    }


def test_jaeger_numbers_the_services_and_names_the_nameless(trace):
    """Each resource is a process of its own, under the name Jaeger gives where there is none."""
    spans = [replace(trace[0], service=None), replace(trace[1], service=""), trace[2]]
    (shown,) = to_jaeger(spans)["data"]
    assert [span["processID"] for span in shown["spans"]] == ["p1", "p2", "p3"]
    names = [process["serviceName"] for process in shown["processes"].values()]
    assert names == ["missing-service-name", "empty-service-name", "shop"]


def test_jaeger_takes_one_trace(trace):
    """Spans of two traces are refused."""
    with pytest.raises(ValueError, match="too many values"):
        to_jaeger([*trace, replace(trace[0], trace_id="1" * 32)])
