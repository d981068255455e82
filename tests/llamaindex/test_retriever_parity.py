"""An accelerated LlamaIndex retriever is the plain one, plus the cache.

Most tests run for a retriever over our store, one over `SimpleVectorStore`, and two of a user's
own, sync and async; they compare the plain retriever with a miss and with a hit.
"""

from __future__ import annotations

import asyncio
import copy
import enum
import functools
import math
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import (
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)

from ragaccel import DiskLevel, MemoryLevel, MultiLevelCache, accelerate, unwrap
from ragaccel.errors import ConfigurationError, UnsupportedComponentError
from ragaccel.llamaindex import CompressedVectorStore
from tests.llamaindex.embeddings import HashEmbedding
from tests.llamaindex.recorders import CallbackRecorder, recording
from tests.llamaindex.retrievers import (
    AsyncWordRetriever,
    BrokenRetriever,
    SlottedRetriever,
    WordRetriever,
)

if TYPE_CHECKING:
    from llama_index.core.base.base_retriever import BaseRetriever

QUERY = "which animals hunt mice in the forest at night"
OTHER_QUERY = "do horses run across the plain"
KINDS = ("our store", "simple store", "own", "own async")


@dataclass
class Subject:
    """A plain retriever and what `accelerate` needs to know about it."""

    plain: BaseRetriever
    options: dict[str, Any] = field(default_factory=dict)

    def accelerated(self, cache: MultiLevelCache | None, **more: Any) -> BaseRetriever:
        return accelerate(self.plain, cache=cache, **self.options, **more)


@pytest.fixture
def callbacks():
    """What the legacy callbacks of the subject tell."""
    return CallbackRecorder()


@pytest.fixture(params=KINDS)
def subject(request, tmp_path, nodes, embed_model):
    """Each kind of retriever over the same six chunks."""
    if request.param == "our store":
        store = CompressedVectorStore.open(tmp_path / "corpus")
        store.add(embed_model(nodes))
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
        yield Subject(index.as_retriever(similarity_top_k=3))
        store.close()
    elif request.param == "simple store":
        yield Subject(VectorStoreIndex(nodes, embed_model=embed_model).as_retriever())
    else:
        cls = WordRetriever if request.param == "own" else AsyncWordRetriever
        yield Subject(cls(nodes), {"identity": "six chunks"})


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """`retrieve` or `aretrieve`, to be called the same way."""

    def call(retriever: BaseRetriever, query: Any) -> list[NodeWithScore]:
        if request.param == "sync":
            return retriever.retrieve(query)
        return asyncio.run(retriever.aretrieve(query))

    return call


def is_hit(retriever: BaseRetriever, query: Any, call=None) -> bool:
    """Ask, and tell whether the retriever's own retrieval was left out."""
    with recording() as told:
        (call or (lambda one, asked: one.retrieve(asked)))(retriever, query)
    ((_, below),) = told.tree
    return not below


def ids(found: list[NodeWithScore]) -> list[str]:
    return [one.node_id for one in found]


# -- plain, miss, hit ------------------------------------------------------------------------------


def test_results_are_equal(subject, cache, ask):
    """Nodes, scores and their order are the same plain, on a miss and on a hit."""
    accelerated = subject.accelerated(cache)
    for query in (QUERY, OTHER_QUERY):
        right = ask(subject.plain, query)
        assert right
        for _ in range(3):
            found = ask(accelerated, query)
            assert found == right
            assert [type(one.node) for one in found] == [type(one.node) for one in right]
    stats = cache.stats()
    assert (stats.misses, stats.hits, stats.bypasses) == (2, {"memory": 4}, {})


def test_every_hit_is_fresh(subject, cache, ask):
    """Whoever changes what a hit gave changes nothing for the next one."""
    accelerated = subject.accelerated(cache)
    right = [one.model_copy(deep=True) for one in ask(accelerated, QUERY)]
    for _ in range(2):
        found = ask(accelerated, QUERY)
        assert found == right
        found[0].score = -1.0
        found[0].node.text = "changed"
        found[0].node.metadata["number"] = "changed"
        found[0].node.relationships.clear()
        found.pop()


def test_changing_what_a_miss_gave_does_not_reach_the_cache(subject, cache, ask):
    """The entry is made before the caller gets the nodes."""
    right = [one.model_copy(deep=True) for one in ask(subject.plain, QUERY)]
    accelerated = subject.accelerated(cache)
    missed = ask(accelerated, QUERY)
    missed[0].score = -1.0
    missed[0].node = TextNode(text="changed")
    missed.pop()
    assert ask(accelerated, QUERY) == right


def test_dispatcher_events(subject, cache, ask):
    """A miss tells what the plain retriever tells; a hit tells start and end of the retrieval."""
    accelerated = subject.accelerated(cache)
    with recording() as plain:
        right = ask(subject.plain, QUERY)
    with recording() as miss:
        ask(accelerated, QUERY)
    with recording() as hit:
        ask(accelerated, QUERY)
    assert miss.event_names == plain.event_names
    assert hit.event_names == ["RetrievalStartEvent", "RetrievalEndEvent"]
    for told in (plain, miss, hit):
        start, *_, end = told.events
        assert (start.str_or_query_bundle, end.str_or_query_bundle) == (QUERY, QUERY)
        assert end.nodes == right
        assert start.span_id == end.span_id


