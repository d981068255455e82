"""Spans have the right parents wherever a request goes: threads, tasks, streams, processes."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import aclosing

import pytest
from langchain_classic.retrievers import EnsembleRetriever, MultiQueryRetriever
from langchain_classic.retrievers.contextual_compression import ContextualCompressionRetriever
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableParallel
from llama_index.core.retrievers import QueryFusionRetriever
from opentelemetry import propagate, trace

from ragaccel import MicroBatcher, MultiLevelCache, accelerate
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.retrievers import WordRetriever
from tests.langchain.stores import opened
from tests.llamaindex.models import Provider
from tests.support.otlp import HttpReceiver, problems
from tests.support.pipelines import (
    ShorterDocuments,
    langchain_chain,
    llamaindex_engine,
    llamaindex_index,
)
from tests.support.talking import TalkingChat, TalkingLLM
from tests.support.traces import OURS, outlines, uncomplaining
from tests.support.worker import retrieve

LOOK_UP = "preprocess cache.lookup"
MISS = f"query({LOOK_UP} retrieve(embed search))"
RANKED = f"rerank({LOOK_UP})"
SAID = f"generate({LOOK_UP})"
QUESTION = "which owls hunt mice"


@pytest.fixture
def spans(caplog):
    """What is recorded, without complaints of OpenTelemetry's about a lost or ended span."""
    with uncomplaining(caplog) as recorded:
        yield recorded


@pytest.fixture
def cache():
    with MultiLevelCache.open() as cache:
        yield cache


def request(name="request"):
    """A span of the application's own."""
    return trace.get_tracer("tests").start_as_current_span(name)


@pytest.fixture
def chain(cache, spans):
    """LangChain: retrieve in a thread, answer."""
    made = accelerate(langchain_chain(), cache=cache)
    spans.clear()
    return made


@pytest.fixture
def engine(cache, spans):
    """LlamaIndex: retrieve, rerank, answer."""
    made = accelerate(llamaindex_engine(), cache=cache, identity="engine")
    spans.clear()
    return made


# -- threads and tasks -----------------------------------------------------------------------------


def test_a_chain_is_one_trace(chain, spans):
    """LangChain runs the branches of a chain in threads."""
    with request():
        chain.invoke(QUESTION)
    assert outlines(spans.spans()) == [f"request({MISS} {SAID})"]


async def test_an_asynchronous_chain_is_one_trace(chain, spans):
    """Sync-only parts run in LangChain's executor, branches in tasks."""
    with request():
        await chain.ainvoke(QUESTION)
    assert outlines(spans.spans()) == [f"request({MISS} {SAID})"]


def test_batches_keep_requests_under_their_caller(chain, spans):
    """Each input of a batch has its stages under the caller's span."""
    with request():
        chain.batch([f"{QUESTION} {at}" for at in range(4)], {"max_concurrency": 2})
    (told,) = outlines(spans.spans())
    assert (told.count(MISS), told.count(SAID)) == (4, 4)
    assert len(told) == len(f"request({' '.join([MISS, SAID] * 4)})")


async def test_tasks_keep_their_own_requests_apart(chain, engine, spans):
    """Requests of both frameworks at the same time do not meet."""

    async def ask(call, at):
        with request():
            await call(f"{QUESTION} {at}")

    await asyncio.gather(
        *(ask(call, at) for at in range(4) for call in (chain.ainvoke, engine.aquery))
    )
    assert sorted(outlines(spans.spans())) == sorted(
        [f"request({MISS} {SAID})", f"request({MISS} {RANKED} {SAID})"] * 4
    )


def test_branches_of_a_parallel_chain_are_side_by_side(cache, spans):
    """Two retrievers that run at the same time are both part of the request."""
    parts = {name: opened().as_retriever() for name in ("one", "other")}
    parallel = accelerate(RunnableParallel(parts), cache=cache)
    spans.clear()
    with request():
        parallel.invoke(QUESTION)
    found = spans.spans()
    (root,) = (span for span in found if span.name == "request")
    queries = [span for span in found if span.name == "query"]
    assert [span.parent_id for span in queries] == [root.span_id] * 2
    assert len([span for span in found if span.name == "search"]) == 2


