"""LlamaIndex retrievers, wrapped at `_retrieve` and `_aretrieve`.

Events, callbacks and recursive retrieval lie above that seam and happen on a hit as on a miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from ragaccel import telemetry
from ragaccel.cache import Stale, Uncacheable, flow
from ragaccel.io import run
from ragaccel.llamaindex import embedding
from ragaccel.llamaindex.events import embed_stages
from ragaccel.llamaindex.followed_store import check_texts
from ragaccel.llamaindex.nodes import PackedNode, pack_node, unpack_node
from ragaccel.llamaindex.vector_store import CompressedVectorStore, node_of
from ragaccel.reuse import answers, serve, uncached
from ragaccel.reuse.followed import source_of
from ragaccel.telemetry import attributes
from ragaccel.wrapping.fingerprint import class_name, fingerprint, visible
from ragaccel.wrapping.seam import Options, is_serving, tell_found
from ragaccel.wrapping.transparent import options_of, plain_class, state_of, wrap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import QueryBundle

    from ragaccel.cache import Kind
    from ragaccel.reuse import Answer
    from ragaccel.vectors import Hit

    _Base = BaseRetriever
else:
    _Base = object


class _Packed(msgspec.Struct, array_like=True, frozen=True):
    nodes: list[tuple[PackedNode, float | None]]
    embedding: bytes | None
    sync: bool


@dataclass(frozen=True, slots=True)
class _Retrieved:
    """Nodes, and the embedding that a sync retrieval leaves in the query bundle."""

    nodes: list[NodeWithScore]
    embedding: list[float] | None
    sync: bool


def _pack(retrieved: _Retrieved) -> _Packed:
    vector = retrieved.embedding
    return _Packed(
        [(pack_node(one.node), one.score) for one in retrieved.nodes],
        None if vector is None else np.asarray(vector, dtype=np.float64).tobytes(),
        retrieved.sync,
    )


def _unpack(packed: _Packed) -> _Retrieved:
    vector = packed.embedding
    return _Retrieved(
        [NodeWithScore(node=unpack_node(node), score=score) for node, score in packed.nodes],
        None if vector is None else np.frombuffer(vector, dtype=np.float64).tolist(),
        packed.sync,
    )


def _unpack_for_sync(packed: _Packed) -> _Retrieved:
    if not packed.sync:
        raise Stale  # an async retrieval left no embedding to restore
    return _unpack(packed)


def _documents(retrieved: _Retrieved) -> Iterator[str]:
    for one in retrieved.nodes:
        yield one.node.node_id
        if one.node.ref_doc_id is not None:
            yield one.node.ref_doc_id


def _rebuild(kept: _Retrieved, hits: list[Hit]) -> _Retrieved:
    nodes = [NodeWithScore(node=node_of(hit), score=hit.score) for hit in hits]
    if any(type(one.node) is not TextNode for one in nodes):
        raise Stale  # the retriever looks others up in the index's document store
    return _Retrieved(nodes, kept.embedding, kept.sync)


def _kind(
    unpack: Callable[[_Packed], _Retrieved],
    rebuild: Callable[[_Retrieved, list[Hit]], _Retrieved] | None = None,
) -> Kind[Answer[_Retrieved]]:
    return answers(
        "llamaindex.nodes", _pack, unpack, _Packed,
        documents=_documents, shown=lambda retrieved: retrieved.nodes, rebuild=rebuild,
    )  # fmt: skip


#: By whether an answer is plain, and whether a sync call asks for it.
_KINDS: Final = {
    (plain, sync): _kind(_unpack_for_sync if sync else _unpack, _rebuild if plain else None)
    for plain in (False, True)
    for sync in (False, True)
}


def _is_plain(retriever: Any) -> bool:
    """Tell whether an answer is just the rows of one search, so that it can be repaired."""
    return (
        plain_class(type(retriever)) is VectorIndexRetriever
        and type(retriever._vector_store) is CompressedVectorStore
        and retriever._vector_store_query_mode == VectorStoreQueryMode.DEFAULT
    )


class _Retriever(_Base):
    """The seam: everything else of the retriever is its own."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        state = state_of(self)
        if state is None or is_serving(self):
            return super()._retrieve(query_bundle)  # type: ignore[safe-super]

        async def call() -> _Retrieved:
            with embed_stages():
                nodes = super(_Retriever, self)._retrieve(query_bundle)  # type: ignore[safe-super]
            _check(self, nodes)
            return _Retrieved(nodes, query_bundle.embedding, sync=True)

        with _stage(self, state.options) as span:
            retrieved = run(_serve(flow.SYNC, self, state.options, query_bundle, call))
            tell_found(span, query_bundle, retrieved.nodes)
        query_bundle.embedding = retrieved.embedding
        return retrieved.nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        state = state_of(self)
        if state is None or is_serving(self):
            return await super()._aretrieve(query_bundle)

        async def call() -> _Retrieved:
            with embed_stages():
                nodes = await super(_Retriever, self)._aretrieve(query_bundle)
            _check(self, nodes)
            return _Retrieved(nodes, None, sync=False)

        with _stage(self, state.options) as span:
            retrieved = await _serve(flow.ASYNC, self, state.options, query_bundle, call)
            tell_found(span, query_bundle, retrieved.nodes)
        return retrieved.nodes


