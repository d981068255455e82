"""Retrievers of a user's own: real ones, which ragaccel knows nothing about."""

from __future__ import annotations

import asyncio
import re
import time

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

dispatcher = get_dispatcher(__name__)


class WordRetriever(BaseRetriever):
    """Finds the texts that share most words with the query.

    `calls` lists the queries it was really asked; clones share the list.
    """

    def __init__(self, nodes: list[BaseNode], *, top_k: int = 2, seconds: float = 0.0, **more):
        self.nodes = nodes
        self.top_k = top_k
        self.seconds = seconds
        self.calls: list[str] = []
        super().__init__(**more)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        time.sleep(self.seconds)
        return self._find(query_bundle.query_str)

    def _find(self, query: str) -> list[NodeWithScore]:
        self.calls.append(query)
        asked = _words(query)
        scored = [
            NodeWithScore(node=node, score=len(asked & _words(node.get_content())) / len(asked))
            for node in self.nodes
        ]
        return sorted(scored, key=lambda one: -one.score)[: self.top_k]


class AsyncWordRetriever(WordRetriever):
    """The same with an async implementation of its own."""

    @dispatcher.span
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        await asyncio.sleep(self.seconds)
        return self._find(query_bundle.query_str)


class BrokenRetriever(BaseRetriever):
    """Raises the error it was given, until `error` is None."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self.error is not None:
            raise self.error
        return []


class SlottedRetriever(BaseRetriever):
    """Keeps an attribute outside its `__dict__`."""

    __slots__ = ("kept",)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return []


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
