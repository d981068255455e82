"""`MicroBatcher`: what waits at the same time becomes one call."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from ragaccel import telemetry
from ragaccel.batching.halves import outcomes
from ragaccel.errors import ConfigurationError
from ragaccel.io import run
from ragaccel.resources import Forkable
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

T = TypeVar("T")
R = TypeVar("R")

_NOTHING: Final = object()


class MicroBatcher(Forkable, Generic[T, R]):
    """Makes one call of what several callers ask at the same time.

    Nobody waits for others to come: while a worker is free, a call is made at once. What arrives
    while all are busy is the next batch, shared evenly among them. Equal items are sent once. A bad
    item fails alone, and who is cancelled disturbs nobody.

    Threads and any number of event loops may share it. It has no thread and no task of its own: a
    waiting thread makes the call for those who wait with it, and each event loop makes its own.

    Args:
        call: Takes items and gives as many results, in their order. At most `workers` threads call
            it at a time. Without it the batcher is a pattern for `accelerate(batch=…)`.
        acall: The same for callers on an event loop; without it they use `call`, in a thread.
        max_size: The most items in a call.
        workers: The most calls at a time, of threads and of each event loop; one for each core by
            default.

    Example:
        >>> squares = MicroBatcher(lambda numbers: [number**2 for number in numbers])
        >>> squares(3)
        9
    """

    def __init__(
        self,
        call: Callable[[Sequence[T]], Sequence[R]] | None = None,
        *,
        acall: Callable[[Sequence[T]], Awaitable[Sequence[R]]] | None = None,
        max_size: int = 32,
        workers: int | None = None,
    ) -> None:
        """Keep the calls.

        Raises:
            ConfigurationError: `max_size` or `workers` is no whole number of at least 1.
        """
        if workers is None:
            workers = os.cpu_count() or 1
        given: dict[str, Any] = {"max_size": max_size, "workers": workers}
        for name, value in given.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be at least 1 and whole, got {value!r}.")
        self._call = call or _no_call
        self._acall = acall or (lambda items: asyncio.to_thread(self._call, items))
        self._max_size, self._workers = max_size, workers
        self.after_fork_in_child()
        self.follow_forks()

    def __call__(self, item: T) -> R:
        """Return the result of an item, waiting for it in this thread.

        Raises:
            BatchError: The call gave another number of results than it was given items.
            Exception: What the call raised.
        """
        ticket: _Ticket[T] = _Ticket(item)
        with self._lock:
            self._waiting.append(ticket)
            has_worker = self._busy < self._workers
            self._busy += has_worker
        while ticket.outcome is _NOTHING:
            if has_worker:
                self._work(ticket)
                has_worker = False
            else:
                has_worker = self._wait(ticket)
        if has_worker:
            self._free_worker()
        return cast("R", _given(ticket.outcome))

    async def get(self, item: T) -> R:
        """Return the result of an item without blocking the event loop.

        Raises:
            BatchError: See `__call__`.
            Exception: What the call raised.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            lane = self._lanes.get(loop)
            if lane is None:
                lane = self._lanes[loop] = _Lane(self._acall, self._max_size, self._workers)
        return cast("R", _given(await lane.ask(item)))

    def over(
        self,
        call: Callable[[Sequence[Any]], Sequence[Any]],
        acall: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]],
    ) -> MicroBatcher[Any, Any]:
        """Return a batcher with these options and another call."""
        return MicroBatcher(call, acall=acall, max_size=self._max_size, workers=self._workers)

    def after_fork_in_child(self) -> None:
        """Have nobody waiting: those who do are the parent's."""
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket[T]] = deque()
        self._busy = 0
        self._lanes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Lane[T, R]] = (
            weakref.WeakKeyDictionary()
        )

    def _work(self, mine: _Ticket[T]) -> None:
        """Make the call for some of those who wait, the own item among them, as one worker."""

        async def call(items: Sequence[T]) -> Sequence[R]:
            return self._call(items)

        with self._lock:
            batch = self._taken(mine)
        self._promote()
        try:
            with _stage(len(batch), [ticket.place for ticket in batch]):
                found = run(outcomes(call, [ticket.item for ticket in batch]))
            for ticket, outcome in zip(batch, found, strict=True):
                ticket.end(outcome)
        except BaseException:
            # This thread is to end: one of the others asks again for their items.
            with self._lock:
                self._waiting.extendleft(reversed([one for one in batch if one is not mine]))
            raise
        finally:
            self._free_worker()

    def _wait(self, ticket: _Ticket[T]) -> bool:
        """Wait for the outcome or for a worker; return whether there is a worker."""
        try:
            ticket.wait()
        except BaseException:
            with self._lock:
                has_worker = ticket.is_promoted
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
            if has_worker:
                self._free_worker()
            raise
        with self._lock:
            has_worker, ticket.is_promoted = ticket.is_promoted, False
        return has_worker

    def _taken(self, mine: _Ticket[T]) -> list[_Ticket[T]]:
        """Take a fair share of what waits, the own item first, unless another thread has that."""
        if mine not in self._waiting:
            return []
        self._waiting.remove(mine)
        free = self._workers - self._busy + 1
        count = min(self._max_size, share(len(self._waiting) + 1, free)) - 1
        return [mine, *(self._waiting.popleft() for _ in range(count))]

    def _free_worker(self) -> None:
        with self._lock:
            self._busy -= 1
        self._promote()

    def _promote(self) -> None:
        """Give a free worker to a thread that waits, if there is one."""
        with self._lock:
            if self._busy >= self._workers:
                return
            leader = next((one for one in self._waiting if not one.is_promoted), None)
            if leader is None:
                return
            leader.is_promoted = True
            self._busy += 1
        leader.wake()


