"""LangChain retrievers, wrapped at `_get_relevant_documents` and its async twin.

Callbacks and tracing lie above that seam and happen on a hit as on a miss.
"""

from __future__ import annotations

import contextlib
import copy
import uuid
import weakref
from typing import TYPE_CHECKING, Any, Final

import msgspec
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever

from ragaccel import telemetry
from ragaccel.cache import Uncacheable, flow
from ragaccel.cache.values import check_plain
from ragaccel.io import run
from ragaccel.langchain import embeddings
from ragaccel.langchain.followed_store import check_seen
from ragaccel.langchain.instrumentors import span_of
from ragaccel.langchain.vector_store import CompressedVectorStore, document_of
from ragaccel.reuse import answers, serve, uncached
from ragaccel.reuse.followed import source_of
from ragaccel.telemetry import attributes
from ragaccel.wrapping.fingerprint import class_name, fingerprint, visible
from ragaccel.wrapping.seam import Options, is_serving, tell_found
from ragaccel.wrapping.transparent import options_of, plain_class, state_of, wrap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore

    from ragaccel.cache import Kind
    from ragaccel.reuse import Answer
    from ragaccel.vectors import Hit

    _Base = BaseRetriever
else:
    _Base = object


class _Packed(msgspec.Struct, array_like=True, frozen=True):
    page_content: str
    metadata: dict[str, Any]
    id: str | None


def _pack(documents: list[Document]) -> list[_Packed]:
    packed = []
    for one in documents:
        if type(one) is not Document:
            raise Uncacheable("value")
        check_plain(one.metadata)
        packed.append(_Packed(one.page_content, one.metadata, one.id))
    return packed


def _unpack(packed: list[_Packed]) -> list[Document]:
    return [
        Document(page_content=one.page_content, metadata=one.metadata, id=one.id) for one in packed
    ]


def _ids(documents: list[Document]) -> Iterator[str]:
    """Yield the ids of chunks, and the sources they come from, as LangChain's indexing calls it."""
    for one in documents:
        for name in (one.id, one.metadata.get("source")):
            if isinstance(name, str):
                yield name


def _kind(
    rebuild: Callable[[list[Document], list[Hit]], list[Document]] | None = None,
) -> Kind[Answer[list[Document]]]:
    return answers(
        "langchain.documents", _pack, _unpack, list[_Packed],
        documents=_ids, shown=lambda documents: documents, rebuild=rebuild,
    )  # fmt: skip


_DOCUMENTS: Final = _kind()
_REPAIRED: Final = _kind(lambda _, hits: [document_of(hit) for hit in hits])


def _kept(retriever: Any, options: Options) -> tuple[Kind[Answer[list[Document]]], int]:
    """Return how answers are kept, and with how many spare rows: the plain ones are repaired."""
    if (
        plain_class(type(retriever)) is VectorStoreRetriever
        and type(retriever.vectorstore) is CompressedVectorStore
        and retriever.search_type == "similarity"
    ):
        return _REPAIRED, options.spare
    return _DOCUMENTS, 0


class _Retriever(_Base):
    """The seam: everything else of the retriever is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Restore the flags that LangChain reads off the signature we replaced."""
        made._new_arg_supported = True
        made._expects_other_args = base._expects_other_args

    def _get_relevant_documents(
        self, query: str, *, run_manager: Any = None, **kwargs: Any
    ) -> list[Document]:
        state = state_of(self)
        given = _given(self, run_manager)
        if state is None or is_serving(self):
            return super()._get_relevant_documents(query, **given, **kwargs)  # type: ignore[safe-super]

        async def call() -> list[Document]:
            method = super(_Retriever, self)._get_relevant_documents  # type: ignore[safe-super]
            documents = method(query, **given, **kwargs)
            _check(self)
            return documents

        with _query_stage(self, state.options, run_manager) as span:
            documents = run(_serve(flow.SYNC, self, state.options, query, kwargs, call))
            tell_found(span, query, documents)
        return documents

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: Any = None, **kwargs: Any
    ) -> list[Document]:
        state = state_of(self)
        given = _given(self, run_manager)
        if state is None or is_serving(self):
            return await super()._aget_relevant_documents(query, **given, **kwargs)

        async def call() -> list[Document]:
            method = super(_Retriever, self)._aget_relevant_documents
            documents = await method(query, **given, **kwargs)
            _check(self)
            return documents

        with _query_stage(self, state.options, run_manager) as span:
            documents = await _serve(flow.ASYNC, self, state.options, query, kwargs, call)
            tell_found(span, query, documents)
        return documents


