"""What the tests of observation share."""

from __future__ import annotations

import pytest
from opentelemetry import trace


@pytest.fixture(autouse=True)
def _untraced(monkeypatch):
    """A process that traces nothing, whatever tests of other rooms have set up."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