def test_dispatcher_spans(subject, cache, ask):
    """A miss opens the spans of the plain retriever; a hit opens `retrieve` alone."""
    accelerated = subject.accelerated(cache)
    with recording() as plain:
        ask(subject.plain, QUERY)
    with recording() as miss:
        ask(accelerated, QUERY)
    with recording() as hit:
        ask(accelerated, QUERY)
    assert miss.tree == plain.tree
    ((name, below),) = plain.tree
    assert below
    assert hit.tree == ((name, ()),)
    assert name.startswith(type(subject.plain).__name__)
    assert not miss.open + miss.dropped + hit.open + hit.dropped


def test_legacy_callbacks(subject, cache, ask, callbacks):
    """The callback manager hears of a retrieval with its nodes, on a hit as well."""
    manager = CallbackManager([callbacks])
    subject.plain.callback_manager = manager
    if isinstance(subject.plain, VectorIndexRetriever):
        subject.plain._embed_model = HashEmbedding(callback_manager=manager)
    accelerated = subject.accelerated(cache)
    told = []
    for retriever in (subject.plain, accelerated, accelerated):
        right = ask(retriever, QUERY)
        told.append([*callbacks.told])
        callbacks.told.clear()
    plain, miss, hit = told
    assert miss == plain
    assert ("start trace", "query") in hit
    assert [one for one in hit if "trace" not in one[0]] == [
        ("start", CBEventType.RETRIEVE, QUERY),
        ("end", CBEventType.RETRIEVE, right),
    ]


def test_the_class_is_the_plain_one(subject, cache):
    """Every `isinstance` test, the name and the attributes are those of the original."""
    accelerated = subject.accelerated(cache)
    plain_class, its_class = type(subject.plain), type(accelerated)
    assert isinstance(accelerated, plain_class)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(its_class, attribute) == getattr(plain_class, attribute)
    attributes = {key: value for key, value in vars(accelerated).items() if "ragaccel" not in key}
    assert attributes == vars(subject.plain)
    assert accelerated.get_prompts() == subject.plain.get_prompts()


def test_the_original_is_not_changed(subject, cache, ask):
    """It stays without a cache, and what is set on the wrapped one stays there."""
    before = dict(vars(subject.plain))
    accelerated = subject.accelerated(cache)
    ask(accelerated, QUERY)
    accelerated._verbose = None
    assert {**vars(subject.plain)} == before
    assert not is_hit(subject.plain, QUERY, ask)


# -- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_are_accelerated(subject, cache, ask, duplicate):
    """A copy has the class, the cache and the answers of what it was copied from."""
    accelerated = subject.accelerated(cache)
    right = ask(accelerated, QUERY)
    twin = duplicate(accelerated)
    assert type(twin) is type(accelerated)
    assert is_hit(twin, QUERY, ask)
    assert ask(twin, QUERY) == right
    assert type(unwrap(twin)) is type(subject.plain)


def test_pickling_keeps_the_acceleration(subject, tmp_path, ask):
    """What comes out of a pickle is accelerated, and shares what lies on disk."""
    with MultiLevelCache([MemoryLevel(), DiskLevel(tmp_path / "cache.sqlite")]) as cache:
        accelerated = subject.accelerated(cache)
        right = ask(accelerated, QUERY)
        twin = pickle.loads(pickle.dumps(accelerated))
        assert type(twin) is type(accelerated)
        assert unwrap(twin) is not twin
        assert is_hit(twin, QUERY, ask)
        assert ask(twin, QUERY) == right
        assert ask(twin, OTHER_QUERY) == ask(subject.plain, OTHER_QUERY)
        assert is_hit(twin, OTHER_QUERY, ask)


def test_a_copy_does_not_cost_the_original_its_hits(tmp_path, nodes, embed_model, cache):
    """Once a pickled copy over the same folder is gone, the original still hits."""
    store = CompressedVectorStore.open(tmp_path)
    store.add(embed_model(nodes))
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    accelerated = accelerate(index.as_retriever(), cache=cache)
    accelerated.retrieve(QUERY)
    reader = CompressedVectorStore.open(tmp_path, read_only=True)
    assert reader.get_nodes()
    reader.close()
    assert is_hit(accelerated, QUERY)
    store.close()


def test_a_retriever_over_a_store_in_memory_can_be_copied(index, cache):
    """A deep copy shares the store, as it shares the cache."""
    accelerated = accelerate(index.as_retriever(), cache=cache)
    right = accelerated.retrieve(QUERY)
    twin = copy.deepcopy(accelerated)
    assert is_hit(twin, QUERY)
    assert twin.retrieve(QUERY) == right


# -- query bundles ---------------------------------------------------------------------------------


def test_a_sync_retrieval_leaves_the_embedding_in_the_bundle(subject, cache):
    """`VectorIndexRetriever` does so, and parts that come after it rely on that."""
    accelerated = subject.accelerated(cache)
    plain, miss, hit = (QueryBundle(QUERY) for _ in range(3))
    subject.plain.retrieve(plain)
    accelerated.retrieve(miss)
    accelerated.retrieve(hit)
    assert miss == plain
    assert hit == plain
    assert cache.stats().hits == {"memory": 1}


