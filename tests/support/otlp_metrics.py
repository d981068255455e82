"""A real OTLP metric receiver for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    add_MetricsServiceServicer_to_server,
)

from tests.support.otlp import GrpcReceiver, HttpReceiver, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True)
class Point:
    """One data point as it came over the wire.

    Attributes:
        name: Of its metric.
        unit: Of its metric.
        kind: "sum", "gauge" or "histogram".
        labels: What tells its series apart.
        value: Its number; of a histogram the sum.
        count: How many measurements a histogram has.
        exemplars: Of a histogram: value, and ids of trace and span in lower-case hex.
    """

    name: str
    unit: str
    kind: str
    labels: dict[str, str]
    value: float
    count: int
    exemplars: list[tuple[float, str, str]]


class MetricReceiver(Receiver):
    """Collects the metrics that exporters send to `endpoint` while the context is open."""

    request = ExportMetricsServiceRequest
    path = "/v1/metrics"
    add_to_server = add_MetricsServiceServicer_to_server

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []

    def points(self, name: str) -> list[Point]:
        """Return the points of a metric that were received so far, in the order of arrival."""
        return [one for request in self.requests for one in _points(request) if one.name == name]

    def accept(self, request: Any) -> Any:
        """Keep the metrics of one export."""
        self.requests.append(request)
        return ExportMetricsServiceResponse()


class GrpcMetricReceiver(MetricReceiver, GrpcReceiver):
    """Receives OTLP over gRPC."""


class HttpMetricReceiver(MetricReceiver, HttpReceiver):
    """Receives OTLP over HTTP at `/v1/metrics`."""


def _points(request: ExportMetricsServiceRequest) -> Iterator[Point]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data") or ""
                for point in getattr(metric, kind).data_points:
                    labels = _labels(point.attributes)
                    if kind == "histogram":
                        value, count = point.sum, point.count
                    else:
                        value, count = getattr(point, point.WhichOneof("value")), 1
                    exemplars = [
                        (one.as_double, one.trace_id.hex(), one.span_id.hex())
                        for one in point.exemplars
                    ]
                    yield Point(metric.name, metric.unit, kind, labels, value, count, exemplars)


def _labels(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {one.key: one.value.string_value for one in attributes}