def test_retrievers_around_retrievers(cache, spans):
    """Several queries, several retrievers and a reranker of LangChain's are one trace."""
    ensemble = EnsembleRetriever(
        retrievers=[opened().as_retriever(), WordRetriever()], weights=[0.5, 0.5]
    )
    many = MultiQueryRetriever.from_llm(ensemble, FakeListChatModel(responses=["owls\nmice"]))
    whole = ContextualCompressionRetriever(base_compressor=ShorterDocuments(), base_retriever=many)
    fast = accelerate(whole, cache=cache, identity="whole")
    spans.clear()
    for ask in (fast.invoke, lambda query: asyncio.run(fast.ainvoke(query))):
        spans.clear()
        with request():
            ask(QUESTION)
            cache.clear()
        names = [span.name for span in spans.spans()]
        assert (names.count("query"), names.count("generate"), names.count("rerank")) == (4, 1, 1)


def test_an_engine_is_one_trace(engine, spans):
    """LlamaIndex: retrieve, rerank and answer, sync and async, are parts of the request."""
    for ask in (engine.query, lambda query: asyncio.run(engine.aquery(f"async {query}"))):
        spans.clear()
        with request():
            ask(QUESTION)
        assert outlines(spans.spans()) == [f"request({MISS} {RANKED} {SAID})"]


@pytest.mark.parametrize("use_async", [False, True])
def test_fused_retrievers_are_one_trace(cache, spans, use_async):
    """A sync call that LlamaIndex makes of async ones keeps its place.

    Sync ones share the embedding of the question.
    """
    fused = fusion(cache, use_async=use_async)
    spans.clear()
    with request():
        fused.retrieve(QUESTION)
    second = MISS if use_async else MISS.replace("embed ", "")
    assert outlines(spans.spans()) == [f"request({MISS} {second})"]


async def test_a_sync_call_on_a_running_loop_is_one_trace(cache, spans):
    """LlamaIndex runs it on a loop in another thread."""
    fused = fusion(cache, use_async=True)
    spans.clear()
    with request():
        fused.retrieve(QUESTION)
    assert outlines(spans.spans()) == [f"request({MISS} {MISS})"]


def fusion(cache, *, use_async):
    parts = [accelerate(llamaindex_index().as_retriever(), cache=cache) for _ in range(2)]
    return QueryFusionRetriever(parts, llm=Provider(), num_queries=1, use_async=use_async)


@pytest.mark.parametrize("carry", ["copied context", "to_thread"])
async def test_threads_of_the_users_own(chain, spans, carry):
    """Whoever carries the context into a thread has the spans at their place."""
    with request():
        if carry == "to_thread":
            await asyncio.to_thread(chain.invoke, QUESTION)
        else:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(contextvars.copy_context().run, chain.invoke, QUESTION).result(30)
    assert outlines(spans.spans()) == [f"request({MISS} {SAID})"]


def test_a_bare_thread_makes_a_trace_of_its_own(chain, spans):
    """Without the context nothing is found to belong to, and nothing is mixed up."""
    with request(), ThreadPoolExecutor(1) as pool:
        pool.submit(chain.invoke, QUESTION).result(30)
    assert sorted(outlines(spans.spans())) == sorted([f"query({MISS} {SAID})", "request"])


# -- streams ---------------------------------------------------------------------------------------


class Talker:
    """An accelerated streaming model, whose methods have other names in each framework."""

    def __init__(self, model, stream, astream):
        self._model, self._stream, self._astream = model, stream, astream

    def stream(self, question=QUESTION):
        return getattr(self._model, self._stream)(question)

    async def astream(self, question=QUESTION):
        made = getattr(self._model, self._astream)(question)
        return made if hasattr(made, "__anext__") else await made


@pytest.fixture(
    params=[
        (TalkingChat, "stream", "astream"),
        (TalkingLLM, "stream_complete", "astream_complete"),
    ],
    ids=["langchain", "llamaindex"],
)
def talker(request, cache, spans):
    """A streaming model of each framework."""
    cls, *names = request.param
    return Talker(accelerate(cls(), cache=cache, cache_sampled=True), *names)


