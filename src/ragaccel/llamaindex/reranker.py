"""LlamaIndex node post-processors, wrapped at `_postprocess_nodes` and its async twin.

What is kept is a ranking: which of the nodes given come out in which order, and what became of
their scores and metadata. A hit does the same to the nodes of its caller, and tells listeners of a
reranking as the post-processor does: by its span, and by those events that its own class emits. A
post-processor that makes other nodes or changes a text works as ever, without the cache.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

from ragaccel.cache import Kind, Uncacheable
from ragaccel.cache.values import PLAIN
from ragaccel.cache.waiting import AsyncIO, SyncIO
from ragaccel.errors import InvalidRecordError
from ragaccel.fingerprint import class_name
from ragaccel.io import run
from ragaccel.llamaindex.calls import identity
from ragaccel.llamaindex.nodes import encode_node
from ragaccel.seam import is_serving, serve
from ragaccel.transparent import keep_defaults, options_of, plain_class, wrap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from llama_index.core.schema import BaseNode, QueryBundle

    from ragaccel.cache.flow import IO
    from ragaccel.cache.values import Body
    from ragaccel.seam import Options

    _Base = BaseNodePostprocessor
else:
    _Base = object

_dispatcher = get_dispatcher(__name__)
_encoder: Final = msgspec.msgpack.Encoder()


class _Ranking(NamedTuple):
    """What a post-processor did with the nodes it was given.

    Attributes:
        is_same_list: Whether it gave back the list that it was given.
        order: Of every node that came out its place among those given, and its score if it came
            out with a new one beside it.
        scores: Places and new scores of nodes that were given.
        metadata: Places, keys and new values of nodes whose metadata changed.
    """

    is_same_list: bool
    order: list[list[Any]]
    scores: list[list[Any]]
    metadata: list[list[Any]]

    def apply(self, given: list[NodeWithScore]) -> list[NodeWithScore]:
        """Do the same with nodes like those."""
        nodes = list(given)
        for at, score in self.scores:
            nodes[at].score = _opened(score)
        for at, keys, changed in self.metadata:
            metadata = nodes[at].node.metadata
            now = {key: _opened(changed[key]) if key in changed else metadata[key] for key in keys}
            metadata.clear()
            metadata.update(now)
        ranked = [_ranked(nodes[at], *score) for at, *score in self.order]
        if not self.is_same_list:
            return ranked
        given[:] = ranked
        return given


@dataclass(frozen=True, slots=True)
class _Reranked:
    """A ranking, and what the post-processor gave if it was called for it.

    Attributes:
        ranking: None if what was done is none.
        nodes: What came out; None if it was not called.
        documents: The nodes that were given, and the documents they are of.
    """

    ranking: _Ranking | None
    nodes: list[NodeWithScore] | None = None
    documents: Sequence[str] = ()


def _pack(reranked: _Reranked) -> bytes:
    if reranked.ranking is None:
        raise Uncacheable("value")
    return PLAIN.pack(list(reranked.ranking))


def _open(body: Body) -> tuple[_Reranked, None]:
    return _Reranked(_Ranking(*PLAIN.open(body)[0])), None


_RANKING: Final[Kind[_Reranked]] = Kind(
    "llamaindex.ranking",
    _pack,
    _open,
    documents=lambda reranked: reranked.documents,
    result=lambda reranked: reranked.nodes,
)


class _NoRefresh:
    """Keeps rankings from being made anew behind the caller's back, with the caller's nodes."""

    def spawn(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Leave it out."""


class _Sync(_NoRefresh, SyncIO):
    """Blocks."""


class _Async(_NoRefresh, AsyncIO):
    """Waits on the running event loop."""


_SYNC: Final = _Sync()
_ASYNC: Final = _Async()


