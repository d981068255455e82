"""Set up the OpenTelemetry SDK: the only place, beside `files`, that imports it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.metrics import _internal as metrics_internal

from ragaccel.errors import ConfigurationError, MissingExtraError
from ragaccel.telemetry import content

if TYPE_CHECKING:
    from collections.abc import Sequence

    Protocol = Literal["grpc", "http"]
    Signal = Literal["trace", "metric"]

_GRPC_PORT: Final = 4317
_CONTENT_CHARS: Final = 1000
_EXPORTERS: Final = {"trace": "OTLPSpanExporter", "metric": "OTLPMetricExporter"}
_PATHS: Final = {"trace": "v1/traces", "metric": "v1/metrics"}


def configure(
    endpoint: str | None = None,
    *,
    service_name: str = "ragaccel",
    protocol: Protocol | None = None,
    sample: float | None = None,
    metrics_endpoint: str | None = None,
    prometheus_port: int | None = None,
    capture_content: bool | int = False,
    openinference: bool = False,
    processors: Sequence[Any] = (),
) -> None:
    """Send the spans, and if asked to the metrics, of this process to where they are looked at.

    Calling it again adds the new exporters to the providers that are already there.

    Args:
        endpoint: Where an OTLP collector for traces listens, such as `http://localhost:4317` (gRPC)
            or `http://localhost:4318` (HTTP). Jaeger, Phoenix and Tempo are such.
        service_name: The name under which a viewer lists this application.
        protocol: "grpc" or "http"; by default gRPC for port 4317 and HTTP for others.
        sample: Share of requests that are traced, a fraction; by default all, or what the
            environment variables of OpenTelemetry say.
        metrics_endpoint: Where an OTLP collector for metrics listens; Jaeger takes none.
        prometheus_port: Serve the metrics there, on the loopback interface, for Prometheus.
        capture_content: Whether spans show questions, answers and documents; a number says how
            many characters of each, True stands for 1,000.
        openinference: Whether to show content under OpenInference's names too.
        processors: OpenTelemetry span processors to add.

    Raises:
        MissingExtraError: The SDK or the exporter is not installed.
        ConfigurationError: An endpoint has no scheme and host, a number is out of its range, the
            port is taken, or the process has providers that take no exporters.
    """
    if sample is not None and not 0 <= sample <= 1:
        raise ConfigurationError(f"sample must be a fraction from 0 to 1, got {sample!r}.")
    chars = _CONTENT_CHARS if capture_content is True else int(capture_content)
    if chars < 0:
        raise ConfigurationError(f"capture_content must not be negative, got {capture_content!r}.")
    readers: list[Any] = []
    if metrics_endpoint is not None:
        exporter = _exporter("metric", metrics_endpoint, protocol)
        readers.append(_sdk("metrics.export").PeriodicExportingMetricReader(exporter))
    if prometheus_port is not None:
        readers.append(_prometheus(prometheus_port))
    added = list(processors)
    if endpoint is not None:
        exporter = _exporter("trace", endpoint, protocol)
        added.append(_sdk("trace.export").BatchSpanProcessor(exporter))
    if added or not readers:
        add_processors(added, service_name, sample)
    if readers:
        _add_readers(readers, service_name)
    content.capture(chars, openinference=openinference)


def flush() -> None:
    """Send what is still waiting; call it before a short script ends."""
    for provider in (trace._TRACER_PROVIDER, metrics_internal._METER_PROVIDER):
        force_flush = getattr(provider, "force_flush", None)
        if force_flush is not None:
            force_flush()


def add_processors(processors: Sequence[Any], service_name: str, sample: float | None) -> None:
    """Let span processors hear of spans, setting up a tracer provider where there is none."""
    kind = _sdk("trace").TracerProvider
    provider: Any = trace._TRACER_PROVIDER
    if provider is None:
        sampler = None
        if sample is not None:
            sampler = _sdk("trace.sampling").ParentBasedTraceIdRatio(sample)
        provider = kind(resource=_resource(service_name), sampler=sampler)
        trace.set_tracer_provider(provider)
    if not isinstance(provider, kind):
        raise ConfigurationError(
            f"the tracer provider of this process is a {type(provider).__name__}, which takes no "
            "exporters; add the OTLP exporter where that provider is set up."
        )
    for processor in processors:
        provider.add_span_processor(processor)


def _add_readers(readers: Sequence[Any], service_name: str) -> None:
    kind = _sdk("metrics").MeterProvider
    provider: Any = metrics_internal._METER_PROVIDER
    if provider is None:
        metrics.set_meter_provider(kind(readers, resource=_resource(service_name)))
    elif isinstance(provider, kind) and hasattr(provider, "add_metric_reader"):
        for reader in readers:
            provider.add_metric_reader(reader)
    else:
        raise ConfigurationError(
            f"the meter provider of this process is a {type(provider).__name__}, which takes no "
            "more readers; add the exporter where that provider is set up."
        )


def _resource(service_name: str) -> Any:
    resources = _sdk("resources")
    return resources.Resource.create({resources.SERVICE_NAME: service_name})


def _sdk(module: str) -> Any:
    return _optional(f"opentelemetry.sdk.{module}", "opentelemetry-sdk")


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError("otel", package) from error


def _prometheus(port: int) -> Any:
    exporter = _optional("opentelemetry.exporter.prometheus", "opentelemetry-exporter-prometheus")
    from prometheus_client import start_http_server

    try:
        start_http_server(port, addr="127.0.0.1")
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"prometheus_port {port} cannot be listened on ({error}); choose a free one."
        ) from error
    return exporter.PrometheusMetricReader()


def _exporter(signal: Signal, endpoint: str, protocol: Protocol | None) -> Any:
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigurationError(
            f"endpoint must be a URL such as http://localhost:4317, got {endpoint!r}."
        )
    if protocol is None:
        protocol = "grpc" if url.port == _GRPC_PORT else "http"
    module = _optional(
        f"opentelemetry.exporter.otlp.proto.{protocol}.{signal}_exporter",
        f"opentelemetry-exporter-otlp-proto-{protocol}",
    )
    kind = getattr(module, _EXPORTERS[signal])
    if protocol == "grpc":
        return kind(endpoint=endpoint, insecure=url.scheme == "http")
    if not url.path.strip("/"):
        endpoint = f"{endpoint.rstrip('/')}/{_PATHS[signal]}"
    return kind(endpoint=endpoint)
