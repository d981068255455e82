"""One call through a wrapped component: find its answer, or make it once and keep it."""

from __future__ import annotations

import contextlib
import copy
import time
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from ragaccel import telemetry
from ragaccel.cache import MISSING, Uncacheable, digest
from ragaccel.telemetry import attributes
from ragaccel.wrapping.semantic import reusable
from ragaccel.wrapping.wording import wording_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Self

    from ragaccel.batching import MicroBatcher
    from ragaccel.cache import Digest, Kind, MultiLevelCache
    from ragaccel.cache.flow import IO
    from ragaccel.cache.ledger import Position
    from ragaccel.cache.ttl import TTL
    from ragaccel.vectors.watch import Shortcut
    from ragaccel.wrapping.semantic import Call, Semantic, Similar

T = TypeVar("T")

_MISSING: Final[Any] = MISSING  # what is found is of any type

Precision = Literal["float32", "float16"]

#: A cached top-10 then outlives ten deletes among its first twenty.
SPARE: Final = 10

_NOTHING: Final[Mapping[str, str | int]] = {}
_MODEL: Final = (("model", attributes.MODEL), ("model_name", attributes.MODEL))
#: Of the stages that components are, which of their settings are told, and as what.
_TOLD: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "embed": _MODEL,
    "generate": _MODEL,
    "rerank": (
        ("model", attributes.RERANKER),
        ("model_name", attributes.RERANKER),
        ("top_n", attributes.RERANKER_TOP),
    ),
}

_serving: ContextVar[frozenset[int]] = ContextVar("ragaccel_serving", default=frozenset())


class Neighbours(Protocol):
    """Answers a search by what similar ones found; see `ragaccel.reuse.NeighbourReuse`."""

    def within(self, partition: bytes, namespace: str) -> Shortcut:
        """Return what searches are put to that may share what they find.

        Args:
            partition: Of everything that must be equal.
            namespace: The tenant.
        """


def _as_it_is(answer: T) -> T:
    return answer


