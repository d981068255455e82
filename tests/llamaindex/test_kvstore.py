"""`CacheKVStore`: alone, and under LlamaIndex's ingestion cache, docstore and index store."""

from __future__ import annotations

import asyncio
import pickle
import time

import pytest
from llama_index.core.data_structs import IndexDict
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, ObjectType, TextNode, TransformComponent
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.index_store.keyval_index_store import KVIndexStore

from ragaccel import MemoryLevel, MultiLevelCache
from ragaccel.errors import ConfigurationError
from ragaccel.llamaindex import CacheKVStore

VALUE = {
    "text": "one",
    "numbers": [1, -2.5, True, None, 2**63],
    "nested": {"a": [{"b": b"\0\xff"}], "": {}},
}


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path):
    """A cache of each make."""
    with MultiLevelCache.open(None if request.param == "memory" else tmp_path / "kv") as made:
        yield made


@pytest.fixture
def store(cache):
    return CacheKVStore(cache)


# ---- alone ---------------------------------------------------------------------------------------


def test_put_get_delete(store):
    """The sync face; a missing key is None, and deleting tells whether it was there."""
    store.put("a", VALUE)
    store.put("b", {})
    assert store.get("a") == VALUE
    assert [type(one) for one in store.get("a")["numbers"]] == [int, float, bool, type(None), int]
    assert store.get_all() == {"a": VALUE, "b": {}}
    assert [store.delete("a"), store.delete("a")] == [True, False]
    assert store.get("a") is None
    assert store.get_all() == {"b": {}}


async def test_aput_aget_adelete(store):
    """The async face, which sees what the sync one wrote."""
    store.put("b", {})
    await store.aput("a", VALUE)
    assert await store.aget("a") == store.get("a") == VALUE
    assert await store.aget_all() == {"a": VALUE, "b": {}}
    assert [await store.adelete("a"), await store.adelete("a")] == [True, False]
    assert await store.aget("a") is None


async def test_put_all(store):
    """Any batch size; of a key given twice the last counts; nothing is nothing."""
    store.put_all([("a", {"n": 1}), ("b", {"n": 2}), ("a", {"n": 3})], batch_size=2)
    await store.aput_all([("c", {"n": 4})], batch_size=100)
    store.put_all([])
    await store.aput_all([])
    assert store.get_all() == {"a": {"n": 3}, "b": {"n": 2}, "c": {"n": 4}}


async def test_many_at_once(store):
    """Tasks together lose nothing."""
    await asyncio.gather(*(store.aput(str(n), {"n": n}) for n in range(50)))
    assert await asyncio.gather(*(store.aget(str(n)) for n in range(50))) == [
        {"n": n} for n in range(50)
    ]


def test_values_are_fresh(store):
    """Whatever is done to what was put or got, the next reader does not see it."""
    given = {"list": [1]}
    store.put("a", given)
    for mutable in (given, store.get("a"), store.get_all()["a"]):
        mutable["list"].append("HACKED")
    assert store.get("a") == {"list": [1]}


def test_collections_and_namespaces_are_apart(cache):
    """Also those whose names look alike when they are joined."""
    acme = CacheKVStore(cache, namespace="acme")
    stores = [
        (CacheKVStore(cache), "data"),
        (CacheKVStore(cache), "docstore/data"),
        (CacheKVStore(cache), "docstore%2Fdata"),
        (acme, "data"),
        (acme, "a/llamaindex.kv/b"),
        (CacheKVStore(cache, namespace="acme/llamaindex.kv/a"), "b"),
    ]
    cache.set("a", "plain")
    for number, (store, collection) in enumerate(stores):
        assert store.get("a", collection) is None
        store.put("a", {"n": number}, collection)
    for number, (store, collection) in enumerate(stores):
        assert store.get_all(collection) == {"a": {"n": number}}
    assert acme.delete("a")
    cache.invalidate(namespace=acme.namespace_of("a/llamaindex.kv/b"))
    assert [store.get("a", collection) for store, collection in stores] == [
        {"n": 0}, {"n": 1}, {"n": 2}, None, None, {"n": 5},
    ]  # fmt: skip
    assert cache.get("a") == "plain"


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"in": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"tuple": (1, 2)},
        {1: "integer key"},
        {"object": object()},
        {"set": {1}},
        {"huge": 2**70},
        {"lone": "\ud800"},
        deep(100),
        ["no dict"],
        None,
    ],
)
async def test_what_would_not_come_back_equal_is_refused(store, value):
    """A store that changes or loses its values in silence is worse than an error."""
    with pytest.raises(ConfigurationError, match="stored faithfully"):
        store.put("a", value)
    with pytest.raises(ConfigurationError, match="stored faithfully"):
        await store.aput_all([("fine", {}), ("a", value)])
    assert store.get_all() == {}


def test_enumerations_of_strings_come_back_as_their_equals(store):
    """LlamaIndex puts some into its own values."""
    store.put("a", {"__type__": ObjectType.TEXT, ObjectType.IMAGE: [ObjectType.INDEX]})
    assert store.get("a") == {"__type__": "1", "2": ["3"]}


def test_there_is_no_limit_unless_one_is_given(monkeypatch):
    """Neither the cache's own lifetime nor that of empty results holds."""
    cache = MultiLevelCache.open(ttl=10, negative_ttl=10)
    CacheKVStore(cache).put("a", {})
    CacheKVStore(cache, namespace="short", ttl=None).put("a", {"b": 1})
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    assert CacheKVStore(cache).get("a") == {}
    assert CacheKVStore(cache, namespace="short").get("a") is None


