"""Queries that are embedded at the same time are sent together, where that changes nothing."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from ragaccel import MicroBatcher, MultiLevelCache, accelerate
from ragaccel.errors import ConfigurationError
from ragaccel.langchain import CompressedVectorStore
from tests.langchain.embeddings import HashEmbeddings

TEXTS = [f"text {number}" for number in range(20)]


@pytest.fixture
def calls():
    return []


@pytest.fixture
def made(calls):
    """Make a model that takes its time for each call; it may write before queries."""

    class Slow(Embeddings):
        def __init__(self, instruction):
            self.instruction = instruction

        def embed_documents(self, texts):
            calls.append(list(texts))
            return HashEmbeddings().embed_documents(texts)

        def embed_query(self, text):
            calls.append([text])
            return HashEmbeddings().embed_query(self.instruction + text)

        async def aembed_documents(self, texts):
            await asyncio.sleep(0.01)
            return self.embed_documents(texts)

        async def aembed_query(self, text):
            await asyncio.sleep(0.01)
            return self.embed_query(text)

    return Slow


@pytest.mark.parametrize(("instruction", "most"), [("", 3), ("find: ", 20)], ids=["same", "other"])
async def test_queries_go_with_texts_where_the_model_makes_no_difference(
    made, calls, instruction, most
):
    """That is measured with the first one; the vectors are those of the plain model."""
    with MultiLevelCache.open() as cache:
        fast = accelerate(made(instruction), cache=cache, batch=MicroBatcher(workers=1))
        await fast.aembed_query("first")
        calls.clear()
        found = await asyncio.gather(*map(fast.aembed_query, TEXTS))
    for text, vector in zip(TEXTS, found, strict=True):
        expected = HashEmbeddings().embed_query(instruction + text)
        assert vector == pytest.approx(expected, abs=1e-6)
    assert len(calls) <= most
    assert sorted(text for call in calls for text in call) == sorted(TEXTS)


@pytest.mark.parametrize("precision", ["float8", None, 16])
def test_a_precision_that_is_none_is_refused_at_once(made, precision):
    """It is said what can be."""
    with pytest.raises(ConfigurationError, match="float32 or float16"):
        accelerate(made(""), precision=precision)


@pytest.mark.parametrize("store", [InMemoryVectorStore, CompressedVectorStore])
async def test_a_retriever_embeds_queries_at_once_together(made, calls, store):
    """What it finds is what the plain one finds; the plain store keeps its model."""
    model = made("")
    plain = store.from_texts(TEXTS, model).as_retriever(search_kwargs={"k": 3})
    expected = [[one.page_content for one in plain.invoke(text)] for text in TEXTS]
    with MultiLevelCache.open() as cache:
        fast = accelerate(plain, cache=cache, batch=MicroBatcher(workers=1))
        await fast.ainvoke("first")
        calls.clear()
        found = await asyncio.gather(*map(fast.ainvoke, TEXTS))
        assert [[one.page_content for one in documents] for documents in found] == expected
        assert len(calls) <= 3
        again = accelerate(plain, cache=cache)
        assert [one.page_content for one in again.invoke(TEXTS[0])] == expected[0]
        assert len(calls) <= 3
        assert cache.stats().hits == {"memory": 1}
    assert plain.vectorstore.embeddings is model
    assert fast.vectorstore.embeddings is not model


class Lengths(BaseCrossEncoder):
    """Scores by length, and takes its time for each call."""

    def __init__(self, result):
        self.sizes, self.result = [], result

    def score(self, text_pairs, **kwargs):
        self.sizes.append(len(text_pairs))
        time.sleep(0.02)
        return self.result([float(len(query + text)) for query, text in text_pairs])


@pytest.mark.parametrize("result", [list, np.array], ids=["list", "array"])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_cross_encoder_scores_the_pairs_of_many_at_once(result, is_cached):
    """Each gets the own scores, in the kind that the encoder gives."""
    encoder = Lengths(result)
    lists = [[("q" * at, "text" * other) for other in range(5)] for at in range(12)]
    with MultiLevelCache.open() as cache, ThreadPoolExecutor(12) as pool:
        fast = accelerate(
            encoder,
            cache=cache if is_cached else None,
            batch=MicroBatcher(workers=1),
            identity="lengths",
        )
        found = list(pool.map(fast.score, lists))
    for pairs, scores in zip(lists, found, strict=True):
        assert type(scores) is type(result([1.0]))
        assert list(scores) == [len(query + text) for query, text in pairs]
    assert sum(encoder.sizes) == 60
    assert len(encoder.sizes) < 12


def test_calls_with_options_of_their_own_stay_alone():
    """They are not known to mean the same for others."""
    encoder = Lengths(list)
    fast = accelerate(encoder, batch=True)
    assert fast.score([("a", "b")], batch_size=3) == [2.0]
