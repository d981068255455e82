"""An accelerated vector store of another house: cached answers over it are never stale.

Every answer is compared with one that is searched for now.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import pickle
import random
import subprocess
import sys
import threading
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryMode

from ragaccel import MultiLevelCache, accelerate, telemetry, unwrap
from ragaccel.cache import DiskLevel
from ragaccel.errors import ConfigurationError
from ragaccel.llamaindex import CompressedVectorStore
from tests.llamaindex.embeddings import TEXTS, HashEmbedding
from tests.llamaindex.shared_store import SharedVectorStore

EVEN = MetadataFilters(filters=[MetadataFilter(key="even", value="True")])


def node(row, text, document=None, *, even=True):
    source = RelatedNodeInfo(node_id=document or f"doc-{row}")
    return TextNode(
        id_=str(row), text=text, metadata={"even": str(even)},
        relationships={NodeRelationship.SOURCE: source},
    )  # fmt: skip


def simple(path=None):
    return SimpleVectorStore()


def shared(path):
    return SharedVectorStore(path=str(path / "rows"))


class Bench:
    """An index over an accelerated store, a plain and a cached retriever, and the questions."""

    def __init__(self, cache, store, texts=TEXTS, k=2, *, metric=None, **options):
        self.cache = cache
        self.store = accelerate(store, metric=metric)
        self.index = VectorStoreIndex(
            [node(row, text, f"doc-{row // 2}") for row, text in enumerate(texts)],
            embed_model=HashEmbedding(),
            storage_context=StorageContext.from_defaults(vector_store=self.store),
        )
        self.plain = VectorIndexRetriever(self.index, similarity_top_k=k, **options)
        self.fast = accelerate(self.plain, cache=cache)

    def ask(self, query="cats", retriever=None):
        """Ask, compare with a search, and return the ids found and whether they were kept."""
        before = self.cache.stats().misses
        found = (retriever or self.fast).retrieve(query)
        assert found == self.plain.retrieve(query)
        return [one.node_id for one in found], self.cache.stats().misses == before


@pytest.fixture(params=[simple, shared], ids=["simple", "other"])
def bench(request, tmp_path, cache):
    """Six texts, two to a document; the scores of either store are believed."""
    made = Bench(cache, request.param(tmp_path), metric="cosine")
    made.ask()
    assert made.ask() == (["0", "4"], True)
    return made


# -- writes ----------------------------------------------------------------------------------------


def test_a_near_node_is_found_and_a_far_one_changes_nothing(bench):
    """Only a node that scores as high as the last one found makes an answer stale."""
    bench.index.insert_nodes([node("far", "zebras in the zoo")])
    assert bench.ask() == (["0", "4"], True)
    bench.index.insert_nodes([node("near", "cats cats")])
    assert bench.ask() == (["near", "0"], False)
    assert bench.ask() == (["near", "0"], True)


def test_deletes(bench):
    """One of a node that was found makes the answer stale, one of another does not."""
    bench.index.delete_nodes(["1"])
    assert bench.ask() == (["0", "4"], True)
    bench.index.delete_nodes(["0"])
    found, kept = bench.ask()
    assert (found[0], kept) == ("4", False)


def test_deletes_of_documents(bench):
    """Of a store that tells which documents its nodes belong to, as well."""
    bench.index.delete_ref_doc("doc-1")
    bench.ask()
    bench.index.delete_ref_doc("doc-0")
    found, kept = bench.ask()
    assert "0" not in found
    assert not kept


def test_updates(bench):
    """A node that was found and is replaced makes the answer stale, whatever it scores now."""
    bench.index.insert_nodes([node("4", "horses and zebras run")])
    assert not bench.ask()[1]
    bench.ask()
    bench.index.insert_nodes([node("1", "more dogs")])
    assert bench.ask()[1]


def test_a_store_that_was_cleared_has_nothing(cache):
    """By `clear`, and by a delete that names no nodes."""
    bench = Bench(cache, SimpleVectorStore())
    bench.ask()
    bench.store.clear()
    assert bench.ask() == ([], False)
    bench.index.insert_nodes([node("0", "cats")])
    assert bench.ask() == (["0"], False)
    bench.store.delete_nodes(filters=EVEN)
    assert bench.ask() == ([], False)


async def test_asynchronous_writes_and_questions(bench):
    """They are the same writes and questions."""
    await bench.index.ainsert_nodes([node("near", "cats cats")])
    assert bench.ask() == (["near", "0"], False)
    await bench.index.adelete_nodes(["near"])
    found = await bench.fast.aretrieve("cats")
    assert [one.node_id for one in found] == ["0", "4"]
    await bench.index.adelete_ref_doc("doc-0")
    assert "0" not in bench.ask()[0]


def test_an_ingestion_pipeline_writes_too(bench):
    """It calls the store by itself."""
    nodes = HashEmbedding()([node("0", "birds and fish")])
    if bench.store.stores_text:
        IngestionPipeline(transformations=[], vector_store=bench.store).run(nodes=nodes)
        assert not bench.ask()[1]


def test_methods_of_its_own_that_write(tmp_path, cache):
    """A store's own method with a name like a write's makes every answer stale."""
    bench = Bench(cache, shared(tmp_path))
    bench.ask()
    bench.store.reset_collection()
    assert bench.ask() == ([], False)


# -- what cannot be told ---------------------------------------------------------------------------


def test_scores_that_nobody_declared_are_not_judged(tmp_path, cache):
    """Every new node makes an answer stale; a delete of another node does not."""
    bench = Bench(cache, shared(tmp_path))
    bench.ask()
    bench.index.delete_nodes(["1"])
    assert bench.ask()[1]
    bench.index.insert_nodes([node("far", "zebras in the zoo")])
    assert not bench.ask()[1]


def test_scores_that_are_not_what_was_declared_are_not_judged(tmp_path, cache):
    """A store whose similarities are something else is found out by the first that is seen."""
    store = SharedVectorStore(path=str(tmp_path / "rows"), scale=0.01)
    bench = Bench(cache, store, metric="cosine")
    bench.ask()
    for number in range(3):
        bench.index.insert_nodes([node(number + 10, f"cats cats {number}")])
        assert not bench.ask()[1]


def test_filters(cache):
    """A new node that does not pass makes a full answer stale only if it would score enough."""
    bench = Bench(cache, SimpleVectorStore(), filters=EVEN)
    bench.ask()
    bench.index.insert_nodes([node("far", "zebras in the zoo")])
    assert bench.ask()[1]
    bench.index.insert_nodes([node("near", "cats cats", even=False)])
    assert not bench.ask()[1]
    bench.index.insert_nodes([node("1", "dogs bark at strangers", even=False)])
    assert bench.ask()[1]


def test_an_answer_with_fewer_nodes_than_asked_for_has_room(cache):
    """Any new node belongs to it, however little it scores."""
    bench = Bench(cache, SimpleVectorStore(), k=50)
    bench.ask()
    bench.index.insert_nodes([node("far", "zebras in the zoo")])
    found, kept = bench.ask()
    assert "far" in found
    assert not kept


def test_other_modes_are_stale_after_any_write(cache):
    """What maximal marginal relevance chooses depends on more than what it gives."""
    bench = Bench(
        cache, SimpleVectorStore(), vector_store_query_mode=VectorStoreQueryMode.MMR,
    )  # fmt: skip
    bench.ask()
    assert bench.ask()[1]
    bench.index.insert_nodes([node("far", "zebras in the zoo")])
    assert not bench.ask()[1]
    bench.index.delete_nodes(["far"])
    assert not bench.ask()[1]


def test_equal_scores_have_no_order_to_keep(cache):
    """An answer in which two nodes score the same is stale after any write."""
    bench = Bench(cache, SimpleVectorStore(), texts=("cats", "dogs"))
    bench.store.add(HashEmbedding()([node("twin", "cats")]))
    for row in ("twin",):
        bench.index.index_struct.add_node(node(row, "cats"))
        bench.index.docstore.add_documents([node(row, "cats")])
    bench.ask()
    assert bench.ask()[1]
    bench.index.insert_nodes([node("far", "zebras in the zoo")])
    assert not bench.ask()[1]


# -- at the same time ------------------------------------------------------------------------------


class Slow(SharedVectorStore):
    """Stops amid a search or a write until it is told to go on."""

    def wait(self, name):
        gate = GATES.get(name)
        if gate is not None:
            gate[0].set()
            assert gate[1].wait(30)

    def add(self, nodes, **kwargs):
        self.wait("before add")
        done = super().add(nodes, **kwargs)
        self.wait("after add")
        return done

    def query(self, query, **kwargs):
        found = super().query(query, **kwargs)
        self.wait("after query")
        return found


GATES = {}


@pytest.fixture
def slow(tmp_path, cache):
    """A store whose writes and searches can be stopped midway."""
    GATES.clear()
    yield Bench(cache, Slow(path=str(tmp_path / "rows")), metric="cosine")
    GATES.clear()


def stop_at(name):
    GATES[name] = threading.Event(), threading.Event()
    return GATES[name]


def test_an_answer_that_a_write_overtakes_is_not_kept(slow):
    """The search began before the write and ends after it."""
    reached, go = stop_at("after query")
    asking = threading.Thread(target=lambda: slow.fast.retrieve("cats"))
    asking.start()
    assert reached.wait(30)
    del GATES["after query"]
    slow.index.insert_nodes([node("near", "cats cats")])
    go.set()
    asking.join()
    assert slow.ask() == (["near", "0"], False)


@pytest.mark.parametrize("place", ["before add", "after add"])
def test_an_answer_made_amid_a_write_is_not_kept(slow, place):
    """Whether the rows are in by then or not; nor is one of before served meanwhile."""
    slow.ask()
    reached, go = stop_at(place)
    new = [node("near", "cats cats")]
    writing = threading.Thread(target=lambda: slow.index.insert_nodes(new))
    writing.start()
    assert reached.wait(30)
    assert not slow.ask()[1]
    assert not slow.ask()[1]
    go.set()
    writing.join()
    assert slow.ask()[0] == ["near", "0"]


class Failing(SharedVectorStore):
    """Writes half of what it is given, and fails."""

    def add(self, nodes, **kwargs):
        done = super().add(nodes[:1] if len(nodes) == 2 else nodes, **kwargs)
        if len(nodes) == 2:
            raise TimeoutError("no answer")
        return done


def test_a_write_that_fails_midway_is_a_write(tmp_path, cache):
    """What arrived is found, and what may still arrive is waited for."""
    store = Failing(path=str(tmp_path / "rows"))
    bench = Bench(cache, store, metric="cosine")
    bench.ask()
    late = [node("near", "cats cats"), node("late", "cats cats cats cats")]
    with pytest.raises(TimeoutError):
        bench.index.insert_nodes(late)
    assert bench.ask() == (["near", "0"], False)
    SharedVectorStore.add(store, HashEmbedding()(late)[1:])
    assert bench.ask()[0] == ["late", "near"]


def test_a_text_that_follows_its_vector_is_waited_for(cache):
    """Where a store keeps no texts, an index replaces the text after the vector."""
    bench = Bench(cache, SimpleVectorStore())
    new = node("0", "cats sleep all day")
    bench.store.add(HashEmbedding()([new]))
    assert not bench.ask()[1]
    assert not bench.ask()[1]
    bench.index.docstore.add_documents([new], allow_update=True)
    assert bench.ask() == (["0", "4"], False)
    assert bench.ask() == (["0", "4"], True)


# -- a file ----------------------------------------------------------------------------------------

OTHER = """
import sys
from llama_index.core.schema import TextNode
from ragaccel import accelerate
from tests.llamaindex.embeddings import HashEmbedding
from tests.llamaindex.shared_store import SharedVectorStore
folder = sys.argv[1]
store = accelerate(SharedVectorStore(path=folder + "/rows"), changes=folder + "/changes")
for line in sys.stdin:
    row, _, text = line.partition(" ")
    store.add(HashEmbedding()([TextNode(id_=row, text=text)]))
    print("done", flush=True)
