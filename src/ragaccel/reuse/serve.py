"""One retrieval from key to result: the flow that both frameworks' retrievers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ragaccel import telemetry
from ragaccel.reuse.freshness import Answer, dependencies, retell
from ragaccel.reuse.reads import reading
from ragaccel.vectors import watch
from ragaccel.wrapping import seam

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ragaccel.cache import Kind
    from ragaccel.cache.flow import IO
    from ragaccel.wrapping.seam import Options

R = TypeVar("R")


async def uncached(component: object, call: Callable[[], Awaitable[R]]) -> R:
    """Make a retrieval of which nothing is kept."""
    with seam.serving(component):
        return await call()


async def serve(
    io: IO,
    component: object,
    options: Options,
    kind: Kind[Answer[R]],
    parts: Callable[[], Any],
    call: Callable[[], Awaitable[R]],
    *,
    query: Any,
    spare: int = 0,
    alike: Callable[[], Any] | None = None,
) -> R:
    """Serve a retrieval from the cache, or make it and keep it with what it depends on.

    Args:
        io: How to wait; see `ragaccel.cache.flow`.
        component: The wrapped retriever.
        options: What `accelerate` was asked for.
        kind: How its results are stored.
        parts: Gives everything that decides the answer; raises `Uncacheable` if it cannot be told.
        call: The framework's own retrieval.
        query: What a ttl policy is shown of the question.
        spare: Rows that searches look for beyond those asked for, where `kind` can rebuild; see
            `ragaccel.reuse.freshness`.
        alike: Gives what must be equal in retrievals that may share what their searches find; None
            where they may not. See `ragaccel.reuse.neighbours`.
    """

    async def compute() -> Answer[R]:
        short = None if alike is None else options.shortcut(alike)
        with (
            telemetry.stage("retrieve"),
            watch(spare, short) as traces,
            reading() as reads,
        ):
            result = await call()
        return Answer(result, dependencies(traces), tuple(reads))

    answer = await seam.serve(io, component, options, kind, parts, compute, query=query)
    retell(answer)
    return answer.result
