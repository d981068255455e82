"""A question to an accelerated engine or chain is one trace, also with no span around it."""

from __future__ import annotations

import asyncio
import gc

import pytest
from langchain_classic.retrievers import EnsembleRetriever
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from opentelemetry import trace

from ragaccel import MultiLevelCache, accelerate, telemetry
from tests.langchain.retrievers import WordRetriever
from tests.langchain.stores import opened
from tests.llamaindex.models import Provider
from tests.support.pipelines import langchain_chain, llamaindex_engine, llamaindex_index
from tests.support.traces import outlines, uncomplaining

LOOK_UP = "preprocess cache.lookup"
FOUND = f"query({LOOK_UP} retrieve(embed search))"
SAID = f"generate({LOOK_UP})"
OF_CHAIN = f"query({FOUND} {SAID})"
OF_ENGINE = f"query({FOUND} rerank({LOOK_UP}) {SAID})"
OF_CHAT = f"query({FOUND} {SAID})"
QUESTION = "which owls hunt mice"


@pytest.fixture
def spans(caplog):
    """What is recorded, with nothing that a backend or OpenTelemetry would complain about."""
    with uncomplaining(caplog) as recorded:
        yield recorded
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.fixture
def cache():
    with MultiLevelCache.open() as cache:
        yield cache


@pytest.fixture
def fast(cache, spans):
    """Accelerates, and forgets what was recorded meanwhile."""

    def make(whole):
        made = accelerate(whole, cache=cache, identity="whole", cache_sampled=True)
        spans.clear()
        return made

    return make


async def aread(stream):
    return [one async for one in stream]


async def aread_answer(engine):
    answer = await engine.aquery(QUESTION)
    return await aread(answer.async_response_gen())


def chat_engine():
    return ContextChatEngine.from_defaults(
        retriever=llamaindex_index().as_retriever(),
        llm=Provider(),
        memory=ChatMemoryBuffer.from_defaults(llm=Provider()),
    )


CALLS = {
    "chain": (langchain_chain, lambda chain: chain.invoke(QUESTION), OF_CHAIN),
    "async chain": (langchain_chain, lambda chain: asyncio.run(chain.ainvoke(QUESTION)), OF_CHAIN),
    "streamed chain": (langchain_chain, lambda chain: list(chain.stream(QUESTION)), OF_CHAIN),
    "async streamed chain": (
        langchain_chain, lambda chain: asyncio.run(aread(chain.astream(QUESTION))), OF_CHAIN,
    ),
    "engine": (llamaindex_engine, lambda engine: engine.query(QUESTION), OF_ENGINE),
    "async engine": (
        llamaindex_engine, lambda engine: asyncio.run(engine.aquery(QUESTION)), OF_ENGINE,
    ),
    "streamed engine": (
        lambda: llamaindex_engine(streaming=True),
        lambda engine: list(engine.query(QUESTION).response_gen),
        OF_ENGINE,
    ),
    "async streamed engine": (
        lambda: llamaindex_engine(streaming=True),
        lambda engine: asyncio.run(aread_answer(engine)),
        OF_ENGINE,
    ),
    "chat engine": (chat_engine, lambda engine: engine.chat(QUESTION), OF_CHAT),
    "async chat engine": (
        chat_engine, lambda engine: asyncio.run(engine.achat(QUESTION)), OF_CHAT,
    ),
    "streamed chat engine": (
        chat_engine, lambda engine: list(engine.stream_chat(QUESTION).response_gen), OF_CHAT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_question_is_one_trace(fast, spans, name):
    """Its root is told of as what answers it; each question is a trace of its own."""
    make, ask, outline = CALLS[name]
    whole = fast(make())
    ask(whole)
    assert outlines(spans.spans()) == [outline]
    (root,) = (span for span in spans.spans() if span.parent_id is None)
    assert root.attributes["ragaccel.component"] == type(whole).__name__
    assert root.attributes["openinference.span.kind"] == "CHAIN"
    ask(whole)
    assert len(outlines(spans.spans())) == 2


@pytest.mark.parametrize("name", CALLS)
def test_below_a_span_of_the_applications_there_is_no_other(fast, spans, name):
    """Its own is the root, and ours the stages."""
    make, ask, outline = CALLS[name]
    whole = fast(make())
    with trace.get_tracer("tests").start_as_current_span("request"):
        ask(whole)
    assert outlines(spans.spans()) == [outline.replace("query", "request", 1)]


@pytest.mark.parametrize("name", CALLS)
def test_inside_a_stage_there_is_no_other(fast, spans, name):
    """Such as a profiler's, or one of the application's."""
    make, ask, outline = CALLS[name]
    whole = fast(make())
    with telemetry.stage("query"):
        ask(whole)
    assert outlines(spans.spans()) == [outline]


def test_a_retriever_around_retrievers_is_a_whole(fast, spans):
    """What it asks is asked for one question."""
    parts = [opened().as_retriever(), WordRetriever()]
    fast(EnsembleRetriever(retrievers=parts, weights=[0.5, 0.5])).invoke(QUESTION)
    (told,) = outlines(spans.spans())
    assert told.startswith("query(query(")


def test_an_error_is_its_roots_too(fast, spans):
    """By its name."""

    class Broken(Provider):
        def complete(self, *args, **kwargs):
            raise ConnectionError("reset")

        chat = complete

    with pytest.raises(ConnectionError):
        fast(llamaindex_index().as_query_engine(llm=Broken())).query(QUESTION)
    (root,) = (span for span in spans.spans() if span.parent_id is None)
    assert root.attributes["error.type"] == "ConnectionError"


@pytest.mark.parametrize("framework", ["langchain", "llamaindex"])
@pytest.mark.parametrize("end", ["close", "drop", "never begin"])
def test_a_stream_that_is_left_ends_its_root(fast, spans, framework, end):
    """Once, and whatever was asked for it is in its trace."""
    if framework == "langchain":
        stream = fast(langchain_chain()).stream(QUESTION)
    else:
        answer = fast(llamaindex_engine(streaming=True)).query(QUESTION)
        stream = answer.response_gen
        del answer
    if end != "never begin":
        next(stream)
    if end == "close":
        stream.close()
    assert trace.get_current_span() is trace.INVALID_SPAN
    del stream
    gc.collect()
    roots = [span for span in spans.spans() if span.parent_id is None]
    assert [(root.name, root.attributes["ragaccel.stream.abandoned"]) for root in roots] == [
        ("query", True)
    ]


def test_an_async_stream_that_is_left_ends_its_root(fast, spans):
    """Closed in another task than the one that read."""

    async def main():
        stream = fast(langchain_chain()).astream(QUESTION)
        await asyncio.create_task(anext(stream))
        await asyncio.create_task(stream.aclose())

    asyncio.run(main())
    assert outlines(spans.spans()) == [OF_CHAIN]


def test_a_consumers_spans_are_not_the_streams(fast, spans):
    """What is done with a chunk is no part of the answer."""
    for _ in fast(langchain_chain()).stream(QUESTION):
        assert trace.get_current_span() is trace.INVALID_SPAN
