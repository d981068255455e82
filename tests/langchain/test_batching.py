"""Queries that are embedded at the same time are sent together, where that changes nothing."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.embeddings import Embeddings

from ragaccel import MicroBatcher, MultiLevelCache, accelerate
from ragaccel.errors import ConfigurationError
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
