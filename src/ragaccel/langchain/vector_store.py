"""`CompressedVectorStore` for LangChain: a vector store over a `VectorCollection`."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from ragaccel import telemetry
from ragaccel.errors import ConfigurationError, FilterError
from ragaccel.langchain.filters import to_filter
from ragaccel.telemetry import attributes
from ragaccel.vectors import CollectionHandle, Ids
from ragaccel.vectors.mmr import select
from ragaccel.wrapping.seam import stage_of
from ragaccel.wrapping.transparent import state_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from langchain_core.embeddings import Embeddings
    from typing_extensions import Self

    from ragaccel.vectors import Filter, Hit, Record, VectorCollection

    Where = dict[str, Any] | Callable[[Document], bool] | None

_K: Final = 4
_FETCH_K: Final = 20
_MISNAMED_FILTERS: Final = frozenset(("filters", "where", "pre_filter", "metadata_filter"))


class CompressedVectorStore(VectorStore):
    """Documents on disk or in memory, searched in compressed form with exact scores.

    The collection is opened at its first use; `open` opens it at once. A filter is a dictionary of
    metadata (`{"topic": "a", "year": {"$gte": 2020}}`, with $and, $or and $not) or a function of a
    document; it is applied before the search, so that k documents come back whenever k exist.

    Args:
        embedding: The embedding model of the application.
        path: A folder; None keeps everything in memory.
        collection_options: What `VectorCollection.open` takes, such as `compression="auto"`,
            `recall=0.99`, `metric="cosine"`, `read_only=True`.

    Example:
        >>> store = CompressedVectorStore(embeddings, path="corpus")  # doctest: +SKIP
        >>> store.add_texts(["a text"])  # doctest: +SKIP
        >>> retriever = store.as_retriever(search_kwargs={"k": 10})  # doctest: +SKIP
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        path: str | os.PathLike[str] | None = None,
        **collection_options: Any,
    ) -> None:
        self._embedding = embedding
        self._handle = CollectionHandle(path, collection_options)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None,
        embedding: Embeddings,
        **collection_options: Any,
    ) -> Self:
        """Make a store and open its collection now; see the class."""
        store = cls(embedding, path=path, **collection_options)
        store._handle.get()
        return store

    @property
    def collection(self) -> VectorCollection:
        """The collection, opened if need be."""
        return self._handle.get()

    @property
    def embeddings(self) -> Embeddings:
        """The embedding model."""
        return self._embedding

    def close(self) -> None:
        """Close the collection."""
        self._handle.close()

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | os.PathLike[str] | None = None,
        **collection_options: Any,
    ) -> Self:
        """Make a store and add texts."""
        store = cls.open(path, embedding, **collection_options)
        try:
            store.add_texts(texts, metadatas, ids=ids)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | os.PathLike[str] | None = None,
        **collection_options: Any,
    ) -> Self:
        """Do what `from_texts` does, without blocking the event loop."""
        store = await asyncio.to_thread(cls.open, path, embedding, **collection_options)
        try:
            await store.aadd_texts(texts, metadatas, ids=ids)
        except BaseException:
            store.close()
            raise
        return store

    # -- writing -----------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """Embed and add texts, or replace those whose ids exist.

        Args:
            texts: The texts.
            metadatas: One dict of JSON values per text.
            ids: One id per text; a new one is made where it is None.

        Returns:
            The ids, in the order of the texts.

        Raises:
            RagaccelError: A row cannot be stored; then none of them is.
        """
        listed = list(texts)
        with self._embedding_stage(len(listed)):
            vectors = self._embedding.embed_documents(listed) if listed else []
        return self._upsert(listed, vectors, metadatas, ids)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[str]:
        """Do what `add_texts` does, without blocking the event loop."""
        listed = list(texts)
        with self._embedding_stage(len(listed)):
            vectors = await self._embedding.aembed_documents(listed) if listed else []
        return await asyncio.to_thread(self._upsert, listed, vectors, metadatas, ids)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents by id; without ids, all of them. Unknown ids are passed over.

        Raises:
            ConfigurationError: There are no ids, but something else that may say which to delete.
        """
        if ids is None and kwargs:
            raise ConfigurationError(
                f"delete does not know {', '.join(kwargs)}= and would delete everything; give ids, "
                "or a filter to store.collection.delete_where(...)."
            )
        if ids is None:
            self.collection.clear()
        else:
            self.collection.delete(ids)
        return True

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Do what `delete` does, in a worker thread."""
        return await asyncio.to_thread(self.delete, ids, **kwargs)

    # -- reading -----------------------------------------------------------------------------------

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of ids, in their order; unknown ids are left out."""
        return [document_of(record) for record in self.collection.get(ids)]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return what `get_by_ids` does, from a worker thread."""
        return await asyncio.to_thread(self.get_by_ids, ids)

    def similarity_search(
        self,
        query: str,
        k: int = _K,
        filter: Where = None,  # noqa: A002 - LangChain's name
        **kwargs: Any,
    ) -> list[Document]:
        """Return the k documents nearest to a text."""
        _refuse_misnamed_filters(kwargs)
        return [document for document, _ in self.similarity_search_with_score(query, k, filter)]

    async def asimilarity_search(
        self,
        query: str,
        k: int = _K,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return what `similarity_search` does, without blocking the event loop."""
        _refuse_misnamed_filters(kwargs)
        found = await self.asimilarity_search_with_score(query, k, filter)
        return [document for document, _ in found]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = _K,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Return the k documents nearest to a text, with scores; higher is nearer."""
        _refuse_misnamed_filters(kwargs)
        return self.similarity_search_with_score_by_vector(self._embed(query), k, filter)

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int = _K,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Return what `similarity_search_with_score` does, without blocking the event loop."""
        _refuse_misnamed_filters(kwargs)
        return await self._asearch(await self._aembed(query), k, filter)

    def similarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = _K,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return the k documents nearest to a vector."""
        _refuse_misnamed_filters(kwargs)
        found = self.similarity_search_with_score_by_vector(embedding, k, filter)
        return [document for document, _ in found]

    async def asimilarity_search_by_vector(
        self,
        embedding: list[float],
        k: int = _K,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return what `similarity_search_by_vector` does, without blocking the event loop."""
        _refuse_misnamed_filters(kwargs)
        found = await self._asearch(embedding, k, filter)
        return [document for document, _ in found]

    def similarity_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = _K,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Return the k documents nearest to a vector, with scores; higher is nearer."""
        _refuse_misnamed_filters(kwargs)
        hits = self.collection.search(embedding, k, where=self._where(filter))[0]
        return [(document_of(hit), hit.score) for hit in hits]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = _K,
        fetch_k: int = _FETCH_K,
        lambda_mult: float = 0.5,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return k documents near a text and unlike each other, chosen among `fetch_k`."""
        _refuse_misnamed_filters(kwargs)
        return self.max_marginal_relevance_search_by_vector(
            self._embed(query), k, fetch_k, lambda_mult, filter
        )

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = _K,
        fetch_k: int = _FETCH_K,
        lambda_mult: float = 0.5,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return what `max_marginal_relevance_search` does, without blocking the event loop."""
        _refuse_misnamed_filters(kwargs)
        vector = await self._aembed(query)
        return await self.amax_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, filter
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = _K,
        fetch_k: int = _FETCH_K,
        lambda_mult: float = 0.5,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return k documents near a vector and unlike each other, chosen among `fetch_k`."""
        _refuse_misnamed_filters(kwargs)
        hits = self.collection.search(
            embedding, max(k, fetch_k), where=self._where(filter), vectors=True
        )[0]
        if not hits:
            return []
        rows = np.stack([hit.vector for hit in hits if hit.vector is not None])
        chosen = select(np.asarray(embedding, dtype=np.float32), rows, k, lambda_mult)
        return [document_of(hits[at]) for at, _ in chosen]

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = _K,
        fetch_k: int = _FETCH_K,
        lambda_mult: float = 0.5,
        filter: Where = None,  # noqa: A002
        **kwargs: Any,
    ) -> list[Document]:
        """Return what `max_marginal_relevance_search_by_vector` does, from a worker thread."""
        _refuse_misnamed_filters(kwargs)
        return await asyncio.to_thread(
            self.max_marginal_relevance_search_by_vector,
            embedding,
            k,
            fetch_k,
            lambda_mult,
            filter,
        )

    # -- inside ------------------------------------------------------------------------------------

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self.collection.metric == "l2":
            return lambda score: 1 / (1 + max(0.0, -score))
        return lambda score: min(1.0, max(0.0, (1 + score) / 2))

    async def _asearch(
        self, embedding: list[float], k: int, where: Where
    ) -> list[tuple[Document, float]]:
        if where is not None:
            search = self.similarity_search_with_score_by_vector
            return await asyncio.to_thread(search, embedding, k, where)
        hits = await self.collection.asearch(embedding, k)
        return [(document_of(hit), hit.score) for hit in hits]

    def _embedding_stage(self, count: int) -> telemetry.Stage:
        """Return the stage of an embedding, unless the model has one of its own."""
        if state_of(self._embedding) is not None:
            return telemetry.OFF
        told = {attributes.ITEMS: count} if count > 1 else {}
        return stage_of("embed", self._embedding, told)

    def _embed(self, query: str) -> list[float]:
        with self._embedding_stage(1):
            return self._embedding.embed_query(query)

    async def _aembed(self, query: str) -> list[float]:
        with self._embedding_stage(1):
            return await self._embedding.aembed_query(query)

    def _upsert(
        self,
        texts: list[str],
        vectors: list[list[float]],
        metadatas: list[dict[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> list[str]:
        if ids is not None and len(ids) != len(texts):
            raise ConfigurationError(f"{len(texts)} texts need {len(texts)} ids, got {len(ids)}.")
        keys = [one or str(uuid.uuid4()) for one in ids or [None] * len(texts)]
        if keys:
            self.collection.upsert(keys, vectors, texts=texts, metadata=metadatas)
        return keys

    def _where(self, where: Where) -> Filter | None:
        if where is None:
            return None
        if isinstance(where, dict):
            return to_filter(where) if where else None
        if callable(where):
            return Ids(tuple(self._matching(where)))
        raise FilterError(
            f"a filter is a dict or a function of a document, got {type(where).__name__}."
        )

    def _matching(self, accepts: Callable[[Document], bool]) -> Iterator[str]:
        for record in self.collection.scan():
            if accepts(document_of(record)):
                yield record.id


def _refuse_misnamed_filters(kwargs: dict[str, Any]) -> None:
    """LangChain drops keywords that it does not know: a filter must not be lost so."""
    for name in _MISNAMED_FILTERS.intersection(kwargs):
        raise ConfigurationError(f"{name}= is not known here; write filter=.")


def document_of(record: Record | Hit) -> Document:
    """Return the document that a row is."""
    return Document(id=record.id, page_content=record.text or "", metadata=record.metadata)