class _Ticket(Generic[T]):
    """A thread's item, and its outcome once it is there."""

    __slots__ = ("_woken", "is_promoted", "item", "outcome", "place")

    def __init__(self, item: T) -> None:
        self.item, self.outcome, self.is_promoted = item, _NOTHING, False
        self.place = telemetry.here()
        self._woken = threading.Lock()
        self._woken.acquire()

    def wait(self) -> None:
        """Wait for the outcome, or for being made the leader."""
        self._woken.acquire()

    def wake(self) -> None:
        """End the waiting; once is enough."""
        with contextlib.suppress(RuntimeError):
            self._woken.release()

    def end(self, outcome: Any) -> None:
        """Take the outcome."""
        self.outcome = outcome
        self.wake()


class _Lane(Generic[T, R]):
    """The callers of one event loop."""

    def __init__(
        self,
        call: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        max_size: int,
        workers: int,
    ) -> None:
        self._call, self._max_size, self._workers = call, max_size, workers
        self._waiting: deque[tuple[T, asyncio.Future[Any], Any]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_due = False

    def ask(self, item: T) -> asyncio.Future[Any]:
        """Return the future of an item's outcome."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future, telemetry.here()))
        self._schedule()
        return future

    def _schedule(self) -> None:
        """Begin at the end of the loop's turn, when all who were woken together have asked."""
        if not self._is_due and self._waiting and len(self._tasks) < self._workers:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._begin, context=contextvars.Context())

    def _begin(self) -> None:
        self._is_due = False
        self._waiting = deque(one for one in self._waiting if not one[1].done())
        free = self._workers - len(self._tasks)
        while self._waiting and free > 0:
            count = min(self._max_size, share(len(self._waiting), free))
            batch = [self._waiting.popleft() for _ in range(count)]
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._end)
            free -= 1

    async def _run(self, batch: Sequence[tuple[T, asyncio.Future[Any], Any]]) -> None:
        try:
            with _stage(len(batch), [place for _, _, place in batch]):
                found = await outcomes(self._call, [item for item, _, _ in batch])
        except BaseException:
            for _, future, _ in batch:  # the call was cancelled, and with it all who wait for it
                future.cancel()
            raise
        for (_, future, _), outcome in zip(batch, found, strict=True):
            if not future.done():
                future.set_result(outcome)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._schedule()


def _stage(count: int, places: Iterable[telemetry.Place | None]) -> telemetry.Stage:
    """Return the stage of a call, linked to the requests that it serves; none has it alone."""
    serves = [place for place in places if place is not None]
    return (
        telemetry.stage("batch", {attributes.ITEMS: count}, serves=serves)
        if serves
        else telemetry.OFF
    )


def share(waiting: int, workers: int) -> int:
    """Return how many of those who wait a worker takes, so that all get about as many."""
    return -(-waiting // workers)


def _no_call(_: Any) -> Any:
    raise ConfigurationError("this MicroBatcher was made without a call; give it one.")


def _given(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
