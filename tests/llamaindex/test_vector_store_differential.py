"""`CompressedVectorStore` against LlamaIndex's own `SimpleVectorStore`.

Both get the same nodes, deletions and queries and must find the same ids with the same
similarities. Where they are meant to differ, a test of its own says so.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from ragaccel.errors import FilterError
from ragaccel.llamaindex import CompressedVectorStore

Filters = MetadataFilters | None
Op = FilterOperator

QUERY = [1.0, 0.0, 0.0]
TOLERANCE = 1e-5
DOCUMENT_KEYS = ("doc_id", "document_id", "ref_doc_id")
ODD_KEYS = (
    "plain", "two words", "dotted.key", "$.root", "bracket[0]", "a[*]", "'single'", 'dou"ble',
    "back\\slash", "line\nbreak", "tab\t", "\x01control", "größe", "日本語", "😀", "", " ", "null",
    "0", "id", "metadata", "_x",
)  # fmt: skip
LISTS = (Op.IN, Op.NIN, Op.ANY, Op.ALL)
ORDERS = (Op.GT, Op.GTE, Op.LT, Op.LTE)
TEXTS = (Op.TEXT_MATCH, Op.TEXT_MATCH_INSENSITIVE)

# -- what is stored and asked ----------------------------------------------------------------------

strings = st.one_of(
    st.sampled_from(
        ["", "a", "A", "ab", "b", "1", "1.0", "true", "null", "None", "[]", "é", "Straße", "日本"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=4),
)
whole_numbers = st.one_of(st.integers(-2, 2), st.integers(-(2**63), 2**63 - 1))
fractions = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 0.1 + 0.2, 1e300, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)
scalars = st.one_of(strings, whole_numbers, fractions, st.booleans())
values = st.one_of(scalars, st.none(), st.lists(scalars, max_size=3))
filter_lists = st.one_of(*(st.lists(one, max_size=3) for one in (strings, whole_numbers, fractions)))
filter_scalars = st.one_of(strings, whole_numbers, fractions)


@st.composite
def nodes(draw: st.DrawFn, keys: list[str], *, most: int = 8) -> list[TextNode]:
    """Nodes with unlike similarities to `QUERY`, so that there is one right order."""
    angles = draw(st.lists(st.integers(0, 90), unique=True, min_size=1, max_size=most))
    names = draw(st.lists(strings.filter(bool), unique=True, min_size=most, max_size=most))
    found = []
    for name, angle in zip(names, angles, strict=False):
        length = draw(st.sampled_from([0.01, 1.0, 300.0]))
        turn = math.radians(2 * angle)
        node = TextNode(
            id_=name,
            text="text",
            metadata=draw(st.dictionaries(st.sampled_from(keys), values, max_size=3)),
            embedding=[length * math.cos(turn), length * math.sin(turn), 0.0],
        )
        document = draw(st.sampled_from([None, "one", "two", "None's"]))
        if document is not None:
            node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
        found.append(node)
    return found


@st.composite
def leaves(draw: st.DrawFn, keys: list[str]) -> MetadataFilter:
    """A filter that both stores understand."""
    operator = draw(st.sampled_from(list(Op)))
    if operator in LISTS:
        value = draw(filter_lists)
    elif operator in TEXTS:
        value = draw(strings)
    elif operator in (Op.EQ, Op.NE):
        value = draw(st.one_of(filter_scalars, filter_lists))
    elif operator == Op.IS_EMPTY:
        value = draw(st.one_of(st.none(), filter_scalars, filter_lists))
    else:
        value = draw(filter_scalars)
    key = draw(st.sampled_from([*keys, *DOCUMENT_KEYS]))
    return MetadataFilter(key=key, value=value, operator=operator)


def groups(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[MetadataFilters]:
    """Filters under one condition."""
    return st.builds(
        MetadataFilters,
        filters=st.lists(leaf, min_size=1, max_size=3),
        condition=st.sampled_from([*FilterCondition, None]),
    )


@st.composite
def cases(draw: st.DrawFn, *, nested: bool = False) -> tuple[list[TextNode], MetadataFilters]:
    """Nodes, and filters on the keys that they may have."""
    keys = draw(st.lists(st.sampled_from(ODD_KEYS), unique=True, min_size=1, max_size=3))
    leaf: st.SearchStrategy[Any] = leaves(keys)
    filters = groups(st.recursive(leaf, groups, max_leaves=6)) if nested else groups(leaf)
    return draw(nodes(keys)), draw(filters)


# -- what is expected ------------------------------------------------------------------------------


def passes(metadata: dict[str, Any], filters: MetadataFilters | MetadataFilter) -> bool:
    """Tell whether LlamaIndex's definition lets a row through; a `TypeError` does not."""
    if isinstance(filters, MetadataFilter):
        try:
            alone = MetadataFilters(filters=[filters])
            return build_metadata_filter_fn(lambda _: metadata, alone)("")
        except TypeError:
            return False
    found = [passes(metadata, one) for one in filters.filters]
    if filters.condition == FilterCondition.OR:
        return any(found)
    if filters.condition == FilterCondition.NOT:
        return not any(found)
    return all(found)


def stores(given_nodes: list[TextNode]) -> tuple[CompressedVectorStore, SimpleVectorStore]:
    """Both stores with the same nodes."""
    ours, theirs = CompressedVectorStore(), SimpleVectorStore()
    assert ours.add(given_nodes) == theirs.add(given_nodes)
    return ours, theirs


def ask(filters: Filters = None, *, k: int = 20, **more: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=QUERY, similarity_top_k=k, filters=filters, **more)


def expected(theirs: SimpleVectorStore, filters: Filters, **more: Any) -> dict[str, float]:
    """What `SimpleVectorStore` finds among the rows that pass, best first."""
    wanted = more.pop("node_ids", None)
    ids = [
        node_id
        for node_id, metadata in theirs.data.metadata_dict.items()
        if (filters is None or passes(metadata, filters)) and (wanted is None or node_id in wanted)
    ]
    return pairs(theirs.query(ask(node_ids=ids, **more)))


def pairs(result: Any) -> dict[str, float]:
    return dict(zip(result.ids, result.similarities, strict=True))


def assert_same(found: dict[str, float], right: dict[str, float]) -> None:
    assert list(found) == list(right)
    assert list(found.values()) == pytest.approx(list(right.values()), abs=TOLERANCE)


# -- alike -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(cases())
def test_filters_let_the_same_rows_through(case):
    """Every operator and condition selects what LlamaIndex's own definition selects."""
    given_nodes, filters = case
    ours, theirs = stores(given_nodes)
    assert_same(pairs(ours.query(ask(filters))), expected(theirs, filters))


@settings(deadline=None, max_examples=150)
@given(cases())
def test_queries_that_simple_store_answers_are_answered_alike(case):
    """Where `SimpleVectorStore` itself gives an answer to the whole query, ours is the same."""
    given_nodes, filters = case
    ours, theirs = stores(given_nodes)
    try:
        right = theirs.query(ask(filters))
    except TypeError:
        return
    assert_same(pairs(ours.query(ask(filters))), pairs(right))
