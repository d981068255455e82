"""Questions that differ in case, white space or forms of characters alone are one question."""

from __future__ import annotations

import asyncio
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import QueryBundle, TextNode

from ragaccel import MultiLevelCache, accelerate
from ragaccel.errors import ConfigurationError
from ragaccel.reuse import same_words
from tests.langchain.embeddings import HashEmbeddings
from tests.llamaindex.embeddings import TEXTS, HashEmbedding

ALIKE = ("Where do cats sleep?", "  where do CATS\tsleep? ", "\uff37here do cats sleep?")
words = st.lists(st.text("abcdefghijklmnopqrstuvwxyzäöüß", min_size=1), min_size=1)


@pytest.fixture
def cache():
    with MultiLevelCache.open() as made:
        yield made


class LlamaIndexRetriever:
    def __init__(self):
        nodes = [TextNode(text=text) for text in TEXTS]
        self.plain = VectorStoreIndex(nodes, embed_model=HashEmbedding()).as_retriever()

    def ask(self, retriever, query):
        return retriever.retrieve(query)

    def ask_async(self, retriever, query):
        return asyncio.run(retriever.aretrieve(query))


class LangChainRetriever:
    def __init__(self):
        store = InMemoryVectorStore(HashEmbeddings())
        store.add_texts(TEXTS)
        self.plain = store.as_retriever()

    def ask(self, retriever, query):
        return retriever.invoke(query)

    def ask_async(self, retriever, query):
        return asyncio.run(retriever.ainvoke(query))


class LlamaIndexModel:
    plain = HashEmbedding()

    def ask(self, model, query):
        return model.get_query_embedding(query)

    def ask_async(self, model, query):
        return asyncio.run(model.aget_query_embedding(query))


class LangChainModel:
    plain = HashEmbeddings()

    def ask(self, model, query):
        return model.embed_query(query)

    def ask_async(self, model, query):
        return asyncio.run(model.aembed_query(query))


@pytest.fixture(
    params=[LlamaIndexRetriever, LangChainRetriever, LlamaIndexModel, LangChainModel],
    ids=lambda one: one.__name__,
)
def subject(request):
    """A retriever or an embedding model, and how it is asked."""
    return request.param()


def test_they_are_answered_once(subject, cache):
    """All get the answer to the first of them, by either face."""
    fast = accelerate(subject.plain, cache=cache, normalise=same_words())
    first = subject.ask(fast, ALIKE[0])
    for query in ALIKE:
        assert subject.ask(fast, query) == first
        assert subject.ask_async(fast, query) == first
    assert cache.stats().misses == 1


def test_without_it_every_spelling_is_a_question(subject, cache):
    """It is off by default."""
    fast = accelerate(subject.plain, cache=cache)
    for query in ALIKE:
        subject.ask(fast, query)
    assert cache.stats().misses == 3


def test_other_words_are_another_question(subject, cache):
    """Their answers are their own."""
    fast = accelerate(subject.plain, cache=cache, normalise=same_words())
    plain = accelerate(subject.plain, cache=MultiLevelCache.open())
    for query in ("where do cats sleep", "where do dogs sleep", "wheredo cats sleep"):
        assert subject.ask(fast, query) == subject.ask(plain, query)
    assert cache.stats().misses == 3


def test_who_does_not_ask_for_it_never_gets_it(subject, cache):
    """With one cache, exact questions and those of another rule have entries of their own."""
    rules = (same_words(), None, same_words(case=False), str.lower)
    for rule in rules:
        subject.ask(accelerate(subject.plain, cache=cache, normalise=rule), "cats")
    assert cache.stats().misses == len(rules)


class Without:
    """A rule with a setting: how many letters are left out."""

    def __init__(self, letters):
        self.letters = letters

    def __call__(self, text):
        return text[self.letters :]


@pytest.mark.parametrize(
    "made",
    [Without, lambda letters: Without(letters).__call__, lambda letters: lambda t: t[letters:]],
    ids=["object", "method", "closure"],
)
def test_rules_of_one_name_are_told_apart(subject, cache, made):
    """What one makes of another question is no answer to what the other makes the same of."""
    short, long = made(3), made(5)
    subject.ask(accelerate(subject.plain, cache=cache, normalise=short), "of cats")
    fast = accelerate(subject.plain, cache=cache, normalise=long)
    plain = accelerate(subject.plain, cache=MultiLevelCache.open())
    for _ in range(2):
        assert subject.ask(fast, "dogs cats") == subject.ask(plain, "dogs cats")
    assert cache.stats().misses == 2


@pytest.mark.parametrize("rule", [lambda _: 1 / 0, lambda _: None])
def test_a_rule_that_fails_costs_the_cache_and_nothing_else(subject, cache, rule):
    """The question is answered as if there were none."""
    fast = accelerate(subject.plain, cache=cache, normalise=rule)
    for _ in range(2):
        assert subject.ask(fast, ALIKE[0]) == subject.ask(subject.plain, ALIKE[0])
    assert cache.stats().bypasses == {"normalise": 2}


def test_texts_are_never_taken_for_others(cache):
    """Documents are embedded as they are."""
    fast = accelerate(HashEmbeddings(), cache=cache, normalise=same_words())
    fast.embed_documents(list(ALIKE))
    assert len(fast.embed_documents(["Cats", "cats"])) == 2
    assert cache.stats().misses == 5


def test_all_that_a_bundle_asks_with_is_spelled_alike(cache):
    """Also the strings that are embedded in place of the question."""
    subject = LlamaIndexRetriever()
    fast = accelerate(subject.plain, cache=cache, normalise=same_words())
    fast.retrieve(QueryBundle("cats", custom_embedding_strs=["Cats sleep"]))
    fast.retrieve(QueryBundle("CATS", custom_embedding_strs=["cats  sleep"]))
    assert cache.stats().misses == 1
    fast.retrieve(QueryBundle("cats", custom_embedding_strs=["dogs sleep"]))
    assert cache.stats().misses == 2


@given(words, words)
def test_different_words_never_meet(one, other):
    """Whatever the letters, two lists of words are alike only if they are the same."""
    alike = same_words()
    spelled = alike(" ".join(one)) == alike("  ".join(other).upper())
    folded = [[word.casefold() for word in some] for some in (one, other)]
    assert spelled is (folded[0] == folded[1])


def test_each_part_can_be_left_out():
    """Case and white space, by option."""
    assert same_words(case=False)("A  b") == "A b"
    assert same_words(space=False)("A  b") == "a  b"
    assert same_words()("ﬁne  Straße") == "fine strasse"
    assert pickle.loads(pickle.dumps(same_words()))("A") == "a"


def test_a_rule_has_to_be_a_function():
    """A name is none."""
    with pytest.raises(ConfigurationError, match="normalise must be a function"):
        accelerate(HashEmbeddings(), normalise="nfkc")
