"""An accelerated vector store of another house: cached answers over it are never stale.

Every answer is compared with one that is searched for now.
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore, VectorStoreRetriever

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import ConfigurationError
from ragaccel.langchain import CompressedVectorStore
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.retrievers import TEXTS, Delegating

IDS = [f"text-{number}" for number in range(len(TEXTS))]


class SharedVectorStore(VectorStore):
    """A store of another class, whose rows are in a SQLite file; it keeps to LangChain's basics."""

    def __init__(self, path, embedding=None):
        self.path = str(path)
        self.embedding = embedding or HashEmbeddings()

    @property
    def embeddings(self):
        return self.embedding

    def _do(self, statement, rows=((),)):
        db = sqlite3.connect(self.path, timeout=30)
        try:
            db.execute("CREATE TABLE IF NOT EXISTS row (id PRIMARY KEY, text, vector)")
            found = [one for row in rows for one in db.execute(statement, row).fetchall()]
            db.commit()
            return found
        finally:
            db.close()

    def add_texts(self, texts, metadatas=None, *, ids=None, **kwargs):
        texts = list(texts)
        vectors = map(json.dumps, self.embedding.embed_documents(texts))
        self._do("REPLACE INTO row VALUES (?, ?, ?)", list(zip(ids, texts, vectors, strict=True)))
        return ids

    def delete(self, ids=None, **kwargs):
        self._do("DELETE FROM row WHERE id = ?", [(one,) for one in ids or ()])

    def drop_tables(self):
        """Delete every row; no method that LangChain knows."""
        self._do("DELETE FROM row")

    def similarity_search(self, query, k=4, **kwargs):
        asked = np.asarray(self.embedding.embed_query(query))
        rows = [
            (float(asked @ np.asarray(json.loads(vector))), row, text)
            for row, text, vector in self._do("SELECT * FROM row")
        ]
        return [Document(page_content=text, id=row) for _, row, text in sorted(rows)[::-1][:k]]

    @classmethod
    def from_texts(cls, texts, embedding, metadatas=None, *, path="", ids=None, **kwargs):
        made = cls(path, embedding)
        made.add_texts(texts, ids=ids)
        return made


class Bench:
    """An accelerated store with six texts, a plain and a cached retriever over it."""

    def __init__(self, cache, store, search_type="similarity", **search_kwargs):
        self.cache = cache
        self.store = accelerate(store)
        self.store.add_texts(TEXTS, ids=IDS)
        self.plain = self.store.as_retriever(
            search_type=search_type, search_kwargs=search_kwargs or {"k": 2}
        )
        self.fast = accelerate(self.plain, cache=cache)

    def ask(self, query=TEXTS[0], retriever=None):
        """Ask, compare with a search, and return the ids found and whether they were kept."""
        before = self.cache.stats().misses
        found = (retriever or self.fast).invoke(query)
        assert found == self.plain.invoke(query)
        return [one.id for one in found], self.cache.stats().misses == before


@pytest.fixture
def bench(cache):
    """An `InMemoryVectorStore`, asked once."""
    made = Bench(cache, InMemoryVectorStore(HashEmbeddings()))
    made.ask()
    assert made.ask()[1]
    return made


@pytest.fixture
def other(tmp_path, cache):
    """A store of another class, asked once."""
    made = Bench(cache, SharedVectorStore(tmp_path / "rows"))
    made.ask()
    assert made.ask()[1]
    return made


def test_a_near_text_is_found_and_a_far_one_changes_nothing(bench):
    """Only a text that scores as high as the last one found makes an answer stale."""
    bench.store.add_texts(["zzz"], ids=["far"])
    assert bench.ask()[1]
    bench.store.add_documents([Document(page_content=TEXTS[0] + " indeed", id="near")])
    found, kept = bench.ask()
    assert "near" in found
    assert not kept