def test_an_async_retrieval_leaves_the_bundle_alone(subject, cache):
    """It does so on a hit as well, also where the entry was made by a sync call."""
    accelerated = subject.accelerated(cache)
    accelerated.retrieve(QUERY)
    bundle = QueryBundle(QUERY)
    asyncio.run(accelerated.aretrieve(bundle))
    assert bundle == QueryBundle(QUERY)
    assert cache.stats().hits == {"memory": 1}


def test_async_calls_share_the_entries_of_sync_calls(subject, cache):
    """What one face has computed the other serves, with the same nodes and scores."""
    accelerated = subject.accelerated(cache)
    right = accelerated.retrieve(QUERY)
    assert asyncio.run(accelerated.aretrieve(QUERY)) == right
    assert cache.stats().misses == 1


def test_a_sync_call_after_an_async_one_still_gets_its_embedding(subject, cache):
    """An entry without the embedding is computed anew, once, and then serves both."""
    accelerated = subject.accelerated(cache)
    right = asyncio.run(accelerated.aretrieve(QUERY))
    plain = QueryBundle(QUERY)
    subject.plain.retrieve(plain)
    for _ in range(2):
        bundle = QueryBundle(QUERY)
        assert accelerated.retrieve(bundle) == right
        assert bundle == plain
    before = cache.stats().misses
    assert asyncio.run(accelerated.aretrieve(QUERY)) == right
    assert cache.stats().misses == before


BUNDLES = {
    "text": QueryBundle(QUERY),
    "another text": QueryBundle(OTHER_QUERY),
    "embedding texts": QueryBundle(QUERY, custom_embedding_strs=["horses run"]),
    "two embedding texts": QueryBundle(QUERY, custom_embedding_strs=["horses", "run"]),
    "joined embedding texts": QueryBundle(QUERY, custom_embedding_strs=["horses run", ""]),
    "embedding": QueryBundle(QUERY, embedding=HashEmbedding().get_query_embedding("fish swim")),
    "another embedding": QueryBundle(QUERY, embedding=[1.0, *[0.0] * 63]),
    "image": QueryBundle(QUERY, image_path="cat.png"),
    "another image": QueryBundle(QUERY, image_path="dog.png"),
}


def test_every_field_of_the_bundle_is_in_the_key(subject, cache, ask):
    """Bundles that differ anywhere never share an answer."""
    accelerated = subject.accelerated(cache)
    for _ in range(2):
        for bundle in BUNDLES.values():
            assert ask(accelerated, copy.deepcopy(bundle)) == ask(
                subject.plain, copy.deepcopy(bundle)
            )
    stats = cache.stats()
    assert (stats.misses, stats.hits) == (len(BUNDLES), {"memory": len(BUNDLES)})


def test_a_text_and_a_bundle_of_it_are_one_query(subject, cache, ask):
    """A plain string is the bundle of that string."""
    accelerated = subject.accelerated(cache)
    ask(accelerated, QUERY)
    assert is_hit(accelerated, QueryBundle(QUERY), ask)


# -- what decides the answer is in the key ---------------------------------------------------------

ODD = MetadataFilters(filters=[MetadataFilter(key="kind", value="odd")])
EVEN = MetadataFilters(filters=[MetadataFilter(key="kind", value="even")])


def test_settings_changed_on_the_wrapped_retriever_take_effect(index, cache, ask):
    """Each setting has entries of its own, and going back finds the old ones."""
    plain = index.as_retriever(similarity_top_k=3)
    accelerated = accelerate(plain, cache=cache)
    changes = {
        "_similarity_top_k": 2,
        "_filters": ODD,
        "_doc_ids": ["animals-0"],
        "_node_ids": ["node-3", "node-4"],
        "_vector_store_query_mode": VectorStoreQueryMode.MMR,
        "_embed_model": HashEmbedding(seed=1),
    }
    right = ask(accelerated, QUERY)
    for name, value in changes.items():
        before = getattr(accelerated, name)
        setattr(accelerated, name, value)
        assert not is_hit(accelerated, QUERY, ask), name
        assert is_hit(accelerated, QUERY, ask), name
        setattr(plain, name, value)
        assert ask(accelerated, QUERY) == ask(plain, QUERY), name
        setattr(plain, name, before)
        setattr(accelerated, name, before)
    assert is_hit(accelerated, QUERY, ask)
    assert ask(accelerated, QUERY) == right
    accelerated.similarity_top_k = 1
    assert ask(accelerated, QUERY) == right[:1]


def test_options_of_the_query_mode_are_in_the_key(index, cache, ask):
    """`vector_store_kwargs` decide what MMR finds."""
    for threshold in (0.1, 0.9):
        plain = index.as_retriever(
            vector_store_query_mode="mmr", vector_store_kwargs={"mmr_threshold": threshold}
        )
        assert ask(accelerate(plain, cache=cache), QUERY) == ask(plain, QUERY)
    assert cache.stats().misses == 2


