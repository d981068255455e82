"""Whatever decides an answer is in its key: two that differ never share an entry."""

from __future__ import annotations

import uuid
from datetime import date
from decimal import Decimal
from enum import Enum
from functools import partial

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from ragaccel import MultiLevelCache, accelerate
from ragaccel.langchain import CompressedVectorStore
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.retrievers import TEXTS, NativeAsync, WordRetriever
from tests.langchain.stores import opened

QUERY = "sky red tree"


def assert_apart(cache, *retrievers):
    """Ask them in turn, twice: each gives its own answer, and none that of another."""
    answers = [plain.invoke(QUERY) for plain, _ in retrievers]
    assert all(answer != answers[0] for answer in answers[1:]), "the test compares equal answers"
    for known in (False, True):
        for (_, fast), answer in zip(retrievers, answers, strict=True):
            assert fast.invoke(QUERY) == answer
        assert sum(cache.stats().hits.values()) == known * len(answers)
    assert cache.stats().bypasses == {}


def test_two_stores_are_told_apart(cache):
    """Equal retrievers over two stores answer from their own store."""
    stores = opened(), opened()
    stores[1].add_texts([QUERY])
    retrievers = [store.as_retriever() for store in stores]
    assert_apart(cache, *((one, accelerate(one, cache=cache)) for one in retrievers))


def test_two_foreign_stores_are_told_apart(cache):
    """So do retrievers over two stores of another house."""
    retrievers = [
        InMemoryVectorStore.from_texts(list(texts), HashEmbeddings()).as_retriever()
        for texts in (TEXTS, TEXTS[::-1][:3])
    ]
    assert_apart(cache, *((one, accelerate(one, cache=cache)) for one in retrievers))


class Hidden(Embeddings):
    """Keeps its settings in a private attribute."""

    def __init__(self, seed):
        self._model = HashEmbeddings(seed=seed)
        self._seed = seed

    def embed_documents(self, texts):
        return self._model.embed_documents(texts)

    def embed_query(self, text):
        return self._model.embed_query(text)


class Truncating(HashEmbeddings):
    """Sees the first words of a text only."""

    def __init__(self, max_tokens):
        super().__init__()
        self.max_tokens = max_tokens

    def embed_query(self, text):
        return super().embed_query(" ".join(text.split()[: self.max_tokens]))


MODELS = {
    "public setting": (partial(HashEmbeddings, seed=0), partial(HashEmbeddings, seed=1)),
    "setting with token in its name": (partial(Truncating, 1), partial(Truncating, 3)),
    "class": (HashEmbeddings, partial(Truncating, 1)),
}


@pytest.mark.parametrize("models", MODELS.values(), ids=MODELS)
def test_two_models_over_one_collection_are_told_apart(models, tmp_path, cache):
    """One collection that is asked with two embedding models has answers of each."""
    opened(tmp_path / "corpus").close()
    stores = [
        CompressedVectorStore.open(tmp_path / "corpus", model(), read_only=True) for model in models
    ]
    retrievers = [store.as_retriever(search_kwargs={"k": 1}) for store in stores]
    assert_apart(cache, *((one, accelerate(one, cache=cache)) for one in retrievers))


def test_models_that_cannot_be_told_apart_are_not_guessed_at(tmp_path, cache):
    """Settings that cannot be read need an identity, and with one they are told apart."""
    opened(tmp_path / "corpus").close()
    retrievers = [
        CompressedVectorStore.open(tmp_path / "corpus", Hidden(seed), read_only=True).as_retriever()
        for seed in (0, 1)
    ]
    for one in retrievers:
        with pytest.raises(ValueError, match="identity="):
            accelerate(one, cache=cache)
    assert_apart(
        cache,
        *(
            (one, accelerate(one, cache=cache, identity=f"corpus, model {seed}"))
            for seed, one in enumerate(retrievers)
        ),
    )


def test_two_tenants_are_told_apart(cache):
    """The same question in two namespaces is two entries, even in one retriever."""
    retriever = WordRetriever()
    for tenant in ("a", "b", None):
        accelerate(retriever, cache=cache, identity="words", namespace=tenant).invoke(QUERY)
    assert retriever.asked == [QUERY] * 3
    assert cache.stats().hits == {}
    accelerate(retriever, cache=cache, identity="words", namespace="a").invoke(QUERY)
    assert cache.stats().hits == {"memory": 1}


