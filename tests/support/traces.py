"""Spans of the tests' own process, and traces as text that a test can compare."""

from __future__ import annotations

import base64
import json
import logging
from collections import defaultdict
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from ragaccel import telemetry
from tests.support.otlp import Receiver, problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pytest
    from opentelemetry.sdk.trace import ReadableSpan

    from tests.support.otlp import ReceivedSpan

OURS = "ragaccel"


class Recorder(Receiver, SpanExporter):
    """Receives the spans of this process as they would come over the wire."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Keep them."""
        self.accept(encode_spans(spans))
        return SpanExportResult.SUCCESS

    def clear(self) -> None:
        """Forget what was received so far."""
        self.resource_spans.clear()

    def size(self) -> int:
        """Return the bytes of the spans received so far, as OTLP sends them to a collector."""
        scoped = [scope for group in self.resource_spans for scope in group.scope_spans]
        for scope in scoped:
            scope.ClearField("scope")
        return sum(scope.ByteSize() for scope in scoped)


@cache
def recorder() -> Recorder:
    """Return the recorder of this process: there is one tracer provider in a process."""
    made = Recorder()
    telemetry.configure(processors=[SimpleSpanProcessor(made)])
    return made


@contextmanager
def uncomplaining(caplog: pytest.LogCaptureFixture) -> Iterator[Recorder]:
    """Record spans; of a lost or ended one neither OpenTelemetry nor a backend may complain."""
    recorded = recorder()
    recorded.clear()
    with caplog.at_level(logging.WARNING):
        yield recorded
    assert [one.getMessage() for one in caplog.records if "opentelemetry" in one.name] == []
    assert problems(recorded.spans()) == []
    recorded.clear()


def from_file(path: Path) -> list[ReceivedSpan]:
    """Return the spans of a file of OTLP JSON lines."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [span for line in lines for span in from_json(line)]


def from_json(text: str | bytes) -> list[ReceivedSpan]:
    """Return the spans of OTLP JSON, as a collector reads it."""
    receiver = Receiver()
    told = json.loads(text, object_hook=_with_base64)
    receiver.accept(ParseDict(told, ExportTraceServiceRequest()))
    return receiver.spans()


def _with_base64(told: dict[str, Any]) -> dict[str, Any]:
    """Protobuf's parser wants ids in base64, where OTLP has hex."""
    for name in ("traceId", "spanId", "parentSpanId"):
        if name in told:
            told[name] = base64.b64encode(bytes.fromhex(told[name])).decode()
    return told


def outlines(spans: Iterable[ReceivedSpan], scope: str | None = None) -> list[str]:
    """Return the traces as text, `query(preprocess retrieve(embed search))`, in order of start.

    Args:
        spans: Of any number of traces.
        scope: Whose spans are told; those between them are passed over. By default everybody's.
    """
    spans = list(spans)
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    told = [span for span in spans if scope in (None, span.scope)]
    children: defaultdict[str | None, list[ReceivedSpan]] = defaultdict(list)
    for span in sorted(told, key=lambda one: one.start_ns):
        outer = by_id.get((span.trace_id, span.parent_id))
        while outer is not None and outer not in told:
            outer = by_id.get((outer.trace_id, outer.parent_id))
        children[None if outer is None else outer.span_id].append(span)

    def outline(span: ReceivedSpan) -> str:
        inside = " ".join(map(outline, children[span.span_id]))
        return f"{span.name}({inside})" if inside else span.name

    return [outline(root) for root in children[None]]