def test_filters_that_differ_never_share_an_entry(index, cache, ask):
    """Value, operator, condition and nesting of filters are all in the key."""

    def one(**changes):
        return MetadataFilter(**{"key": "number", "value": 1, "operator": "==", **changes})

    variants = [
        None, ODD, EVEN,
        MetadataFilters(filters=[one()]),
        MetadataFilters(filters=[one(operator="!=")]),
        MetadataFilters(filters=[one(operator=">=")]),
        MetadataFilters(filters=[one(value=1.0)]),
        MetadataFilters(filters=[one(value="1")]),
        MetadataFilters(filters=[one(value=[1], operator="in")]),
        MetadataFilters(filters=[one(), one(value=2)]),
        MetadataFilters(filters=[one(), one(value=2)], condition="or"),
        MetadataFilters(filters=[one(), one(value=2)], condition="not"),
        MetadataFilters(filters=[one(), MetadataFilters(filters=[one(value=2)])]),
    ]  # fmt: skip
    for _ in range(2):
        for filters in variants:
            plain = index.as_retriever(similarity_top_k=6, filters=filters)
            found = ask(accelerate(plain, cache=cache), QUERY)
            assert found == ask(plain, QUERY)
    assert cache.stats().misses == len(variants)


def test_changing_a_filter_in_place_is_seen(index, cache, ask):
    """The filters are read at every call."""
    filters = MetadataFilters(filters=[MetadataFilter(key="kind", value="odd")])
    accelerated = accelerate(index.as_retriever(filters=filters), cache=cache)
    ask(accelerated, QUERY)
    filters.filters[0].value = "even"
    assert {one.metadata["kind"] for one in ask(accelerated, QUERY)} == {"even"}


def test_two_indexes_never_share_an_entry(nodes, embed_model, cache, ask):
    """Neither over our store nor over another one."""
    parts = nodes[:3], nodes[3:]
    indexes = [index_over(CompressedVectorStore(), part, embed_model) for part in parts]
    indexes += [VectorStoreIndex(part, embed_model=embed_model) for part in parts]
    for plain in [index.as_retriever() for index in indexes]:
        assert ask(accelerate(plain, cache=cache), QUERY) == ask(plain, QUERY)
    assert cache.stats().misses == 4


def test_an_identity_adds_to_what_can_be_seen(nodes, embed_model, cache, ask):
    """Two of our stores, or two models, do not share entries for being given one identity."""
    fast = functools.partial(accelerate, cache=cache, identity="my app, version 1")
    parts = nodes[:3], nodes[3:]
    indexes = [index_over(CompressedVectorStore(), part, embed_model) for part in parts]
    for model in (embed_model, HashEmbedding(seed=1)):
        for plain in [index.as_retriever(embed_model=model) for index in indexes]:
            assert ask(fast(plain), QUERY) == ask(plain, QUERY)


def index_over(store, nodes, embed_model) -> VectorStoreIndex:
    """An index over a store filled with the nodes."""
    store.add(embed_model(nodes))
    return VectorStoreIndex.from_vector_store(store, embed_model=embed_model)


class TokenEmbedding(HashEmbedding):
    """An embedding model with an option whose name looks like a secret's."""

    max_tokens: int = 100

    def _get_text_embedding(self, text: str) -> list[float]:
        return super()._get_text_embedding(" ".join(text.split()[: self.max_tokens]))


@pytest.mark.parametrize(
    "models",
    [
        (HashEmbedding(), HashEmbedding(seed=1)),
        (HashEmbedding(), HashEmbedding(model_name="hash, version 2", seed=1)),
        (HashEmbedding(), TokenEmbedding(max_tokens=3)),
        (TokenEmbedding(), TokenEmbedding(max_tokens=3)),
    ],
    ids=["another option", "another model", "another class", "another number of tokens"],
)
def test_two_embedding_models_never_share_an_entry(index, cache, ask, models):
    """Every option of the model is in the key, whatever its name."""
    for model in models:
        plain = index.as_retriever(embed_model=model)
        assert ask(accelerate(plain, cache=cache), QUERY) == ask(plain, QUERY)
    assert cache.stats().misses == 2


def test_an_embedding_model_changed_in_place_has_another_key(index, cache, ask):
    """The model's options are read at every call."""
    model = HashEmbedding()
    accelerated = accelerate(index.as_retriever(embed_model=model), cache=cache)
    ask(accelerated, QUERY)
    model.seed = 1
    assert not is_hit(accelerated, QUERY, ask)


def test_equal_retrievers_share_entries(index, cache, ask):
    """Two retrievers of one index with the same settings have the same answers."""
    ask(accelerate(index.as_retriever(), cache=cache), QUERY)
    assert is_hit(accelerate(index.as_retriever(), cache=cache), QUERY, ask)
    batch_size = HashEmbedding(embed_batch_size=7)
    assert is_hit(accelerate(index.as_retriever(embed_model=batch_size), cache=cache), QUERY, ask)


def test_namespaces_never_share_an_entry(subject, cache, ask):
    """A tenant's entries are its own; without one they are the cache's."""
    tenants = [subject.accelerated(cache, namespace=name) for name in ("a", "b", None)]
    for tenant in tenants:
        assert not is_hit(tenant, QUERY, ask)
    for tenant in tenants:
        assert is_hit(tenant, QUERY, ask)
    default = subject.accelerated(cache, namespace=cache.namespace)
    assert is_hit(default, QUERY, ask)


def test_identities_never_share_an_entry(nodes, cache, ask):
    """A retriever of the user's own is told apart by what the user says and by its class."""
    first, second = WordRetriever(nodes[:3]), WordRetriever(nodes[3:])
    for plain, identity in ((first, "first"), (second, "second")):
        assert ask(accelerate(plain, cache=cache, identity=identity), QUERY) == ask(plain, QUERY)
    other_class = AsyncWordRetriever(nodes[3:])
    assert not is_hit(accelerate(other_class, cache=cache, identity="first"), QUERY, ask)