"""


def reopened(folder, cache):
    """A cached retriever over the shared rows, as a new process makes it."""
    store = accelerate(
        SharedVectorStore(path=str(folder / "rows")), changes=folder / "changes", metric="cosine"
    )
    index = VectorStoreIndex.from_vector_store(store, embed_model=HashEmbedding())
    return store, accelerate(VectorIndexRetriever(index), cache=cache)


def ask_shared(cache, retriever):
    before = cache.stats().misses
    found = retriever.retrieve("cats")
    assert found == unwrap(retriever).retrieve("cats")
    return [one.node_id for one in found], cache.stats().misses == before


def test_another_process_writes(tmp_path, cache):
    """A reader that shares its file of changes is as fresh as a search."""
    store, fast = reopened(tmp_path, cache)
    store.add(HashEmbedding()([node(row, text) for row, text in enumerate(TEXTS)]))
    ask_shared(cache, fast)
    assert ask_shared(cache, fast) == (["0", "4"], True)
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", ".", *sys.path])},
    )  # fmt: skip
    for line, kept in (("far zebras in the zoo\n", True), ("near cats cats\n", False)):
        other.stdin.write(line)
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"
        assert ask_shared(cache, fast)[1] is kept
    other.communicate()
    assert ask_shared(cache, fast)[0] == ["near", "0"]


def test_entries_outlive_the_process(tmp_path):
    """With the log in a file and the cache on disk, a later process serves what holds."""
    for asked in range(3):
        with MultiLevelCache([DiskLevel(tmp_path / "cache")]) as cache:
            store, fast = reopened(tmp_path, cache)
            if asked == 0:
                store.add(HashEmbedding()([node(row, text) for row, text in enumerate(TEXTS)]))
            if asked == 2:
                store.delete_nodes(["0"])
            found, kept = ask_shared(cache, fast)
            assert kept is (asked == 1)
            assert ("0" in found) is (asked < 2)


def test_a_file_for_rows_of_this_process_is_refused(tmp_path):
    """It would say of another process's rows what was done to these."""
    with pytest.raises(ConfigurationError, match="in this process"):
        accelerate(SimpleVectorStore(), changes=tmp_path / "changes")


