"""LangChain rerankers: document compressors, and the cross-encoders that some of them ask.

Of a compressor's answer is kept what it did with its documents: which came out, in which order, and
what became of their texts, metadata and ids. A hit does the same with its caller's documents: one
that came out itself is the caller's own again, one that came out as a copy is a new one.

A cross-encoder's scores are kept pair by pair, each of the type that it had: Python's or numpy's.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from langchain_core.documents import BaseDocumentCompressor, Document

from ragaccel.cache import PLAIN, Kind, Uncacheable, flow
from ragaccel.io import run
from ragaccel.langchain.calls import canonical, takes
from ragaccel.telemetry import attributes
from ragaccel.wrapping import rankings
from ragaccel.wrapping.fingerprint import identity
from ragaccel.wrapping.joined import together
from ragaccel.wrapping.rankings import firsts, from_scalar, scalar
from ragaccel.wrapping.seam import is_serving, serve, serve_many, serving
from ragaccel.wrapping.transparent import keep_defaults, options_of, plain_class, wrap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from langchain_core.cross_encoders import BaseCrossEncoder

    from ragaccel.cache.flow import IO
    from ragaccel.cache.values import Body
    from ragaccel.wrapping.seam import Options

    _Compresses = BaseDocumentCompressor
    _Scores = BaseCrossEncoder
else:
    _Compresses = _Scores = object


class _Change(NamedTuple):
    """What became of a document.

    Attributes:
        source: The place, among those given, of the one it was or was made of; -1 for none.
        text: Its text, or None for that of its source.
        id: Its id.
        shares: Whether its metadata is the very dict of its source.
        keys: Of its metadata.
        values: Of its metadata, those that are not the very values of its source.
    """

    source: int
    text: str | None
    id: str | None
    shares: bool
    keys: list[str]
    values: dict[str, Any]

    def metadata(self, dicts: Sequence[dict[str, Any]], old: Sequence[dict[str, Any]]) -> Any:
        """Return its metadata.

        Args:
            dicts: The metadata of the documents given.
            old: Copies of it, as it was before anything was done.
        """
        values = old[self.source] if self.source >= 0 else {}
        now = {
            key: from_scalar(self.values[key]) if key in self.values else values[key]
            for key in self.keys
        }
        if not self.shares:
            return now
        shared = dicts[self.source]
        shared.clear()
        shared.update(now)
        return shared


class _Ranking(NamedTuple):
    """What a compressor did with the documents it was given.

    Attributes:
        is_same: Whether it gave back the very list that it was given.
        order: Of every document that came out its place among those given, or how it was made.
        changes: What became of documents that were given.
    """

    is_same: bool
    order: list[Any]
    changes: list[list[Any]]

    def apply(self, documents: Any) -> Any:
        """Do the same with documents like those."""
        given = list(documents)
        dicts = [one.metadata for one in given]
        old = [dict(one) for one in dicts]
        ranked = [
            given[one] if isinstance(one, int) else _made(_Change(*one), given, dicts, old)
            for one in self.order
        ]
        for change in map(_Change._make, self.changes):
            _change(given[change.source], change, change.metadata(dicts, old))
        if not self.is_same:
            return ranked
        if isinstance(documents, list):
            documents[:] = ranked
        return documents


def _made(change: _Change, given: Sequence[Document], dicts: Any, old: Any) -> Document:
    """Return a document that a compressor made."""
    text = given[change.source].page_content if change.text is None else change.text
    about = {} if change.id is None else {"id": change.id}
    made = Document(page_content=text, **about)
    made.metadata = change.metadata(dicts, old)
    return made


def _change(document: Document, change: _Change, metadata: dict[str, Any]) -> None:
    """Change a document as a compressor did."""
    if change.text is not None:
        document.page_content = change.text
    if change.id != document.id:
        document.id = change.id
    if metadata is not document.metadata:
        document.metadata = metadata


@dataclass(frozen=True, slots=True)
class _Compressed:
    """A ranking, and what the compressor gave if it was called for it.

    Attributes:
        ranking: None if what was done is none.
        result: What came out; None if it was not called.
        documents: Those that were given.
    """

    ranking: _Ranking | None
    result: Any = None
    documents: Sequence[Document] = ()


def _pack(compressed: _Compressed) -> bytes:
    if compressed.ranking is None:
        raise Uncacheable("value")
    return PLAIN.pack(list(compressed.ranking))


def _open(body: Body) -> tuple[_Compressed, None]:
    return _Compressed(_Ranking(*PLAIN.open(body)[0])), None


def _ids(compressed: _Compressed) -> Iterator[str]:
    """Yield the ids of documents, and the sources they come from, as retrievers do."""
    for one in compressed.documents:
        for name in (one.id, one.metadata.get("source")):
            if isinstance(name, str):
                yield name


_RANKING: Final[Kind[_Compressed]] = Kind(
    "langchain.ranking",
    _pack,
    _open,
    documents=_ids,
    result=lambda compressed: compressed.result,
)


class _Compressor(_Compresses):
    """The seam: everything else of the compressor is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Leave the async method to LangChain where it calls the sync one."""
        keep_defaults(made, base, BaseDocumentCompressor, "acompress_documents")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        given = _given(self, "compress_documents", callbacks, kwargs)
        method: Any = super().compress_documents  # type: ignore[safe-super]
        if is_serving(self) or not documents or not isinstance(documents, (list, tuple)):
            return method(documents, query, **given)
        call = _Call(self, documents, query, kwargs)

        async def compute() -> _Compressed:
            return call.made(method(documents, query, **given))

        return call.result(run(call.serve(rankings.SYNC, compute)))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        given = _given(self, "acompress_documents", callbacks, kwargs)
        method: Any = super().acompress_documents
        if is_serving(self) or not documents or not isinstance(documents, (list, tuple)):
            return await method(documents, query, **given)
        call = _Call(self, documents, query, kwargs)

        async def compute() -> _Compressed:
            return call.made(await method(documents, query, **given))

        return call.result(await call.serve(rankings.ASYNC, compute))


class _CrossEncoder(_Scores):
    """The seam: everything else of the encoder is its own."""

    def score(self, text_pairs: list[tuple[str, str]], **kwargs: Any) -> Any:
        method: Any = super().score  # type: ignore[safe-super]
        if is_serving(self) or not isinstance(text_pairs, (list, tuple)):
            return method(text_pairs, **kwargs)
        options = options_of(self)
        is_kept = options.cache is not None

        async def call(pairs: Any) -> Any:
            if options.batch is None or kwargs or not all(type(pair) is tuple for pair in pairs):
                scores = method(pairs, **kwargs)
            else:
                scores = await together(flow.SYNC, self, tuple(pairs), many)
            return _apart(scores) if is_kept else scores

        async def many(lists: Sequence[Any]) -> Any:
            with serving(self):
                return _of_each(lists, method)

        @functools.cache
        def shared() -> Any:
            return identity(self, options), canonical(kwargs)

        scores = run(
            serve_many(
                flow.SYNC, self, options, _SCORE, text_pairs,
                lambda pair: (*shared(), pair), call, stage="rerank",
            )
        )  # fmt: skip
        return _together(scores) if is_kept else scores


def accelerated(
    reranker: BaseDocumentCompressor | BaseCrossEncoder, options: Options
) -> BaseDocumentCompressor | BaseCrossEncoder:
    """Return the compressor or cross-encoder wrapped; see `ragaccel.accelerate`."""
    mixin = _Compressor if isinstance(reranker, BaseDocumentCompressor) else _CrossEncoder
    return wrap(reranker, mixin, options, lambda: identity(reranker, options))


class _Seen(NamedTuple):
    """A document as it was when it was looked at.

    Attributes:
        text: Its text.
        id: Its id.
        metadata: Its own dict.
        values: Of its metadata, each itself and as it is stored.
    """

    text: str
    id: str | None
    metadata: dict[str, Any]
    values: dict[str, tuple[Any, bytes]]

    def stored(self) -> Any:
        """Return everything that a compressor sees of it, as parts of a key."""
        return self.text, self.id, self.about()

    def about(self) -> list[tuple[str, bytes]]:
        """Return its metadata as it is stored."""
        return [(key, packed) for key, (_, packed) in self.values.items()]

    def change(self, source: int, was: _Seen | None) -> _Change:
        """Return what became of a document, or of what it was made of."""
        old = {} if was is None else was.values
        values = {
            key: scalar(value)
            for key, (value, packed) in self.values.items()
            if key not in old or old[key][0] is not value or old[key][1] != packed
        }
        text = None if was is not None and was.text == self.text else self.text
        shares = was is not None and was.metadata is self.metadata
        return _Change(source, text, self.id, shares, list(self.values), values)


class _Call:
    """One call of a wrapped compressor, and what it was given before it did anything."""

    def __init__(self, component: Any, documents: Any, query: str, kwargs: dict[str, Any]) -> None:
        self._component, self._documents, self._query = component, documents, query
        self._kwargs, self._given = kwargs, list(documents)
        self._before: list[_Seen] | None = None

    async def serve(self, io: IO, compute: Callable[[], Awaitable[_Compressed]]) -> _Compressed:
        """Find what is to be done, or let it be done."""
        return await serve(
            io, self._component, options_of(self._component), _RANKING, self._parts, compute,
            query=self._query, stage="rerank", told={attributes.ITEMS: len(self._given)},
        )  # fmt: skip

    def made(self, result: Any) -> _Compressed:
        """Return what the compressor has just done."""
        try:
            ranking = None if self._before is None else self._ranking(result, self._before)
        except Uncacheable:
            ranking = None
        return _Compressed(ranking, result, self._given)

    def result(self, compressed: _Compressed) -> Any:
        """Return what came out; on a hit do what the compressor would."""
        if compressed.ranking is None or compressed.result is not None:
            return compressed.result
        return compressed.ranking.apply(self._documents)

    def _parts(self) -> Any:
        """Return everything that the answer depends on."""
        seen = self._before = [_seen(one) for one in self._given]
        return (
            identity(self._component, options_of(self._component)),
            self._query,
            canonical(self._kwargs),
            [one.stored() for one in seen],
            firsts(self._given),
            firsts([one.metadata for one in seen]),
        )

    def _ranking(self, result: Any, before: list[_Seen]) -> _Ranking:
        """Return what was done with the documents.

        Raises:
            Uncacheable: It cannot be done again with others.
        """
        is_same = result is self._documents
        if not is_same and (
            type(result) is not list or list(map(id, self._documents)) != list(map(id, self._given))
        ):
            raise Uncacheable("value")
        places = {id(one): at for at, one in enumerate(self._given)}
        made = [id(one) for one in result if id(one) not in places]
        if len(set(made)) < len(made):
            raise Uncacheable("value")
        order: list[Any] = []
        for one in result:
            at = places.get(id(one))
            order.append(list(_change_of(_seen(one), before)) if at is None else at)
        changes = []
        for at, (one, was) in enumerate(zip(self._given, before, strict=True)):
            now = _seen(one)
            if now.stored() != was.stored() or now.metadata is not was.metadata:
                changes.append(list(now.change(at, was)))
        return _Ranking(is_same, order, changes)


def _given(compressor: Any, name: str, callbacks: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments beside documents and query, callbacks for those that take them."""
    method = getattr(plain_class(type(compressor)), name)
    return {"callbacks": callbacks, **kwargs} if takes(method, "callbacks") else kwargs