@pytest.mark.parametrize("ttl", [0.05, timedelta(milliseconds=50)])
def test_an_entry_is_served_for_its_ttl(subject, cache, ask, ttl):
    """Afterwards the retriever is asked again."""
    accelerated = subject.accelerated(cache, ttl=ttl)
    ask(accelerated, QUERY)
    time.sleep(0.06)
    assert not is_hit(accelerated, QUERY, ask)


def test_entries_outlive_the_process_objects(tmp_path, nodes, embed_model, ask):
    """With a cache and a store on disk, the next process starts with hits, and right ones."""

    def start() -> tuple[CompressedVectorStore, MultiLevelCache, BaseRetriever]:
        store = CompressedVectorStore.open(tmp_path / "corpus")
        index = VectorStoreIndex.from_vector_store(store, embed_model=HashEmbedding())
        cache = MultiLevelCache.open(tmp_path / "cache")
        return store, cache, accelerate(index.as_retriever(), cache=cache)

    store, cache, retriever = start()
    store.add(embed_model(nodes))
    right = ask(retriever, QUERY)
    store.close()
    cache.close()

    store, cache, retriever = start()
    assert is_hit(retriever, QUERY, ask)
    assert ask(retriever, QUERY) == right
    store.delete_nodes([right[0].node_id])
    store.close()
    cache.close()

    store, cache, retriever = start()
    assert ids(ask(retriever, QUERY)) == ids(ask(unwrap(retriever), QUERY))
    assert right[0].node_id not in ids(ask(retriever, QUERY))
    store.close()
    cache.close()


# -- recursion -------------------------------------------------------------------------------------


def index_nodes() -> list[IndexNode]:
    return [
        IndexNode(id_="forest", text="animals of the forest at night", index_id="forest"),
        IndexNode(id_="sea", text="animals of the sea", index_id="sea"),
    ]


@pytest.mark.parametrize("behind", ["node", "scored node", "retriever", "query engine"])
def test_hits_recurse_through_the_object_map(nodes, embed_model, cache, ask, mock_llm, behind):
    """What stands behind an index node is asked on a hit, too, and is asked live."""
    inner = WordRetriever(nodes, top_k=2)
    objects = {
        "node": nodes[5],
        "scored node": NodeWithScore(node=nodes[5], score=0.25),
        "retriever": inner,
        "query engine": RetrieverQueryEngine.from_args(inner, response_mode="no_text"),
    }
    store = CompressedVectorStore()
    store.add(embed_model(index_nodes()))
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    plain = VectorIndexRetriever(index, object_map={"forest": objects[behind]})
    accelerated = accelerate(plain, cache=cache)
    right = ask(plain, QUERY)
    for _ in range(2):
        found = ask(accelerated, QUERY)
        assert [(one.text, one.score) for one in found] == [(one.text, one.score) for one in right]
    assert cache.stats().hits == {"memory": 1}
    if behind == "retriever":
        assert len(inner.calls) == 3


def test_an_index_of_objects_recurses_on_hits(nodes, embed_model, cache, ask):
    """`VectorStoreIndex(objects=...)` keeps the objects beside the store."""
    inner = WordRetriever(nodes, top_k=1)
    gates = index_nodes()
    gates[0].obj = inner
    index = VectorStoreIndex(
        objects=gates,
        embed_model=embed_model,
        storage_context=StorageContext.from_defaults(vector_store=CompressedVectorStore()),
    )
    plain = index.as_retriever()
    accelerated = accelerate(plain, cache=cache)
    right = ask(plain, QUERY)
    assert "node-5" in ids(right)
    assert [ids(ask(accelerated, QUERY)) for _ in range(3)] == [ids(right)] * 3
    assert cache.stats().hits == {"memory": 2}


def test_an_object_that_cannot_be_stored_is_not_cached(nodes, cache, ask):
    """A retriever that hands out index nodes with live objects goes past the cache, and works."""
    gate = IndexNode(text=QUERY, index_id="x", obj=WordRetriever(nodes, top_k=1))
    plain = WordRetriever([gate], top_k=1)
    accelerated = accelerate(plain, cache=cache, identity="gate")
    for _ in range(2):
        assert ask(accelerated, QUERY) == ask(plain, QUERY)
    assert cache.stats().bypasses == {"value": 2}


def test_a_query_that_cannot_be_keyed_is_retrieved(nodes, cache, ask):
    """It goes past the cache every time, and that is counted."""
    plain = WordRetriever(nodes)
    accelerated = accelerate(plain, cache=cache, identity="words")
    odd = [QueryBundle("owls \ud800"), QueryBundle(QUERY, embedding=np.ones(3))]
    for bundle in odd * 2:
        assert ask(accelerated, bundle) == ask(plain, bundle)
    stats = cache.stats()
    assert (stats.lookups, stats.bypasses) == (0, {"key": 4})


class Chapter(TextNode):
    """A node class of a user's own."""

    heading: str = ""


class Colour(str, enum.Enum):
    """A text with a type of its own."""

    RED = "red"


