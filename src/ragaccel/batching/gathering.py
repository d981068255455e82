"""`gather` and `agather`: many queries through one pipeline, so many at a time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import queue
import threading
import time
from collections import deque
from collections.abc import Sized
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from ragaccel.batching.attempts import Attempts, check_rate, check_retry
from ragaccel.batching.outcome import InOrder, Outcome
from ragaccel.batching.pipelines import ASYNCHRONOUS, awaiting, blocking
from ragaccel.batching.progress import bar
from ragaccel.batching.source import check_source, each
from ragaccel.batching.streaming import (
    Flow,
    StreamStage,
    cancelled_itself,
    check_count,
    on_loop,
    settled,
)
from ragaccel.errors import ConfigurationError
from ragaccel.io import run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable

    import tenacity
    from typing_extensions import Self


def gather(
    queries: Iterable[Any],
    pipeline: Any,
    *,
    concurrency: int = 8,
    ordered: bool = True,
    rate: float | None = None,
    retry: int | tenacity.BaseRetrying | None = None,
    progress: bool = False,
) -> Generator[Outcome, None, None]:
    """Ask a pipeline every query, several at a time in threads, and yield what came of each.

    A query that fails ends no other: its outcome has the error, and `unwrap()` raises it. Every
    call sees the context variables of the caller of `gather`, and none sees what another has set.

    Whoever leaves off early, by `break` or by an exception, ends it: queries that were read and not
    begun are dropped, and those under way, which no thread can be made to leave, are waited for.

    Args:
        queries: Read in the caller's thread, as results are taken: at most twice `concurrency`
            ahead of them. A generator is closed in the end.
        pipeline: A function of one query, or an object with `query`, `retrieve` or `invoke`: a
            query engine, retriever, model or chain of LlamaIndex or LangChain.
        concurrency: The most queries under way at a time.
        ordered: Yield the outcomes in the order of the queries; False yields them as they come.
        rate: The most attempts in a second, evenly spaced; None for no limit.
        retry: How many more attempts there are after errors that may pass: time-outs, failed
            connections, rate limits, HTTP status 408, 425, 429 and 5xx. Between them is a random
            wait that grows, or the server's `Retry-After`; after a rate limit all queries wait. Or
            a `tenacity.Retrying` that says it otherwise.
        progress: Show a bar with rate and remaining time on stderr if that is a terminal.

    Yields:
        An `Outcome` for each query.

    Raises:
        ConfigurationError: An argument cannot be used, or the pipeline is asynchronous only.
        Exception: What the source of the queries raised, after the outcomes of those before.

    Example:
        >>> [outcome.value for outcome in gather(["a", "b"], str.upper)]
        ['A', 'B']
    """
    _check(queries, concurrency, rate, retry)
    ask = blocking(pipeline)
    stop = threading.Event()

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise asyncio.CancelledError

    threads = _Threads(_in_thread(ask, _refused, sleep, rate, retry), concurrency, stop)
    return _gathered(queries, threads, 2 * concurrency, ordered=ordered, progress=progress)


def agather(
    queries: Iterable[Any] | AsyncIterable[Any],
    pipeline: Any,
    *,
    concurrency: int = 8,
    ordered: bool = True,
    rate: float | None = None,
    retry: int | tenacity.BaseRetrying | None = None,
    progress: bool = False,
) -> AsyncGenerator[Outcome, None]:
    """Do what `gather` does on the event loop, for `async for`.

    The pipeline is asked by `aquery`, `aretrieve` or `ainvoke`, or is a coroutine function. What
    has no asynchronous form, or one that only calls the blocking one, is asked in threads. Queries
    under way are cancelled when the consumer leaves off or is cancelled; see `stream`, also for
    `contextlib.aclosing` and for the queries' source.
    """
    _check(queries, concurrency, rate, retry)
    ask = awaiting(pipeline)
    asked = (
        _in_thread(blocking(pipeline), settled, partial(on_loop, anyio.sleep), rate, retry)
        if ask is None
        else Attempts(ask, anyio.sleep, anyio.current_time, rate, retry)
    )
    stage = StreamStage(asked, concurrency, name="")
    flow = Flow(queries, [stage], ordered=ordered, limit=2 * concurrency)
    return _agathered(flow, _size(queries), progress=progress)


async def _agathered(
    flow: Flow, size: int | None, *, progress: bool
) -> AsyncGenerator[Outcome, None]:
    with bar("queries", size, shown=progress) as tell:
        async with flow:
            given = 0
            async for outcome in flow:
                given += 1
                tell(given)
                yield outcome


def _gathered(
    queries: Iterable[Any], threads: _Threads, window: int, *, ordered: bool, progress: bool
) -> Generator[Outcome, None, None]:
    source = _Source(queries)
    order, due = InOrder(ordered=ordered), deque[Outcome]()
    begun = given = 0
    with bar("queries", _size(queries), shown=progress) as tell, source, threads:
        while True:
            while begun - given < window and source.read():
                threads.begin(begun, source.query)
                begun += 1
            if given == begun:
                break
            while not due:
                due.extend(order.put(threads.take()))
            given += 1
            tell(given)
            yield due.popleft()
        if source.fault is not None:
            raise source.fault


class _Source:
    """The queries, read in the caller's thread; a generator is closed in the end."""

    def __init__(self, queries: Iterable[Any]) -> None:
        self._queries = queries
        self._items = each(queries)
        self.query: Any = None
        self.fault: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if inspect.isgenerator(self._queries):
            self._queries.close()

    def read(self) -> bool:
        """Read a query; return whether there was one."""
        try:
            self.query = next(self._items)
        except StopIteration:
            return False
        except Exception as fault:  # noqa: BLE001 - raised when its turn comes
            self.fault = fault
            return False
        return True


