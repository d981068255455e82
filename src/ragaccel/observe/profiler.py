"""Listens to the stages of requests, and tells where their time went."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from ragaccel import telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.observe.calls import Call, Request
from ragaccel.observe.profile import Profile
from ragaccel.observe.spent import Reading, Spent, memory, read, spent
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

_NS: Final = 1e9
_KEPT: Final = (
    attributes.CACHE_HIT, attributes.CACHE_LEVEL, attributes.BATCH_SIZE, attributes.BATCH_WAIT,
    attributes.ITEMS, attributes.SENT, attributes.CODEC, attributes.ROWS,
)  # fmt: skip
_NO_REQUESTS: Final = frozenset({"ingest", "compact"})
_METHODS: Final = ("query", "retrieve", "invoke")


class Profiler:
    """Keeps what happened in requests, to report on it; see `Profile`.

    It hears the stages of this process while it is open, whoever opened them. A request is a stage
    that is part of no other; `profile` opens one for each query, and where an application has none
    of its own it should say `with telemetry.stage("query"):` around each request. Batches, writes
    and what goes on after a request is over are counted, and part of none.

        with Profiler() as profiler:
            engine.query("What is a tombstone?")
        rich.print(profiler.report())

    It may be opened again, and goes on then.

    Args:
        resources: Read memory, disk and network at the beginning and end of each stage as well.
            That takes about 0.2 ms per stage, which counts into the stages around it; the CPU time
            is always read.
        max_requests: How many requests to keep. Those that come after are only counted.
    """

    def __init__(self, *, resources: bool = False, max_requests: int = 10_000) -> None:
        if max_requests < 1:
            raise ConfigurationError(f"max_requests must be at least 1, got {max_requests}.")
        self._resources, self._max_requests = resources, max_requests
        self._lock = threading.Lock()
        self._times_open = 0
        self._open: dict[telemetry.Stage, _Recorded | None] = {}
        self._requests: list[_Recorded] = []
        self._others: list[_Recorded] = []
        self._dropped = self._heard = self._own_ns = 0
        self._digest_key = secrets.token_bytes(32)

    def __enter__(self) -> Self:
        with self._lock:
            self._times_open += 1
            if self._times_open == 1:
                telemetry.listen(self)
        return self

    def __exit__(self, *exit_: object) -> None:
        with self._lock:
            self._times_open -= 1
            if self._times_open == 0:
                telemetry.unlisten(self)
                self._open.clear()

    def started(self, stage: telemetry.Stage) -> None:
        """Hear that a stage begins."""
        told_ns = time.perf_counter_ns()
        recorded = self._open[stage] = self._recorded(stage)
        if recorded is not None:
            recorded.before = read(everything=self._resources)
            recorded.began_ns = time.perf_counter_ns()
        with self._lock:
            self._own_ns += time.perf_counter_ns() - told_ns

    def ended(self, stage: telemetry.Stage) -> None:
        """Hear that a stage is over."""
        told_ns = time.perf_counter_ns()
        recorded = self._open.pop(stage, None)
        if recorded is None:
            return
        recorded.end(stage, read(everything=self._resources))
        with self._lock:
            if recorded.is_outermost:
                self._keep(self._kept_with(stage), recorded)
            self._heard += 1
            self._own_ns += time.perf_counter_ns() - told_ns

    def report(self) -> Profile:
        """Return what was heard until now; requests that are under way are left out."""
        return self._report(0, 0, 0)

    def profile(self, pipeline: Any, queries: Iterable[Any], *, concurrency: int = 1) -> Profile:
        """Ask a pipeline one query after another, and return what was heard meanwhile.

        A query that fails is counted. An answer that is an iterator is read to its end.

        Args:
            pipeline: A callable of one query, or an object with `query`, `retrieve` or `invoke`.
            queries: What to ask. Kept of it is a digest, to see which queries are asked again.
            concurrency: How many threads ask at the same time.

        Raises:
            ConfigurationError: The pipeline is none of these, or asynchronous.
            Exception: The first one that was raised, if every query failed.
        """
        ask, outcomes = _method(pipeline, ""), _Outcomes()
        _check(concurrency)

        def request(query: Any) -> None:
            with outcomes, telemetry.stage("query") as stage:
                self._tell_asked(stage, query)
                _read(ask(query))

        with self:
            since = self._position()
            if concurrency == 1:
                for query in queries:
                    request(query)
            else:
                _side_by_side(request, queries, concurrency)
            outcomes.check()
            return self._report(*since)

    async def aprofile(
        self, pipeline: Any, queries: Iterable[Any], *, concurrency: int = 1
    ) -> Profile:
        """Like `profile`, for `aquery`, `aretrieve`, `ainvoke` or a callable that is awaited.

        Args:
            pipeline: See `profile`.
            queries: See `profile`.
            concurrency: How many tasks ask at the same time.
        """
        ask, outcomes = _method(pipeline, "a"), _Outcomes()
        _check(concurrency)
        waiting = iter(queries)

        async def requests() -> None:
            for query in waiting:
                with outcomes, telemetry.stage("query") as stage:
                    self._tell_asked(stage, query)
                    await _aread(ask(query))

        with self:
            since = self._position()
            await asyncio.gather(*(requests() for _ in range(concurrency)))
            outcomes.check()
            return self._report(*since)

    def _recorded(self, stage: telemetry.Stage) -> _Recorded | None:
        """Return what a stage is recorded in, or None if there is no room for its request."""
        if stage.parent in self._open:
            around = self._open.get(stage.parent)
            return None if around is None else _Recorded(around)
        if len(self._kept_with(stage)) < self._max_requests:
            return _Recorded(None)
        with self._lock:
            self._dropped += 1
        return None

    def _kept_with(self, stage: telemetry.Stage) -> list[_Recorded]:
        """Return the requests, or what else is kept if an outermost stage is none."""
        is_after = stage.parent is not None and stage.parent.duration_ns > 0
        is_other = stage.serves or is_after or stage.name in _NO_REQUESTS
        return self._others if is_other else self._requests

    def _keep(self, kept: list[_Recorded], recorded: _Recorded) -> None:
        """Keep an outermost stage, unless others have filled the room meanwhile."""
        if len(kept) < self._max_requests:
            kept.append(recorded)
        else:
            self._dropped += 1

    def _tell_asked(self, stage: telemetry.Stage, query: Any) -> None:
        recorded = self._open.get(stage)
        if recorded is not None:
            asked = hashlib.blake2b(repr(query).encode(), key=self._digest_key, digest_size=16)
            recorded.asked = asked.digest()

    def _position(self) -> tuple[int, int, int]:
        return len(self._requests), len(self._others), self._dropped

    def _report(self, requests: int, others: int, dropped: int) -> Profile:
        """Return what was heard since a position."""
        with self._lock:
            own_ns, heard = self._own_ns, self._heard
            kept, rest = self._requests[requests:], self._others[others:]
            lost = self._dropped - dropped
        return Profile.of(
            [one.request() for one in kept],
            [one.request().call for one in rest],
            dropped=lost,
            overhead_seconds=own_ns / heard / _NS if heard else 0.0,
            memory_bytes=memory(),
        )


class _Recorded:
    """A stage while it is heard, and the recorded ones inside."""

    __slots__ = (
        "_around", "asked", "attributes", "before", "began_ns", "ended_ns", "error", "inside",
        "is_outermost", "name", "spent", "trace_id",
    )  # fmt: skip

    before: Reading
    name: str
    error: str | None
    attributes: dict[str, Any]
    spent: Spent | None

    def __init__(self, around: _Recorded | None) -> None:
        self._around, self.is_outermost = around, around is None
        self.inside: list[_Recorded] = []
        self.asked: bytes | None = None
        self.trace_id: str | None = None
        self.began_ns = self.ended_ns = 0

    def end(self, stage: telemetry.Stage, after: Reading) -> None:
        """Keep what is known now that it is over."""
        self.name, self.error = stage.name, stage.error
        told = stage.attributes
        self.attributes = {name: told[name] for name in _KEPT if name in told}
        self.ended_ns = stage.began_ns + stage.duration_ns
        if self.ended_ns <= self.began_ns:  # it was told of when it was over
            self.began_ns, self.spent = stage.began_ns, None
        else:
            self.spent = spent(self.before, after)
        if self._around is None:
            if stage.span is not None:
                self.trace_id = f"{stage.span.get_span_context().trace_id:032x}"
        else:
            self._around.inside.append(self)
            self._around = None

    def request(self) -> Request:
        """Return the request that an outermost stage is."""
        return Request(self.call(), self.asked, self.trace_id)

    def call(self, since_ns: int = 0) -> Call:
        """Return it with what is inside; a stage inside one of its own name is the same one.

        Args:
            since_ns: When what it is part of began.
        """
        began_ns = max(self.began_ns, since_ns)
        told = self.attributes
        children: list[Call] = []
        for one in list(self.inside):
            made = one.call(began_ns)
            if made.name == self.name:
                told = {**made.attributes, **told}
                children += made.children
            else:
                children.append(made)
        children.sort(key=lambda one: one.began_ns)
        return Call(
            self.name, began_ns, max(self.ended_ns, began_ns), self.error, told, self.spent,
            tuple(children),
        )  # fmt: skip


class _Outcomes:
    """How queries ended: one that failed does not end the others."""

    def __init__(self) -> None:
        self._has_answer = False
        self._first: Exception | None = None

    def __enter__(self) -> None:
        """Ask one query."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if error is None:
            self._has_answer = True
        elif self._first is None and isinstance(error, Exception):
            self._first = error
        return isinstance(error, Exception)

    def check(self) -> None:
        """Raise the first error if there was nothing else."""
        if self._first is not None and not self._has_answer:
            raise self._first


