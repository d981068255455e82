"""Retrievers such as users write: they live in a module so that they can be pickled."""

from __future__ import annotations

import asyncio

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import PrivateAttr

TEXTS = (
    "the red apple fell from the tree",
    "a green pear and a red plum",
    "the blue sky over the tree",
    "red wine and green cheese",
    "the dark night sky",
    "a tree house in a dark wood",
)


class WordRetriever(BaseRetriever):
    """Ranks a few texts by the words they share with the query.

    It belongs to no vector store, and it tells what it was asked.
    """

    texts: tuple[str, ...] = TEXTS
    k: int = 3
    _asked: list[str] = PrivateAttr(default_factory=list)

    @property
    def asked(self):
        """Every query that was not answered from a cache."""
        return self._asked

    def ranked(self, query, language="en"):
        self._asked.append(query)
        words = set(query.lower().split())
        best = sorted(self.texts, key=lambda text: -len(words.intersection(text.split())))
        return [
            Document(
                id=f"text-{self.texts.index(text)}",
                page_content=text,
                metadata={"rank": rank, "words": text.split(), "language": language},
            )
            for rank, text in enumerate(best[: self.k])
        ]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.ranked(query)


class OldStyle(WordRetriever):
    """Written before run managers were handed to retrievers."""

    def _get_relevant_documents(self, query):
        return self.ranked(query)


class NativeAsync(WordRetriever):
    """Has an asynchronous method of its own."""

    async def _aget_relevant_documents(self, query, *, run_manager):
        found = self.ranked(query)
        await asyncio.sleep(0)
        return found


class OldStyleAsync(OldStyle):
    """Has an asynchronous method, and neither takes a run manager."""

    async def _aget_relevant_documents(self, query):
        await asyncio.sleep(0)
        return self.ranked(query)


class WithArguments(WordRetriever):
    """Takes an argument beside the query."""

    def _get_relevant_documents(self, query, *, run_manager, language="en"):
        return self.ranked(query, language)


class Dumpable(WordRetriever):
    """Can be written by `langchain_core.load`."""

    @classmethod
    def is_lc_serializable(cls):
        return True


class Telling(WordRetriever):
    """Sends an event of its own through the run manager."""

    def _get_relevant_documents(self, query, *, run_manager):
        run_manager.on_text("thinking", run_manager=None)
        return self.ranked(query)


class Failing(WordRetriever):
    """Raises what it was given."""

    error: Exception

    def _get_relevant_documents(self, query, *, run_manager):
        raise self.error


class Partner(VectorStoreRetriever):
    """A store's own retriever class, as partner packages have them."""


class Delegating(BaseRetriever):
    """Asks another retriever, as ensembles and compressors do."""

    inner: BaseRetriever

    def _get_relevant_documents(self, query, *, run_manager):
        return self.inner.invoke(query, {"callbacks": run_manager.get_child()})
