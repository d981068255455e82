"""A cached answer is the answer that a search would give now, whatever was written since."""

from __future__ import annotations

import asyncio
import random
import shutil

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from langchain_core.documents import Document

from ragaccel import MultiLevelCache, accelerate
from ragaccel.langchain import CompressedVectorStore
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.retrievers import TEXTS, Delegating
from tests.langchain.stores import opened

WORDS = ("red", "green", "blue", "apple", "pear", "sky")
QUERIES = ("red apple", "green", "sky pear blue", "none of them")
KINDS = {
    "similarity": ("similarity", {"k": 3}),
    "one": ("similarity", {"k": 1}),
    "all": ("similarity", {"k": 50}),
    "filtered": ("similarity", {"k": 3, "filter": {"even": True}}),
    "threshold": ("similarity_score_threshold", {"k": 4, "score_threshold": 0.75}),
    "mmr": ("mmr", {"k": 2, "fetch_k": 4}),
}

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)


class Writing(RuleBasedStateMachine):
    """Writes and cached questions in any order; every answer is compared with a plain search."""

    def __init__(self):
        super().__init__()
        self.cache = MultiLevelCache.open()
        self.store = CompressedVectorStore(HashEmbeddings())
        self.plain = {
            name: self.store.as_retriever(search_type=search_type, search_kwargs=search_kwargs)
            for name, (search_type, search_kwargs) in KINDS.items()
        }
        self.fast = {
            name: accelerate(retriever, cache=self.cache) for name, retriever in self.plain.items()
        }
        self.ids = []

    @rule(text=texts)
    def add(self, text):
        number = len(self.ids)
        self.ids.append(f"id-{number}")
        self.store.add_texts([text], [{"even": number % 2 == 0}], ids=self.ids[-1:])

    @rule(given=st.lists(texts, min_size=2, max_size=4), kind=st.sampled_from(sorted(KINDS)))
    def add_through_the_retriever(self, given, kind):
        documents = [Document(page_content=text, metadata={"even": True}) for text in given]
        self.ids += self.fast[kind].add_documents(documents)

    @precondition(lambda self: self.ids)
    @rule(text=texts, even=st.booleans(), pick=st.randoms(use_true_random=False))
    def replace(self, text, even, pick):
        self.store.add_texts([text], [{"even": even}], ids=[pick.choice(self.ids)])

    @precondition(lambda self: self.ids)
    @rule(pick=st.randoms(use_true_random=False))
    def delete(self, pick):
        self.store.delete([pick.choice(self.ids)])

    @rule()
    def delete_all(self):
        self.store.delete()

    @rule()
    def flush(self):
        self.store.collection.flush()

    @rule(query=st.sampled_from(QUERIES), kind=st.sampled_from(sorted(KINDS)))
    def ask(self, query, kind):
        found_now = self.plain[kind].invoke(query)
        assert self.fast[kind].invoke(query) == found_now
        misses = self.cache.stats().misses
        assert asyncio.run(self.fast[kind].ainvoke(query)) == found_now
        assert self.cache.stats().misses == misses

    @rule(query=st.sampled_from(QUERIES), kind=st.sampled_from(sorted(KINDS)))
    def ask_asynchronously(self, query, kind):
        answer = asyncio.run(self.fast[kind].ainvoke(query))
        assert answer == self.plain[kind].invoke(query)

    def teardown(self):
        self.cache.close()
        self.store.close()


def test_no_order_of_writes_makes_an_answer_stale():
    """Whatever is added, replaced and deleted, a cached answer equals a search made now.

    And asked again before the next write, it comes from the cache.
    """
    run_state_machine_as_test(Writing, settings=settings(max_examples=30, stateful_step_count=40))