def test_deletes_and_updates(bench):
    """They make an answer stale if it holds the text, whatever that scores now."""
    found, _ = bench.ask()
    away = [one for one in IDS if one not in found]
    bench.store.delete(away[:1])
    assert bench.ask()[1]
    bench.store.add_texts(["zzz yyy"], ids=away[1:2])
    assert bench.ask()[1]
    bench.store.add_texts(["zzz yyy"], ids=found[1:])
    assert not bench.ask()[1]
    bench.store.delete(iter(found[:1]))
    assert not bench.ask()[1]


async def test_asynchronous_writes(bench):
    """They are the same writes."""
    await bench.store.aadd_documents([Document(page_content=TEXTS[0] + " indeed", id="near")])
    assert "near" in bench.ask()[0]
    await bench.store.adelete(["near"])
    found = await bench.fast.ainvoke(TEXTS[0])
    assert "near" not in [one.id for one in found]
    await bench.store.aadd_texts([TEXTS[0] + " indeed"], ids=["near"])
    assert "near" in bench.ask()[0]


def test_writes_through_a_retriever_and_by_indexing(bench):
    """Both call the store by themselves."""
    bench.fast.add_documents([Document(page_content=TEXTS[0] + " indeed", id="near")])
    assert "near" in bench.ask()[0]
    records = InMemoryRecordManager("here")
    records.create_schema()
    document = Document(page_content=TEXTS[0], metadata={"source": "s"})
    index([document], records, bench.store, source_id_key="source", key_encoder="sha256")
    assert not bench.ask()[1]
    index([], records, bench.store, cleanup="full", source_id_key="source", key_encoder="sha256")
    assert not bench.ask()[1]


@pytest.mark.parametrize("kind", ["mmr", "similarity"])
def test_what_maximal_marginal_relevance_chooses_from(cache, kind):
    """It holds as long as the texts that it chooses from do, found or not."""
    bench = Bench(
        cache, InMemoryVectorStore(HashEmbeddings()), kind,
        **({"k": 1, "fetch_k": 3} if kind == "mmr" else {"k": 1}),
    )  # fmt: skip
    bench.ask()
    second = bench.store.similarity_search(TEXTS[0], k=2)[1].id
    bench.store.add_texts(["zzz"], ids=["far"])
    assert bench.ask()[1]
    bench.store.delete([second])
    assert bench.ask()[1] is (kind == "similarity")


@pytest.mark.parametrize("k", [1, 2, 3])
def test_equal_scores_have_no_order_to_keep(cache, k):
    """Whether all such texts were found or some of them: which come first is chance."""
    bench = Bench(cache, InMemoryVectorStore(HashEmbeddings()), k=k)
    bench.store.add_texts([TEXTS[0]], ids=["twin"])
    bench.ask()
    assert bench.ask()[1]
    bench.store.delete(["nothing"])
    assert not bench.ask()[1]


def test_any_write_to_another_store_makes_answers_stale(other):
    """Its vectors cannot be seen."""
    for write in (
        lambda: other.store.add_texts(["zzz"], ids=["far"]),
        lambda: other.store.delete(["far"]),
        lambda: other.store.add_documents([Document(page_content="zzz", id="far")]),
        lambda: asyncio.run(other.store.aadd_texts(["zzz"], ids=["far"])),
        lambda: asyncio.run(other.store.adelete(["far"])),
        other.store.drop_tables,
    ):
        write()
        assert not other.ask()[1]
        assert other.ask()[1]
        assert asyncio.run(other.fast.ainvoke(TEXTS[0])) == other.plain.invoke(TEXTS[0])


class InThread(VectorStoreRetriever):
    """Searches in a thread that knows nothing of the caller's context."""

    def _get_relevant_documents(self, query, *, run_manager):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.vectorstore.similarity_search, query, k=2).result()


def test_a_search_in_a_thread_of_its_own_is_not_kept(bench, cache):
    """Nobody could see what it depends on."""
    plain = InThread(vectorstore=bench.store)
    fast = accelerate(plain, cache=cache, identity="in a thread")
    found = fast.invoke(TEXTS[0])
    bench.store.delete([found[0].id])
    assert fast.invoke(TEXTS[0]) == plain.invoke(TEXTS[0]) != found


