"""`stream`: items flow through stages that work side by side, as fast as they are taken."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import inspect
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
from anyio import from_thread, to_thread

from ragaccel import telemetry
from ragaccel.batching.outcome import InOrder, Outcome
from ragaccel.batching.pipelines import is_async
from ragaccel.batching.source import END, check_source, reader
from ragaccel.errors import BatchError, ConfigurationError
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Coroutine,
        Iterable,
        Sequence,
    )

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from typing_extensions import Self

Call: TypeAlias = Callable[[Any], Any]
_Found: TypeAlias = tuple[Any, Exception | None]


@dataclass(frozen=True)
class StreamStage:
    """One stage of a stream, and how much of it goes on at a time.

    Attributes:
        call: Takes an item, or with `batch` a list of items. A coroutine function runs on the event
            loop, everything else in threads.
        concurrency: The most calls at a time.
        batch: The most items in a call, which then gives a list with a result for each. It takes
            what waits and never waits for more. An error is that of every item of its batch; the
            `get` of a `MicroBatcher` as a stage of some concurrency finds out the bad item.
        name: The name of its telemetry stages; that of the function by default, and none for "".
    """

    call: Call
    concurrency: int = 1
    batch: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.call):
            raise ConfigurationError(f"a stage is a function of one item, got {self.call!r}.")
        check_count("concurrency", self.concurrency)
        if self.batch is not None:
            check_count("batch", self.batch)
        if self.name is None:
            called = getattr(self.call, "func", self.call)  # of a functools.partial
            name = getattr(called, "__name__", type(called).__name__)
            object.__setattr__(self, "name", name)


def check_count(name: str, count: Any) -> None:
    """Refuse what is no whole number of at least 1.

    Raises:
        ConfigurationError: It is not.
    """
    if not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"{name} must be at least 1 and whole, got {count!r}.")


def stream(
    source: Iterable[Any] | AsyncIterable[Any],
    stages: Sequence[Call | StreamStage],
    *,
    ordered: bool = True,
    limit: int | None = None,
    on_error: Callable[[Outcome], None] | None = None,
    drain: bool = False,
) -> AsyncGenerator[Any, None]:
    """Send the items of a source through stages, and yield what comes out of the last.

    Everything works side by side, in the background of whoever takes the results, and the source is
    read only as far as there is room. Every call sees the context variables of the caller of
    `stream`, and none sees what another has set. What comes out of a stage is a result like any
    other, None too.

    Leave off early by `break` within `async with contextlib.aclosing(stream(...)) as results`, and
    all of it has ended after the block. Without `aclosing` the event loop ends it soon after, as
    with every asynchronous generator. A call in a thread cannot be cancelled: it is waited for. A
    source that blocks is given a second; its thread ends when the source lets go of it.

    Args:
        source: Read in a thread of its own if it is neither a collection nor asynchronous: it may
            block. A generator is closed in the end.
        stages: Functions of one item, or `StreamStage`s; each gets what the one before it gave.
        ordered: Yield the results in the order of the source; False yields them as they come.
        limit: The most items between source and consumer, in stages and queues together; twice what
            all stages can work on by default.
        on_error: Is told of each item that a stage failed for, which is then left out. Without it
            the error is raised when the item's turn comes, and ends the stream.
        drain: Finish what is under way when the consumer leaves off, and throw the results away,
            instead of cancelling it; a cancellation of the consumer itself cancels it all the same.

    Raises:
        ConfigurationError: An argument cannot be used.
        BatchError: A stage with `batch` gave another number of results than it was given items.
        Exception: What a stage raised, without `on_error`; or what the source raised, after the
            results of what it gave before.

    Example:
        >>> async def shout(word):
        ...     return word.upper()
        >>> async def main():
        ...     return [word async for word in stream(["a", "b"], [shout])]
        >>> asyncio.run(main())
        ['A', 'B']
    """
    flow = Flow(source, stages, ordered=ordered, limit=limit)
    return _values(flow, on_error, drain=drain)


async def _values(
    flow: Flow, on_error: Callable[[Outcome], None] | None, *, drain: bool
) -> AsyncGenerator[Any, None]:
    async with flow:
        try:
            async for outcome in flow:
                if outcome.error is None:
                    yield outcome.value
                elif on_error is None:
                    raise outcome.error
                else:
                    on_error(outcome)
        except GeneratorExit:
            if drain:
                flow.stop_reading()
                async for outcome in flow:
                    if on_error is not None and outcome.error is not None:
                        on_error(outcome)
            raise


class _Item:
    """An item on its way: what became of it so far."""

    __slots__ = ("error", "item", "position", "value")

    def __init__(self, position: int, item: Any) -> None:
        self.position, self.item, self.value = position, item, item
        self.error: Exception | None = None


class Flow:
    """The outcomes of a source's items; an asynchronous context manager and iterator.

    The work is done in a task of its own, so that it goes on between two results, and whoever takes
    them may leave off anywhere.
    """

    def __init__(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        stages: Sequence[Call | StreamStage],
        *,
        ordered: bool,
        limit: int | None,
    ) -> None:
        self._done, self._results = anyio.create_memory_object_stream[_Item](math.inf)
        check_source(source)
        self._source = source
        self._stages = [one if isinstance(one, StreamStage) else StreamStage(one) for one in stages]
        if limit is None:
            limit = 2 * sum(one.concurrency * (one.batch or 1) for one in self._stages) or 1
        check_count("limit", limit)
        self._limit = limit
        self._order = InOrder(ordered=ordered)
        self._due: deque[_Item] = deque()
        self._context = contextvars.copy_context()
        self._fault: Exception | None = None

    def __del__(self) -> None:
        # An event loop that ends may cancel the closing of a generator before it begins.
        self._results.close()
        self._done.close()

    async def __aenter__(self) -> Self:
        self._reading = anyio.CancelScope()
        loop = asyncio.get_running_loop()
        self._host = self._context.run(loop.create_task, self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            self._host.cancel()
            await asyncio.wait((self._host,))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        while not self._due:
            try:
                self._due.extend(self._order.put(await _next(self._results)))
            except anyio.EndOfStream:
                await self._host
                if self._fault is not None and not self._reading.cancel_called:
                    raise self._fault from None
                raise StopAsyncIteration from None
        self._reader.release()
        item = self._due.popleft()
        return Outcome(item.position, item.item, item.value, item.error)

    def stop_reading(self) -> None:
        """Take no more of the source; what was taken goes on."""
        self._reading.cancel()

    async def _run(self) -> None:
        with contextlib.ExitStack() as ends:
            out = ends.enter_context(self._done)
            async with anyio.create_task_group() as group:
                for stage in reversed(self._stages):
                    feed, waiting = anyio.create_memory_object_stream[_Item](math.inf)
                    ends.enter_context(waiting)
                    done = ends.enter_context(self._done.clone())
                    group.start_soon(_Station(stage, waiting, out, done).run)
                    out = ends.enter_context(feed)
                group.start_soon(self._read, out)

    async def _read(self, out: MemoryObjectSendStream[_Item]) -> None:
        self._reader = reader(self._source, self._limit)
        with out, self._reading:
            try:
                for position in itertools.count():
                    item = await self._reader.next()
                    if item is END:
                        return
                    out.send_nowait(_Item(position, item))
            except Exception as fault:  # noqa: BLE001 - raised when its turn comes
                self._fault = fault
            finally:
                with anyio.CancelScope(shield=True):
                    await self._reader.aclose()


class _Station:
    """A stage at work: so many workers that take what waits, and pass it on."""

    def __init__(
        self,
        stage: StreamStage,
        waiting: MemoryObjectReceiveStream[_Item],
        out: MemoryObjectSendStream[_Item],
        done: MemoryObjectSendStream[_Item],
    ) -> None:
        self._stage, self._waiting, self._out, self._done = stage, waiting, out, done
        self._threads = anyio.CapacityLimiter(stage.concurrency)
        self._is_async = is_async(stage.call)

    async def run(self) -> None:
        """Work until nothing comes any more."""
        with self._out, self._done:
            async with anyio.create_task_group() as workers:
                for _ in range(self._stage.concurrency):
                    workers.start_soon(self._work)

    async def _work(self) -> None:
        size = self._stage.batch or 1
        while True:
            try:
                items = [await _next(self._waiting)]
            except anyio.EndOfStream:
                return
            with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
                while len(items) < size:
                    items.append(self._waiting.receive_nowait())
            await self._answer(items)
            for item in items:
                (self._out if item.error is None else self._done).send_nowait(item)

    async def _answer(self, items: list[_Item]) -> None:
        """Make the call for some items, and note what came of it."""
        is_batch = self._stage.batch is not None
        argument = [item.value for item in items] if is_batch else items[0].value
        if self._is_async:
            found, error = await _alone(_awaited(self._stage, argument, len(items)))
        else:
            found, error = await to_thread.run_sync(
                _called, self._stage, argument, len(items), limiter=self._threads
            )
        values = [found]
        if is_batch and error is None:
            values, error = _one_each(self._stage, found, len(items))
        if error is not None:
            values = [None] * len(items)
        for item, value in zip(items, values, strict=True):
            item.value, item.error = value, error


async def _next(waiting: MemoryObjectReceiveStream[_Item]) -> _Item:
    try:
        return waiting.receive_nowait()
    except anyio.WouldBlock:
        return await waiting.receive()


async def _alone(found: Coroutine[Any, Any, _Found]) -> _Found:
    """Await a call in a task of its own.

    So its context is its own, and it is cancelled once, as asyncio does it, and not again while it
    cleans up, as anyio does.
    """
    loop = asyncio.get_running_loop()
    task, ended = loop.create_task(found), loop.create_future()
    task.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
    try:
        await ended  # a tenth of what `asyncio.wait` costs
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait((task,))
        raise
    return (None, cancelled_itself()) if task.cancelled() else task.result()


async def _awaited(stage: StreamStage, argument: Any, count: int) -> _Found:
    try:
        with _span(stage, count):
            return await stage.call(argument), None
    except Exception as error:  # noqa: BLE001 - the item's
        return None, error


def _called(stage: StreamStage, argument: Any, count: int) -> _Found:
    try:
        with _span(stage, count):
            return settled(stage.call(argument)), None
    except Exception as error:  # noqa: BLE001 - the item's
        return None, error
    except asyncio.CancelledError as error:
        return None, cancelled_itself(error)


def settled(value: Any) -> Any:
    """Return a value, in a thread of anyio; what is awaitable is awaited on the event loop."""

    async def result() -> Any:
        return await value

    return on_loop(result) if inspect.isawaitable(value) else value


def on_loop(call: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    """Await a call on the event loop of this thread of anyio, unless that is to end.

    Raises:
        CancelledError: It was cancelled together with what the thread does.
    """

    async def unless_ending() -> Any:
        # Asked again on the loop: what is cancelled between hears of it no more.
        if anyio.current_effective_deadline() == -math.inf:
            raise asyncio.CancelledError
        return await call(*args)

    from_thread.check_cancelled()
    try:
        return from_thread.run(unless_ending)
    except concurrent.futures.CancelledError as error:
        raise asyncio.CancelledError from error


def _span(stage: StreamStage, count: int) -> telemetry.Stage:
    if not stage.name:
        return telemetry.OFF
    return telemetry.stage(stage.name, {attributes.ITEMS: count})


def cancelled_itself(cause: BaseException | None = None) -> Exception:
    """Return the error of a call that ended as cancelled though nobody cancelled it."""
    error = RuntimeError("the call was cancelled from inside")
    error.__cause__ = cause
    return error


def _one_each(stage: StreamStage, found: Any, count: int) -> tuple[list[Any], Exception | None]:
    try:
        values = list(found)
    except TypeError:
        got = f"{type(found).__name__!r} object"
    else:
        if len(values) == count:
            return values, None
        got = f"{len(values)} results"
    return [], BatchError(
        f"stage {stage.name!r} was given {count} items in a batch and gave a {got}; it has to give "
        "a list with a result for each."
    )
