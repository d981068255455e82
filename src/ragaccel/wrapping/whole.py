"""The stage of a whole question, of which everything that answers it is a part.

Nothing of the kind is opened inside a span of the application's or inside another stage.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ragaccel import telemetry
from ragaccel.telemetry import attributes
from ragaccel.wrapping.seam import stage_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

T = TypeVar("T")

_END: Final[Any] = object()


def whole_stage(component: object, query: Any) -> telemetry.Stage:
    """Open the stage of a question that a component answers; a no-op if it is part of another.

    Args:
        component: The engine or chain.
        query: What it was asked.
    """
    place = telemetry.here()
    if place is None or place.stage is not None or place.span is not None:
        return telemetry.OFF
    return stage_of("query", component, telemetry.asked("query", query))


def in_turns(stage: telemetry.Stage, stream: Iterator[T]) -> Generator[T, None, None]:
    """Pass on a stream that is part of a stage that has begun, and end both together.

    Also when the stream is dropped, read or not.
    """
    passed: Generator[Any, None, None] = _in_turns(stage, stream)
    next(passed)
    return passed


async def in_turns_async(
    stage: telemetry.Stage, stream: AsyncIterator[T]
) -> AsyncGenerator[T, None]:
    """Pass on an asynchronous stream; see `in_turns`."""
    passed: AsyncGenerator[Any, None] = _in_turns_async(stage, stream)
    await anext(passed)
    return passed


def _in_turns(stage: telemetry.Stage, stream: Iterator[Any]) -> Generator[Any, None, None]:
    with _ending(stage):
        try:
            yield None
            while True:
                with stage.turn():
                    chunk = next(stream, _END)
                if chunk is _END:
                    break
                yield chunk
        finally:
            if hasattr(stream, "close"):
                stream.close()


async def _in_turns_async(
    stage: telemetry.Stage, stream: AsyncIterator[Any]
) -> AsyncGenerator[Any, None]:
    with _ending(stage):
        try:
            yield None
            while True:
                with stage.turn():
                    chunk = await anext(stream, _END)
                if chunk is _END:
                    break
                yield chunk
        finally:
            if hasattr(stream, "aclose"):
                await stream.aclose()


@contextlib.contextmanager
def _ending(stage: telemetry.Stage) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if isinstance(error, GeneratorExit):
            stage.set({attributes.STREAM_ABANDONED: True})
        stage.end(error)
        raise
    stage.end()
