"""Retrievers of both frameworks, accelerated with `neighbours`: the answers of a new search."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from langchain_core.retrievers import BaseRetriever
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ragaccel import MultiLevelCache, accelerate, langchain, llamaindex, telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.telemetry import attributes
from tests.langchain.embeddings import HashEmbeddings
from tests.llamaindex.embeddings import HashEmbedding
from tests.reuse.nearby import reuse, served

ANIMALS = ("cat", "dog", "owl", "bee", "ant", "cow", "elk", "fox", "hen", "pig")
TEXTS = [
    f"the {one} {verb} a {other}"
    for verb in ("sees", "hears", "likes")
    for one in ANIMALS
    for other in ANIMALS
]
WORDS = [
    f"who {verb} the {one} of the {two}"
    for verb in ("sees", "likes")
    for one, two in itertools.pairwise(ANIMALS)
]
QUESTIONS = [f"{words}{more}" for words in WORDS for more in ("", " now", " now now")]


class LangChain:
    """A store of LangChain and retrievers over it."""

    def __init__(self, seed=0):
        self.store = langchain.CompressedVectorStore(HashEmbeddings(seed=seed))
        self.store.add_texts(
            TEXTS, [{"even": int(at % 2 == 0)} for at in range(len(TEXTS))], ids=IDS
        )

    def retriever(self, k=3, even=None, mode="similarity"):
        where = {} if even is None else {"filter": {"even": even}}
        return self.store.as_retriever(search_type=mode, search_kwargs={"k": k, **where})

    @staticmethod
    def ask(retriever, question, asynchronous=False):
        found = (
            asyncio.run(retriever.ainvoke(question)) if asynchronous else retriever.invoke(question)
        )
        return [(one.id, one.page_content, one.metadata) for one in found]

    def write(self, text):
        self.store.add_texts([text], [{"even": 1}], ids=["new"])


class LlamaIndex:
    """A store of LlamaIndex and retrievers over it."""

    def __init__(self, seed=0):
        self.store = llamaindex.CompressedVectorStore()
        model = HashEmbedding(seed=seed)
        self.index = VectorStoreIndex.from_vector_store(self.store, embed_model=model)
        self.index.insert_nodes(
            [
                TextNode(text=text, id_=id_, metadata={"even": int(at % 2 == 0)})
                for at, (text, id_) in enumerate(zip(TEXTS, IDS, strict=True))
            ]
        )

    def retriever(self, k=3, even=None, mode="default"):
        filters = None
        if even is not None:
            filters = MetadataFilters(filters=[ExactMatchFilter(key="even", value=even)])
        return self.index.as_retriever(
            similarity_top_k=k, filters=filters, vector_store_query_mode=mode
        )

    @staticmethod
    def ask(retriever, question, asynchronous=False):
        found = (
            asyncio.run(retriever.aretrieve(question))
            if asynchronous
            else retriever.retrieve(question)
        )
        return [(one.node.node_id, one.node.text, one.node.metadata, one.score) for one in found]

    def write(self, text):
        self.index.insert_nodes([TextNode(text=text, id_="new", metadata={"even": 1})])


IDS = [str(at) for at in range(len(TEXTS))]


@pytest.fixture
def cache():
    """A cache in memory."""
    with MultiLevelCache.open() as cache:
        yield cache


@pytest.fixture(params=[LangChain, LlamaIndex])
def framework(request):
    made = request.param()
    yield made
    made.store.close()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_answers_are_those_of_a_new_search(framework, cache, asynchronous):
    """Questions near to others get the documents, ids, scores and order that a search gives."""
    one = reuse(rows=120)
    plain = framework.retriever()
    fast = accelerate(plain, cache=cache, neighbours=one)
    for question in QUESTIONS:
        answer = framework.ask(fast, question, asynchronous)
        assert answer == framework.ask(plain, question, asynchronous)
    assert served(one) > 5
    assert one.stats().searches == len(QUESTIONS)
    for question in QUESTIONS:
        assert framework.ask(fast, question) == framework.ask(plain, question)


def test_the_exact_cache_comes_first(framework, cache):
    """What was asked word by word is not put to neighbours."""
    one = reuse(rows=120)
    fast = accelerate(framework.retriever(), cache=cache, neighbours=one)
    framework.ask(fast, WORDS[0])
    framework.ask(fast, WORDS[0])
    assert one.stats().searches == 1


def test_it_is_off_by_default(framework, cache):
    """Without `neighbours` another wording is searched for."""
    fast = accelerate(framework.retriever(), cache=cache)
    for question in QUESTIONS:
        framework.ask(fast, question)
    assert cache.stats().misses == len(QUESTIONS)


def test_an_answer_of_neighbours_is_kept_and_follows_writes(framework, cache):
    """It is an exact hit when it is asked again, and repaired by what was written since."""
    one, plain = reuse(rows=len(TEXTS) * 2), framework.retriever()
    fast = accelerate(plain, cache=cache, neighbours=one)
    framework.ask(fast, WORDS[0])
    question = WORDS[0] + " now"
    framework.ask(fast, question)
    assert served(one) == 1
    framework.write(question)
    answer = framework.ask(fast, question)
    assert answer == framework.ask(plain, question)
    assert answer[0][0] == "new"
    assert one.stats().searches == 2


@pytest.mark.parametrize(
    "other",
    [{"k": 4}, {"even": 1}, {"namespace": "another"}, {"model": True}],
    ids=["k", "filter", "tenant", "model"],
)
def test_nothing_is_shared_across_settings_tenants_and_models(framework, cache, other):
    """One that has another k, filter, namespace or embedding model has no neighbours."""
    one = reuse(rows=len(TEXTS) * 2)
    framework.ask(accelerate(framework.retriever(), cache=cache, neighbours=one), WORDS[0])
    options = {name: other[name] for name in other if name == "namespace"}
    asked = {name: other[name] for name in other if name in ("k", "even")}
    stranger = framework.retriever(**asked)
    if "model" in other:
        stranger = type(framework)(seed=7).retriever()
    fast = accelerate(stranger, cache=cache, neighbours=one, **options)
    answer = framework.ask(fast, WORDS[0] + " now")
    assert answer == framework.ask(stranger, WORDS[0] + " now")
    assert served(one) == 0
    assert one.stats().searches == 2


def test_filtered_questions_are_answered_by_filtered_ones(framework, cache):
    """Within one filter neighbours serve, and only what it lets through."""
    one, plain = reuse(rows=120), framework.retriever(even=1)
    fast = accelerate(plain, cache=cache, neighbours=one)
    for question in QUESTIONS:
        answer = framework.ask(fast, question)
        assert answer == framework.ask(plain, question)
        assert all(metadata["even"] for _, _, metadata, *_ in answer)
    assert served(one) > 5


def test_retrievers_that_are_no_plain_search_are_not_changed(framework, cache):
    """Maximal marginal relevance searches for itself, and finds what it always did."""
    one, plain = reuse(rows=120), framework.retriever(mode="mmr")
    fast = accelerate(plain, cache=cache, neighbours=one)
    for question in QUESTIONS[:6]:
        assert framework.ask(fast, question) == framework.ask(plain, question)
    assert one.stats().searches == 0


class Own(BaseRetriever):
    """A retriever of the user's own, over our store."""

    store: langchain.CompressedVectorStore

    def _get_relevant_documents(self, query, *, run_manager):
        return self.store.similarity_search(query, 3)