class _Threads:
    """Asks in a pool of threads, which ends with the block that it is used in."""

    def __init__(self, ask: Callable[[Any], Any], concurrency: int, stop: threading.Event) -> None:
        self._ask, self._concurrency, self._stop = ask, concurrency, stop
        self._context = contextvars.copy_context()
        self._ended: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._pool = concurrent.futures.ThreadPoolExecutor(self._concurrency, "ragaccel-gather")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def begin(self, position: int, query: Any) -> None:
        """Ask a query as soon as a thread is free."""
        self._pool.submit(self._context.copy().run, self._work, position, query)

    def take(self) -> Outcome:
        """Wait for the next outcome."""
        ended = self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _work(self, position: int, query: Any) -> None:
        try:
            outcome = Outcome(position, query, self._ask(query))
        except Exception as error:  # noqa: BLE001 - the query's
            outcome = Outcome(position, query, error=error)
        except asyncio.CancelledError as error:
            outcome = Outcome(position, query, error=cancelled_itself(error))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._ended.put(error)
            return
        self._ended.put(outcome)


def _in_thread(
    ask: Callable[[Any], Any],
    settle: Callable[[Any], Any],
    pause: Callable[[float], None],
    rate: float | None,
    retry: int | tenacity.BaseRetrying | None,
) -> Callable[[Any], Any]:
    """Return what asks a query in a thread, pauses and further attempts included."""

    async def once(query: Any) -> Any:
        return settle(ask(query))

    async def sleep(seconds: float) -> None:
        pause(seconds)

    attempts = Attempts(once, sleep, time.monotonic, rate, retry)
    return lambda query: run(attempts(query))


def _refused(answer: Any) -> Any:
    if inspect.iscoroutine(answer):
        answer.close()
        raise ConfigurationError(f"the pipeline gave a coroutine; write {ASYNCHRONOUS}.")
    return answer


def _check(queries: Any, concurrency: Any, rate: Any, retry: Any) -> None:
    check_source(queries)
    check_count("concurrency", concurrency)
    check_rate(rate)
    check_retry(retry)


def _size(queries: Any) -> int | None:
    return len(queries) if isinstance(queries, Sized) else None
