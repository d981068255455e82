"""`CompressedVectorStore` against LlamaIndex's own `SimpleVectorStore`.

Both get the same nodes, deletions and queries and must find the same ids with the same
similarities. Where they are meant to differ, a test of its own says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import IndexNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from ragaccel.errors import FilterError, InvalidRecordError
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
filter_lists = st.one_of(
    *(st.lists(one, max_size=3) for one in (strings, whole_numbers, fractions))
)
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


@settings(deadline=None, max_examples=120)
@given(cases())
def test_filters_let_the_same_rows_through(case):
    """Every operator and condition selects what LlamaIndex's own definition selects."""
    given_nodes, filters = case
    ours, theirs = stores(given_nodes)
    assert_same(pairs(ours.query(ask(filters))), expected(theirs, filters))


@settings(deadline=None, max_examples=60)
@given(cases())
def test_what_simple_store_answers_is_answered_alike(case):
    """Where `SimpleVectorStore` itself gives an answer to the whole query, ours is the same."""
    given_nodes, filters = case
    ours, theirs = stores(given_nodes)
    try:
        right = theirs.query(ask(filters))
    except TypeError:
        return  # a row's value has another type; see the deviations below
    assert_same(pairs(ours.query(ask(filters))), pairs(right))


@settings(deadline=None, max_examples=100)
@given(cases(), st.integers(1, 9), st.data())
def test_ids_filters_and_k_together(case, k, data):
    """A choice of node ids, some unknown, narrows the answer, and k cuts it."""
    given_nodes, filters = case
    ours, theirs = stores(given_nodes)
    known = [node.node_id for node in given_nodes]
    chosen = st.lists(st.sampled_from([*known, "unknown"]), min_size=1, max_size=6)
    wanted = data.draw(st.one_of(st.none(), chosen))
    query = ask(data.draw(st.sampled_from([filters, None])), k=k, node_ids=wanted)
    right = expected(theirs, query.filters, k=k, node_ids=wanted)
    assert_same(pairs(ours.query(query)), right)


@settings(deadline=None, max_examples=50)
@given(cases())
def test_async_queries_find_the_same(case):
    """`aquery` gives what `query` gives."""
    given_nodes, filters = case
    ours, _ = stores(given_nodes)
    assert asyncio.run(ours.aquery(ask(filters))) == ours.query(ask(filters))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_changes_leave_the_same_rows(data):
    """Adding, replacing and every way of deleting leave both stores with the same rows."""
    keys = data.draw(st.lists(st.sampled_from(ODD_KEYS), unique=True, min_size=1, max_size=3))
    ours, theirs = stores(data.draw(nodes(keys, most=4)))
    for _ in range(data.draw(st.integers(1, 5))):
        known = [*theirs.data.embedding_dict]
        ids = data.draw(st.one_of(st.none(), st.lists(st.sampled_from([*known, "unknown"]))))
        filters = data.draw(groups(leaves(keys)))
        action = data.draw(st.sampled_from(["add", "delete", "delete nodes", "clear"]))
        if action == "add":
            added = data.draw(nodes(keys, most=4))
            assert ours.add(added) == theirs.add(added)
        elif action == "delete":
            document = data.draw(st.sampled_from(["one", "two", "unknown"]))
            ours.delete(document)
            theirs.delete(document)
        elif action == "delete nodes":
            doomed = [
                one
                for one in known
                if (ids is None or one in ids) and passes(theirs.data.metadata_dict[one], filters)
            ]
            ours.delete_nodes(ids, filters)
            theirs.delete_nodes(doomed)
        else:
            ours.clear()
            theirs.clear()
        found, right = pairs(ours.query(ask(k=99))), pairs(theirs.query(ask(k=99)))
        assert found == pytest.approx(right, abs=TOLERANCE)
        assert {node.node_id for node in ours.get_nodes()} == right.keys()


VALUES = [
    None, "", "a", "A", "ab", "b", "1", "1.0", "true", "null", "None", "[]", '["a"]', "é", "Straße",
    "STRASSE", "İ", "ß", "日本", "\U0001f600", "\uffff", "%", "_", "a%", "'", '"', "\\",
    0, 1, 2, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), True, False,
    0.0, -0.0, 0.5, 1.0, 0.1 + 0.2, 0.3, 1e300, 5e-324, 1e-7, 2.0**53, 123456789.123456789, 2.0**63,
    [], ["a"], ["A", "b"], ["a", "b"], [""], ["1"], ["é"], [1], [1, 2], [1.0], [0.5], [True],
    ["a", 1], [None], [2**53 + 1], [0.1 + 0.2], [1e300],
]  # fmt: skip


def is_filter_value(value: Any) -> bool:
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        return len(kinds) <= 1 and kinds <= {str, int, float}
    return type(value) in {str, int, float}