def consume():
    """What the reader of a stream does between two chunks."""
    with request("consumer"):
        pass


def read(words, chunks):
    """The outline of a stream: the model works inside the stage, and its reader outside."""
    return f"request(generate({LOOK_UP}{' model' * words}){' consumer' * chunks})"


def test_a_stream_is_read_to_its_end(talker, spans):
    """The model is at work for each word on a miss, and never on a hit."""
    chunks = []
    for _ in range(2):
        with request() as outer:
            chunks.append(0)
            for _chunk in talker.stream():
                assert trace.get_current_span() is outer
                consume()
                chunks[-1] += 1
            assert trace.get_current_span() is outer
    assert outlines(spans.spans()) == [read(3, chunks[0]), read(0, chunks[1])]


async def test_an_asynchronous_stream_is_read_to_its_end(talker, spans):
    """The same."""
    chunks = []
    for _ in range(2):
        with request() as outer:
            chunks.append(0)
            async for _chunk in await talker.astream():
                assert trace.get_current_span() is outer
                consume()
                chunks[-1] += 1
            assert trace.get_current_span() is outer
    assert outlines(spans.spans()) == [read(3, chunks[0]), read(0, chunks[1])]


def close(stream):
    stream.close()


def close_in_a_thread(stream):
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join()


def drop(stream):
    del stream


@pytest.mark.parametrize("leave", [close, close_in_a_thread, drop])
def test_a_stream_is_left_early(talker, spans, leave):
    """Its stage ends there, once, is no error, and tells that the stream was given up."""
    with request() as outer:
        streams = [talker.stream()]
        for _ in itertools.islice(streams[0], 2):
            consume()
        leave(streams.pop())
        gc.collect()
        assert trace.get_current_span() is outer
        consume()
    assert outlines(spans.spans()) == [read(2, 3)]
    (stage,) = (span for span in spans.spans() if span.name == "generate")
    assert stage.status_code != 2
    assert stage.attributes["ragaccel.stream.abandoned"] is True


async def settle():
    """Let the loop close the generators that were dropped, those inside one another too."""
    gc.collect()
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("leave", ["closed", "another task", "dropped"])
async def test_an_asynchronous_stream_is_left_early(talker, spans, leave):
    """The same, also where another task closes it, or the loop does what nobody did."""
    with request() as outer:
        streams = [await talker.astream()]
        for _ in range(2):
            await anext(streams[0])
            consume()
        if leave == "closed":
            await streams.pop().aclose()
        elif leave == "another task":
            await asyncio.create_task(streams.pop().aclose())
        else:
            streams.clear()
        await settle()
        assert trace.get_current_span() is outer
        consume()
    assert outlines(spans.spans()) == [read(2, 3)]
    (stage,) = (span for span in spans.spans() if span.name == "generate")
    assert stage.status_code != 2
    assert stage.attributes["ragaccel.stream.abandoned"] is True


async def test_a_stream_is_read_in_several_tasks(talker, spans):
    """Where a server reads each chunk in another task, the stage still has all of the model's."""
    with request():
        chunks = await talker.astream()
        for _ in range(3):
            await asyncio.create_task(chunks.__anext__())
            consume()
        await asyncio.create_task(chunks.aclose())
    assert outlines(spans.spans()) == [read(3, 3)]


def test_streams_are_read_in_turns(talker, spans):
    """Two at once have a stage each, and none is inside the other."""
    with request():
        for _ in zip(talker.stream("one"), talker.stream("other"), strict=True):
            consume()
    (told,) = outlines(spans.spans())
    assert told.count("generate(preprocess cache.lookup model model model)") == 2


async def test_asynchronous_streams_are_read_in_turns(talker, spans):
    """The same, in one task."""
    with request():
        async with (
            aclosing(await talker.astream("one")) as one,
            aclosing(await talker.astream("two")) as two,
        ):
            for _ in range(3):
                await anext(one)
                await anext(two)
                consume()
        await settle()
    (told,) = outlines(spans.spans())
    assert told.count("generate(preprocess cache.lookup model model model)") == 2