UNUSUAL = {
    "a class of one's own": Chapter(text=QUERY, heading="heading"),
    "a date": TextNode(text=QUERY, metadata={"a": datetime(2026, 1, 2, tzinfo=timezone.utc)}),
    "another time zone": TextNode(
        text=QUERY, metadata={"a": datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=2)))}
    ),
    "an enum": TextNode(text=QUERY, metadata={"a": Colour.RED}),
    "a tuple": TextNode(text=QUERY, metadata={"a": (1, 2)}),
    "a number of numpy": TextNode(text=QUERY, metadata={"a": np.float64(0.1)}),
    "NaN": TextNode(text=QUERY, metadata={"a": math.nan}),
    "bytes": TextNode(text=QUERY, metadata={"a": b"bytes"}),
    "image bytes": Node(
        text_resource=MediaResource(text=QUERY), image_resource=MediaResource(data=b"bytes")
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_nodes_come_back_with_their_types(cache, ask, name):
    """Cached or not, metadata is not changed into what looks like it: it goes into prompts."""
    plain = WordRetriever([UNUSUAL[name]])
    accelerated = accelerate(plain, cache=cache, identity="unusual")
    (right,) = ask(plain, QUERY)
    for _ in range(2):
        (found,) = ask(accelerated, QUERY)
        assert type(found.node) is type(right.node)
        assert repr(found) == repr(right)
        assert found.get_content(MetadataMode.LLM) == right.get_content(MetadataMode.LLM)


# -- inside other parts of LlamaIndex --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "simple", "relative_score"])
@pytest.mark.parametrize("use_async", [True, False])
def test_a_fusion_retriever_over_accelerated_ones(
    index, nodes, cache, ask, mock_llm, mode, use_async
):
    """Fusion changes the scores of what it gets, and gets the same every time."""

    def fused(*retrievers: BaseRetriever) -> QueryFusionRetriever:
        return QueryFusionRetriever(
            [*retrievers], mode=mode, num_queries=1, use_async=use_async, similarity_top_k=4
        )

    parts = index.as_retriever(similarity_top_k=3), WordRetriever(nodes, top_k=3)
    right = ask(fused(*parts), QUERY)
    quick = fused(
        accelerate(parts[0], cache=cache), accelerate(parts[1], cache=cache, identity="words")
    )
    for _ in range(3):
        assert ask(quick, QUERY) == right
    assert cache.stats().hits == {"memory": 4}


def test_a_fusion_retriever_can_be_accelerated(index, nodes, cache, ask, mock_llm):
    """A retriever of retrievers is one of the user's own; its parts may be accelerated, too."""
    parts = [accelerate(index.as_retriever(), cache=cache), WordRetriever(nodes)]
    plain = QueryFusionRetriever(parts, num_queries=1, mode="reciprocal_rerank", use_async=False)
    accelerated = accelerate(plain, cache=cache, identity="fusion")
    right = ask(plain, QUERY)
    assert [ask(accelerated, QUERY) for _ in range(2)] == [right, right]
    assert is_hit(accelerated, QUERY, ask)


def test_a_query_engine_over_an_accelerated_retriever(subject, cache, mock_llm):
    """`RetrieverQueryEngine` takes it as any retriever, sync and async."""
    right = subject.plain.retrieve(QUERY)
    engine = RetrieverQueryEngine.from_args(subject.accelerated(cache), response_mode="no_text")
    assert engine.query(QUERY).source_nodes == right
    assert engine.query(QUERY).source_nodes == right
    assert asyncio.run(engine.aquery(QUERY)).source_nodes == right
    assert cache.stats().misses == 1


async def test_a_sync_call_inside_a_running_loop(subject, cache):
    """Notebooks and frameworks call `retrieve` where a loop runs; it neither fails nor hangs."""
    accelerated = subject.accelerated(cache)
    right = subject.plain.retrieve(QUERY)
    assert accelerated.retrieve(QUERY) == right
    assert accelerated.retrieve(QUERY) == right
    together = await asyncio.gather(
        accelerated.aretrieve(OTHER_QUERY),
        asyncio.to_thread(accelerated.retrieve, OTHER_QUERY),
        accelerated.aretrieve(OTHER_QUERY),
    )
    assert together == [subject.plain.retrieve(OTHER_QUERY)] * 3


async def test_a_sync_call_does_not_wait_for_its_own_loop(nodes, cache):
    """A sync call that misses what a task of the same loop is computing computes for itself."""
    plain = AsyncWordRetriever(nodes, seconds=0.1)
    accelerated = accelerate(plain, cache=cache, identity="words")
    task = asyncio.create_task(accelerated.aretrieve(QUERY))
    await asyncio.sleep(0.01)
    assert accelerated.retrieve(QUERY) == await task
    assert len(plain.calls) == 2


# -- errors ----------------------------------------------------------------------------------------


def test_errors_of_the_retriever_come_out_unchanged(cache, ask):
    """The very exception is raised, the span is dropped, and nothing is cached."""
    error = LookupError("no such index")
    plain = BrokenRetriever(error)
    accelerated = accelerate(plain, cache=cache, identity="broken")
    for _ in range(2):
        with recording() as told, pytest.raises(LookupError) as raised:
            ask(accelerated, QUERY)
        assert raised.value is error
        assert told.event_names == ["RetrievalStartEvent", "SpanDropEvent", "SpanDropEvent"]
        assert not told.open
    accelerated.error = None
    assert ask(accelerated, QUERY) == []
    assert is_hit(accelerated, QUERY, ask)


def test_an_unknown_class_needs_an_identity(nodes, cache):
    """What cannot be told apart is refused, with the line to write instead."""

    class Special(VectorIndexRetriever):
        """A subclass may search otherwise."""

    special = Special(VectorStoreIndex([], embed_model=HashEmbedding()))
    for plain in (WordRetriever(nodes), special):
        with pytest.raises(ConfigurationError, match=r'identity="\.\.\."'):
            accelerate(plain, cache=cache)
        assert isinstance(accelerate(plain, cache=cache, identity="mine"), type(plain))


def test_tracing_alone_needs_no_identity(nodes, ask):
    """Without a cache any retriever can be wrapped, and is asked every time."""
    plain = WordRetriever(nodes)
    traced = accelerate(plain)
    assert [ask(traced, QUERY) for _ in range(2)] == [ask(plain, QUERY)] * 2
    assert len(plain.calls) == 3


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda index: "index", "pass a retriever"),
        (lambda index: None, "pass a retriever"),
    ],
    ids=["text", "None"],
)
def test_other_components_are_refused_with_advice(index, cache, make, advice):
    """The error says what to wrap instead."""
    with pytest.raises(UnsupportedComponentError, match=advice):
        accelerate(make(index), cache=cache)


