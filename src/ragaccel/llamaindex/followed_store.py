"""LlamaIndex vector stores of other houses, with a change log beside them.

What is written through them is known to cached retrievals over them; see `ragaccel.reuse.reads`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from llama_index.core.schema import ObjectType
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryMode

from ragaccel.llamaindex.vector_store import CompressedVectorStore
from ragaccel.reuse.changes import EVERYTHING, Change, MemoryChanges
from ragaccel.reuse.followed import (
    attach,
    follow_store,
    following_of,
    note_other_writes,
    read,
    read_now,
    write,
    write_now,
)
from ragaccel.reuse.reads import UNSURE, have_order, reads
from ragaccel.wrapping.transparent import keep_defaults, plain_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llama_index.core.schema import BaseNode, NodeWithScore
    from llama_index.core.vector_stores.types import (
        VectorStoreQuery,
        VectorStoreQueryResult,
    )

    from ragaccel.reuse.reads import Metric, Read
    from ragaccel.wrapping.seam import Options

    _Base = BasePydanticVectorStore
else:
    _Base = object

_SEAM = (
    "add", "async_add", "delete", "adelete", "delete_nodes", "adelete_nodes", "clear", "aclear",
    "query", "aquery",
)  # fmt: skip


class _Store(_Base):
    """The seam: everything else of the store is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Leave to LlamaIndex what it has defaults for, and note writes that it does not know."""
        keep_defaults(made, base, BasePydanticVectorStore, *_SEAM)
        note_other_writes(made, base, BasePydanticVectorStore)

    @classmethod
    def finish_clone(cls, clone: Any) -> None:
        """Begin or open the change log."""
        attach(clone, _metric(clone))

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> Any:
        nodes = list(nodes)
        return write_now(self, _upsert(nodes), partial(super().add, nodes, **add_kwargs))  # type: ignore[safe-super]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Any:
        nodes = list(nodes)
        return await write(self, _upsert(nodes), partial(super().async_add, nodes, **kwargs))

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> Any:
        change = _of_document(ref_doc_id)
        return write_now(self, change, partial(super().delete, ref_doc_id, **delete_kwargs))  # type: ignore[safe-super]

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> Any:
        change = _of_document(ref_doc_id)
        return await write(self, change, partial(super().adelete, ref_doc_id, **delete_kwargs))

    def delete_nodes(self, *args: Any, **kwargs: Any) -> Any:
        call = partial(super().delete_nodes, *args, **kwargs)
        return write_now(self, _delete(*args, **kwargs), call)

    async def adelete_nodes(self, *args: Any, **kwargs: Any) -> Any:
        call = partial(super().adelete_nodes, *args, **kwargs)
        return await write(self, _delete(*args, **kwargs), call)

    def clear(self, *args: Any, **kwargs: Any) -> Any:
        return write_now(self, EVERYTHING, partial(super().clear, *args, **kwargs))

    async def aclear(self, *args: Any, **kwargs: Any) -> Any:
        return await write(self, EVERYTHING, partial(super().aclear, *args, **kwargs))

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> Any:
        call = partial(super().query, query, **kwargs)  # type: ignore[safe-super]
        return read_now(self, call, partial(_told, self, query, kwargs), _found)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> Any:
        call = partial(super().aquery, query, **kwargs)
        return await read(self, call, partial(_told, self, query, kwargs), _found)


def accelerated(store: BasePydanticVectorStore, options: Options) -> Any:
    """Return the store with a change log; see `ragaccel.accelerate`."""
    if isinstance(store, CompressedVectorStore):
        return store  # its collection has a log of its own
    return follow_store(store, _Store, options, is_private=not store.stores_text)


def check_texts(retriever: Any, nodes: Sequence[NodeWithScore]) -> None:
    """Tell whoever keeps an answer if some of its texts may be older than the store's vectors.

    Where a store keeps no texts, indexes write them elsewhere after the vectors.
    """
    listening, store = reads(), retriever._vector_store
    following = following_of(store)
    if listening is None or following is None:
        return
    if not listening:
        listening.append(UNSURE)  # it was searched where nobody could see it
    elsewhere = {
        one.node.node_id: one.node.hash
        for one in nodes
        if not store.stores_text or one.node.get_type() != ObjectType.TEXT
    }
    log = following.log
    if elsewhere and not (
        isinstance(log, MemoryChanges)
        and all(elsewhere[row] == told for row, told in log.hashes_of(elsewhere).items())
    ):
        listening.append(UNSURE)


def _metric(store: Any) -> Metric | None:
    return "cosine" if plain_class(type(store)) is SimpleVectorStore else None


def _upsert(nodes: Sequence[BaseNode]) -> Change:
    try:
        ids = tuple(node.node_id for node in nodes)
        hashes = tuple(node.hash for node in nodes)
        vectors = np.asarray([node.embedding for node in nodes], np.float32)
    except Exception:  # noqa: BLE001 - the store says what it thinks of them
        return EVERYTHING
    return Change("upsert", ids, vectors.tobytes() if vectors.ndim > 1 else b"", hashes)


def _of_document(ref_doc_id: Any) -> Change:
    return Change("documents", (ref_doc_id,)) if isinstance(ref_doc_id, str) else EVERYTHING


def _delete(node_ids: Sequence[str] | None = None, *_: Any, **__: Any) -> Change:
    """Return what a delete does at most: filters only spare some of the nodes named."""
    is_named = bool(node_ids) and not isinstance(node_ids, str)
    return Change("delete", tuple(map(str, node_ids or ()))) if is_named else EVERYTHING


def _found(result: VectorStoreQueryResult) -> Sequence[Any]:
    return result.nodes or result.ids or ()


def _told(
    store: Any, query: VectorStoreQuery, kwargs: dict[str, Any], told: Read, result: Any
) -> Read:
    """Return what an answer depends on: the nearest rows, or more than is known."""
    if (
        kwargs
        or query.mode != VectorStoreQueryMode.DEFAULT
        or query.query_embedding is None
        or (not store.stores_text and _metric(store) is None)
    ):
        return told
    rows = _rows(result)
    found = [float(one) for one in result.similarities or ()]
    is_full = len(rows) >= query.similarity_top_k
    is_filtered = query.filters is not None or bool(query.node_ids or query.doc_ids)
    if not have_order(found) or (is_filtered and not is_full):
        return told
    vector = np.asarray(query.query_embedding, np.float32)
    return msgspec.structs.replace(
        told,
        rows=rows,
        documents=_documents(store, result, rows),
        query=vector.tobytes(),
        floor=min(found) if is_full and len(found) == len(rows) else -math.inf,
        metric=following_of(store).believed(rows, found, vector),
    )


def _rows(result: VectorStoreQueryResult) -> tuple[str, ...]:
    if result.nodes:
        return tuple(node.node_id for node in result.nodes)
    return tuple(result.ids or ())


def _documents(
    store: Any, result: VectorStoreQueryResult, rows: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return which documents rows belong to; None where it cannot be told."""
    if result.nodes:
        owners = [node.ref_doc_id for node in result.nodes]
        return None if None in owners else tuple(map(str, owners))
    if isinstance(store, SimpleVectorStore):
        table = store.data.text_id_to_ref_doc_id
        return tuple(table.get(row, "None") for row in rows)
    return None if rows else ()
