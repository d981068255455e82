"""`CompressedVectorStore` for LlamaIndex: a vector store over a `VectorCollection`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from ragaccel.errors import CollectionNotFoundError, ConfigurationError
from ragaccel.llamaindex.filters import to_filter
from ragaccel.llamaindex.nodes import decode_node, encode_node
from ragaccel.vectors import CollectionHandle, Documents
from ragaccel.vectors.mmr import select
from ragaccel.vectors.transfer import copy_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from ragaccel.vectors import Hit, Record, VectorCollection

_MANIFEST_NAME: Final = "vector_store.json"
_DEFAULT_NAMESPACE: Final = "default"
_MMR_CANDIDATES: Final = 4


class _Manifest(msgspec.Struct, array_like=True, tag="ragaccel-collection"):
    """Where a collection is. A list, so that LlamaIndex does not load it as an empty store."""

    folder: str
    metric: str


class CompressedVectorStore(BasePydanticVectorStore):
    """Nodes on disk or in memory, searched in compressed form with exact scores.

    The collection is opened at its first use; `open` opens it at once.

    Args:
        path: A folder; None keeps everything in memory.
        collection_options: What `VectorCollection.open` takes, such as `compression="auto"`,
            `recall=0.99`, `metric="cosine"`, `read_only=True`.

    Example:
        >>> store = CompressedVectorStore.open("corpus", recall=0.99)  # doctest: +SKIP
        >>> context = StorageContext.from_defaults(vector_store=store)  # doctest: +SKIP
        >>> index = VectorStoreIndex.from_documents(docs, storage_context=context)  # doctest: +SKIP
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    path: str | None = None
    collection_options: dict[str, Any] = Field(default_factory=dict)
    _handle: CollectionHandle = PrivateAttr()

    def __init__(
        self, path: str | os.PathLike[str] | None = None, **collection_options: Any
    ) -> None:
        given = collection_options.pop("collection_options", {})
        for inherited in ("stores_text", "is_embedding_query", "class_name"):
            collection_options.pop(inherited, None)
        super().__init__(  # type: ignore[call-arg]
            stores_text=True,
            path=None if path is None else os.fspath(path),
            collection_options={**given, **collection_options},
        )
        self._handle = CollectionHandle(self.path, self.collection_options)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, **collection_options: Any) -> Self:
        """Make a store and open its collection now; see the class."""
        store = cls(path, **collection_options)
        store._handle.get()
        return store

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex stores the class under."""
        return "RagaccelCompressedVectorStore"

    @property
    def collection(self) -> VectorCollection:
        """The collection, opened if need be."""
        return self._handle.get()

    @property
    def client(self) -> VectorCollection:
        """The collection."""
        return self.collection

    def close(self) -> None:
        """Close the collection."""
        self._handle.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the place; LlamaIndex would leave out what it cannot pickle."""
        return _reopen, (type(self), self._handle)

    def add(self, nodes: Sequence[BaseNode], **_: Any) -> list[str]:
        """Add nodes, or replace those whose ids exist.

        Args:
            nodes: Nodes with embeddings.

        Returns:
            Their ids, in the order given.

        Raises:
            RagaccelError: A node cannot be stored; then none of them is.
        """
        if nodes:
            self.collection.upsert(
                [node.node_id for node in nodes],
                [node.get_embedding() for node in nodes],
                texts=[_text(node) for node in nodes],
                metadata=[node.metadata for node in nodes],
                document_ids=[node.ref_doc_id for node in nodes],
                payloads=[encode_node(node) for node in nodes],
            )
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **_: Any) -> None:
        """Delete the nodes of a document.

        Raises:
            ConfigurationError: The document has no id.
        """
        if not isinstance(ref_doc_id, str):
            raise ConfigurationError(
                f"delete takes the id of a document, got {ref_doc_id!r}; nodes of no document are "
                "deleted with delete_nodes."
            )
        self.collection.delete_where(Documents((ref_doc_id,)))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **_: Any,
    ) -> None:
        """Delete the nodes that have one of the ids and pass the filters.

        Raises:
            ConfigurationError: Neither ids nor filters are given.
        """
        where = to_filter(filters, node_ids)
        if where is None:
            raise ConfigurationError(
                "delete_nodes needs node_ids or filters; use clear() to delete every node."
            )
        self.collection.delete_where(where)

    def get_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
    ) -> list[BaseNode]:
        """Return the nodes that have one of the ids and pass the filters, in the order of ids."""
        found = self.collection.select(to_filter(filters, node_ids), order=node_ids)
        return [node_of(record) for record in found]

    def clear(self) -> None:
        """Delete every node."""
        self.collection.clear()

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nearest nodes.

        Modes are DEFAULT and MMR (`mmr_threshold` in the query or in `vector_store_kwargs`).
        `node_ids=[]` restricts nothing, as LlamaIndex's own retrievers send it.

        Raises:
            ConfigurationError: The mode is another one, or there is no embedding.
            FilterError: A filter cannot be understood.
        """
        if query.query_embedding is None:
            raise ConfigurationError("the query has no embedding; give the index an embed_model.")
        k = query.similarity_top_k
        if k < 0:
            raise ConfigurationError(
                f"similarity_top_k must be at least 1, or 0 for no nodes, got {k}."
            )
        where = to_filter(query.filters, query.node_ids or None, query.doc_ids)
        mode = VectorStoreQueryMode(query.mode)
        if mode == VectorStoreQueryMode.DEFAULT:
            hits = self.collection.search(query.query_embedding, k, where=where)[0] if k else []
            return _result(hits, [hit.score for hit in hits])
        if mode == VectorStoreQueryMode.MMR:
            threshold = query.mmr_threshold
            if threshold is None:
                threshold = kwargs.get("mmr_threshold")
            return self._diverse(
                query.query_embedding, k, where, 0.5 if threshold is None else threshold, kwargs
            )
        raise ConfigurationError(
            f"the query mode {mode.value!r} needs text search, which this store has not; "
            "use DEFAULT or MMR."
        )

    def _diverse(
        self,
        embedding: list[float],
        k: int,
        where: Any,
        threshold: float,
        kwargs: dict[str, Any],
    ) -> VectorStoreQueryResult:
        fetch = kwargs.get("mmr_prefetch_k") or k * int(
            kwargs.get("mmr_prefetch_factor") or _MMR_CANDIDATES
        )
        hits = self.collection.search(embedding, max(1, fetch, k), where=where, vectors=True)[0]
        if not hits:
            return _result([], [])
        rows = np.stack([hit.vector for hit in hits if hit.vector is not None])
        chosen = select(np.asarray(embedding, dtype=np.float32), rows, k, threshold)
        return _result([hits[at] for at, _ in chosen], [value for _, value in chosen])

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Store the codes and write a note of where the collection is.

        A collection in memory is copied to a folder beside the note.

        Raises:
            ConfigurationError: `fs` is not a local file system.
        """
        if fs is not None and "file" not in getattr(fs, "protocol", ()):
            raise ConfigurationError(
                "a collection persists to local files only; copy the folder from there."
            )
        note = Path(persist_path)
        note.parent.mkdir(parents=True, exist_ok=True)
        collection = self.collection
        folder = collection.path
        if folder is None:
            folder = note.with_suffix(".collection")
            copy_to(collection, folder)
        elif not collection.read_only:
            collection.flush()
        manifest = _Manifest(os.path.relpath(folder, note.parent), collection.metric)
        temporary = note.with_name(note.name + ".new")
        temporary.write_bytes(msgspec.json.encode(manifest))
        temporary.replace(note)

    @classmethod
    def from_persist_path(cls, persist_path: str, **collection_options: Any) -> Self:
        """Open the collection that `persist` wrote a note of.

        Raises:
            CollectionNotFoundError: There is no such note.
        """
        note = Path(persist_path)
        try:
            manifest = msgspec.json.decode(note.read_bytes(), type=_Manifest)
        except (FileNotFoundError, msgspec.DecodeError) as error:
            raise CollectionNotFoundError(
                f"{persist_path} is no note of a ragaccel collection."
            ) from error
        folder = note.parent / manifest.folder
        return cls.open(folder, **{"metric": manifest.metric, **collection_options})

    @classmethod
    def from_persist_dir(
        cls, persist_dir: str, namespace: str = _DEFAULT_NAMESPACE, **collection_options: Any
    ) -> Self:
        """Open the collection that `StorageContext.persist(persist_dir)` wrote a note of."""
        note = Path(persist_dir) / f"{namespace}__{_MANIFEST_NAME}"
        return cls.from_persist_path(str(note), **collection_options)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Do what `add` does, in a worker thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **kwargs: Any) -> None:
        """Do what `delete` does, in a worker thread."""
        await asyncio.to_thread(self.delete, ref_doc_id, **kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> None:
        """Do what `delete_nodes` does, in a worker thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **kwargs)

    async def aget_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
    ) -> list[BaseNode]:
        """Return what `get_nodes` does, from a worker thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aclear(self) -> None:
        """Do what `clear` does, in a worker thread."""
        await asyncio.to_thread(self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return what `query` does, without blocking the event loop."""
        is_plain = not (query.filters or query.node_ids or query.doc_ids)
        if is_plain and query.mode == VectorStoreQueryMode.DEFAULT and query.similarity_top_k > 0:
            vector = query.query_embedding
            if vector is not None:
                hits = await self.collection.asearch(vector, query.similarity_top_k)
                return _result(hits, [hit.score for hit in hits])
        return await asyncio.to_thread(self.query, query, **kwargs)


def _reopen(cls: type[CompressedVectorStore], handle: CollectionHandle) -> CompressedVectorStore:
    store = cls(handle.path, **handle.options)
    store._handle = handle
    return store


def _text(node: BaseNode) -> str | None:
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return text if type(node) is TextNode else text or None


def node_of(record: Record) -> BaseNode:
    """Return the node that a row is."""
    return decode_node(record.payload, record.id, record.text, record.metadata)


def _result(hits: list[Hit], similarities: list[float]) -> VectorStoreQueryResult:
    return VectorStoreQueryResult(
        nodes=[node_of(hit) for hit in hits],
        similarities=similarities,
        ids=[hit.id for hit in hits],
    )