def test_a_stream_that_nobody_reads_ends(talker, spans):
    """One that was opened and dropped leaves no open span behind."""
    with request():
        streams = [talker.stream()]
        streams.clear()
        gc.collect()
    assert outlines(spans.spans()) in (["request"], [f"request({SAID})"])


def test_a_stream_that_fails_is_an_error(talker, spans):
    """Its stage tells the class of the error."""
    with request(), pytest.raises(ConnectionError):
        list(talker.stream("fail"))
    (stage,) = (span for span in spans.spans() if span.name == "generate")
    assert (stage.status_code, stage.attributes["error.type"]) == (2, "ConnectionError")


# -- batches ---------------------------------------------------------------------------------------


def linked(spans):
    """Batches and the requests they served, as ids: from each side of the links."""
    told = {span.span_id: {to for _, to, _ in span.links} for span in spans}
    batches = [span for span in spans if span.name == "batch"]
    served = {span.span_id: told[span.span_id] for span in batches}
    asked = {
        batch.span_id: {id_ for id_, to in told.items() if batch.span_id in to} for batch in batches
    }
    return served, asked


def check_links(spans, count):
    """Each request is linked to the one batch that served it, and that one to it."""
    served, asked = linked(spans)
    assert served == asked
    assert sum(map(len, served.values())) == count
    batches = [span for span in spans if span.name == "batch"]
    assert {span.parent_id for span in batches} == {None}
    by_id = {span.span_id: span for span in spans}
    for batch in batches:
        requests = [by_id[id_] for id_ in served[batch.span_id]]
        assert batch.trace_id not in {span.trace_id for span in requests}
        assert batch.attributes["ragaccel.items.count"] == len(requests)
        assert {span.attributes["ragaccel.batch.size"] for span in requests} == {len(requests)}
    return served


class AsyncEmbeddings(HashEmbeddings):
    """Embeds on the event loop, as clients of remote services do."""

    async def aembed_query(self, text):
        return self.embed_query(text)

    async def aembed_documents(self, texts):
        return self.embed_documents(texts)


def embedding(cache):
    made = accelerate(AsyncEmbeddings(), cache=cache, batch=MicroBatcher(workers=1))
    made.embed_query("which measures whether queries are texts")
    return made


def test_threads_and_their_batches_know_each_other(cache, spans):
    """Embeddings that are asked for at the same time: as many links as requests, both ways."""
    model, barrier = embedding(cache), threading.Barrier(8)
    spans.clear()

    def ask(at):
        barrier.wait(30)
        with request():
            model.embed_query(f"text {at}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    check_links(spans.spans(), 8)


async def test_tasks_and_their_batches_know_each_other(cache, spans):
    """Those of one turn of the loop are one batch."""
    model = embedding(cache)
    spans.clear()

    async def ask(at):
        with request():
            await model.aembed_query(f"text {at}")

    await asyncio.gather(*(ask(at) for at in range(8)))
    assert len(check_links(spans.spans(), 8)) == 1


# -- processes -------------------------------------------------------------------------------------


def test_a_process_pool_continues_the_trace(spans):
    """A child with a provider of its own is a part of the request whose traceparent it was given.

    Without one, what it does is a trace of its own.
    """
    spawn = multiprocessing.get_context("spawn")
    with HttpReceiver() as server, ProcessPoolExecutor(1, mp_context=spawn) as pool:
        with request() as outer:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            pool.submit(retrieve, server.endpoint, carrier).result(120)
            pool.submit(retrieve, server.endpoint, {}).result(120)
        joined, alone = traces(server.spans())
    context = outer.get_span_context()
    (query,) = (span for span in joined if span.name == "query")
    assert query.trace_id == f"{context.trace_id:032x}"
    assert query.parent_id == f"{context.span_id:016x}"
    assert outlines(joined, OURS) == outlines(alone) == [MISS]
    assert problems([*joined, *spans.spans()]) == []
    assert problems(alone) == []


def traces(spans):
    """Spans by their traces, in the order of their starting."""
    found: dict[str, list] = {}
    for span in sorted(spans, key=lambda one: one.start_ns):
        found.setdefault(span.trace_id, []).append(span)
    return found.values()