@pytest.mark.parametrize("kind", KINDS)
def test_most_answers_survive_writes_that_do_not_concern_them(kind):
    """Over a long random run no answer is stale, and most of them come from the cache."""
    chance = random.Random(7)
    vocabulary = [f"word{number}" for number in range(400)]

    def words():
        return " ".join(chance.sample(vocabulary, 4))

    store = CompressedVectorStore(HashEmbeddings())
    store.add_texts(
        [words() for _ in range(600)],
        [{"even": row % 2 == 0} for row in range(600)],
        ids=[str(row) for row in range(600)],
    )
    search_type, search_kwargs = KINDS[kind]
    if search_kwargs["k"] > 10:
        search_kwargs = {"k": 20}
    plain = store.as_retriever(search_type=search_type, search_kwargs=search_kwargs)
    queries = [words() for _ in range(5)]
    with MultiLevelCache.open() as cache:
        fast = accelerate(plain, cache=cache)
        for _ in range(400):
            act = chance.random()
            row = str(chance.randrange(600))
            if act < 0.05:
                store.add_texts([words()], [{"even": True}])
            elif act < 0.1:
                store.add_texts([words()], [{"even": False}], ids=[row])
            elif act < 0.15:
                store.delete([row])
            query = chance.choice(queries)
            assert fast.invoke(query) == plain.invoke(query)
        assert cache.stats().hit_rate > 0.5
    store.close()


# -- several objects, several lives ----------------------------------------------------------------


def test_copy_of_a_found_text_is_placed_as_a_search_places_it():
    """A new row with the score of the last result is never lost to a rounding of the last bit."""
    chance = random.Random(1)
    vocabulary = [f"word{number}" for number in range(12)]
    differing = []
    for trial in range(150):
        store = CompressedVectorStore(HashEmbeddings(chance.choice([64, 100, 256, 384])))
        rows = chance.randrange(1, 60)
        store.add_texts([" ".join(chance.sample(vocabulary, 3)) for _ in range(rows)])
        plain = store.as_retriever(search_kwargs={"k": chance.randrange(1, 6)})
        query = " ".join(chance.sample(vocabulary, 3))
        with MultiLevelCache.open() as cache:
            fast = accelerate(plain, cache=cache)
            store.add_texts([fast.invoke(query)[-1].page_content])
            if fast.invoke(query) != plain.invoke(query):
                differing.append(trial)
        store.close()
    assert differing == []


def test_reader_sees_what_the_writer_did(disk_store, embeddings, cache):
    """A cached retriever over a reader follows the writer of the same folder."""
    reader = CompressedVectorStore.open(disk_store.collection.path, embeddings, read_only=True)
    plain = reader.as_retriever(search_kwargs={"k": 2})
    fast = accelerate(plain, cache=cache)
    before = fast.invoke("red apple")
    assert fast.invoke("red apple") == before
    disk_store.add_texts(["red apple"], ids=["new"])
    assert fast.invoke("red apple") == plain.invoke("red apple") != before
    disk_store.delete(["new"])
    assert fast.invoke("red apple") == plain.invoke("red apple") == before
    reader.close()


def test_writer_is_served_again_after_a_reader_is_gone(disk_store, embeddings, cache):
    """Opening and closing a reader of the same folder does not end the writer's hits."""
    fast = accelerate(disk_store.as_retriever(), cache=cache)
    expected = fast.invoke("red apple")
    reader = CompressedVectorStore.open(disk_store.collection.path, embeddings, read_only=True)
    reader.similarity_search("red apple")
    reader.close()
    assert fast.invoke("red apple") == expected
    assert cache.stats().hits == {"memory": 1}


def test_entry_on_disk_outlives_the_process_and_its_writes(tmp_path, embeddings):
    """After a restart an entry is served, repaired where something was written that concerns it."""
    folder = tmp_path / "corpus"

    def run(write=None):
        """Ask once in a new life, and tell whether the cache answered."""
        store = CompressedVectorStore.open(folder, embeddings)
        with MultiLevelCache.open(tmp_path / "cache") as cache:
            fast = accelerate(store.as_retriever(search_kwargs={"k": 2}), cache=cache)
            answer = fast.invoke("red apple")
            assert answer == store.as_retriever(search_kwargs={"k": 2}).invoke("red apple")
            hits = sum(cache.stats().hits.values())
        if write is not None:
            write(store)
        store.close()
        return hits

    opened(folder).close()
    assert run() == 0
    assert run() == 1
    assert run(write=lambda store: store.add_texts(["nothing alike"], ids=["far"])) == 1
    assert run() == 1
    assert run(write=lambda store: store.add_texts(["red apple"], ids=["near"])) == 1
    assert run() == 1
    assert run(write=lambda store: store.delete(["near"])) == 1
    assert run() == 1
    assert run(write=lambda store: store.collection.clear()) == 1
    assert run() == 1