def test_a_restart_keeps_the_values(tmp_path):
    """A new cache over the same folder has them."""
    with MultiLevelCache.open(tmp_path) as cache:
        CacheKVStore(cache).put("a", VALUE)
    with MultiLevelCache.open(tmp_path) as cache:
        assert CacheKVStore(cache).get("a") == VALUE
        assert CacheKVStore(cache).get_all() == {"a": VALUE}


def test_two_processes_see_each_others_changes(tmp_path):
    """An overwrite or a deletion by one is seen by the other, whose memory had the old value."""
    with MultiLevelCache.open(tmp_path) as one, MultiLevelCache.open(tmp_path) as two:
        first, second = CacheKVStore(one), CacheKVStore(two)
        first.put("a", {"n": 1})
        assert second.get("a") == {"n": 1}
        first.put("a", {"n": 2})
        assert second.get("a") == {"n": 2}
        assert second.get_all() == {"a": {"n": 2}}
        assert second.delete("a")
        assert first.get("a") is None
        assert first.get_all() == second.get_all() == {}


class Broken(MemoryLevel):
    """A level that fails at everything."""

    name = "broken"

    def get_many(self, keys):
        raise OSError("the machine is on fire")

    put_many = delete_many = scan = get_many


def test_a_broken_level_breaks_nothing():
    """It is passed over."""
    store = CacheKVStore(MultiLevelCache([MemoryLevel(), Broken()]))
    store.put("a", {})
    assert store.get("a") == {}
    assert store.get_all() == {"a": {}}
    assert store.delete("a")


def test_it_can_be_pickled(tmp_path):
    """A pipeline with workers sends its cache to them."""
    with MultiLevelCache.open(tmp_path) as cache:
        store = CacheKVStore(cache, namespace="acme")
        store.put("a", VALUE)
        copied = pickle.loads(pickle.dumps(store))
        assert copied.get("a") == VALUE
        copied._cache.close()


# ---- under LlamaIndex ----------------------------------------------------------------------------


class Count(TransformComponent):
    """Counts its runs; marks the nodes."""

    def __call__(self, nodes, **_):
        _runs.append(len(nodes))
        for node in nodes:
            node.metadata["seen"] = True
        return nodes


_runs: list[int] = []

DOCUMENTS = [
    Document(text=f"Document {n}. It has two sentences.", id_=f"doc-{n}", metadata={"n": n})
    for n in range(3)
]


def pipeline(store):
    return IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), Count()],
        cache=IngestionCache(cache=store),
    )


async def test_the_second_ingestion_hits(store):
    """The transformations run once; nodes come back equal; clear empties the collection."""
    _runs.clear()
    first = pipeline(store).run(documents=DOCUMENTS)
    assert pipeline(store).run(documents=DOCUMENTS) == first
    assert await pipeline(store).arun(documents=DOCUMENTS) == first
    assert _runs == [3]
    made = pipeline(store)
    made.cache.clear()
    assert made.cache.get("anything") is None
    made.run(documents=DOCUMENTS)
    assert _runs == [3, 3]


def test_ingestion_hits_after_a_restart(tmp_path):
    """The cache of another process's run is used."""
    _runs.clear()
    for _ in range(2):
        with MultiLevelCache.open(tmp_path) as cache:
            nodes = pipeline(CacheKVStore(cache)).run(documents=DOCUMENTS)
    assert _runs == [3]
    assert [node.metadata for node in nodes] == [{"n": n, "seen": True} for n in range(3)]


async def test_a_document_store(store):
    """LlamaIndex's docstore over it: documents, hashes, sources, deletion; sync and async."""
    docstore = KVDocumentStore(store, batch_size=10)
    nodes = SentenceSplitter(chunk_size=64, chunk_overlap=0)(DOCUMENTS)
    docstore.add_documents([*DOCUMENTS, *nodes])
    assert docstore.docs == {node.node_id: node for node in [*DOCUMENTS, *nodes]}
    assert docstore.get_document("doc-1") == DOCUMENTS[1]
    assert await docstore.aget_document("doc-1") == DOCUMENTS[1]
    assert docstore.get_ref_doc_info("doc-1").node_ids == [nodes[1].node_id]
    assert set(docstore.get_all_ref_doc_info()) == {"doc-0", "doc-1", "doc-2"}
    assert docstore.get_document_hash("doc-2") == DOCUMENTS[2].hash
    docstore.set_document_hashes({"doc-2": "changed"})
    assert docstore.get_all_document_hashes()["changed"] == "doc-2"
    docstore.delete_ref_doc("doc-1")
    assert not docstore.document_exists(nodes[1].node_id)
    await docstore.adelete_document(nodes[0].node_id)
    with pytest.raises(ValueError, match="not found"):
        docstore.delete_document(nodes[0].node_id)
    await docstore.async_add_documents([TextNode(text="new", id_="new")])
    assert (await docstore.aget_document("new")).text == "new"


async def test_an_index_store(store):
    """LlamaIndex's index store over it."""
    index_store = KVIndexStore(store)
    struct = IndexDict()
    struct.add_node(TextNode(text="x", id_="node-1"))
    index_store.add_index_struct(struct)
    assert index_store.get_index_struct() == struct
    assert await index_store.aget_index_struct(struct.index_id) == struct
    index_store.delete_index_struct(struct.index_id)
    assert index_store.index_structs() == []
