"""Single texts that are embedded at the same time are sent together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import PrivateAttr

from ragaccel import MicroBatcher, accelerate
from ragaccel.llamaindex import CompressedVectorStore
from tests.llamaindex.embeddings import HashEmbedding


class Slow(BaseEmbedding):
    """Takes its time for each call, however many texts are in it; may write before queries."""

    instruction: str = ""
    seed: int = 0
    _calls: list = PrivateAttr(default_factory=list)

    def vectors(self, texts):
        inner = HashEmbedding(seed=self.seed)
        return [inner._get_text_embedding(text) for text in texts]

    def _get_query_embedding(self, query):
        self._calls.append([query])
        return self.vectors([self.instruction + query])[0]

    async def _aget_query_embedding(self, query):
        self._calls.append([query])
        await asyncio.sleep(0.01)
        return self.vectors([self.instruction + query])[0]

    def _get_text_embedding(self, text):
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts):
        self._calls.append(list(texts))
        return self.vectors(texts)

    async def _aget_text_embedding(self, text):
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts):
        self._calls.append(list(texts))
        await asyncio.sleep(0.01)
        return self.vectors(texts)


TEXTS = [f"text {number}" for number in range(20)]


async def together(model, name):
    return await asyncio.gather(*(getattr(model, name)(text) for text in TEXTS))


@pytest.mark.parametrize("cached", [False, True])
def test_texts_at_once_are_few_calls(cache, cached):
    """With the vectors that each would have got alone."""
    plain = Slow()
    fast = accelerate(plain, cache=cache if cached else None, batch=True)
    expected = asyncio.run(together(plain, "aget_text_embedding"))
    assert len(plain._calls) == 20
    plain._calls.clear()
    found = asyncio.run(together(fast, "aget_text_embedding"))
    assert [pytest.approx(one, abs=1e-6) for one in expected] == found
    assert len(fast._calls) <= 4


def test_queries_go_with_texts_where_the_model_makes_no_difference(cache):
    """That is measured with the first one."""
    fast = accelerate(Slow(), cache=cache, batch=MicroBatcher(max_size=10, workers=1))
    fast.get_query_embedding("first")
    assert len(fast._calls) == 2
    fast._calls.clear()
    asyncio.run(together(fast, "aget_query_embedding"))
    assert len(fast._calls) <= 3
    assert max(map(len, fast._calls)) == 10


def test_queries_that_are_embedded_otherwise_stay_alone(cache):
    """A model that writes an instruction before queries gets each by itself."""
    plain = Slow(instruction="find: ")
    fast = accelerate(plain, cache=cache, batch=True)
    fast.get_query_embedding("first")
    expected = asyncio.run(together(plain, "aget_query_embedding"))
    plain._calls.clear()
    assert [pytest.approx(one, abs=1e-6) for one in expected] == asyncio.run(
        together(fast, "aget_query_embedding")
    )
    assert len(fast._calls) == 20


def test_threads_are_joined_too(cache):
    """And each gets the own vector."""
    fast = accelerate(Slow(), cache=cache, batch=MicroBatcher(workers=1))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fast.get_text_embedding, TEXTS))
    for text, vector in zip(TEXTS, found, strict=True):
        assert vector == pytest.approx(Slow().get_text_embedding(text), abs=1e-6)


def test_copies_with_other_settings_are_never_mixed(cache):
    """They share the batcher, not the model."""
    one = accelerate(Slow(), cache=cache, batch=MicroBatcher(workers=1))
    other = one.model_copy(update={"seed": 7})

    async def both():
        return await asyncio.gather(
            *(model.aget_text_embedding(text) for text in TEXTS for model in (one, other))
        )

    found = asyncio.run(both())
    for at, text in enumerate(TEXTS):
        assert found[2 * at] == pytest.approx(Slow().get_text_embedding(text), abs=1e-6)
        assert found[2 * at + 1] == pytest.approx(Slow(seed=7).get_text_embedding(text), abs=1e-6)


@pytest.mark.parametrize("store", [SimpleVectorStore, CompressedVectorStore])
async def test_a_retriever_embeds_queries_at_once_together(cache, store):
    """What it finds is what the plain one finds, under the same keys."""
    model = Slow()
    index = VectorStoreIndex(
        [TextNode(id_=text, text=text) for text in TEXTS],
        storage_context=StorageContext.from_defaults(vector_store=store()),
        embed_model=model,
    )
    plain = index.as_retriever(similarity_top_k=3)
    expected = [[one.node_id for one in await plain.aretrieve(text)] for text in TEXTS]
    fast = accelerate(plain, cache=cache, batch=MicroBatcher(workers=1))
    await fast.aretrieve("first")
    model._calls.clear()
    found = await asyncio.gather(*map(fast.aretrieve, TEXTS))
    assert [[one.node_id for one in nodes] for nodes in found] == expected
    assert len(model._calls) <= 3
    again = accelerate(plain, cache=cache)
    assert [one.node_id for one in again.retrieve(TEXTS[0])] == expected[0]
    assert len(model._calls) <= 3
    assert plain._embed_model is model