def test_retrievers_of_ones_own_are_not_changed(cache):
    """What else such a retriever does with what it finds cannot be known."""
    one, framework = reuse(rows=120), LangChain()
    fast = accelerate(Own(store=framework.store), cache=cache, identity="own", neighbours=one)
    assert len(fast.invoke(WORDS[0])) == 3
    assert one.stats().searches == 0


def test_it_needs_a_cache():
    """Without a cache the option is refused, and the message says why."""
    with pytest.raises(ConfigurationError, match="neighbours need a cache"):
        accelerate(LangChain().retriever(), neighbours=reuse())


def test_the_stage_says_that_neighbours_answered(framework, cache):
    """The search's span carries the kind of hit and the cosine, and no text of a question."""
    exporter = InMemorySpanExporter()
    telemetry.configure(processors=[SimpleSpanProcessor(exporter)])
    one = reuse(rows=len(TEXTS) * 2)
    fast = accelerate(framework.retriever(), cache=cache, neighbours=one)
    framework.ask(fast, WORDS[0])
    exporter.clear()
    framework.ask(fast, WORDS[0] + " now")
    (span,) = [one for one in exporter.get_finished_spans() if one.name == "search"]
    assert span.attributes[attributes.CACHE_HIT_KIND] == "certified"
    assert 0.5 < span.attributes[attributes.CACHE_SIMILARITY] < 1
    assert span.attributes[attributes.CANDIDATES] == len(TEXTS)
    assert WORDS[0] not in str(span.attributes)
    told = [(one.name, one.value) for one in one.figures()]
    assert told == [("ragaccel.reuse.lookups", 1)] * 2