def may_ask(operator: FilterOperator, value: Any) -> bool:
    """Tell whether the operator can take the value; the other pairs are deviations below."""
    if operator in LISTS:
        return isinstance(value, list)
    if operator in TEXTS:
        return isinstance(value, str)
    return operator in (Op.EQ, Op.NE, Op.IS_EMPTY) or not isinstance(value, list)


@pytest.fixture(scope="module")
def one_row_per_value():
    """Both stores with a row for each of `VALUES`, named by its position, and one without any."""
    rows = [{"key": value} for value in VALUES]
    turns = [math.radians(at) for at in range(len(rows) + 1)]
    return stores(
        [
            TextNode(id_=str(at), text="text", metadata=row, embedding=[math.cos(t), math.sin(t)])
            for at, (row, t) in enumerate(zip([*rows, {}], turns, strict=True))
        ]
    )


@pytest.mark.parametrize("operator", Op)
def test_every_operator_on_every_kind_of_value(one_row_per_value, operator):
    """All pairs of a stored and a compared value are told apart as LlamaIndex does."""
    ours, _ = one_row_per_value
    wrong = {}
    for value in filter(is_filter_value, VALUES):
        if not may_ask(operator, value):
            continue
        filters = only("key", value, operator)
        query = VectorStoreQuery([1.0, 0.0], similarity_top_k=100, filters=filters)
        found = {int(one) for one in ours.query(query).ids}
        right = {at for at, row in enumerate([*VALUES, None]) if passes({"key": row}, filters)}
        if found != right:
            wrong[repr(value)] = [[*VALUES, None][at] for at in found ^ right]
    assert not wrong


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_are_keys_like_others(key):
    """A key is taken as it is: dots, brackets and quotes have no meaning."""
    wanted = {"odd": {key: "a", "other": "b"}, "list": {key: ["a", "b"]}, "none": {"key": {key: 1}}}
    ours, theirs = stores(
        [
            TextNode(id_=name, text="text", metadata=metadata, embedding=[1.0, at / 10])
            for at, (name, metadata) in enumerate(wanted.items())
        ]
    )
    for operator, value in product(Op, ["a", ["a", "b"], ["a"]]):
        if may_ask(operator, value):
            filters = only(key, value, operator)
            query = VectorStoreQuery([1.0, 0.0], similarity_top_k=9, filters=filters)
            right = [name for name in wanted if passes(theirs.data.metadata_dict[name], filters)]
            assert ours.query(query).ids == right, filters


@pytest.mark.parametrize("key", DOCUMENT_KEYS)
@pytest.mark.parametrize("operator", [Op.EQ, Op.NE, Op.IN, Op.NIN, Op.TEXT_MATCH, Op.IS_EMPTY])
@pytest.mark.parametrize("value", ["one", "None"])
def test_filters_on_the_document(key, operator, value):
    """A node can be filtered by its document, or by "None" if it has none."""
    documents = {"a": "one", "b": "two", "c": None}
    ours, theirs = stores(
        [
            TextNode(
                id_=name,
                text="text",
                metadata={"doc_id": "the user's own"},
                relationships={}
                if document is None
                else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)},
                embedding=[1.0, at / 10, 0.0],
            )
            for at, (name, document) in enumerate(documents.items())
        ]
    )
    value = [value] if operator in LISTS else value
    filters = only(key, value, operator)
    assert_same(pairs(ours.query(ask(filters))), pairs(theirs.query(ask(filters))))


def test_filters_on_the_class():
    """A node can be filtered by the name of its class."""
    given_nodes = [
        row("text", 1),
        IndexNode(id_="index", text="text", index_id="x", embedding=[1.0, 0.5, 0.0]),
    ]
    ours, theirs = stores(given_nodes)
    for operator, value in ((Op.EQ, "IndexNode"), (Op.NE, "IndexNode"), (Op.IN, ["TextNode"])):
        filters = only("_node_type", value, operator)
        assert ours.query(ask(filters)).ids == theirs.query(ask(filters)).ids


# -- meant to differ -------------------------------------------------------------------------------


def row(name: str, value: Any, **more: Any) -> TextNode:
    return TextNode(id_=name, text="text", metadata={"key": value}, embedding=QUERY, **more)