def test_attributes_that_cannot_be_cloned_are_refused(cache):
    """A retriever with `__slots__` would lose them."""
    with pytest.raises(UnsupportedComponentError, match="__slots__"):
        accelerate(SlottedRetriever(), cache=cache, identity="slots")


# -- wrapping --------------------------------------------------------------------------------------


def test_unwrap_gives_the_original(subject, cache):
    """It gives the very object, also after wrapping twice; other objects come back themselves."""
    accelerated = subject.accelerated(cache)
    assert unwrap(accelerated) is subject.plain
    assert unwrap(accelerate(accelerated, cache=cache, **subject.options)) is subject.plain
    assert unwrap(subject.plain) is subject.plain


def test_accelerating_twice_replaces_the_options(subject, ask):
    """There is one cache, the last one."""
    with MultiLevelCache.open() as first, MultiLevelCache.open() as second:
        once = subject.accelerated(first)
        twice = accelerate(once, cache=second, **subject.options)
        assert type(twice) is type(once)
        assert len(type(twice).__mro__) == len(type(subject.plain).__mro__) + 2
        ask(twice, QUERY)
        assert (first.stats().lookups, second.stats().lookups) == (0, 1)
        traced = accelerate(twice)
        assert not is_hit(traced, QUERY, ask)
        ask(once, QUERY)
        assert first.stats().misses == 1


# -- never stale -----------------------------------------------------------------------------------

WORDS = ("cat", "dog", "bird", "fish", "horse", "owl", "mouse", "forest", "night", "ice")


