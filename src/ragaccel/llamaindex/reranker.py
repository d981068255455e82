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
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR

from ragaccel.cache import Kind, Uncacheable
from ragaccel.cache.values import PLAIN
from ragaccel.errors import InvalidRecordError
from ragaccel.io import run
from ragaccel.llamaindex.nodes import encode_node
from ragaccel.telemetry import attributes
from ragaccel.wrapping import rankings
from ragaccel.wrapping.fingerprint import class_name, identity
from ragaccel.wrapping.rankings import firsts, from_scalar, scalar
from ragaccel.wrapping.seam import is_serving, serve
from ragaccel.wrapping.transparent import keep_defaults, options_of, plain_class, wrap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractContextManager

    from llama_index.core.schema import BaseNode, QueryBundle

    from ragaccel.cache.flow import IO
    from ragaccel.cache.values import Body
    from ragaccel.wrapping.seam import Options

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
            nodes[at].score = from_scalar(score)
        for at, keys, changed in self.metadata:
            metadata = nodes[at].node.metadata
            now = {
                key: from_scalar(changed[key]) if key in changed else metadata[key] for key in keys
            }
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

        reranked = run(call.serve(rankings.SYNC, compute))
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

        reranked = await call.serve(rankings.ASYNC, compute)
        return call.result(reranked, "_apostprocess_nodes")


def accelerated(reranker: BaseNodePostprocessor, options: Options) -> BaseNodePostprocessor:
    """Return the post-processor wrapped; see `ragaccel.accelerate`."""
    return wrap(reranker, _Postprocessor, options, lambda: identity(reranker, options))


class _Seen(NamedTuple):
    """A node as it is given, or as it was.

    Attributes:
        node: Itself.
        metadata: Its own dict.
        values: Of its metadata, each as it is stored.
        score: As it is stored.
        rest: Everything else about it.
    """

    node: BaseNode
    metadata: dict[str, Any]
    values: list[tuple[str, bytes]]
    score: bytes
    rest: bytes


class _Call:
    """One call of a wrapped post-processor, and what it was given before it did anything."""

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
            told={attributes.ITEMS: len(self._given)},
        )  # fmt: skip

    def made(self, result: list[NodeWithScore]) -> _Reranked:
        """Return what the post-processor has just done."""
        try:
            ranking = None if self._before is None else self._ranking(result, *self._before)
        except Uncacheable:
            ranking = None
        documents = [(one.node.node_id, one.node.ref_doc_id) for one in self._given]
        return _Reranked(ranking, result, [id_ for both in documents for id_ in both if id_])

    def result(self, reranked: _Reranked, name: str) -> list[NodeWithScore]:
        """Return what came out; on a hit do and tell what the method of that name would."""
        ranking = reranked.ranking
        if reranked.nodes is not None or ranking is None:
            return cast("list[NodeWithScore]", reranked.nodes)

        def replay(
            self: Any, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
        ) -> list[NodeWithScore]:
            return _telling(self, nodes, query_bundle, ranking.apply)

        replay.__name__ = name
        own = getattr(plain_class(type(self._component)), name)
        told: Any = replay
        if hasattr(own, DISPATCHER_SPAN_DECORATED_ATTR):
            told = _dispatcher.span(replay)
        ranked = told.__get__(self._component)(self._nodes, self._bundle)
        return cast("list[NodeWithScore]", ranked)

    def _parts(self) -> Any:
        """Return everything the ranking depends on."""
        asked, seen = self._before = _asked(self._bundle), [_seen(one) for one in self._given]
        return (
            identity(self._component, options_of(self._component)),
            asked,
            [(one.values, one.score, one.rest) for one in seen],
            firsts(self._given),
            firsts([one.node for one in seen]),
            firsts([one.metadata for one in seen]),
        )

    def _ranking(self, result: Any, asked: Any, seen: list[_Seen]) -> _Ranking | None:
        """Return what was done with the nodes, or None if it was more than to rank them."""
        same = result is self._nodes
        order = _order(result, self._given)
        if order is None or _asked(self._bundle) != asked:
            return None
        if not same and list(map(id, self._nodes)) != list(map(id, self._given)):
            return None
        ranking = _Ranking(same, order, [], [])
        for at, (one, was) in enumerate(zip(self._given, seen, strict=True)):
            now = _seen(one)
            if now.node is not was.node or now.metadata is not was.metadata or now.rest != was.rest:
                return None
            if now.score != was.score:
                ranking.scores.append([at, scalar(one.score)])
            if now.values != was.values:
                kept = set(was.values)
                changed = {key for key, value in now.values if (key, value) not in kept}
                values = {key: scalar(now.metadata[key]) for key in changed}
                ranking.metadata.append([at, list(now.metadata), values])
        return ranking


