"""What `CompressedVectorStore` does with input that it cannot use.

Every mistake raises an error of ours that says what to write instead, or LlamaIndex's own, and a
failing call changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timezone

import fsspec
import pytest
from llama_index.core.schema import IndexNode, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from ragaccel.errors import (
    CollectionClosedError,
    CollectionNotFoundError,
    ConfigurationError,
    DimensionMismatchError,
    FilterError,
    InvalidRecordError,
    InvalidVectorError,
    RagaccelError,
)
from ragaccel.llamaindex import CompressedVectorStore
from tests.llamaindex.retrievers import WordRetriever

DIM = 4
GOOD = [1.0, 0.0, 0.0, 0.0]
ODD = MetadataFilters(filters=[MetadataFilter(key="kind", value="odd")])


def node(id_: str = "bad", **fields) -> TextNode:
    return TextNode(**{"id_": id_, "text": "text", "embedding": GOOD, **fields})


def ask(**fields) -> VectorStoreQuery:
    return replace(VectorStoreQuery(query_embedding=GOOD, similarity_top_k=10), **fields)


def everything(store: CompressedVectorStore):
    return store.get_nodes(), store.query(ask()), len(store.collection)


@pytest.fixture(params=["memory", "disk"])
def filled(request, tmp_path):
    """A store with two nodes, which it still has afterwards: they and nothing else."""
    path = tmp_path / "corpus" if request.param == "disk" else None
    store = CompressedVectorStore.open(path)
    store.add(
        [
            node("kept-1", text="one", metadata={"kind": "odd"}),
            node("kept-2", text="two", metadata={"kind": "even"}, embedding=[0.0, 1.0, 0.0, 0.0]),
        ]
    )
    before = everything(store)
    yield store
    assert everything(store) == before
    store.close()
    if path is not None:
        again = CompressedVectorStore.open(path)
        assert everything(again) == before
        again.close()


# -- adding ----------------------------------------------------------------------------------------

BAD_NODES = {
    "too few dimensions": (node(embedding=[1.0, 2.0]), InvalidVectorError),
    "too many dimensions": (node(embedding=[1.0] * 9), InvalidVectorError),
    "no dimensions": (node(embedding=[]), InvalidVectorError),
    "NaN in the embedding": (node(embedding=[1.0, math.nan, 0.0, 0.0]), InvalidVectorError),
    "infinity in the embedding": (node(embedding=[1.0, math.inf, 0.0, 0.0]), InvalidVectorError),
    "more than a float32": (node(embedding=[1.0, 1e39, 0.0, 0.0]), InvalidVectorError),
    "empty text": (node(text=""), InvalidRecordError),
    "half a character": (node(text="a\ud800b"), InvalidRecordError),
    "empty id": (node(id_=""), InvalidRecordError),
    "half a character in the id": (node(id_="a\ud800"), InvalidRecordError),
    "a date": (node(metadata={"a": datetime.now(timezone.utc)}), InvalidRecordError),
    "NaN in metadata": (node(metadata={"a": math.nan}), InvalidRecordError),
    "infinity in metadata": (node(metadata={"a": [1, -math.inf]}), InvalidRecordError),
    "bytes in metadata": (node(metadata={"a": b"bytes"}), InvalidRecordError),
    "a set in metadata": (node(metadata={"a": {"b": {1}}}), InvalidRecordError),
    "an object in metadata": (node(metadata={"a": object()}), InvalidRecordError),
    "a number as a key": (node(metadata={"a": {1: 2}}), InvalidRecordError),
    "half a character in metadata": (node(metadata={"a": "\ud800"}), InvalidRecordError),
    "half a character in a key": (node(metadata={"\ud800": "a"}), InvalidRecordError),
    "no embedding": (node(embedding=None), ValueError),
    "an object behind an index node": (
        IndexNode(id_="bad", text="text", index_id="x", embedding=GOOD, obj=WordRetriever([])),
        ValueError,
    ),
}


@pytest.mark.parametrize("name", BAD_NODES)
def test_one_bad_node_and_none_of_the_call_is_stored(filled, name):
    """The good nodes of the call are not stored either, nor do they replace older ones."""
    bad, error = BAD_NODES[name]
    with pytest.raises(error):
        filled.add([node("new"), node("kept-1", text="changed"), bad, node("newer")])


@pytest.mark.parametrize("name", BAD_NODES)
async def test_one_bad_node_and_none_of_the_async_call_is_stored(filled, name):
    """The same holds for `async_add`."""
    bad, error = BAD_NODES[name]
    with pytest.raises(error):
        await filled.async_add([node("new"), bad])


def test_a_wrong_dimension_is_named(filled):
    """The error tells both dimensions and what to do."""
    with pytest.raises(DimensionMismatchError, match=r"4 dimensions, got 2.*embedding model"):
        filled.add([node(embedding=[1.0, 2.0])])


def test_bad_metadata_is_named(filled):
    """The error tells where the value is, what it is and what can be stored."""
    with pytest.raises(InvalidRecordError, match=r"metadata\['a'\]\[1\] is nan .*store strings"):
        filled.add([node(metadata={"a": [1, math.nan]})])


def test_a_failing_first_call_leaves_the_store_open_for_any_dimension():
    """The dimension of a store is that of the first nodes which it could store."""
    store = CompressedVectorStore.open()
    with pytest.raises(InvalidVectorError):
        store.add([node(embedding=[1.0, math.nan])])
    with pytest.raises(InvalidRecordError):
        store.add([node(embedding=[1.0, 2.0], text="")])
    store.add([node("good")])
    assert store.query(ask()).ids == ["good"]
    store.close()


# -- queries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (ask(query_embedding=None), ConfigurationError, "embed_model"),
        (ask(query_embedding=[1.0]), DimensionMismatchError, "4 dimensions, got 1"),
        (ask(query_embedding=[]), InvalidVectorError, "dim"),
        (ask(query_embedding=[math.nan, 0.0, 0.0, 0.0]), InvalidVectorError, "NaN"),
        (ask(query_embedding=["a", "b", "c", "d"]), InvalidVectorError, "numbers"),
        (ask(similarity_top_k=-1), ConfigurationError, "got -1"),
    ],
    ids=["none", "dimension", "empty", "NaN", "texts", "negative k"],
)
@pytest.mark.parametrize("mode", ["default", "mmr"])
def test_a_bad_query_says_what_is_wrong(filled, query, error, message, mode):
    """Both modes check the embedding and k."""
    with pytest.raises(error, match=message):
        filled.query(replace(query, mode=mode))


def test_a_query_for_no_results_gives_none(filled):
    """A k of zero is no mistake."""
    for mode in ("default", "mmr"):
        assert filled.query(ask(similarity_top_k=0, mode=mode)).ids == []


# -- filters ---------------------------------------------------------------------------------------


def every_use(store: CompressedVectorStore, filters: MetadataFilters) -> list:
    """All the calls that take filters."""
    return [
        lambda: store.query(ask(filters=filters)),
        lambda: store.get_nodes(filters=filters),
        lambda: store.delete_nodes(filters=filters),
    ]


def unchecked(**fields) -> MetadataFilters:
    """A filter that pydantic did not look at, as old or hand-made code passes it on."""
    leaf = MetadataFilter.model_construct(**{"key": "kind", "value": "odd", **fields})
    return MetadataFilters.model_construct(filters=[leaf], condition=FilterCondition.AND)


@pytest.mark.parametrize(
    "filters",
    [
        unchecked(operator="~"),
        unchecked(operator="in", value="odd"),
        unchecked(operator="==", value={"a": 1}),
        unchecked(operator="==", value=None),
        MetadataFilters.model_construct(filters=ODD.filters, condition="xor"),
    ],
    ids=["operator", "text for a list", "dict", "None", "condition"],
)
def test_a_filter_that_cannot_be_understood_is_refused(filled, filters):
    """It is never left out or taken for another one."""
    for use in every_use(filled, filters):
        with pytest.raises(FilterError):
            use()


@pytest.mark.parametrize(
    "leaf",
    [
        MetadataFilter(key="kind", value=2**63),
        MetadataFilter(key="kind", value=-(2**70), operator="<"),
        MetadataFilter(key="kind", value=[2**63], operator="any"),
        MetadataFilter(key="kind", value="\ud800"),
        MetadataFilter(key="kind", value=["\ud800"], operator="in"),
        MetadataFilter(key="\ud800", value="odd"),
    ],
    ids=["big", "very small", "big in a list", "half a character", "in a list", "in the key"],
)
def test_filter_values_that_sql_cannot_hold(filled, leaf):
    """They match no row, or are refused as filters; nothing else is raised."""
    for use in every_use(filled, MetadataFilters(filters=[leaf])):
        try:
            found = use()
        except FilterError:
            continue
        assert not getattr(found, "ids", found)


def test_deleting_without_a_choice_is_refused(filled):
    """`SimpleVectorStore` would delete everything."""
    for nothing in ({}, {"filters": MetadataFilters(filters=[])}, {"node_ids": None}):
        with pytest.raises(ConfigurationError, match=r"clear\(\)"):
            filled.delete_nodes(**nothing)


async def test_deleting_without_a_choice_is_refused_async(filled):
    """The async twin refuses as well."""
    with pytest.raises(ConfigurationError, match=r"clear\(\)"):
        await filled.adelete_nodes()


def test_ids_that_sql_cannot_hold_are_unknown(filled):
    """Half a character is in no id that could be stored."""
    try:
        assert filled.get_nodes(["\ud800"]) == []
        filled.delete_nodes(["\ud800"])
        filled.delete("\ud800")
    except RagaccelError:
        pass


# -- stores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_closed_store_says_so(tmp_path, on_disk):
    """Every call raises, and closing again does not."""
    store = CompressedVectorStore.open(tmp_path if on_disk else None)
    store.add([node("kept")])
    store.close()
    store.close()
    calls = [
        lambda: store.add([node()]),
        lambda: store.query(ask()),
        store.get_nodes,
        lambda: store.get_nodes(["kept"]),
        lambda: store.delete("doc"),
        lambda: store.delete_nodes(["kept"]),
        store.clear,
        lambda: store.persist(str(tmp_path / "note.json")),
    ]
    for call in calls:
        with pytest.raises(CollectionClosedError, match="open it again"):
            call()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_store_closed_before_its_first_use_says_so(tmp_path, on_disk):
    """Closing is for good, also where nothing had been opened yet."""
    store = CompressedVectorStore(tmp_path / "corpus" if on_disk else None)
    store.close()
    for call in (lambda: store.add([node()]), lambda: store.query(ask()), store.get_nodes):
        with pytest.raises(CollectionClosedError):
            call()
    assert not (tmp_path / "corpus").exists()


async def test_a_closed_store_says_so_async(store):
    """The async twins raise the same."""
    store.close()
    for call in (
        store.async_add([node()]),
        store.aquery(ask()),
        store.aget_nodes(),
        store.adelete("doc"),
        store.adelete_nodes(["kept"]),
        store.aclear(),
    ):
        with pytest.raises(CollectionClosedError):
            await call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"metric": "hamming"}, "metric"),
        ({"recall": 1.5}, "recall"),
        ({"compression": "zip"}, "codec"),
    ],
)
def test_bad_options_are_named(options, message):
    """At the opening, or at the first use of a store that was only made."""
    with pytest.raises(ConfigurationError, match=message):
        CompressedVectorStore.open(**options)
    with pytest.raises(ConfigurationError, match=message):
        CompressedVectorStore(**options).get_nodes()


def test_options_that_contradict_the_stored_collection_are_refused(tmp_path):
    """A corpus has one metric and one dimension."""
    CompressedVectorStore.open(tmp_path, dim=4).close()
    with pytest.raises(ConfigurationError, match="metric='cosine'"):
        CompressedVectorStore.open(tmp_path, metric="l2")
    with pytest.raises(DimensionMismatchError, match="4 dimensions"):
        CompressedVectorStore.open(tmp_path, dim=5)


def test_a_read_only_store_reads(tmp_path):
    """It needs a collection, refuses to write, and gives what is there."""
    with pytest.raises(CollectionNotFoundError, match="no collection"):
        CompressedVectorStore.open(tmp_path / "none", read_only=True)
    store = CompressedVectorStore.open(tmp_path / "corpus")
    store.add([node("kept")])
    store.close()
    reader = CompressedVectorStore.open(tmp_path / "corpus", read_only=True)
    for write in (lambda: reader.add([node()]), lambda: reader.delete("a"), reader.clear):
        with pytest.raises(RagaccelError, match="reading only"):
            write()
    assert reader.query(ask()).ids == ["kept"]
    reader.close()


def test_persisting_to_a_remote_file_system_is_refused(store):
    """Only local folders hold a collection."""
    with pytest.raises(ConfigurationError, match="local files only"):
        store.persist("memory://note.json", fs=fsspec.filesystem("memory"))


@pytest.mark.parametrize("method", ["delete_nodes", "get_nodes"])
def test_one_id_is_not_taken_for_its_letters(method):
    """A string where a list of ids belongs is refused, and nothing is deleted."""
    store = CompressedVectorStore()
    store.add([TextNode(text=one, id_=one, embedding=[1.0, 0.0]) for one in ("1", "2", "12")])
    with pytest.raises(FilterError, match=r"write \['12'\]"):
        getattr(store, method)("12")
    assert len(store.get_nodes()) == 3