def test_answer_outlives_deletes_while_rows_are_to_spare(cache):
    """Each deleted row is followed by the next one without a search, until the spare ones end."""
    store = CompressedVectorStore(HashEmbeddings())
    store.add_texts([f"apple number {row}" for row in range(60)])
    plain = store.as_retriever(search_kwargs={"k": 3})
    fast = accelerate(plain, cache=cache)
    searches = []
    for _ in range(13):
        found = fast.invoke("apple")
        assert found == plain.invoke("apple")
        searches.append(cache.stats().misses)
        store.delete([found[0].id])
    assert searches == [1] * 11 + [2] * 2
    store.close()


def test_text_that_belongs_into_an_answer_enters_it_without_a_search(store, cache):
    """A new nearest text is the first of the cached answer, and the entry is kept so."""
    plain = store.as_retriever(search_kwargs={"k": 2})
    fast = accelerate(plain, cache=cache)
    fast.invoke("red apple")
    store.add_texts(["red red apple apple"], ids=["new"])
    for _ in range(2):
        assert fast.invoke("red apple") == plain.invoke("red apple")
    assert (cache.stats().misses, sum(cache.stats().hits.values())) == (1, 2)


def test_copied_folder_is_another_store(tmp_path, embeddings, cache):
    """Two copies of a folder that were written apart never share an answer."""
    opened(tmp_path / "one").close()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    stores = [CompressedVectorStore.open(tmp_path / name, embeddings) for name in ("one", "two")]
    for number, store in enumerate(stores):
        store.add_texts([f"red apple of store {number}"], ids=["own"])
    for store in stores:
        plain = store.as_retriever()
        assert accelerate(plain, cache=cache).invoke("red apple") == plain.invoke("red apple")
    for store in stores:
        store.close()


def test_restored_backup_takes_no_answers_from_the_time_after_it(tmp_path, embeddings):
    """A folder that was put back to an earlier state is not served what was written meanwhile."""
    folder, backup = tmp_path / "corpus", tmp_path / "backup"
    opened(folder).close()
    shutil.copytree(folder, backup)
    for text in ("red apple of yesterday", "red apple of today"):
        store = CompressedVectorStore.open(folder, embeddings)
        store.add_texts([text], ids=["own"])
        plain = store.as_retriever()
        with MultiLevelCache.open(tmp_path / "cache") as cache:
            assert accelerate(plain, cache=cache).invoke("red apple") == plain.invoke("red apple")
        store.close()
        shutil.rmtree(folder)
        shutil.copytree(backup, folder)


@pytest.mark.parametrize("inside", ["plain", "traced", "cached"])
def test_retriever_around_a_store_is_as_fresh(store, cache, inside):
    """A retriever that asks another one is served anew after writes to the store behind it."""
    inner = store.as_retriever(search_kwargs={"k": 2})
    plain = Delegating(inner=inner)
    if inside != "plain":
        inner = accelerate(inner, cache=cache if inside == "cached" else None)
    fast = accelerate(Delegating(inner=inner), cache=cache, identity="around the store")
    assert fast.invoke("red apple") == plain.invoke("red apple")
    assert fast.invoke("red apple") == plain.invoke("red apple")
    assert cache.stats().hits["memory"] >= 1
    store.add_texts(["red apple"], ids=["new"])
    assert fast.invoke("red apple") == plain.invoke("red apple")
    store.delete(["new"])
    assert fast.invoke("red apple") == plain.invoke("red apple")


def test_retriever_around_a_cached_answer_is_as_fresh(store, cache):
    """It is, too, if the store was not searched for it because the inner answer was cached."""
    inner = accelerate(store.as_retriever(search_kwargs={"k": 2}), cache=cache)
    inner.invoke("red apple")
    fast = accelerate(Delegating(inner=inner), cache=cache, identity="around the store")
    fast.invoke("red apple")
    store.add_texts(["red apple"], ids=["new"])
    assert fast.invoke("red apple") == store.similarity_search("red apple", 2)


def test_cached_answer_over_a_closed_store_is_not_served(store, cache):
    """A closed store answers through the cache as it answers without one."""
    fast = accelerate(store.as_retriever(), cache=cache)
    assert len(fast.invoke("red apple")) == 4
    assert len(TEXTS) > 4
    store.close()
    with pytest.raises(Exception, match="closed; open it again"):
        fast.invoke("red apple")
