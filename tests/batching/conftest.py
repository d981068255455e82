"""What the tests of batching share."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ragaccel import telemetry


@pytest.fixture(scope="session")
def span_exporter():
    """Every span of this process from now on; the tracer provider is the process's only one."""
    exporter = InMemorySpanExporter()
    telemetry.configure(processors=[SimpleSpanProcessor(exporter)])
    return exporter
