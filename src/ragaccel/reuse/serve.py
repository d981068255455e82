"""One retrieval from key to result: the flow that both frameworks' retrievers share."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ragaccel import telemetry
from ragaccel.cache import Uncacheable, digest
from ragaccel.reuse.freshness import Answer, dependencies, retell
from ragaccel.telemetry import attributes
from ragaccel.vectors import watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ragaccel.cache import Digest, Kind, MultiLevelCache
    from ragaccel.cache.flow import IO
    from ragaccel.cache.ttl import TTL

R = TypeVar("R")

_serving: ContextVar[frozenset[int]] = ContextVar("ragaccel_serving", default=frozenset())


def is_serving(component: object) -> bool:
    """Tell whether this call comes from inside the component's own retrieval.

    The frameworks' async defaults call the overridden sync method again.
    """
    return id(component) in _serving.get()


async def serve(
    io: IO,
    component: object,
    kind: Kind[Answer[R]],
    cache: MultiLevelCache | None,
    parts: Callable[[], Any],
    call: Callable[[], Awaitable[R]],
    *,
    namespace: str | None,
    ttl: TTL,
    query: Any,
) -> R:
    """Serve a retrieval from the cache, or make it and keep it.

    Args:
        io: How to wait; see `ragaccel.cache.flow`.
        component: The wrapped retriever.
        kind: How its results are stored.
        cache: Where; None retrieves and traces only.
        parts: Gives everything that decides the answer; raises `Uncacheable` if it cannot be told.
        call: The framework's own retrieval.
        namespace: See `Options`.
        ttl: See `Options`.
        query: What a ttl policy is shown of the question.
    """

    async def compute() -> Answer[R]:
        with telemetry.stage("retrieve"), _mark(component), watch() as traces:
            result = await call()
        return Answer(result, dependencies(traces))

    key = None
    if cache is not None:
        with telemetry.stage("preprocess") as span:
            key = _key(cache, namespace, kind.name, parts)
            span.set({attributes.CACHE_BYPASS: key is None})
    if cache is None or key is None:
        return (await compute()).result
    answer = await cache.find_or_compute(
        io, key, compute, ttl=ttl, kind=kind, namespace=namespace, query=query
    )
    retell(answer)
    return answer.result


def _key(
    cache: MultiLevelCache, namespace: str | None, kind: str, parts: Callable[[], Any]
) -> Digest | None:
    try:
        return digest(cache.namespace if namespace is None else namespace, kind, parts())
    except Uncacheable as reason:
        cache.bypass(reason.reason)
        return None


@contextlib.contextmanager
def _mark(component: object) -> Iterator[None]:
    token = _serving.set(_serving.get() | {id(component)})
    try:
        yield
    finally:
        _serving.reset(token)