def _serve(
    io: flow.IO,
    retriever: Any,
    options: Options,
    bundle: QueryBundle,
    call: Callable[[], Awaitable[_Retrieved]],
) -> Coroutine[Any, Any, _Retrieved]:
    """Return the flow of a call; what it is kept by is found out only where there is a cache."""
    if options.cache is None:
        return uncached(retriever, call)
    plain, sync = _is_plain(retriever), io is flow.SYNC
    return serve(
        io, retriever, options, _KINDS[plain, sync], _parts(retriever, options, bundle), call,
        query=bundle.query_str, spare=options.spare if plain else 0,
        alike=(lambda: _identity(retriever, options)) if plain else None,
    )  # fmt: skip


def _check(retriever: Any, nodes: list[NodeWithScore]) -> None:
    if isinstance(retriever, VectorIndexRetriever):
        check_texts(retriever, nodes)


def accelerated(retriever: BaseRetriever, options: Options) -> BaseRetriever:
    """Return the retriever wrapped; see `ragaccel.accelerate`."""
    wrapped = wrap(retriever, _Retriever, options, lambda: _identity(retriever, options))
    model = getattr(wrapped, "_embed_model", None)
    if options.batch is not None and isinstance(model, BaseEmbedding):
        batching = options_of(model).batching(options.batch)
        wrapped._embed_model = embedding.accelerated(model, batching)  # type: ignore[attr-defined]
    return wrapped


def _stage(retriever: Any, options: Options) -> telemetry.Stage:
    """Return the stage of a call; without a cache it is nothing but the retrieval."""
    name = "retrieve" if options.cache is None else "query"
    return telemetry.stage(name, {attributes.COMPONENT: type(retriever).__name__})


def _parts(retriever: Any, options: Options, bundle: QueryBundle) -> Any:
    """Return a function that gives everything an answer depends on, read when it is called."""
    strings, image, vector = bundle.custom_embedding_strs, bundle.image_path, bundle.embedding
    return lambda: (
        _identity(retriever, options),
        (
            options.worded(bundle.query_str),
            image,
            None if strings is None else list(map(options.worded, strings)),
            vector,
        ),
    )


def _identity(retriever: Any, options: Options) -> Any:
    cls = plain_class(type(retriever))
    name = class_name(cls)
    if cls is not VectorIndexRetriever:
        if options.identity is None:
            raise Uncacheable("component")
        return name, options.identity
    return name, _source(retriever, options), _settings(retriever)


def _source(retriever: Any, options: Options) -> Any:
    """Tell which documents are searched and with which embeddings."""
    store, model = retriever._vector_store, retriever._embed_model
    ours = isinstance(store, CompressedVectorStore)
    followed = source_of(store)
    if ours:
        searched = store.collection.id
    else:
        searched = retriever._index.index_struct.index_id if followed is None else followed
    if options.identity is None:
        return searched, fingerprint(model)
    # A name given by the user stands for what cannot be seen: a store of another house, or what an
    # embedding model hides.
    return searched if ours else followed, options.identity, class_name(type(model)), visible(model)


def _settings(retriever: Any) -> Any:
    filters = retriever._filters
    return (
        retriever._similarity_top_k,
        retriever._vector_store_query_mode.value,
        retriever._alpha,
        retriever._node_ids,
        retriever._doc_ids,
        None if filters is None else filters.model_dump(mode="json"),
        retriever._sparse_top_k,
        retriever._hybrid_top_k,
        cast("dict[str, Any]", retriever._kwargs),
    )
