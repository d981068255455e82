"""What wrapping costs on a miss, and what a hit is worth, for each sort of component.

    python -m tests.benchmarks.adapters

A miss is compared with a plain call that takes 10 ms, an LLM hit with one of LangChain's own
`InMemoryCache`, the other hits with the plain call. Every ratio is the median of rounds that
measure both sides in turn. Needs the extras llamaindex and langchain, and `langchain-openai`.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.caches import InMemoryCache
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms import MockLLM
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.schema import TextNode
from rich.console import Console
from rich.table import Table

from ragaccel import MultiLevelCache, accelerate
from tests.benchmarks.ratios import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CALL_SECONDS = 0.01
PROMPT = "You answer from the context alone. " * 30
ANSWER = "It is in the second passage. " * 20
TEXTS = [f"passage {row} speaks of {row % 7} and of {row % 11}" for row in range(1000)]
ROUNDS = 15
MISS_BAR = 1.05
_numbers = itertools.count()


def wait() -> None:
    """Take as long as a fast provider; busy, so that the clock is exact."""
    end = time.perf_counter() + CALL_SECONDS
    while time.perf_counter() < end:
        pass


def vector(text: str) -> list[float]:
    """Return a vector of 384 numbers that the text alone decides."""
    return np.random.default_rng(abs(hash(text))).standard_normal(384).tolist()


class Chat(ChatOpenAI):
    """LangChain's OpenAI model without the network."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        wait()
        usage = {"input_tokens": 300, "output_tokens": 100, "total_tokens": 400}
        generation = ChatGeneration(
            message=AIMessage(ANSWER, usage_metadata=usage),
            generation_info={"finish_reason": "stop"},
        )
        return ChatResult(generations=[generation], llm_output={"model_name": "gpt-x"})


class Llama(MockLLM):
    """A LlamaIndex chat model that tells of its calls."""

    @property
    def metadata(self):
        return LLMMetadata(model_name="words")

    @llm_chat_callback()
    def chat(self, messages, **kwargs):
        wait()
        return ChatResponse(message=ChatMessage(ANSWER, role="assistant"))


class ChainEmbeddings(Embeddings):
    """A LangChain embedding model."""

    def embed_documents(self, texts):
        wait()
        return [vector(text) for text in texts]

    def embed_query(self, text):
        wait()
        return vector(text)


class LlamaEmbedding(BaseEmbedding):
    """A LlamaIndex embedding model."""

    def _get_query_embedding(self, query):
        wait()
        return vector(query)

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text):
        return vector(text)


def chat(cache: Any = None) -> Chat:
    """Return a model that does not sample, with or without LangChain's own cache."""
    return Chat(model="gpt-x", temperature=0, api_key="none", cache=cache)


def components() -> Iterator[tuple[str, Any, Callable[[Any, str], Any]]]:
    """Yield plain components and how to ask them."""
    yield (
        "LangChain chat model",
        chat(),
        lambda one, asked: one.invoke([SystemMessage(PROMPT), HumanMessage(asked)]),
    )
    yield "LlamaIndex LLM", Llama(), lambda one, asked: one.chat([ChatMessage(PROMPT + asked)])
    yield "LangChain embeddings", ChainEmbeddings(), lambda one, asked: one.embed_query(asked)
    yield (
        "LlamaIndex embedding",
        LlamaEmbedding(),
        lambda one, asked: one.get_query_embedding(asked),
    )
    store = InMemoryVectorStore.from_texts(TEXTS, ChainEmbeddings())
    yield "LangChain retriever", store.as_retriever(), lambda one, asked: one.invoke(asked)
    index = VectorStoreIndex([TextNode(text=one) for one in TEXTS], embed_model=LlamaEmbedding())
    yield "LlamaIndex retriever", index.as_retriever(), lambda one, asked: one.retrieve(asked)


def new() -> str:
    """Return a question that nobody has asked."""
    return f"what is in passage {next(_numbers)}?"


def measured(plain: Any, ask: Callable[[Any, str], Any]) -> tuple[str, ...]:
    """Return what a miss costs and a hit is worth, as cells of the table."""
    with MultiLevelCache.open() as cache:
        fast = accelerate(plain, cache=cache, identity="benchmark")
        _, _, miss = compare(
            lambda: ask(fast, new()), lambda: ask(plain, new()), times=5, rounds=ROUNDS
        )
        ask(fast, "known")
        hit, whole, ratio = compare(
            lambda: ask(fast, "known"),
            lambda: ask(plain, "known"),
            times=200,
            bare_times=5,
            rounds=ROUNDS,
        )
    met = "yes" if miss <= MISS_BAR else "NO"
    return f"{miss:.3f}", met, f"{hit:.0f} µs", f"{whole / 1e3:.1f} ms", f"{1 / ratio:.0f}x"


def main() -> None:
    """Print the tables and whether the bars are met."""
    table = Table("component", "miss / plain", f"<= {MISS_BAR}", "hit", "plain", "faster")
    for name, plain, ask in components():
        table.add_row(name, *measured(plain, ask))
    Console().print(table)
    own, asked = chat(InMemoryCache()), [SystemMessage(PROMPT), HumanMessage("known")]
    with MultiLevelCache.open() as cache:
        fast = accelerate(chat(), cache=cache)
        own.invoke(asked), fast.invoke(asked)
        ours, theirs, ratio = compare(
            lambda: fast.invoke(asked), lambda: own.invoke(asked), times=200, rounds=ROUNDS
        )
    met = "yes" if ratio <= 1 else "NO"
    print(f"LLM hit {ours:.0f} µs, InMemoryCache {theirs:.0f} µs: {ratio:.2f} (bar 1.00: {met})")  # noqa: T201


if __name__ == "__main__":
    main()