def _seen(document: Any) -> _Seen:
    """Return everything that a compressor sees of a document.

    Raises:
        Uncacheable: Something of it has no stored form, or it is of a class of somebody's own.
    """
    metadata = getattr(document, "metadata", None)
    if type(document) is not Document or type(metadata) is not dict:
        raise Uncacheable("key")
    if any(type(key) is not str for key in metadata):
        raise Uncacheable("key")
    values = {key: (value, PLAIN.pack(scalar(value))) for key, value in metadata.items()}
    return _Seen(document.page_content, document.id, metadata, values)


def _change_of(made: _Seen, before: Sequence[_Seen]) -> _Change:
    """Return how a document was made of one that was given: the first that is like it."""
    likenesses: tuple[Callable[[_Seen], bool], ...] = (
        lambda one: one.metadata is made.metadata,
        lambda one: one.text == made.text,
        lambda one: one.about() == made.about(),
    )
    for is_like in likenesses:
        for at, one in enumerate(before):
            if is_like(one):
                return made.change(at, one)
    return made.change(-1, None)


def _of_each(lists: Sequence[Any], score: Callable[[Any], Any]) -> list[Any]:
    """Return the scores of each list of pairs, made in one call."""
    scores = score([pair for pairs in lists for pair in pairs])
    ends = list(itertools.accumulate(map(len, lists)))
    if len(scores) != ends[-1]:
        return [score(list(pairs)) for pairs in lists]
    return [scores[end - len(pairs) : end] for pairs, end in zip(lists, ends, strict=True)]


def _apart(scores: Any) -> list[Any]:
    """Return of each score what can be stored: of an array a slice, of others a list with it."""
    if isinstance(scores, np.ndarray) and scores.ndim > 0:
        return [scores[at : at + 1] for at in range(len(scores))]
    return [[np.asarray(one) if isinstance(one, np.generic) else one] for one in scores]


def _together(scores: Sequence[Any]) -> Any:
    """Return scores as their encoder gave them."""
    if scores and all(isinstance(one, np.ndarray) for one in scores):
        return np.concatenate(scores)
    return [from_scalar(one[0]) for one in scores]


#: A score as `_apart` gives it.
_SCORE: Final[Kind[Any]] = Kind("langchain.score", PLAIN.pack, PLAIN.open, PLAIN.open_many)