def test_two_stores_with_one_file_do_not_meet(tmp_path, cache):
    """Their names tell them apart, though the file should."""

    class Named(SharedVectorStore):
        collection_name: str = ""

    retrievers = []
    for name in ("one", "two"):
        store = Named(path=str(tmp_path / name), collection_name=name)
        fast = accelerate(store, changes=tmp_path / "changes")
        fast.add(HashEmbedding()([node(name, "cats")]))
        index = VectorStoreIndex.from_vector_store(fast, embed_model=HashEmbedding())
        retrievers.append(accelerate(VectorIndexRetriever(index), cache=cache))
    found = [[one.node_id for one in some.retrieve("cats")] for some in retrievers]
    assert found == [["one"], ["two"]]


# -- the store itself ------------------------------------------------------------------------------


def test_it_is_what_it_was(embedded):
    """Class, fields, dumps and what it holds are the original's, which is not changed."""
    plain = SimpleVectorStore()
    before = dict(vars(plain))
    fast = accelerate(plain)
    fast.add(embedded)
    assert isinstance(fast, SimpleVectorStore)
    assert unwrap(fast) is plain
    assert {**vars(plain)} == before
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(fast), name) == getattr(type(plain), name)
    assert fast.to_dict() == plain.to_dict()
    assert fast.model_dump() == plain.model_dump()
    assert fast.class_name() == plain.class_name()


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))],
    ids=["copy", "deepcopy", "pickle"],
)  # fmt: skip
def test_copies_never_serve_each_other_wrongly(embedded, cache, duplicate):
    """A copy is of the class, and what is written to one of them the other's answers survive."""
    fast = accelerate(SimpleVectorStore())
    fast.add(embedded)
    twin = duplicate(fast)
    assert type(twin) is type(fast)
    assert twin.to_dict() == fast.to_dict()
    retrievers = []
    for store in (fast, twin):
        index = VectorStoreIndex(
            [], embed_model=HashEmbedding(),
            storage_context=StorageContext.from_defaults(vector_store=store),
        )  # fmt: skip
        for one in embedded:
            index.index_struct.add_node(one)
        index.docstore.add_documents(embedded)
        plain = VectorIndexRetriever(index)
        retrievers.append((plain, accelerate(plain, cache=cache)))
    for write in (
        lambda: None,
        lambda: fast.delete_nodes(["node-0"]),
        lambda: twin.delete_nodes(["node-4"]),
        fast.clear,
    ):
        write()
        for plain, cached in retrievers * 2:
            assert cached.retrieve("cats sleep") == plain.retrieve("cats sleep")


