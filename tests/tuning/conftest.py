"""What all tests of this room share."""

from __future__ import annotations

import faiss
import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal


@pytest.fixture(autouse=True)
def unobserved(monkeypatch):
    """Nobody but what a test sets up looks at stages; providers stay for a whole process."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(_internal, "_METER_PROVIDER", None)


@pytest.fixture(autouse=True)
def one_thread():
    """Search on one thread: on a busy machine, threads of a search wait for each other for long."""
    was = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(was)