@dataclass(frozen=True)
class Options:
    """What `accelerate` was asked for.

    Attributes:
        cache: Where results are kept; None traces only.
        namespace: The tenant; None for the cache's own.
        ttl: Lifetime of an entry, or a function of query and result that gives it; None for the
            cache's own.
        identity: The user's name for what decides the answers and cannot be seen from outside.
        cache_sampled: Whether answers of a model that samples are kept.
        precision: How exactly embeddings are kept.
        batch: Joins single calls that wait at the same time; None for each by itself.
        semantic: Answers questions to a language model as similar ones were; None for never.
        spare: Rows beyond those asked for that a cached retrieval over our own store keeps.
        changes: The file of a vector store's change log; None for one in memory.
        metric: By which a vector store of another house scores, as the user says.
        normalise: Turns the wordings of a question that get one answer into one; None for none.
        neighbours: Answers searches in our own store by what similar ones found; None for never.
    """

    cache: MultiLevelCache | None = None
    namespace: str | None = None
    ttl: TTL = None
    identity: str | None = None
    cache_sampled: bool = False
    precision: Precision = "float32"
    batch: MicroBatcher[Any, Any] | None = None
    semantic: Semantic | None = None
    spare: int = SPARE
    changes: str | None = None
    metric: Literal["cosine", "dot"] | None = None
    normalise: Callable[[str], str] | None = None
    neighbours: Neighbours | None = None

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def part(self, name: str) -> Options:
        """Return the options for a part of an object that the user has named."""
        if self.identity is None:
            return self
        return replace(self, identity=f"{self.identity}/{name}")

    def batching(self, batch: MicroBatcher[Any, Any] | None) -> Options:
        """Return the same options with another `batch`."""
        return replace(self, batch=batch)

    def worded(self, text: Any) -> Any:
        """Return what a key holds of a question's text.

        Raises:
            Uncacheable: The user's `normalise` fails, or gives something else than a text.
        """
        if self.normalise is None or not isinstance(text, str):
            return text
        try:
            alike = self.normalise(text)
        except Exception as error:
            raise Uncacheable("normalise") from error
        if not isinstance(alike, str):
            raise Uncacheable("normalise")
        return wording_name(self.normalise), alike

    async def similar(
        self, io: IO, kind: Kind[T], key: Digest | None, similar: Similar[T] | None
    ) -> Call[T] | None:
        """Return what the semantic cache is asked about a call; None where it is not asked.

        Args:
            io: See `serve`.
            kind: How answers are stored.
            key: Of the call.
            similar: How its adapter lets it be answered as a similar question was.
        """
        if self.cache is None or self.semantic is None or key is None or similar is None:
            return None
        whose = self.cache.namespace if self.namespace is None else self.namespace
        return await reusable(io, self.cache, whose, kind, key, similar)

    def shortcut(self, alike: Callable[[], Any]) -> Shortcut | None:
        """Return what searches of a call are put to first, or None.

        Args:
            alike: Gives everything that must be equal in calls that may share what they find;
                raises `Uncacheable` if it cannot be told.
        """
        if self.cache is None or self.neighbours is None:
            return None
        whose = self.cache.namespace if self.namespace is None else self.namespace
        try:
            return self.neighbours.within(digest(whose, "neighbours", alike()), whose)
        except Uncacheable:
            return None

    def key(self, kind: str, parts: Callable[[], Any]) -> Digest | None:
        """Return the key of a call, or None where there is no cache or can be no key.

        Args:
            kind: Of the stored value.
            parts: Gives everything that decides the answer; raises `Uncacheable` if it cannot.
        """
        keys = self.keys(kind, lambda: (parts(),))
        return None if keys is None else keys[0]

    def keys(self, kind: str, parts: Callable[[], Iterable[Any]]) -> list[Digest] | None:
        """Return the keys of what one call asks, or None where one of them cannot be had.

        Args:
            kind: Of the stored values.
            parts: Gives for each everything that decides the answer; see `key`.
        """
        if self.cache is None:
            return None
        with telemetry.stage("preprocess") as span:
            try:
                whose = self.cache.namespace if self.namespace is None else self.namespace
                keys = [digest(whose, kind, one) for one in parts()]
            except Uncacheable as reason:
                self.cache.bypass(reason.reason)
                keys = None
                span.set({attributes.CACHE_BYPASS: True})
            return keys


@lru_cache(maxsize=1024)
def _told_by(name: str, cls: Any) -> tuple[tuple[str, str], ...]:
    """Return which settings a component of a class tells; asking pydantic for others is slow."""
    fields = getattr(cls, "__pydantic_fields__", None)
    told = _TOLD.get(name, ())
    if fields is None:
        return told
    return tuple(one for one in told if one[0] in fields or hasattr(cls, one[0]))


def tell_found(span: telemetry.Stage, query: Any, documents: Sequence[Any]) -> None:
    """Tell of a retrieval's stage what was found."""
    if span is not telemetry.OFF:
        told = telemetry.asked("query", query) | telemetry.answered("query", documents)
        span.set({attributes.DOCUMENTS: len(documents), **told})


def is_serving(component: object) -> bool:
    """Tell whether this call comes from inside one that the component is serving.

    The frameworks' defaults call other methods of the component.
    """
    return id(component) in _serving.get()


class serving:  # noqa: N801 - a context manager, as those of contextlib
    """Say that calls from inside are part of one that is being served."""

    __slots__ = ("_component", "_token")

    def __init__(self, component: object) -> None:
        self._component = component

    def __enter__(self) -> None:
        self._token = _serving.set(_serving.get() | {id(self._component)})

    def __exit__(self, *exit_: object) -> None:
        _serving.reset(self._token)


