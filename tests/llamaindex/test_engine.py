"""Engines and indexes: what they hold is wrapped, and they do what they did."""

from __future__ import annotations

import copy

import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import (
    CustomQueryEngine,
    RetrieverQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.response_synthesizers import get_response_synthesizer
from pydantic import PrivateAttr

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import UnsupportedComponentError
from tests.llamaindex.embeddings import HashEmbedding

TEXTS = ("red apple tree", "green pear tree", "blue sky", "dark red sky")
QUESTION = "which tree is red?"


class CountingLLM(MockLLM):
    """Counts how often it is asked."""

    _calls: list = PrivateAttr(default_factory=list)

    def complete(self, prompt, formatted=False, **kwargs):
        self._calls.append(prompt)
        return super().complete(prompt, formatted=formatted, **kwargs)

    def stream_complete(self, prompt, formatted=False, **kwargs):
        self._calls.append(prompt)
        return super().stream_complete(prompt, formatted=formatted, **kwargs)


@pytest.fixture
def cache():
    with MultiLevelCache.open() as opened:
        yield opened


@pytest.fixture
def index():
    documents = [Document(text=text, id_=text) for text in TEXTS]
    return VectorStoreIndex.from_documents(documents, embed_model=HashEmbedding())


@pytest.fixture
def llm():
    return CountingLLM(max_tokens=8)


@pytest.fixture
def engine(index, llm):
    return RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=2),
        llm=llm,
        node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.1)],
    )


def test_a_query_engine_asks_its_parts_once(engine, cache, llm):
    """Retriever and LLM serve the second question; the answer is the plain engine's."""
    expected = engine.query(QUESTION)
    asked = len(llm._calls)
    fast = accelerate(engine, cache=cache)
    assert isinstance(fast, RetrieverQueryEngine)
    for _ in range(2):
        answer = fast.query(QUESTION)
        assert str(answer) == str(expected)
        assert [one.node_id for one in answer.source_nodes] == [
            one.node_id for one in expected.source_nodes
        ]
    assert len(llm._calls) == 2 * asked
    assert sum(cache.stats().hits.values()) >= 2


async def test_asynchronous_questions_share_the_entries(engine, cache, llm):
    """What was asked with `query` is served to `aquery`."""
    fast = accelerate(engine, cache=cache)
    expected = str(fast.query(QUESTION))
    asked = len(llm._calls)
    assert str(await fast.aquery(QUESTION)) == expected
    assert len(llm._calls) == asked


@pytest.mark.parametrize(
    ("mode", "streaming"),
    [
        *((mode, False) for mode in ("refine", "compact", "tree_summarize", "simple_summarize")),
        *((mode, True) for mode in ("refine", "compact", "tree_summarize", "simple_summarize")),
        ("accumulate", False),
    ],
)
def test_every_synthesizer_asks_the_wrapped_model(index, cache, llm, mode, streaming):
    """Also where it made its helpers when it was built."""
    retriever = index.as_retriever(similarity_top_k=3)
    plain = RetrieverQueryEngine.from_args(
        retriever, llm=llm, response_mode=mode, streaming=streaming
    )
    expected = str(plain.query(QUESTION))
    fast = accelerate(plain, cache=cache)
    assert str(fast.query(QUESTION)) == expected
    asked = len(llm._calls)
    assert str(fast.query(QUESTION)) == expected
    assert len(llm._calls) == asked


def test_the_engine_that_was_given_is_not_changed(engine, cache, llm):
    """It still asks for itself, and can be had back."""
    before = dict(vars(engine))
    fast = accelerate(engine, cache=cache)
    fast.query(QUESTION)
    assert vars(engine) == before
    assert unwrap(fast) is engine
    assert unwrap(accelerate(fast, cache=cache)) is engine
    asked = len(llm._calls)
    engine.query(QUESTION)
    assert len(llm._calls) > asked


def test_engines_around_engines(engine, cache, llm):
    """What an engine within an engine holds is wrapped as well."""
    from llama_index.core.indices.query.query_transform.base import IdentityQueryTransform

    fast = accelerate(TransformQueryEngine(engine, IdentityQueryTransform()), cache=cache)
    expected = str(fast.query(QUESTION))
    asked = len(llm._calls)
    assert str(fast.query(QUESTION)) == expected
    assert len(llm._calls) == asked


def test_a_chat_engine(cache, llm):
    """Its memory stays its own; equal histories are served."""
    answers = []
    for _ in range(2):
        plain = SimpleChatEngine.from_defaults(llm=llm)
        chat = accelerate(plain, cache=cache)
        answers.append([str(chat.chat(one)) for one in ("hello", "and then?")])
        assert chat.chat_history == plain.chat_history
        assert len(chat.chat_history) == 4
    assert answers[0] == answers[1]
    assert len(llm._calls) == 2


def test_an_index_gives_wrapped_retrievers_and_engines(index, cache, llm):
    """It is an index still, takes documents, and what it gives is cached."""
    fast = accelerate(index, cache=cache)
    assert isinstance(fast, VectorStoreIndex)
    assert isinstance(fast, BaseIndex)
    assert unwrap(fast) is index
    retriever = fast.as_retriever(similarity_top_k=2)
    first = retriever.retrieve(QUESTION)
    plain = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
    assert retriever.retrieve(QUESTION) == first
    assert [one.node for one in first] == [one.node for one in plain]
    assert [one.score for one in first] == pytest.approx([one.score for one in plain])
    assert cache.stats().hits["memory"] >= 1
    engine = fast.as_query_engine(llm=llm)
    expected = str(engine.query(QUESTION))
    asked = len(llm._calls)
    assert str(fast.as_query_engine(llm=llm).query(QUESTION)) == expected
    assert len(llm._calls) == asked
    fast.insert(Document(text="a new red tree", id_="new"))
    assert "new" in fast.ref_doc_info


def test_an_index_asks_the_model_of_the_settings(index, cache, llm, monkeypatch):
    """As the plain index does where no LLM is given."""
    monkeypatch.setattr(Settings, "_llm", llm)
    engine = accelerate(index, cache=cache).as_query_engine()
    expected = str(engine.query(QUESTION))
    asked = len(llm._calls)
    assert str(engine.query(QUESTION)) == expected
    assert len(llm._calls) == asked > 0


def test_parts_are_told_apart_under_one_identity(cache, nodes):
    """Two retrievers of a class that ragaccel does not know, in one engine."""
    from tests.llamaindex.retrievers import WordRetriever

    class Two(CustomQueryEngine):
        def custom_query(self, query_str):
            return query_str

    engine = RetrieverQueryEngine.from_args(WordRetriever(nodes), llm=MockLLM())
    fast = accelerate(engine, cache=cache, identity="mine")
    assert fast._retriever.retrieve(QUESTION) == engine._retriever.retrieve(QUESTION)
    with pytest.raises(UnsupportedComponentError, match="holds nothing that can"):
        accelerate(Two(), cache=cache)


def test_what_cannot_be_wrapped_is_refused_with_advice(llm):
    """The message says what to wrap instead."""
    with pytest.raises(UnsupportedComponentError, match="wrap the"):
        accelerate(get_response_synthesizer(llm=llm))


def test_copies_are_wrapped_as_well(engine, cache, llm):
    """A copied engine shares the cache."""
    fast = accelerate(engine, cache=cache)
    expected = str(fast.query(QUESTION))
    asked = len(llm._calls)
    assert str(copy.copy(fast).query(QUESTION)) == expected
    assert len(llm._calls) == asked
