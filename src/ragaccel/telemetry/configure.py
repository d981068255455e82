"""Set up the OpenTelemetry SDK: the only place that imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from opentelemetry import trace

from ragaccel.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

_GRPC_PORT = 4317


def configure(
    endpoint: str | None = None,
    *,
    service_name: str = "ragaccel",
    protocol: Literal["grpc", "http"] | None = None,
    processors: Sequence[Any] = (),
) -> None:
    """Send the spans of this process to an OTLP collector, for example Jaeger.

    Calling it again adds the new exporter to the provider that is already there.

    Args:
        endpoint: Where the collector listens, such as `http://localhost:4317` (gRPC) or
            `http://localhost:4318` (HTTP). None sets up tracing for `processors` only.
        service_name: The name under which a viewer lists this application.
        protocol: "grpc" or "http"; by default gRPC for port 4317 and HTTP for others.
        processors: OpenTelemetry span processors to add.

    Raises:
        MissingExtraError: The SDK or the exporter is not installed.
        ConfigurationError: The endpoint has no scheme and host, or the process has a tracer
            provider that takes no processors.
    """
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("otel", "opentelemetry-sdk") from error
    added = list(processors)
    if endpoint is not None:
        added.append(BatchSpanProcessor(_exporter(endpoint, protocol)))
    provider = trace._TRACER_PROVIDER
    if provider is None:
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service_name}))
        trace.set_tracer_provider(provider)
    if not isinstance(provider, TracerProvider):
        raise ConfigurationError(
            f"the tracer provider of this process is a {type(provider).__name__}, which takes no "
            "exporters; add the OTLP exporter where that provider is set up."
        )
    for processor in added:
        provider.add_span_processor(processor)


def flush() -> None:
    """Send what is still waiting; call it before a short script ends."""
    force_flush = getattr(trace._TRACER_PROVIDER, "force_flush", None)
    if force_flush is not None:
        force_flush()


def _exporter(endpoint: str, protocol: str | None) -> Any:
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigurationError(
            f"endpoint must be a URL such as http://localhost:4317, got {endpoint!r}."
        )
    if protocol is None:
        protocol = "grpc" if url.port == _GRPC_PORT else "http"
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            return OTLPSpanExporter(endpoint=endpoint, insecure=url.scheme == "http")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HTTPSpanExporter,
        )
    except ImportError as error:
        raise MissingExtraError("otel", f"opentelemetry-exporter-otlp-proto-{protocol}") from error
    target = endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    return HTTPSpanExporter(endpoint=target)
