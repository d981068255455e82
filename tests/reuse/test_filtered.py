"""A filtered answer is repaired by the rows that pass its filter, without a search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from ragaccel import MultiLevelCache, VectorCollection, accelerate
from ragaccel.langchain import CompressedVectorStore
from ragaccel.llamaindex import CompressedVectorStore as NodeStore
from ragaccel.reuse import Answer, answers
from ragaccel.reuse.freshness import dependencies
from ragaccel.vectors import watch
from ragaccel.vectors.filters import And, Documents, Field, Ids, Not, Or, PayloadHead
from tests.langchain.embeddings import HashEmbeddings
from tests.llamaindex.embeddings import HashEmbedding


@pytest.fixture
def cache():
    with MultiLevelCache.open() as cache:
        yield cache


def test_texts_enter_a_filtered_answer_if_they_pass(cache):
    """Of new texts that are near enough the one that passes enters; one that is replaced leaves."""
    store = CompressedVectorStore(HashEmbeddings())
    store.add_texts([f"apple number {row}" for row in range(40)], [{"even": True}] * 40)
    plain = store.as_retriever(search_kwargs={"k": 3, "filter": {"even": True}})
    fast = accelerate(plain, cache=cache)
    fast.invoke("apple")
    store.add_texts(["apple", "apple apple"], [{"even": False}, {"even": True}], ids=["no", "yes"])
    assert fast.invoke("apple") == plain.invoke("apple")
    assert fast.invoke("apple")[0].id == "yes"
    store.add_texts(["apple apple"], [{"even": False}], ids=["yes"])
    assert fast.invoke("apple") == plain.invoke("apple")
    assert cache.stats().misses == 1
    store.close()


@pytest.mark.parametrize("by", ["metadata", "document"])
def test_nodes_enter_a_filtered_answer_if_they_pass(cache, by):
    """The same of nodes, by their metadata or by the document that they are a part of."""
    store = NodeStore()
    index = VectorStoreIndex.from_vector_store(store, embed_model=HashEmbedding())

    def node(name, text, document):
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
        return TextNode(text=text, id_=name, relationships=source, metadata={"of": document})

    index.insert_nodes([node(str(row), f"apple number {row}", "mine") for row in range(40)])
    own = MetadataFilter(key="of", value=["mine"], operator=FilterOperator.IN)
    how = {"filters": MetadataFilters(filters=[own])} if by == "metadata" else {"doc_ids": ["mine"]}
    plain = index.as_retriever(similarity_top_k=3, **how)
    fast = accelerate(plain, cache=cache)
    fast.retrieve("apple")
    index.insert_nodes([node("no", "apple", "yours"), node("yes", "apple apple", "mine")])
    assert fast.retrieve("apple") == plain.retrieve("apple")
    assert fast.retrieve("apple")[0].node.node_id == "yes"
    assert cache.stats().misses == 1
    store.close()


_fields = st.builds(
    Field,
    st.sampled_from(["a", "b", PayloadHead("none")]),
    st.sampled_from(["eq", "ne", "in", "is_missing"]),
    st.sampled_from([1, 2.5, "x", True]),
).map(lambda one: Field(one.key, "in", [one.value]) if one.operator == "in" else one)
_filters = st.recursive(
    _fields | st.builds(Ids, st.just(("1", "2"))) | st.builds(Documents, st.just((None, "d"))),
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(And, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Or, st.lists(inner, max_size=3).map(tuple))
    ),
    max_leaves=6,
)
_values = st.sampled_from([1, 2.5, "x", True, None])


@given(where=_filters, rows=st.lists(st.tuples(_values, _values), min_size=1, max_size=4))
def test_filter_that_was_written_down_passes_the_same_rows(where, rows):
    """An entry's filter comes back as it was, and judges new rows as a search does."""
    kind = answers("rows", list, list, list[str], rebuild=lambda _, hits: [one.id for one in hits])
    with VectorCollection.open(dim=2) as collection:
        collection.upsert(["0"], [[0, 1]])
        with watch(spare=2) as traces:
            found = [one.id for one in collection.search([1, 0], 3, where=where)[0]]
        body = kind.pack(Answer(found, dependencies(traces)))
        collection.upsert(
            [str(row + 1) for row in range(len(rows))],
            [[1, (row + 1) / 10] for row in range(len(rows))],
            metadata=[{"a": a, "b": b} for a, b in rows],
        )
        served, _ = kind.open(body)
        assert served.result == [one.id for one in collection.search([1, 0], 3, where=where)[0]]
