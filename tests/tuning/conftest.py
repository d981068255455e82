"""What all tests of this room share."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal


@pytest.fixture(autouse=True)
def unobserved(monkeypatch):
    """Nobody but what a test sets up looks at stages; providers stay for a whole process."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(_internal, "_METER_PROVIDER", None)
