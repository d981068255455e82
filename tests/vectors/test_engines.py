"""Our engine keeps the contract of engines, with every codec and structure."""

from __future__ import annotations

import pytest

from ragaccel import CompressionSpec
from ragaccel.testing import EngineContract
from ragaccel.vectors.engines import faiss_engine

FLAT = ("float16", "bfloat16", "int8", "int4", "pq", "pq2", "pq6", "rabitq1", "rabitq4", "rabitq8")
SPECS = [
    *(CompressionSpec(codec) for codec in FLAT),
    CompressionSpec("pq", "ivf"),
    CompressionSpec("rabitq2", "ivf"),
    CompressionSpec("float32", "ivf"),
    CompressionSpec("int8", "hnsw"),
    CompressionSpec("float16", "hnsw"),
]


class TestFaiss(EngineContract):
    """The engine on faiss."""

    @pytest.fixture
    def engine(self):
        return faiss_engine

    @pytest.fixture(params=SPECS, ids=lambda spec: f"{spec.codec}-{spec.structure}")
    def spec(self, request):
        return request.param
