"""What the tests of the LangChain adapter share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ragaccel import MultiLevelCache, telemetry
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.stores import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ragaccel.langchain import CompressedVectorStore


def pytest_configure(config):
    """Know the marker of langchain-tests, whose plugin pytest-benchmark is switched off."""
    config.addinivalue_line("markers", "benchmark: a timing of langchain-tests; not used here")


@pytest.fixture
def embeddings() -> HashEmbeddings:
    """The model that every store here embeds with."""
    return HashEmbeddings()


@pytest.fixture
def store(embeddings) -> Iterator[CompressedVectorStore]:
    """A store in memory with the six texts of `TEXTS` under the ids text-0 to text-5."""
    store = opened(embeddings=embeddings)
    yield store
    store.close()


@pytest.fixture
def disk_store(tmp_path, embeddings) -> Iterator[CompressedVectorStore]:
    """The same on disk."""
    store = opened(tmp_path / "corpus", embeddings=embeddings)
    yield store
    store.close()


@pytest.fixture
def cache() -> Iterator[MultiLevelCache]:
    """A cache in memory."""
    with MultiLevelCache.open() as cache:
        yield cache


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    """Where this process's spans go: there is one tracer provider in a process."""
    exporter = InMemorySpanExporter()
    telemetry.configure(processors=[SimpleSpanProcessor(exporter)])
    return exporter


@pytest.fixture
def spans(exporter) -> Iterator[InMemorySpanExporter]:
    """The exporter, with nothing in it."""
    exporter.clear()
    yield exporter
    exporter.clear()
