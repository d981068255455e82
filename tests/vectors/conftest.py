"""What the tests of the vector collections share."""

from __future__ import annotations

import faiss
import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_training_thread():
    """Train codecs on one thread: OpenMP's threads spin where several jobs share the cores."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)