def test_who_asks_again_gets_the_same_store():
    """Two logs beside one store would not know of each other's writes."""
    plain = SimpleVectorStore()
    fast = accelerate(plain)
    assert accelerate(plain) is fast
    assert accelerate(fast) is fast
    with pytest.raises(ConfigurationError, match="accelerated already"):
        accelerate(plain, metric="cosine")
    del fast
    gc.collect()
    fast = accelerate(plain, metric="cosine")
    assert accelerate(plain, metric="cosine") is fast


def test_our_own_store_needs_none():
    """Its collection has a change log of its own."""
    store = CompressedVectorStore()
    assert accelerate(store) is store


def test_missing_methods_stay_missing(bench):
    """What a store cannot do it says, as before."""

    class Small(SharedVectorStore):
        clear = BasePydanticVectorStore.clear

    with pytest.raises(NotImplementedError):
        accelerate(Small(path="")).clear()


def test_searches_are_a_stage(bench):
    """Each is told once, whoever asks."""

    class Heard:
        names: ClassVar = []

        def started(self, stage):
            self.names.append(stage.name)

        def ended(self, stage):
            pass

    listener = Heard()
    telemetry.listen(listener)
    bench.plain.retrieve("cats")
    asyncio.run(bench.plain.aretrieve("cats"))
    telemetry.unlisten(listener)
    assert listener.names.count("search") == 2