def test_tenant_without_a_name_is_a_tenant(cache):
    """An empty namespace is not the cache's own one."""
    retriever = WordRetriever()
    for tenant in (None, ""):
        accelerate(retriever, cache=cache, identity="words", namespace=tenant).invoke(QUERY)
    assert retriever.asked == [QUERY] * 2


def test_caches_of_two_namespaces_on_one_disk_are_told_apart(tmp_path):
    """Two applications that share a folder do not share answers."""
    retriever = WordRetriever()
    for namespace in ("a", "b", "a"):
        with MultiLevelCache.open(tmp_path, namespace=namespace) as cache:
            accelerate(retriever, cache=cache, identity="words").invoke(QUERY)
    assert retriever.asked == [QUERY] * 2


def test_settings_are_told_apart(store, cache):
    """Numbers of results, filters and search types have entries of their own."""
    settings = [
        {"search_kwargs": {"k": 1}},
        {"search_kwargs": {"k": 2}},
        {"search_kwargs": {"k": 3, "filter": {"number": {"$gt": 2}}}},
        {"search_kwargs": {"k": 3, "filter": {"number": {"$lt": 3}}}},
        {"search_type": "mmr", "search_kwargs": {"k": 3, "lambda_mult": 0.0}},
    ]
    retrievers = [store.as_retriever(**one) for one in settings]
    assert_apart(cache, *((one, accelerate(one, cache=cache)) for one in retrievers))


def test_identities_and_classes_are_told_apart(cache):
    """Another identity, or another class of the same identity, is another retriever."""
    reversed_texts = WordRetriever(texts=TEXTS[::-1])
    plain = WordRetriever()
    asynchronous = NativeAsync(texts=TEXTS[:2])
    assert_apart(
        cache,
        (plain, accelerate(plain, cache=cache, identity="one")),
        (reversed_texts, accelerate(reversed_texts, cache=cache, identity="two")),
        (asynchronous, accelerate(asynchronous, cache=cache, identity="one")),
    )


def test_visible_settings_are_told_apart_beside_the_identity(cache):
    """An identity names what cannot be seen; fields that can be seen count all the same."""
    retrievers = [WordRetriever(k=k) for k in (1, 2)]
    assert_apart(
        cache, *((one, accelerate(one, cache=cache, identity="words")) for one in retrievers)
    )


@pytest.mark.parametrize(
    "queries",
    [("red", "Red"), ("red", "red "), ("é", "e\u0301"), ("1", "\uff11"), ("", " ")],
)
def test_queries_are_told_apart(queries, cache):
    """Queries are the same only if every character is."""
    retriever = WordRetriever()
    fast = accelerate(retriever, cache=cache, identity="words")
    for query in queries:
        fast.invoke(query)
    assert retriever.asked == list(queries)


class Color(Enum):
    RED = "red"


class Showing(WordRetriever):
    """Returns the argument it was called with."""

    def _get_relevant_documents(self, query, *, run_manager, given=None):
        return [Document(page_content=f"{type(given).__name__} {given!r}")]


NUMBER = uuid.UUID(int=7)
DAY = date(2024, 5, 17)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (1, "1"),
        (None, "None"),
        ("a", b"a"),
        (NUMBER, str(NUMBER)),
        (DAY, DAY.isoformat()),
        (Decimal("1.5"), "1.5"),
        (Color.RED, "red"),
        ({"a": 1}, {"a": 1.0}),
        (["a", "b"], ["ab"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_arguments_are_told_apart(one, other, cache):
    """Arguments of different types are different, even if they are written alike."""
    retriever = Showing()
    fast = accelerate(retriever, cache=cache, identity="showing")
    for given in (one, other, one, other):
        assert fast.invoke(QUERY, given=given) == retriever.invoke(QUERY, given=given)


def test_order_of_settings_does_not_matter(store, cache):
    """Dicts that are equal make one key, in whatever order they were written."""
    for search_kwargs in (
        {"k": 2, "filter": {"number": {"$gt": 0, "$lt": 5}}},
        {"filter": {"number": {"$lt": 5, "$gt": 0}}, "k": 2},
    ):
        accelerate(store.as_retriever(search_kwargs=search_kwargs), cache=cache).invoke(QUERY)
    assert cache.stats().hits == {"memory": 1}