def test_a_retriever_of_ones_own_follows_the_store(bench, cache):
    """Its searches are watched, and what a cached retriever inside it serves is as well."""
    mine = accelerate(Delegating(inner=bench.fast), cache=cache, identity="mine")
    found = mine.invoke(TEXTS[0])
    assert mine.invoke(TEXTS[0]) == found
    bench.store.delete([found[0].id])
    assert mine.invoke(TEXTS[0]) == bench.plain.invoke(TEXTS[0]) != found


def test_processes_share_a_file(tmp_path, cache):
    """A second object over the same rows with the same file is as fresh."""
    stores = []
    for _ in range(2):
        plain = SharedVectorStore(tmp_path / "rows")
        stores.append(accelerate(plain, changes=tmp_path / "changes"))
    stores[0].add_texts(TEXTS, ids=IDS)
    plain = stores[0].as_retriever(search_kwargs={"k": 1})
    fast = accelerate(plain, cache=cache)
    assert [one.id for one in fast.invoke(TEXTS[0])] == ["text-0"]
    stores[1].delete(["text-0"])
    assert fast.invoke(TEXTS[0]) == plain.invoke(TEXTS[0])
    assert fast.invoke(TEXTS[0])[0].id != "text-0"


def test_options_that_do_not_suit(tmp_path):
    """Rows of this process have no shared log; scores cannot be declared."""
    store = InMemoryVectorStore(HashEmbeddings())
    with pytest.raises(ConfigurationError, match="in this process"):
        accelerate(store, changes=tmp_path / "changes")
    with pytest.raises(ConfigurationError, match="metric="):
        accelerate(SharedVectorStore(tmp_path / "rows"), metric="cosine")
    with pytest.raises(ConfigurationError, match="metric"):
        accelerate(store, metric="manhattan")


# -- the store itself ------------------------------------------------------------------------------


def test_it_is_what_it_was():
    """Class, attributes and methods are the original's, which is not changed."""
    plain = InMemoryVectorStore(HashEmbeddings())
    before = dict(vars(plain))
    fast = accelerate(plain)
    fast.add_texts(TEXTS, ids=IDS)
    assert isinstance(fast, InMemoryVectorStore)
    assert unwrap(fast) is plain
    assert {**vars(plain)} == before
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(fast), name) == getattr(type(plain), name)
    for method in ("similarity_search", "similarity_search_with_score"):
        assert getattr(fast, method)(TEXTS[1], k=3) == getattr(plain, method)(TEXTS[1], k=3)
    assert fast.get_by_ids(IDS) == plain.get_by_ids(IDS)
    made = type(fast).from_texts(TEXTS, HashEmbeddings(), ids=IDS)
    assert made.similarity_search(TEXTS[1]) == plain.similarity_search(TEXTS[1])
    assert accelerate(plain) is fast


def test_missing_methods_stay_missing(tmp_path):
    """LangChain asks whether a class has methods of its own."""

    class Small(SharedVectorStore):
        delete = VectorStore.delete

    fast = accelerate(Small(tmp_path / "rows"))
    assert type(fast).delete is VectorStore.delete
    with pytest.raises(NotImplementedError):
        fast.max_marginal_relevance_search("query")


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))],
    ids=["copy", "deepcopy", "pickle"],
)  # fmt: skip
def test_copies_never_serve_each_other_wrongly(cache, duplicate):
    """Whether they share their rows or not."""
    fast = accelerate(InMemoryVectorStore(HashEmbeddings()))
    fast.add_texts(TEXTS, ids=IDS)
    twin = duplicate(fast)
    assert type(twin) is type(fast)
    plains = [store.as_retriever(search_kwargs={"k": 2}) for store in (fast, twin)]
    retrievers = [(plain, accelerate(plain, cache=cache)) for plain in plains]
    for write in (
        lambda: None,
        lambda: fast.delete(["text-0"]),
        lambda: twin.delete(["text-1"]),
        lambda: twin.add_texts([TEXTS[0] + " indeed"], ids=["near"]),
    ):
        write()
        for plain, cached in retrievers * 2:
            assert cached.invoke(TEXTS[0]) == plain.invoke(TEXTS[0])