def _asked(bundle: QueryBundle | None) -> Any:
    return None if bundle is None else (class_name(type(bundle)), _encoded(vars(bundle)))


def _seen(one: NodeWithScore) -> _Seen:
    """Return everything that a post-processor sees of a node.

    Raises:
        Uncacheable: Something of it has no stored form.
    """
    node = one.node
    if type(one) is not NodeWithScore or (isinstance(node, IndexNode) and node.obj is not None):
        raise Uncacheable("key")
    values = [(key, PLAIN.pack(scalar(value))) for key, value in node.metadata.items()]
    try:
        packed = encode_node(node)
    except (InvalidRecordError, ValueError) as error:
        raise Uncacheable("key") from error
    if packed is None:
        raise Uncacheable("key")
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    rest = _encoded((class_name(type(node)), packed, text, node.embedding))
    return _Seen(node, node.metadata, values, PLAIN.pack(scalar(one.score)), rest)


def _encoded(told: Any) -> bytes:
    try:
        return _encoder.encode(told)
    except (TypeError, ValueError, OverflowError) as error:
        raise Uncacheable("key") from error


def _order(result: Any, given: list[NodeWithScore]) -> list[list[Any]] | None:
    """Return of every node that came out its place among those given, and its score beside it.

    Returns:
        None if some were not given.
    """
    places = {id(one): at for at, one in enumerate(given)}
    nodes = {id(one.node): at for at, one in enumerate(given)}
    order: list[list[Any]] = []
    for one in result if type(result) is list else [None]:
        if id(one) in places:
            order.append([places[id(one)]])
        elif type(one) is NodeWithScore and id(one.node) in nodes:
            order.append([nodes[id(one.node)], scalar(one.score)])
        else:
            return None
    return order


def _ranked(one: NodeWithScore, *score: Any) -> NodeWithScore:
    """Return a node itself, or anew with the score that it came out with."""
    if not score:
        return one
    made = NodeWithScore(node=one.node, score=None)
    made.score = from_scalar(*score)
    return made


def _telling(
    reranker: Any,
    nodes: list[NodeWithScore],
    bundle: QueryBundle | None,
    apply: Callable[[list[NodeWithScore]], list[NodeWithScore]],
) -> list[NodeWithScore]:
    """Apply a ranking, and tell what the post-processor tells of ranking."""
    names = _names(plain_class(type(reranker)))
    legacy: AbstractContextManager[Any] = contextlib.nullcontext()
    top_n, model = getattr(reranker, "top_n", None), _model_name(reranker)
    top_n = top_n if isinstance(top_n, int) else len(nodes)
    if "ReRankStartEvent" in names:
        _dispatcher.event(
            ReRankStartEvent(query=bundle, nodes=nodes, top_n=top_n, model_name=model)
        )
    if "RERANKING" in names:
        payload = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model,
            EventPayload.QUERY_STR: bundle and bundle.query_str,
            EventPayload.TOP_K: top_n,
        }
        legacy = reranker.callback_manager.event(CBEventType.RERANKING, payload=payload)
    with legacy as event:
        ranked = apply(nodes)
        if event is not None:
            event.on_end(payload={EventPayload.NODES: ranked})
    if "ReRankEndEvent" in names:
        _dispatcher.event(ReRankEndEvent(nodes=ranked))
    return ranked


@functools.cache
def _names(cls: type) -> frozenset[str]:
    """Return the names that the methods of a post-processor's class use."""
    own = cls.__mro__[: cls.__mro__.index(BaseNodePostprocessor)]
    codes = [getattr(method, "__code__", None) for one in own for method in vars(one).values()]
    return frozenset(name for code in codes if code is not None for name in code.co_names)


def _model_name(reranker: Any) -> str:
    llm = getattr(reranker, "llm", None)
    if llm is not None:
        return str(llm.metadata.model_name)
    return str(getattr(reranker, "model", None) or getattr(reranker, "model_name", ""))
