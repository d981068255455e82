"""Streams that are served from the cache, or recorded while they are passed on."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ragaccel.cache import MISSING, Uncacheable
from ragaccel.io import run
from ragaccel.telemetry import attributes
from ragaccel.wrapping.seam import Recording, find_similar, learn, serving, stage_of
from ragaccel.wrapping.transparent import options_of

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Callable,
        Generator,
        Iterable,
        Iterator,
    )

    from ragaccel.cache import Digest, Kind
    from ragaccel.cache.flow import IO
    from ragaccel.wrapping.semantic import Call, Similar

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
        similar: Lets it be answered as a similar question was; see `Options.semantic`.
    """

    def __init__(
        self,
        model: Any,
        kind: Kind[R],
        parts: Callable[[], Any],
        recorder: Recorder[R],
        query: Any,
        similar: Similar[R] | None = None,
    ) -> None:
        self._model, self._kind, self._recorder, self._query = model, kind, recorder, query
        self._options = options_of(model)
        self._key: Digest | None = None
        self._recording: Recording | None = None
        self._stage = stage_of("generate", model)
        self._parts, self._started, self._chunks = parts, time.perf_counter(), 0
        self._is_open = False
        self._similar = similar
        self._io: IO | None = None
        self._asked: Call[R] | None = None

    def __del__(self) -> None:
        """End the stage of a stream that nobody has begun to read."""
        if self._is_open:
            self._end(None, is_abandoned=True)

    async def find(self, io: IO) -> R | None:
        """Return what is kept, or begin to record."""
        self._stage.begin()
        self._is_open = True
        try:
            with self._stage.turn():
                answer = await self._find(io)
        except BaseException as error:
            self._end(error)
            raise
        self._stage.set({attributes.CACHE_HIT: answer is not None})
        if answer is not None:
            self._end(None)
        return answer

    async def _find(self, io: IO) -> R | None:
        cache, options = self._options.cache, self._options
        self._key = options.key(self._kind.name, self._parts)
        if self._key is None or cache is None:
            return None
        found = await cache.find_many(io, [self._key], kind=self._kind, namespace=options.namespace)
        if found[0] is not MISSING:
            answer: R = found[0]
            return answer
        self._io, self._asked = io, await options.similar(io, self._kind, self._key, self._similar)
        similar = await find_similar(io, options.semantic, self._asked, self._stage)
        if similar is not MISSING:
            reused: R = similar
            return reused
        self._recording = Recording(io, options, self._kind)
        return None

    def record(self, stream: Iterable[C]) -> Generator[C, None, None]:
        """Pass a stream on."""
        chunks = iter(stream)
        with self._ending():
            try:
                while True:
                    with self._stage.turn(), serving(self._model):
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
        with self._ending():
            try:
                while True:
                    with self._stage.turn(), serving(self._model):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        break
                    self._add(chunk)
                    yield chunk
            finally:
                if hasattr(chunks, "aclose"):
                    await chunks.aclose()
            await self._keep()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """End the stage with the stream, whoever ends it."""
        try:
            yield
        except BaseException as error:
            self._end(error, is_abandoned=isinstance(error, GeneratorExit))
            raise
        self._end(None)

    def _end(self, error: BaseException | None, *, is_abandoned: bool = False) -> None:
        self._is_open = False
        if self._chunks or is_abandoned:
            told = {
                attributes.STREAM_CHUNKS: self._chunks,
                attributes.STREAM_ABANDONED: is_abandoned,
            }
            self._stage.set(told)
        self._stage.end(error)

    def _add(self, chunk: Any) -> None:
        if not self._chunks:
            waited = time.perf_counter() - self._started
            self._stage.set({attributes.FIRST_CHUNK: waited})
        self._chunks += 1
        if self._recording is not None:
            self._recorder.add(chunk)

    async def _keep(self) -> None:
        """Keep the whole stream."""
        if self._recording is None or self._key is None or self._options.cache is None:
            return
        try:
            answer = self._recorder.answer()
        except Uncacheable as reason:
            self._options.cache.bypass(reason.reason)
            return
        if answer is not None:
            await self._recording.keep({self._key: answer}, {self._key: self._query})
            if self._io is not None:
                await learn(self._io, self._options.semantic, self._asked, answer)
