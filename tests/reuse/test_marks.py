"""What entered a cached answer by repair invalidates it as what was found by the search does."""

from __future__ import annotations

import msgspec
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

from ragaccel import MultiLevelCache, accelerate
from ragaccel.cache import Kind
from ragaccel.langchain import CompressedVectorStore
from ragaccel.llamaindex import CompressedVectorStore as NodeStore
from tests.langchain.embeddings import HashEmbeddings
from tests.llamaindex.embeddings import HashEmbedding


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path):
    with MultiLevelCache.open(tmp_path / "cache" if request.param == "disk" else None) as cache:
        yield cache


@pytest.fixture
def store():
    store = CompressedVectorStore(HashEmbeddings())
    store.add_texts(
        [f"apple number {row}" for row in range(40)], ids=[f"old-{row}" for row in range(40)]
    )
    yield store
    store.close()


@pytest.mark.parametrize("name", ["new", "a.txt"], ids=["chunk", "source"])
def test_document_that_entered_by_repair_invalidates_the_answer(store, cache, name):
    """An answer that a text entered is not served once that text, or its source, is struck."""
    fast = accelerate(store.as_retriever(search_kwargs={"k": 3}), cache=cache)
    fast.invoke("apple")
    store.add_texts(["apple"], [{"source": "a.txt"}], ids=["new"])
    for _ in range(2):
        assert fast.invoke("apple")[0].id == "new"
    assert cache.stats().misses == 1
    cache.invalidate(documents=[name])
    fast.invoke("apple")
    assert cache.stats().invalidated == 1


def test_node_that_entered_by_repair_invalidates_the_answer(cache):
    """The same of LlamaIndex's nodes, by the document that a node is a part of."""
    store = NodeStore()
    index = VectorStoreIndex.from_vector_store(store, embed_model=HashEmbedding())
    index.insert_nodes([TextNode(text=f"apple number {row}", id_=str(row)) for row in range(40)])
    fast = accelerate(index.as_retriever(similarity_top_k=3), cache=cache)
    fast.retrieve("apple")
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="document")}
    index.insert_nodes([TextNode(text="apple", id_="new", relationships=source)])
    for _ in range(2):
        assert fast.retrieve("apple")[0].node.node_id == "new"
    assert cache.stats().misses == 1
    cache.invalidate(documents=["document"])
    fast.retrieve("apple")
    assert cache.stats().invalidated == 1
    store.close()


def test_document_that_left_by_repair_invalidates_nothing(store, cache):
    """An answer stands when a text is struck that is no longer in it."""
    fast = accelerate(store.as_retriever(search_kwargs={"k": 3}), cache=cache)
    gone = fast.invoke("apple")[0].id
    store.delete([gone])
    fast.invoke("apple")
    cache.invalidate(documents=[gone])
    assert gone not in [one.id for one in fast.invoke("apple")]
    assert cache.stats().misses == 1


def test_document_is_struck_before_it_enters(store, cache):
    """Writing a text and invalidating it costs an answer that it enters no search."""
    fast = accelerate(store.as_retriever(search_kwargs={"k": 3}), cache=cache)
    fast.invoke("apple")
    store.add_texts(["apple"], ids=["new"])
    cache.invalidate(documents=["new"])
    for _ in range(3):
        assert fast.invoke("apple")[0].id == "new"
    assert cache.stats().misses == 1


def _pack(documents):
    return msgspec.msgpack.encode(documents)


@pytest.mark.parametrize("struck", ["old", "new", "namespace", "key"])
def test_strike_while_an_answer_is_repaired_is_not_lost(cache, struck):
    """What is struck between the look-up and the writing back holds for what was written back."""

    def strike():
        if struck == "key":
            cache.delete("question", kind=repaired)
        elif struck == "namespace":
            cache.invalidate(namespace="default")
        else:
            cache.invalidate(documents=[struck])

    def repair(body):
        strike()
        return ["new"], _pack(["new"])

    plain = Kind("answer", _pack, lambda body: (msgspec.msgpack.decode(body), None))
    repaired = Kind("answer", _pack, repair, documents=lambda documents: documents)
    cache.set("question", ["old"], kind=repaired)
    assert cache.get("question", kind=repaired) == ["new"]
    found = cache.get("question", kind=plain)
    assert (found == ["new"]) is (struck == "old")


def test_answer_with_more_documents_than_an_entry_can_name_is_not_written_back(cache):
    """It is repaired at every look-up instead."""
    many = [str(number) for number in range(70_000)]
    kind = Kind(
        "answer", _pack, lambda body: (many, _pack(many)), documents=lambda documents: documents
    )
    cache.set("question", ["old"], kind=kind)
    for _ in range(2):
        assert cache.get("question", kind=kind) == many
    assert cache.stats().misses == 0