async def serve(
    io: IO,
    component: object,
    options: Options,
    kind: Kind[T],
    parts: Callable[[], Any],
    call: Callable[[], Awaitable[T]],
    *,
    query: Any,
    stage: str | None = None,
    told: Mapping[str, str | int] = _NOTHING,
    kept: Callable[[T], T] = _as_it_is,
    similar: Similar[T] | None = None,
) -> T:
    """Serve a call from the cache, or make it and keep the answer.

    Args:
        io: How to wait; see `ragaccel.cache.flow`.
        component: The wrapped object.
        options: What `accelerate` was asked for.
        kind: How answers are stored.
        parts: See `Options.key`.
        call: The component's own call.
        query: What a ttl policy is shown of the question.
        stage: The stage that the call is, unless the caller has opened one.
        told: What the stage tells from its start.
        kept: Gives an answer as it is kept, for kinds that round: a miss then gives what a hit
            will. A call without a key gives its own answer.
        similar: Lets it be answered as a similar question was; see `Options.semantic`.
    """
    called = False

    async def compute() -> T:
        nonlocal called
        called = True
        with serving(component):
            return await call()

    async def compute_kept() -> T:
        return kept(await compute())

    with _stage(stage, component, told) as span:
        if stage is not None:
            span.set(telemetry.asked(stage, query))
        key = options.key(kind.name, parts)
        if key is None or options.cache is None:
            found = await compute()
        else:
            asked, found = None, _MISSING
            if options.semantic is not None:
                asked = await options.similar(io, kind, key, similar)
                found = await find_similar(io, options.semantic, asked, span)
            if found is MISSING:
                found = await options.cache.find_or_compute(
                    io, key, compute_kept, ttl=options.ttl, kind=kind,
                    namespace=options.namespace, query=query,
                )  # fmt: skip
            if called and asked is not None:
                await learn(io, options.semantic, asked, found)
            span.set({attributes.CACHE_HIT: not called})
        if stage is not None and span is not telemetry.OFF:
            span.set(_told(stage, kind, found, is_paid=called))
        return found


async def find_similar(
    io: IO,
    semantic: Semantic | None,
    asked: Call[T] | None,
    span: telemetry.Stage,
) -> Any:
    """Return the answer to a similar question, or `MISSING`; see `Options.similar`."""
    if semantic is None or asked is None:
        return MISSING
    return await semantic.find(io, asked, span)


async def learn(io: IO, semantic: Semantic | None, asked: Call[T] | None, answer: T) -> None:
    """Tell the semantic cache what the model answered; see `Options.similar`."""
    if semantic is not None and asked is not None:
        await semantic.learn(io, asked, answer)


async def serve_many(
    io: IO,
    component: object,
    options: Options,
    kind: Kind[T],
    items: Sequence[Any],
    parts: Callable[[Any], Any],
    call: Callable[[Sequence[Any]], Awaitable[Sequence[T]]],
    *,
    stage: str,
    kept: Callable[[T], T] = _as_it_is,
) -> Sequence[T]:
    """Serve a call over several items, of which only those that are not kept are sent, each once.

    Without a cache, without items, or where an item can have no key, it is the component's own
    call, and what that gives.

    Args:
        io: See `serve`.
        component: See `serve`.
        options: See `serve`.
        kind: How the answer to one item is stored.
        items: What is asked.
        parts: Gives everything that decides the answer to an item.
        call: The component's own call over some of the items.
        stage: The stage that the call is.
        kept: See `serve`.
    """

    async def compute(some: Sequence[Any]) -> Sequence[T]:
        with serving(component):
            return await call(some)

    with _stage(stage, component) as span:
        answers, sent = await _serve_many(io, options, kind, items, parts, compute, kept)
        span.set({attributes.ITEMS: len(items), attributes.SENT: sent})
        return answers