def test_our_own_store_needs_none():
    """Its collection has a change log of its own."""
    store = CompressedVectorStore(HashEmbeddings())
    assert accelerate(store) is store


def test_batched_queries_go_to_the_same_store(cache):
    """A retriever that embeds queries together has a copy of the store, over the same rows."""
    store = accelerate(InMemoryVectorStore(HashEmbeddings()))
    store.add_texts(TEXTS, ids=IDS)
    plain = store.as_retriever(search_kwargs={"k": 2})
    fast = accelerate(plain, cache=cache, batch=True)
    for write in (lambda: None, lambda: store.delete(["text-0"])):
        write()
        assert fast.invoke(TEXTS[0]) == plain.invoke(TEXTS[0]) == fast.invoke(TEXTS[0])


# -- any order -------------------------------------------------------------------------------------

WORDS = ("red", "green", "blue", "apple", "pear", "sky")
QUERIES = ("red apple", "green", "sky pear blue", "none of them")
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
KINDS = {
    "one": ("similarity", {"k": 1}),
    "three": ("similarity", {"k": 3}),
    "all": ("similarity", {"k": 50}),
    "mmr": ("mmr", {"k": 2, "fetch_k": 4}),
}


class Writing(RuleBasedStateMachine):
    """Writes and cached questions in any order; every answer is compared with a search."""

    hits = stale = 0

    def __init__(self):
        super().__init__()
        self.cache = MultiLevelCache.open()
        self.store = accelerate(InMemoryVectorStore(HashEmbeddings()))
        self.plain = {
            name: self.store.as_retriever(search_type=kind, search_kwargs=given)
            for name, (kind, given) in KINDS.items()
        }
        self.fast = {name: accelerate(one, cache=self.cache) for name, one in self.plain.items()}
        self.ids = []

    @rule(some=st.lists(texts, min_size=1, max_size=6))
    def add(self, some):
        self.ids += self.store.add_documents([Document(page_content=text) for text in some])

    @precondition(lambda self: self.ids)
    @rule(text=texts, pick=st.randoms(use_true_random=False))
    def replace(self, text, pick):
        asyncio.run(self.store.aadd_texts([text], ids=[pick.choice(self.ids)]))

    @precondition(lambda self: self.ids)
    @rule(pick=st.randoms(use_true_random=False))
    def delete(self, pick):
        self.store.delete([pick.choice(self.ids)])

    @rule(query=st.sampled_from(QUERIES), kind=st.sampled_from(sorted(KINDS)))
    def ask(self, query, kind):
        assert self.fast[kind].invoke(query) == self.plain[kind].invoke(query)

    def teardown(self):
        stats = self.cache.stats()
        Writing.hits += sum(stats.hits.values())
        Writing.stale += stats.stale
        self.cache.close()


def test_no_order_of_writes_makes_an_answer_stale():
    """Whatever is added, replaced and deleted, an answer equals a search made now."""
    Writing.hits = Writing.stale = 0
    run_state_machine_as_test(
        Writing, settings=settings(max_examples=25, stateful_step_count=40, deadline=None)
    )
    assert Writing.hits > 0
    assert Writing.stale > 0


def test_most_answers_survive_writes_that_do_not_concern_them(cache):
    """Over a long random run no answer is stale, and most of them come from the cache."""
    chance = random.Random(7)
    vocabulary = [f"word{number}" for number in range(400)]

    def words():
        return " ".join(chance.sample(vocabulary, 4))

    bench = Bench(cache, InMemoryVectorStore(HashEmbeddings()), k=3)
    bench.store.add_texts([words() for _ in range(300)], ids=[str(row) for row in range(300)])
    queries = [words() for _ in range(5)]
    for _ in range(300):
        act = chance.random()
        if act < 0.1:
            bench.store.add_texts([words()])
        elif act < 0.2:
            bench.store.delete([str(chance.randrange(300))])
        bench.ask(chance.choice(queries))
    assert cache.stats().hit_rate > 0.7