def only(key: str, value: Any, operator: FilterOperator = Op.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


@pytest.mark.parametrize(
    ("operator", "value", "stored", "fits"),
    [
        *[(operator, 1, "text", 1) for operator in (Op.GTE, Op.LTE)],
        (Op.GT, "a", 1, "b"),
        (Op.LT, 1.5, ["list"], 1),
        (Op.CONTAINS, "a", 1, ["a"]),
        (Op.CONTAINS, 1, "text", [1]),
        (Op.ANY, ["a"], 1, ["a"]),
        (Op.ALL, ["a"], True, "abc"),
        (Op.TEXT_MATCH, "a", ["a"], "abc"),
        (Op.TEXT_MATCH_INSENSITIVE, "A", 1, "abc"),
    ],
)
def test_a_row_of_another_type_does_not_match(operator, value, stored, fits):
    """One odd row makes `SimpleVectorStore` raise `TypeError`; here it only does not match."""
    ours, theirs = stores([row("odd", stored), row("fits", fits)])
    filters = only("key", value, operator)
    with pytest.raises(TypeError):
        theirs.query(ask(filters))
    assert ours.query(ask(filters)).ids == ["fits"]


@pytest.mark.parametrize(
    ("operator", "value"),
    [
        *product(LISTS, ["text", 1, 0.5]),
        *product(TEXTS, [1, 0.5, ["a"]]),
        *product([*ORDERS, Op.CONTAINS], [["a"], [1]]),
        *product([one for one in Op if one != Op.IS_EMPTY], [None]),
    ],
)
def test_a_value_that_the_operator_cannot_take_is_refused(operator, value):
    """`SimpleVectorStore` raises, matches nothing or takes a text for a list of letters."""
    ours, _ = stores([row("a", "text")])
    with pytest.raises(FilterError, match=r"'key'|operator"):
        ours.query(ask(only("key", value, operator)))


@settings(deadline=None, max_examples=60)
@given(cases(nested=True))
def test_nested_filters_are_understood(case):
    """`SimpleVectorStore` raises; here the groups mean what they say."""
    given_nodes, filters = case
    ours, theirs = stores(given_nodes)
    assert_same(pairs(ours.query(ask(filters))), expected(theirs, filters))


def test_documents_restrict():
    """`SimpleVectorStore` ignores `doc_ids`; here an empty list lets nothing through."""
    source = NodeRelationship.SOURCE
    ours, theirs = stores(
        [
            row("a", 1, relationships={source: RelatedNodeInfo(node_id="one")}),
            row("b", 2, relationships={source: RelatedNodeInfo(node_id="two")}),
            row("c", 3),
        ]
    )
    assert len(theirs.query(ask(doc_ids=["one"])).ids) == 3
    assert ours.query(ask(doc_ids=["one"])).ids == ["a"]
    assert set(ours.query(ask(doc_ids=["two", "one", "unknown"])).ids) == {"a", "b"}
    assert ours.query(ask(only("key", 2), doc_ids=["two", "one"])).ids == ["b"]
    assert ours.query(ask(node_ids=["a"], doc_ids=["two"])).ids == []
    assert ours.query(ask(doc_ids=[])).ids == []


def test_no_node_ids_restrict_nothing():
    """`SimpleVectorStore` finds nothing then; stores that keep texts are sent an empty list."""
    ours, theirs = stores([row("a", 1)])
    assert theirs.query(ask(node_ids=[])).ids == []
    assert ours.query(ask(node_ids=[])).ids == ["a"]


@pytest.mark.parametrize("operator", [Op.EQ, Op.IN, Op.LT, Op.CONTAINS, Op.TEXT_MATCH, Op.IS_EMPTY])
def test_null_characters_are_compared_or_refused(operator):
    """A text with a null character in it is never taken for the part before that."""
    texts = ("tenant", "tenant\x00other", "\x00", "a\x00b")
    given_nodes = [
        TextNode(id_=str(at), text="text", metadata={"key": text}, embedding=[1.0, at / 10, 0.0])
        for at, text in enumerate(texts)
    ]
    with contextlib.suppress(InvalidRecordError, FilterError):
        ours, theirs = stores(given_nodes)
        for text in (*texts, "", "b"):
            filters = only("key", [text] if operator in LISTS else text, operator)
            assert list(pairs(ours.query(ask(filters)))) == list(expected(theirs, filters))


def test_null_characters_in_ids_are_compared_or_refused():
    """Two ids that differ after a null character are two ids, of nodes as of documents."""
    source = NodeRelationship.SOURCE
    given_nodes = [
        row(f"id{end}", 1, relationships={source: RelatedNodeInfo(node_id=f"doc{end}")})
        for end in ("", "\x00", "\x00more")
    ]
    with contextlib.suppress(InvalidRecordError, FilterError):
        ours, _ = stores(given_nodes)
        for node in given_nodes:
            assert ours.get_nodes([node.node_id]) == [node.model_copy(update={"embedding": None})]
            assert ours.query(ask(node_ids=[node.node_id])).ids == [node.node_id]
            assert ours.query(ask(doc_ids=[node.ref_doc_id])).ids == [node.node_id]
            assert ours.query(ask(only("doc_id", node.ref_doc_id))).ids == [node.node_id]
