"""A real OTLP metric receiver for tests."""

from __future__ import annotations

import gzip
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from typing_extensions import Self


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


class MetricReceiver:
    """Collects what exporters send to `endpoint` while the context is open."""

    endpoint: str

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []

    def points(self, name: str) -> list[Point]:
        """Return the points of a metric that were received so far, in the order of arrival."""
        return [one for request in self.requests for one in _points(request) if one.name == name]

    def accept(self, request: ExportMetricsServiceRequest) -> ExportMetricsServiceResponse:
        """Keep the metrics of one export."""
        self.requests.append(request)
        return ExportMetricsServiceResponse()

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


class GrpcMetricReceiver(MetricReceiver, MetricsServiceServicer):
    """Receives OTLP over gRPC."""

    def start(self) -> int:
        self._pool = ThreadPoolExecutor(max_workers=4)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        add_MetricsServiceServicer_to_server(self, self._server)
        port: int = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return port

    def stop(self) -> None:
        self._server.stop(grace=None).wait()
        self._pool.shutdown()

    def Export(  # noqa: N802 - the service's own name
        self, request: ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> ExportMetricsServiceResponse:
        """Answer the one method of the metrics service."""
        return self.accept(request)


class HttpMetricReceiver(MetricReceiver):
    """Receives OTLP over HTTP at `/v1/metrics`."""

    def start(self) -> int:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_HttpExport, self.accept))
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

    def __init__(
        self,
        accept: Callable[[ExportMetricsServiceRequest], ExportMetricsServiceResponse],
        *connection: Any,
    ) -> None:
        self._accept = accept
        super().__init__(*connection)

    def do_POST(self) -> None:
        """Keep what comes to the right path, and refuse the rest."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = self._accept(ExportMetricsServiceRequest.FromString(body)).SerializeToString()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *line: object) -> None:
        """Keep the tests' output free of request lines."""


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
