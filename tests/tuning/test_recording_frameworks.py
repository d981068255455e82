"""What the frameworks' retrievers are asked, recorded by their own callbacks."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.retrievers import BaseRetriever, QueryFusionRetriever
from llama_index.core.schema import TextNode
from llama_index_instrumentation import get_dispatcher

from ragaccel import MultiLevelCache, accelerate
from ragaccel import langchain as for_langchain
from ragaccel import llamaindex as for_llamaindex
from ragaccel.tuning.recorder import TrafficRecorder
from ragaccel.tuning.traffic import Traffic


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traffic.jsonl"


@pytest.fixture
def recorder(path):
    with TrafficRecorder.open(path) as opened:
        yield opened


@pytest.fixture
def handler(recorder):
    return for_langchain.TrafficHandler(recorder)


@pytest.fixture
def cache():
    with MultiLevelCache.open() as opened:
        yield opened


@pytest.fixture
def retriever(cache):
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(page_content=f"text {one}", id=f"d{one}") for one in range(5)])
    return accelerate(store.as_retriever(search_kwargs={"k": 2}), cache=cache)


@pytest.fixture
def index():
    nodes = [TextNode(text=f"text {one}", id_=f"n{one}") for one in range(5)]
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))


class Failing(BaseRetriever):
    def _retrieve(self, query_bundle):
        raise LookupError("a secret")


class Nested(LangChainRetriever):
    inner: LangChainRetriever

    def _get_relevant_documents(self, query, *, run_manager):
        if query == "fail":
            raise LookupError("a secret")
        return self.inner.invoke(query, config={"callbacks": run_manager.get_child()})


def recorded(recorder, path):
    recorder.flush()
    return list(Traffic.read(path))


def test_langchain_tells_of_hits_and_misses(handler, recorder, path, retriever):
    """With the documents' ids, as the caller got them."""
    config = {"callbacks": [handler]}
    found = [retriever.invoke("a question", config=config) for _ in range(2)]
    miss, hit = recorded(recorder, path)
    assert miss.ids == tuple(one.id for one in found[0])
    assert len(miss.ids) == 2
    assert (hit.query, hit.ids, hit.key) == (miss.query, miss.ids, miss.key)
    assert miss.arguments == {"retriever": "VectorStoreRetriever"}
    assert 0 < hit.seconds < 60


async def test_langchain_calls_side_by_side_are_told_apart(handler, recorder, path, retriever):
    """By their run ids, in tasks as in threads."""
    queries = [f"question {one}" for one in range(20)]
    config = {"callbacks": [handler]}
    answers = await asyncio.gather(*(retriever.ainvoke(one, config=config) for one in queries))
    await asyncio.to_thread(retriever.batch, queries, config)
    expected = {
        query: tuple(one.id for one in found) for query, found in zip(queries, answers, strict=True)
    }
    asked = recorded(recorder, path)
    assert len(asked) == 40
    assert all(one.ids == expected[one.query] for one in asked)


def test_langchain_chains_and_retrievers_inside_others(handler, recorder, path, retriever):
    """A retrieval inside another one is not recorded; what fails is, by name."""
    chain = RunnableLambda(lambda text: text.strip()) | Nested(inner=retriever)
    chain = chain.with_config(callbacks=[handler])
    chain.invoke(" a question ")
    with pytest.raises(LookupError):
        chain.invoke("fail")
    fine, failed = recorded(recorder, path)
    assert (fine.query, fine.arguments) == ("a question", {"retriever": "Nested"})
    assert (failed.query, failed.ids, failed.error) == ("fail", (), "LookupError")
    assert b"secret" not in path.read_bytes()


def test_llamaindex_tells_of_hits_and_misses(recorder, path, index, cache):
    """With the nodes' ids and how many were asked for, until the handler is detached."""
    retriever = accelerate(index.as_retriever(similarity_top_k=3), cache=cache)
    handlers = list(get_dispatcher().span_handlers)
    with for_llamaindex.TrafficHandler(recorder):
        found = [retriever.retrieve("a question") for _ in range(2)]
    retriever.retrieve("later")
    miss, hit = recorded(recorder, path)
    assert miss.ids == hit.ids == tuple(one.node_id for one in found[0])
    assert miss.query == "a question"
    assert miss.arguments == {"retriever": "VectorIndexRetriever", "similarity_top_k": 3}
    assert get_dispatcher().span_handlers == handlers


async def test_llamaindex_calls_side_by_side_are_told_apart(recorder, path, index):
    """In tasks as in threads."""
    retriever = index.as_retriever(similarity_top_k=1)
    queries = [f"question {one}" for one in range(20)]
    with for_llamaindex.TrafficHandler(recorder):
        await asyncio.gather(*(retriever.aretrieve(one) for one in queries))
        await asyncio.gather(*(asyncio.to_thread(retriever.retrieve, one) for one in queries))
    asked = recorded(recorder, path)
    assert sorted(one.query for one in asked) == sorted(queries * 2)
    assert all(len(one.ids) == 1 for one in asked)


def test_llamaindex_engines_and_retrievers_inside_others(recorder, path, index):
    """The outermost retrieval is recorded, once; what fails is, by name."""
    fusion = QueryFusionRetriever(
        [index.as_retriever(), index.as_retriever()], llm=MockLLM(), num_queries=1, use_async=False
    )
    handler = for_llamaindex.TrafficHandler(recorder).attach().attach()
    try:
        index.as_query_engine(llm=MockLLM()).query("to an engine")
        fusion.retrieve("to several")
        with pytest.raises(LookupError):
            Failing().retrieve("to nothing")
    finally:
        handler.detach()
    asked = recorded(recorder, path)
    assert [(one.query, one.arguments["retriever"], one.error) for one in asked] == [
        ("to an engine", "VectorIndexRetriever", None),
        ("to several", "QueryFusionRetriever", None),
        ("to nothing", "Failing", "LookupError"),
    ]
    assert not handler._begun
    assert not handler._inside


def test_a_closed_recorder_breaks_no_request(recorder, handler, retriever, index):
    """The handlers may stay where they are."""
    recorder.close()
    assert retriever.invoke("a question", config={"callbacks": [handler]})
    with for_llamaindex.TrafficHandler(recorder):
        assert index.as_retriever().retrieve("a question")