def _side_by_side(request: Callable[[Any], None], queries: Iterable[Any], concurrency: int) -> None:
    pool = ThreadPoolExecutor(concurrency, "ragaccel-profile")
    try:
        asked = [pool.submit(contextvars.copy_context().run, request, one) for one in queries]
        for one in asked:
            one.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check(concurrency: int) -> None:
    if concurrency < 1:
        raise ConfigurationError(f"concurrency must be at least 1, got {concurrency}.")


def _method(pipeline: Any, prefix: str) -> Callable[[Any], Any]:
    if callable(pipeline):
        return pipeline  # type: ignore[no-any-return]
    for name in _METHODS:
        method = getattr(pipeline, prefix + name, None)
        if callable(method):
            return method  # type: ignore[no-any-return]
    names = ", ".join(prefix + name for name in _METHODS)
    raise ConfigurationError(
        f"{type(pipeline).__name__} is no pipeline that can be asked: pass a callable of one "
        f"query, or an object with one of the methods {names}."
    )


def _read(answer: Any) -> None:
    """Read a stream to its end, since a request is over when its answer is."""
    if inspect.isawaitable(answer) or isinstance(answer, AsyncIterator):
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigurationError(
            "the pipeline is asynchronous: use `await profiler.aprofile(...)`."
        )
    if isinstance(answer, Iterator):
        deque(answer, maxlen=0)


async def _aread(answer: Any) -> None:
    if inspect.isawaitable(answer):
        answer = await answer
    if isinstance(answer, AsyncIterator):
        async for _ in answer:
            pass
    else:
        _read(answer)