class _Postprocessor(_Base):
    """The seam: everything else of the post-processor is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Leave the async method to LlamaIndex where it calls the sync one."""
        keep_defaults(made, base, BaseNodePostprocessor, "_apostprocess_nodes")

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        method = super()._postprocess_nodes  # type: ignore[safe-super]
        if is_serving(self) or not nodes:
            return method(nodes, query_bundle)
        call = _Call(self, nodes, query_bundle)

        async def compute() -> _Reranked:
            return call.made(method(nodes, query_bundle))

        reranked = run(call.serve(_SYNC, compute))
        return call.result(reranked, "_postprocess_nodes")

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        method = super()._apostprocess_nodes
        if is_serving(self) or not nodes:
            return await method(nodes, query_bundle)
        call = _Call(self, nodes, query_bundle)

        async def compute() -> _Reranked:
            return call.made(await method(nodes, query_bundle))

        reranked = await call.serve(_ASYNC, compute)
        return call.result(reranked, "_apostprocess_nodes")


def accelerated(reranker: BaseNodePostprocessor, options: Options) -> BaseNodePostprocessor:
    """Return the post-processor wrapped; see `ragaccel.accelerate`."""
    return wrap(reranker, _Postprocessor, options, lambda: identity(reranker, options))


class _Call:
    """One call of a wrapped post-processor, and what its nodes were before it."""

    def __init__(
        self, component: Any, nodes: list[NodeWithScore], bundle: QueryBundle | None
    ) -> None:
        self._component, self._nodes, self._bundle = component, nodes, bundle
        self._given = list(nodes)
        self._before: tuple[Any, list[_Seen]] | None = None

    async def serve(self, io: IO, compute: Callable[[], Awaitable[_Reranked]]) -> _Reranked:
        """Find the ranking, or make it."""
        return await serve(
            io, self._component, options_of(self._component), _RANKING, self._parts, compute,
            query="" if self._bundle is None else self._bundle.query_str, stage="rerank",
        )  # fmt: skip

    def made(self, result: list[NodeWithScore]) -> _Reranked:
        """Return what the post-processor has just done."""
        ids = [(one.node.node_id, one.node.ref_doc_id) for one in self._given]
        documents = [id_ for pair in ids for id_ in pair if id_ is not None]
        try:
            return _Reranked(self._ranking(result), result, documents)
        except Uncacheable:
            return _Reranked(None, result, documents)

    def result(self, reranked: _Reranked, name: str) -> list[NodeWithScore]:
        """Return what came out; on a hit do and tell what the method of that name would."""
        ranking = reranked.ranking
        if reranked.nodes is not None or ranking is None:
            return reranked.nodes or []

        def replay(
            self: Any, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
        ) -> list[NodeWithScore]:
            return _telling(self, nodes, query_bundle, ranking)

        cls = plain_class(type(self._component))
        if hasattr(getattr(cls, name), DISPATCHER_SPAN_DECORATED_ATTR):
            replay.__name__ = name
            replay = _dispatcher.span(replay)
        return replay.__get__(self._component)(self._nodes, self._bundle)

    def _parts(self) -> Any:
        """Return everything the ranking depends on."""
        self._before = _asked(self._bundle), [_seen(one) for one in self._given]
        asked, seen = self._before
        return (
            identity(self._component, options_of(self._component)),
            asked,
            [(one.rest, list(one.metadata.items()), one.score) for one in seen],
            _firsts(self._given),
            _firsts([one.node for one in seen]),
            _firsts([one.node.metadata for one in seen]),
        )

    def _ranking(self, result: Any) -> _Ranking | None:
        """Return what was done with the nodes, or None if it was more than to rank them."""
        if self._before is None or _asked(self._bundle) != self._before[0]:
            return None
        if type(result) is not list or (result is not self._nodes and self._nodes != self._given):
            return None
        places = {id(one): at for at, one in enumerate(self._given)}
        nodes = {id(one.node): at for at, one in enumerate(self._given)}
        ranking = _Ranking(result is self._nodes, [], [], [])
        for one in result:
            if id(one) in places:
                ranking.order.append([places[id(one)]])
            elif type(one) is NodeWithScore and id(one.node) in nodes:
                ranking.order.append([nodes[id(one.node)], _scalar(one.score)])
            else:
                return None
        for at, (one, before) in enumerate(zip(self._given, self._before[1], strict=True)):
            after = _seen(one)
            if after[:3] != before[:3]
            ...