class Writer:
    """Random writes to a store, seeded."""

    def __init__(self, store: CompressedVectorStore, seed: int) -> None:
        self.store, self.random, self.made = store, random.Random(seed), 0

    def node(self, name: str | None = None) -> TextNode:
        self.made += 1
        text = " ".join(self.random.choices(WORDS, k=self.random.randint(2, 6)))
        node = TextNode(
            id_=name or f"n{self.made}",
            text=f"{text} {self.made}",
            metadata={"kind": self.random.choice(["odd", "even"])},
            excluded_embed_metadata_keys=["kind"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{self.made % 15}")},
        )
        return HashEmbedding()([node])[0]

    def write(self) -> None:
        """Add, update or delete something."""
        names = [node.node_id for node in self.store.get_nodes()]
        action = self.random.random()
        if action < 0.4 or len(names) < 10:
            self.store.add([self.node() for _ in range(self.random.randint(1, 3))])
        elif action < 0.6:
            self.store.add([self.node(self.random.choice(names))])
        elif action < 0.7:
            (node,) = self.store.get_nodes([self.random.choice(names)])
            node.metadata["kind"] = "odd" if node.metadata["kind"] == "even" else "even"
            self.store.add(HashEmbedding()([node]))
        elif action < 0.9:
            self.store.delete_nodes(self.random.sample(names, 2))
        elif action < 0.98:
            self.store.delete(f"d{self.random.randrange(15)}")
        else:
            self.store.clear()


def variants(index: VectorStoreIndex) -> list[BaseRetriever]:
    return [
        index.as_retriever(similarity_top_k=3),
        index.as_retriever(similarity_top_k=2, filters=ODD),
        index.as_retriever(similarity_top_k=30),
        index.as_retriever(similarity_top_k=3, vector_store_query_mode="mmr"),
    ]


def assert_same(found: list[NodeWithScore], right: list[NodeWithScore]) -> None:
    assert [one.node for one in found] == [one.node for one in right]
    assert [one.score for one in found] == pytest.approx([one.score for one in right], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("on_disk", [False, True])
def test_answers_are_never_stale(tmp_path, cache, ask, seed, on_disk):
    """After every write each cached answer is the one that the plain retriever gives then."""
    store = CompressedVectorStore.open(tmp_path if on_disk else None)
    index = VectorStoreIndex.from_vector_store(store, embed_model=HashEmbedding())
    pairs = [(plain, accelerate(plain, cache=cache)) for plain in variants(index)]
    queries = ["cat dog", "bird fish", "owl mouse night", "forest ice"]
    writer, rng = Writer(store, seed), random.Random(seed)
    for _ in range(300):
        if rng.random() < 0.15:
            writer.write()
        plain, accelerated = rng.choice(pairs)
        query = rng.choice(queries)
        assert_same(ask(accelerated, query), ask(plain, query))
    stats = cache.stats()
    assert stats.hits["memory"] > 30
    assert stats.stale > 5
    assert not stats.bypasses
    store.close()


def test_a_reader_beside_the_writer_is_never_stale(tmp_path, cache):
    """Retrievers over the writer's and a reader's object share a cache and stay right."""
    store = CompressedVectorStore.open(tmp_path)
    writer, rng = Writer(store, 7), random.Random(7)
    store.add([writer.node() for _ in range(20)])
    reader = CompressedVectorStore.open(tmp_path, read_only=True)
    pairs = []
    for one in (store, reader):
        index = VectorStoreIndex.from_vector_store(one, embed_model=HashEmbedding())
        pairs += [(plain, accelerate(plain, cache=cache)) for plain in variants(index)]
    for _ in range(200):
        if rng.random() < 0.15:
            writer.write()
        plain, accelerated = rng.choice(pairs)
        query = rng.choice(["cat dog", "bird fish"])
        assert_same(accelerated.retrieve(query), plain.retrieve(query))
    assert cache.stats().hits["memory"] > 20
    reader.close()
    store.close()


def test_answers_are_never_stale_while_threads_write(cache):
    """An answer that was found after a write had returned contains that write."""
    store = CompressedVectorStore.open()
    index = VectorStoreIndex.from_vector_store(store, embed_model=HashEmbedding())
    plain = index.as_retriever(similarity_top_k=1)
    accelerated = accelerate(plain, cache=cache)

    def work(number: int) -> None:
        word = f"word{number}"
        for turn in range(20):
            name = f"{number}-{turn}"
            text = " ".join([word] * (turn + 1)) + f" filler{turn}"
            store.add(HashEmbedding()([TextNode(id_=name, text=text)]))
            assert ids(accelerated.retrieve(text)) == [name]
            assert ids(accelerated.retrieve(text)) == [name]
            store.delete_nodes([name])
            assert name not in ids(accelerated.retrieve(text))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    store.close()


# -- many callers at once --------------------------------------------------------------------------


def test_threads_that_ask_the_same_compute_once(nodes, cache):
    """Of many threads that miss a query together one retrieves, and all get its answer."""
    plain = WordRetriever(nodes, seconds=0.05)
    accelerated = accelerate(plain, cache=cache, identity="words")
    queries = [f"{QUERY} {at}" for at in range(4)]
    start = threading.Barrier(12)

    def work(_: int) -> list[list[str]]:
        start.wait()
        return [ids(accelerated.retrieve(query)) for query in queries * 5]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(work, range(12)))
    right = [ids(plain._find(query)) for query in queries * 5]
    assert answers == [right] * 12
    assert sorted(plain.calls) == sorted([*queries, *queries * 5])


async def test_tasks_that_ask_the_same_compute_once(nodes, cache):
    """Of many tasks that miss a query together one retrieves."""
    plain = AsyncWordRetriever(nodes, seconds=0.05)
    accelerated = accelerate(plain, cache=cache, identity="words")
    answers = await asyncio.gather(*(accelerated.aretrieve(QUERY) for _ in range(30)))
    assert answers == [answers[0]] * 30
    assert plain.calls == [QUERY]


async def test_a_cancelled_task_does_not_fail_those_who_wait_for_it(nodes, cache):
    """One of them computes in its place."""
    plain = AsyncWordRetriever(nodes, seconds=0.05)
    accelerated = accelerate(plain, cache=cache, identity="words")
    first, *others = (asyncio.create_task(accelerated.aretrieve(QUERY)) for _ in range(4))
    await asyncio.sleep(0.01)
    first.cancel()
    answers = await asyncio.gather(*others)
    assert answers == [await plain.aretrieve(QUERY)] * 3
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_those_who_wait_get_the_error(cache):
    """Of many tasks that miss a query together all get the error of the one that retrieves."""
    error = LookupError("no such index")
    accelerated = accelerate(BrokenRetriever(error), cache=cache, identity="broken")
    together = [asyncio.to_thread(accelerated.retrieve, QUERY) for _ in range(8)]
    raised = await asyncio.gather(*together, return_exceptions=True)
    assert raised == [error] * 8


class LateLevel(MemoryLevel):
    """A memory level whose first miss is told to the caller only when `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.missed, self.go, self._first = threading.Event(), threading.Event(), True

    def get_many(self, keys):
        found = super().get_many(keys)
        if self._first:
            self._first = False
            self.missed.set()
            assert self.go.wait(30)
        return found


def test_a_caller_that_looked_too_early_does_not_compute_again(nodes):
    """A miss that was true when it was seen is looked up once more before it is computed."""
    level = LateLevel()
    plain = WordRetriever(nodes)
    with MultiLevelCache([level]) as cache, ThreadPoolExecutor(1) as pool:
        accelerated = accelerate(plain, cache=cache, identity="words")
        late = pool.submit(accelerated.retrieve, QUERY)
        assert level.missed.wait(30)
        right = accelerated.retrieve(QUERY)
        level.go.set()
        assert late.result(30) == right
    assert plain.calls == [QUERY]