def _serve(
    io: flow.IO,
    retriever: Any,
    options: Options,
    query: str,
    kwargs: dict[str, Any],
    call: Callable[[], Awaitable[list[Document]]],
) -> Coroutine[Any, Any, list[Document]]:
    """Return the flow of a call; what it is kept by is found out only where there is a cache."""
    if options.cache is None:
        return uncached(retriever, call)
    kind, spare = _kept(retriever, options)
    return serve(
        io, retriever, options, kind, _parts(retriever, options, query, kwargs), call,
        query=query, spare=spare, alike=_alike(retriever, options, kind, kwargs),
    )  # fmt: skip


def _check(retriever: Any) -> None:
    if isinstance(retriever, VectorStoreRetriever):
        check_seen(retriever)


def accelerated(retriever: BaseRetriever, options: Options) -> BaseRetriever:
    """Return the retriever wrapped; see `ragaccel.accelerate`."""
    wrapped = wrap(retriever, _Retriever, options, lambda: _identity(retriever, options))
    if options.batch is not None and isinstance(retriever, VectorStoreRetriever):
        wrapped.__dict__["vectorstore"] = _batching(retriever.vectorstore, options)
    return wrapped


def _batching(store: VectorStore, options: Options) -> VectorStore:
    """Return a store over the same documents whose model embeds queries together."""
    model = store.embeddings
    places = [name for name, value in vars(store).items() if value is model]
    if model is None or not places:
        return store
    batching = options_of(model).batching(options.batch)
    clone = copy.copy(store)
    for name in places:
        setattr(clone, name, embeddings.accelerated(model, batching))
    with contextlib.suppress(TypeError):
        _tokens[clone] = _tokens.setdefault(store, uuid.uuid4().hex)
    return clone


def _given(retriever: Any, run_manager: Any) -> dict[str, Any]:
    """Return the run manager for bases that take one; the framework's async default may not."""
    base: Any = plain_class(type(retriever))
    if not base._new_arg_supported:
        return {}
    return {"run_manager": run_manager}


def _query_stage(retriever: Any, options: Options, run_manager: Any) -> telemetry.Stage:
    """Return the stage of a call; without a cache it is nothing but the retrieval."""
    if not telemetry.recording():
        return telemetry.OFF
    return telemetry.stage(
        "retrieve" if options.cache is None else "query",
        {attributes.COMPONENT: type(retriever).__name__},
        parent=span_of(run_manager),
    )


def _parts(retriever: Any, options: Options, query: str, kwargs: dict[str, Any]) -> Any:
    """Return a function that gives everything an answer depends on, read when it is called."""
    return lambda: (_identity(retriever, options), options.worded(query), kwargs)


def _alike(retriever: Any, options: Options, kind: Kind[Any], kwargs: dict[str, Any]) -> Any:
    """Return a function that gives what must be equal to share what a search finds, or None."""
    return (lambda: (_identity(retriever, options), kwargs)) if kind is _REPAIRED else None


def _identity(retriever: Any, options: Options) -> Any:
    cls = plain_class(type(retriever))
    name = class_name(cls)
    if cls is VectorStoreRetriever:
        source = _source(retriever.vectorstore, options)
        return name, source, retriever.search_type, retriever.search_kwargs
    if options.identity is None:
        raise Uncacheable("component")
    return name, options.identity, visible(retriever)


_tokens: weakref.WeakKeyDictionary[VectorStore, str] = weakref.WeakKeyDictionary()


def _source(store: Any, options: Options) -> Any:
    """Tell which documents are searched and with which embeddings.

    A store of another house has no identity that survives the process: unless the user gives one,
    it is told apart from others by a token, and its entries are found only while it lives.
    """
    if isinstance(store, CompressedVectorStore):
        searched = store.collection.id
        if options.identity is None:
            return searched, fingerprint(store.embeddings)
        model = store.embeddings
        return searched, options.identity, class_name(type(model)), visible(model)
    followed = source_of(store)
    if followed is not None:
        if options.identity is None and options_of(store).changes is not None:
            return followed, fingerprint(store.embeddings)
        return followed, options.identity
    if options.identity is not None:
        return options.identity
    try:
        return _tokens.setdefault(store, uuid.uuid4().hex)
    except TypeError as error:
        raise Uncacheable("component") from error
