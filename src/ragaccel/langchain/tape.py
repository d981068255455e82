"""Streams that are served from the cache, or recorded while they are passed on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from ragaccel.cache import MISSING, Uncacheable
from ragaccel.io import run
from ragaccel.langchain.generations import opened, packed
from ragaccel.seam import Recording, serving
from ragaccel.telemetry import attributes
from ragaccel.telemetry.stage import past_stage
from ragaccel.transparent import options_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from ragaccel.cache import Digest, Kind
    from ragaccel.cache.flow import IO

R = TypeVar("R")
C = TypeVar("C", bound=Any)

_encoder: Final = msgspec.msgpack.Encoder()


class Tape(Generic[R]):
    """One stream of a wrapped model.

    Only a stream that came to its end is kept, and of an empty one there is nothing to keep.

    Args:
        model: The model.
        kind: How its answers are stored.
        parts: Gives everything that decides the answer.
        reply: Makes an answer of its chunks, and of the same as they are stored: LangChain changes
            chunks after they came.
        query: What a ttl policy is shown of the question.
    """

    def __init__(
        self,
        model: Any,
        kind: Kind[R],
        parts: Callable[[], Any],
        reply: Callable[[Sequence[Any], Sequence[msgspec.Raw]], R],
        query: Any,
    ) -> None:
        self._model, self._kind, self._reply, self._query = model, kind, reply, query
        self._options = options_of(model)
        self._key: Digest | None = self._options.key(kind.name, parts)
        self._chunks: list[msgspec.Raw] | None = []
        self._recording: Recording | None = None
        self._started = time.time_ns()

    async def find(self, io: IO) -> R | None:
        """Return what is kept, or begin to record."""
        cache = self._options.cache
        if self._key is None or cache is None:
            return None
        whose = self._options.namespace
        found = (await cache.find_many(io, [self._key], kind=self._kind, namespace=whose))[0]
        if found is MISSING:
            self._recording = Recording(io, self._options, self._kind)
            return None
        self._tell(is_hit=True)
        reply: R = found
        return reply

    def record(self, stream: Iterator[C]) -> Iterator[C]:
        """Pass a stream on."""
        chunks = iter(stream)
        while True:
            with serving(self._model):
                chunk = next(chunks, None)
            if chunk is None:
                break
            self._add(chunk)
            yield chunk
        run(self._keep())

    async def arecord(self, stream: AsyncIterator[C]) -> AsyncIterator[C]:
        """Pass a stream on."""
        chunks = aiter(stream)
        while True:
            with serving(self._model):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            self._add(chunk)
            yield chunk
        await self._keep()

    def _add(self, chunk: Any) -> None:
        """Keep a copy of a chunk as it is now."""
        if self._recording is None or self._chunks is None:
            return
        try:
            self._chunks.append(msgspec.Raw(_encoder.encode(packed(chunk))))
        except (Uncacheable, TypeError, ValueError, OverflowError):
            self._chunks = None

    async def _keep(self) -> None:
        """Keep the whole stream."""
        self._tell(is_hit=False)
        if self._recording is None or self._key is None:
            return
        if self._chunks is None:
            if self._options.cache is not None:
                self._options.cache.bypass("value")
        elif self._chunks:
            chunks = [opened(*msgspec.msgpack.decode(one)) for one in self._chunks]
            reply = self._reply(chunks, self._chunks)
            await self._recording.keep({self._key: reply}, {self._key: self._query})

    def _tell(self, *, is_hit: bool) -> None:
        """Record the stage when it is over: it must not be current while others have the turn."""
        about: dict[str, Any] = {
            attributes.COMPONENT: type(self._model).__name__,
            attributes.CACHE_HIT: is_hit,
        }
        past_stage("generate", self._started, time.time_ns(), about)
