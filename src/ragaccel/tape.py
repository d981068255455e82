"""Streams that are served from the cache, or recorded while they are passed on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ragaccel.cache import MISSING, Uncacheable
from ragaccel.io import run
from ragaccel.seam import Recording, serving
from ragaccel.telemetry import attributes
from ragaccel.telemetry.stage import past_stage
from ragaccel.transparent import options_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable

    from ragaccel.cache import Digest, Kind
    from ragaccel.cache.flow import IO

R = TypeVar("R")
C = TypeVar("C", bound=Any)
R_co = TypeVar("R_co", covariant=True)


class Recorder(Protocol[R_co]):
    """Keeps the chunks of a stream as they come: frameworks change them afterwards."""

    def add(self, chunk: Any) -> None:
        """Keep a copy of a chunk as it is now."""

    def answer(self) -> R_co | None:
        """Return the answer that the chunks make, or None if there is nothing to keep.

        Raises:
            Uncacheable: It would not come back equal.
        """


class Tape(Generic[R]):
    """One stream of a wrapped model; only one that came to its end is kept.

    Args:
        model: The model.
        kind: How its answers are stored.
        parts: Gives everything that decides the answer.
        recorder: Keeps the chunks.
        query: What a ttl policy is shown of the question.
    """

    def __init__(
        self,
        model: Any,
        kind: Kind[R],
        parts: Callable[[], Any],
        recorder: Recorder[R],
        query: Any,
    ) -> None:
        self._model, self._kind, self._recorder, self._query = model, kind, recorder, query
        self._options = options_of(model)
        self._key: Digest | None = self._options.key(kind.name, parts)
        self._recording: Recording | None = None
        self._started = time.time_ns()

    async def find(self, io: IO) -> R | None:
        """Return what is kept, or begin to record."""
        cache, whose = self._options.cache, self._options.namespace
        if self._key is None or cache is None:
            return None
        found = (await cache.find_many(io, [self._key], kind=self._kind, namespace=whose))[0]
        if found is MISSING:
            self._recording = Recording(io, self._options, self._kind)
            return None
        self._tell(is_hit=True)
        answer: R = found
        return answer

    def record(self, stream: Iterable[C]) -> Generator[C, None, None]:
        """Pass a stream on."""
        chunks = iter(stream)
        try:
            while True:
                with serving(self._model):
                    chunk = next(chunks, None)
                if chunk is None:
                    break
                self._add(chunk)
                yield chunk
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        run(self._keep())

    async def arecord(self, stream: AsyncIterable[C]) -> AsyncGenerator[C, None]:
        """Pass a stream on."""
        chunks = aiter(stream)
        try:
            while True:
                with serving(self._model):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                self._add(chunk)
                yield chunk
        finally:
            if hasattr(chunks, "aclose"):
                await chunks.aclose()
        await self._keep()

    def _add(self, chunk: Any) -> None:
        if self._recording is not None:
            self._recorder.add(chunk)

    async def _keep(self) -> None:
        """Keep the whole stream."""
        self._tell(is_hit=False)
        if self._recording is None or self._key is None or self._options.cache is None:
            return
        try:
            answer = self._recorder.answer()
        except Uncacheable as reason:
            self._options.cache.bypass(reason.reason)
            return
        if answer is not None:
            await self._recording.keep({self._key: answer}, {self._key: self._query})

    def _tell(self, *, is_hit: bool) -> None:
        """Record the stage when it is over: it must not be current while others have the turn."""
        about: dict[str, Any] = {
            attributes.COMPONENT: type(self._model).__name__,
            attributes.CACHE_HIT: is_hit,
        }
        past_stage("generate", self._started, time.time_ns(), about)