async def _serve_many(
    io: IO,
    options: Options,
    kind: Kind[T],
    items: Sequence[Any],
    parts: Callable[[Any], Any],
    call: Callable[[Sequence[Any]], Awaitable[Sequence[T]]],
    kept: Callable[[T], T],
) -> tuple[Sequence[T], int]:
    """Return the answers, and for how many items the component was called."""
    cache, keys = options.cache, options.keys(kind.name, lambda: map(parts, items))
    if cache is None or not keys:
        return await call(items), len(items)
    values = await cache.find_many(io, keys, kind=kind, namespace=options.namespace)
    found = dict(zip(keys, values, strict=True))
    missing = {key: item for key, item in zip(keys, items, strict=True) if found[key] is MISSING}
    if missing:
        recording = Recording(io, options, kind)
        answers = await call(list(missing.values()))
        if len(answers) != len(missing):
            return await call(items), len(items)  # whatever it means, it is not ours to keep
        made = dict(zip(missing, map(kept, answers), strict=True))
        await recording.keep(made, missing)
        found |= made
    return _each(keys, found), len(missing)


def _told(stage: str, kind: Kind[T], answer: T, *, is_paid: bool) -> dict[str, Any]:
    """Return what is told of an answer; tokens only of one that was paid for now."""
    told: dict[str, Any] = dict(telemetry.answered(stage, kind.result(answer)))
    if is_paid and stage == "generate":
        read, written = kind.tokens(answer)
        told |= {attributes.INPUT_TOKENS: read, attributes.OUTPUT_TOKENS: written}
    return told


def _each(keys: Sequence[Digest], found: dict[Digest, T]) -> list[T]:
    """Return the answer to each key; who is given one twice may change the one or the other."""
    given: set[Digest] = set()
    answers = []
    for key in keys:
        answers.append(_another(found[key]) if key in given else found[key])
        given.add(key)
    return answers


def _another(answer: T) -> T:
    try:
        return copy.deepcopy(answer)
    except Exception:  # noqa: BLE001 - it is right all the same
        return answer


def _stage(
    name: str | None, component: object, told: Mapping[str, str | int] = _NOTHING
) -> AbstractContextManager[telemetry.Stage]:
    if name is None:
        return contextlib.nullcontext(telemetry.OFF)
    return stage_of(name, component, told)


def stage_of(
    name: str, component: object, values: Mapping[str, str | int] = _NOTHING
) -> telemetry.Stage:
    """Open the stage that a component is, with what its settings tell.

    Args:
        name: See `telemetry.Stage`.
        component: The component, wrapped or not.
        values: What else is told.
    """
    if not telemetry.recording():
        return telemetry.OFF
    cls: Any = type(component)
    told: dict[str, Any] = {attributes.COMPONENT: cls.__name__, **values}
    for setting, attribute in _told_by(name, cls):
        value = getattr(component, setting, None)
        if isinstance(value, (str, int)):
            told[attribute] = value
    return telemetry.stage(name, told)


class Recording:
    """An answer in the making that no single call gives, such as a stream.

    Args:
        io: See `serve`.
        options: See `serve`; there is a cache.
        kind: How answers are stored.
    """

    def __init__(self, io: IO, options: Options, kind: Kind[Any]) -> None:
        assert options.cache is not None  # noqa: S101 - callers have one
        self._io, self._options, self._kind, self._cache = io, options, kind, options.cache
        self._since: Position = options.cache.position
        self._started = time.perf_counter()

    async def keep(self, answers: dict[Digest, Any], queries: dict[Digest, Any]) -> None:
        """Keep answers by their keys, unless they were invalidated since the recording began.

        Args:
            answers: By key.
            queries: What a ttl policy is shown of each question, by key.
        """
        seconds = (time.perf_counter() - self._started) / max(1, len(answers))
        await self._cache.keep_computed(
            self._io, [(key, queries[key], value) for key, value in answers.items()],
            since=self._since, cost=seconds, kind=self._kind, ttl=self._options.ttl,
            namespace=self._options.namespace,
        )  # fmt: skip