def test_tenants_do_not_meet(bench):
    """An answer under one name is not served under another, and both are fresh."""
    other = accelerate(bench.plain, cache=bench.cache, namespace="other")
    assert not bench.ask(retriever=other)[1]
    assert bench.ask(retriever=other)[1]
    bench.index.delete_nodes(["0"])
    assert not bench.ask(retriever=other)[1]
    assert not bench.ask()[1]


# -- any order -------------------------------------------------------------------------------------

WORDS = ("red", "green", "blue", "apple", "pear", "sky")
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
KINDS = {
    "one": {"similarity_top_k": 1},
    "three": {"similarity_top_k": 3},
    "all": {"similarity_top_k": 50},
    "filtered": {"similarity_top_k": 2, "filters": EVEN},
    "mmr": {"similarity_top_k": 2, "vector_store_query_mode": VectorStoreQueryMode.MMR},
}


class Writing(RuleBasedStateMachine):
    """Writes and cached questions in any order; every answer is compared with a search."""

    def __init__(self):
        super().__init__()
        self.cache = MultiLevelCache.open()
        self.store = accelerate(SimpleVectorStore())
        self.index = VectorStoreIndex(
            [], embed_model=HashEmbedding(),
            storage_context=StorageContext.from_defaults(vector_store=self.store),
        )  # fmt: skip
        self.plain = {
            name: VectorIndexRetriever(self.index, **kind) for name, kind in KINDS.items()
        }
        self.fast = {name: accelerate(one, cache=self.cache) for name, one in self.plain.items()}
        self.rows = 0

    @rule(some=st.lists(texts, min_size=1, max_size=6))
    def insert(self, some):
        self.index.insert_nodes(
            [
                node(self.rows + at, text, f"doc-{(self.rows + at) // 2}", even=at % 2 == 0)
                for at, text in enumerate(some)
            ]
        )
        self.rows += len(some)

    @precondition(lambda self: self.rows)
    @rule(text=texts, even=st.booleans(), pick=st.randoms(use_true_random=False))
    def replace(self, text, even, pick):
        self.index.insert_nodes([node(pick.randrange(self.rows), text, even=even)])

    @precondition(lambda self: self.rows)
    @rule(pick=st.randoms(use_true_random=False))
    def delete(self, pick):
        asyncio.run(self.index.adelete_nodes([str(pick.randrange(self.rows))]))

    @precondition(lambda self: self.rows)
    @rule(pick=st.randoms(use_true_random=False))
    def delete_document(self, pick):
        with contextlib.suppress(KeyError):  # LlamaIndex's own, for nodes that are gone already
            self.index.delete_ref_doc(f"doc-{pick.randrange(self.rows) // 2}")

    @rule()
    def clear(self):
        self.store.clear()

    @rule(
        query=st.sampled_from(("red apple", "green", "sky pear")),
        kind=st.sampled_from(sorted(KINDS)),
    )
    def ask(self, query, kind):
        try:
            found_now = self.plain[kind].retrieve(query)
        except KeyError:  # LlamaIndex's own, for nodes that it forgot before they were deleted
            return
        assert self.fast[kind].retrieve(query) == found_now
        misses = self.cache.stats().misses
        assert self.fast[kind].retrieve(query) == found_now
        assert self.cache.stats().misses == misses

    def teardown(self):
        self.cache.close()


def test_no_order_of_writes_makes_an_answer_stale():
    """Whatever is inserted, replaced, deleted and cleared, an answer equals a search made now.

    And asked again before the next write, it comes from the cache.
    """
    run_state_machine_as_test(Writing, settings=settings(max_examples=20, stateful_step_count=30))


def test_most_answers_survive_writes_that_do_not_concern_them(cache):
    """Over a long random run no answer is stale, and most of them come from the cache."""
    chance = random.Random(7)
    vocabulary = [f"word{number}" for number in range(400)]

    def words():
        return " ".join(chance.sample(vocabulary, 4))

    bench = Bench(cache, SimpleVectorStore(), texts=[words() for _ in range(300)], k=3)
    queries = [words() for _ in range(5)]
    for number in range(150):
        act = chance.random()
        row = str(chance.randrange(300))
        if act < 0.1:
            bench.index.insert_nodes([node(300 + number, words())])
        elif act < 0.2 and row in bench.store.data.embedding_dict:
            bench.index.delete_nodes([row])
        bench.ask(chance.choice(queries))
    assert cache.stats().hit_rate > 0.7
