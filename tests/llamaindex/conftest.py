"""What the tests of the LlamaIndex adapters share."""

from __future__ import annotations

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ragaccel import MultiLevelCache, telemetry
from ragaccel.llamaindex import CompressedVectorStore
from tests.llamaindex.embeddings import TEXTS, HashEmbedding


@pytest.fixture
def embed_model():
    """A small real embedding model."""
    return HashEmbedding()


@pytest.fixture
def nodes():
    """Six chunks of three documents, `animals-0` to `animals-2`, without embeddings."""
    return [
        TextNode(
            id_=f"node-{at}",
            text=text,
            metadata={"number": at, "kind": "even" if at % 2 == 0 else "odd"},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"animals-{at // 2}")},
        )
        for at, text in enumerate(TEXTS)
    ]


@pytest.fixture
def embedded(nodes, embed_model):
    """The same chunks with embeddings."""
    return embed_model(nodes)


@pytest.fixture
def store():
    """An empty store in memory."""
    made = CompressedVectorStore.open()
    yield made
    made.close()


@pytest.fixture
def index(store, nodes, embed_model):
    """An index over the six chunks."""
    store.add(embed_model(nodes))
    return VectorStoreIndex.from_vector_store(store, embed_model=embed_model)


@pytest.fixture
def cache():
    """A cache in memory."""
    with MultiLevelCache.open() as made:
        yield made


@pytest.fixture
def mock_llm():
    """LlamaIndex's own stand-in model as the default: some parts ask for one and never use it."""
    before, Settings._llm = Settings._llm, MockLLM()
    yield Settings._llm
    Settings._llm = before


@pytest.fixture(scope="session")
def span_exporter():
    """Every span of this process from now on; the tracer provider is the process's only one."""
    exporter = InMemorySpanExporter()
    telemetry.configure(processors=[SimpleSpanProcessor(exporter)])
    return exporter
