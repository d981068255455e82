"""`MicroBatcher`: what waits at the same time becomes one call."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from ragaccel import telemetry
from ragaccel.batching.halves import odd_count, outcomes
from ragaccel.batching.lane import Lane, batch_stage
from ragaccel.batching.line import TOO_LATE, Limits, Line, Waiter
from ragaccel.errors import BatchError, BatchTimeoutError, ConfigurationError
from ragaccel.io import run
from ragaccel.knobs import Knob
from ragaccel.resources import Forkable, Living, Relief

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from typing_extensions import Self

T = TypeVar("T")
R = TypeVar("R")

_NOTHING: Final = object()


class MicroBatcher(Forkable, Generic[T, R]):
    """Makes one call of what several callers ask at the same time.

    Nobody waits for others to come, unless there is a window: while a worker is free, a call is
    made at once. What arrives while all are busy is the next batch, shared evenly among them. Equal
    items are sent once. A bad item fails alone, and who is cancelled disturbs nobody. Tenants take
    turns.

    Threads and any number of event loops may share it. It has no thread and no task of its own: a
    waiting thread makes the call for those who wait with it, and each event loop makes its own.

    Args:
        call: Takes items and gives as many results, in their order; an exception among them is
            raised for its item. At most `workers` threads call it at a time. Without it the batcher
            is a pattern for `accelerate(batch=…)`.
        acall: The same for callers on an event loop; without it they use `call`, in a thread.
        max_size: The most items in a call.
        workers: The most calls at a time, of threads and of each event loop; one for each core by
            default.
        size: Gives the size of an item, such as its tokens. Items of like size go together: a model
            fills all of a batch up to the largest. `accelerate` takes the length of a text.
        budget: The most that the largest size times the number of items may be in a call.
        max_waiting: The most who wait among threads, and on each event loop; others wait until
            there is room.
        window: Seconds that a worker who was idle waits for others before its call, unless a batch
            is full by then, or half of the first one's timeout has passed. It pays where a call of
            many takes hardly longer than one, as a remote model's does.

    Example:
        >>> squares = MicroBatcher(lambda numbers: [number**2 for number in numbers])
        >>> squares(3)
        9
    """

    relief = Relief.WORK

    def __init__(
        self,
        call: Callable[[Sequence[T]], Sequence[R]] | None = None,
        *,
        acall: Callable[[Sequence[T]], Awaitable[Sequence[R]]] | None = None,
        max_size: int = 32,
        workers: int | None = None,
        size: Callable[[T], float] | None = None,
        budget: float | None = None,
        max_waiting: int | None = None,
        window: float = 0.0,
    ) -> None:
        """Keep the calls.

        Raises:
            ConfigurationError: A number is no whole number of at least 1, or a budget or window is
                none that it can be.
        """
        if workers is None:
            workers = os.cpu_count() or 1
        given: dict[str, Any] = {"max_size": max_size, "workers": workers}
        if max_waiting is not None:
            given["max_waiting"] = max_waiting
        for name, value in given.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be at least 1 and whole, got {value!r}.")
        if budget is not None and not budget > 0:
            raise ConfigurationError(f"budget must be positive, got {budget!r}.")
        self._call = call or _no_call
        self._acall = acall or partial(_in_thread, self._call)
        if not 0 <= window < math.inf:
            raise ConfigurationError(f"window must be 0 or more seconds, got {window!r}.")
        self._limits = Limits(max_size, workers, size, budget, max_waiting, window)
        self._made_over: Living[MicroBatcher[Any, Any]] = Living()
        self._is_closed = False
        self.after_fork_in_child()
        self.follow_forks()
        telemetry.measure(self)

    def __call__(self, item: T, *, tenant: str | None = None, timeout: float | None = None) -> R:
        """Return the result of an item, waiting for it in this thread.

        Args:
            item: What is asked.
            tenant: For whom; those of several tenants take turns.
            timeout: Seconds after which the item is not sent any more, and nobody waits for it.

        Raises:
            BatchError: The call gave another number of results than it was given items, or the
                batcher was closed.
            BatchTimeoutError: The time was up.
            Exception: What the call raised.
        """
        with self._lock:
            self._check_open()
            is_alone = not self._line and self._has_free_worker() and not self._limits.window
            self._busy += is_alone
        if is_alone:
            return self._run_alone(item)
        ticket = _Ticket(item, tenant, timeout, self._limits.size)
        with self._lock:
            while self._line.is_full and self._busy >= self._limits.workers:
                self._wait_for_room(ticket)
            ticket.has_worker = self._has_free_worker() and not self._is_collecting
            self._busy += ticket.has_worker
            self._line.put(ticket)
            if self._is_collecting:
                self._others.notify()
            elif ticket.has_worker:
                self._collect(ticket)
        while ticket.outcome is _NOTHING:
            if ticket.has_worker:
                self._work(ticket)
            else:
                self._wait(ticket)
        if ticket.has_worker:
            self._free_worker(ticket)
        return cast("R", _given(ticket.outcome))

    async def get(
        self,
        item: T,
        *,
        tenant: str | None = None,
        timeout: float | None = None,
    ) -> R:
        """Return the result of an item without blocking the event loop.

        Args:
            item: See `__call__`.
            tenant: See `__call__`.
            timeout: See `__call__`.

        Raises:
            BatchError: See `__call__`.
            BatchTimeoutError: The time was up.
            Exception: What the call raised.
        """
        self._check_open()
        loop = asyncio.get_running_loop()
        lane = self._lane(loop)
        while self._limits.max_waiting is not None and lane.is_full:
            began = time.monotonic()
            await lane.wait_for_room(timeout)
            if timeout is not None:
                timeout -= time.monotonic() - began
        outcome = await lane.ask(item, tenant, timeout, loop)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Take no more items; those that wait get their results."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        self.close()

    def over(
        self,
        call: Callable[[Sequence[Any]], Sequence[Any]],
        acall: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]],
        item: Callable[[Any], Any],
    ) -> MicroBatcher[Any, Any]:
        """Return a batcher with these options over what wraps items.

        Args:
            call: Takes wrapped items.
            acall: The same for event loops.
            item: Gives the item that is wrapped.
        """
        size = self._limits.size or _length
        batcher: MicroBatcher[Any, Any] = MicroBatcher(call, acall=acall)
        batcher._limits = replace(self._limits, size=lambda wrapped: size(item(wrapped)))
        batcher.after_fork_in_child()
        self._made_over.add(batcher)
        return batcher

    def tunables(self) -> tuple[Knob, ...]:
        """Return what can be turned while it is used: size, budget if it has one, and workers.

        It holds from the next batch on, for all that are made by `over`, too.
        """
        limits = self._limits
        values: dict[str, list[Any]] = {
            "max_size": sorted({1, 4, 8, 16, 32, 64, 128, limits.max_size}),
            "window": sorted({0.0, 0.001, 0.003, 0.01, limits.window}),
            "workers": sorted({*range(1, (os.cpu_count() or 1) + 1), limits.workers}),
        }
        if limits.budget is not None:
            values["budget"] = sorted({limits.budget * times for times in (0.25, 0.5, 1, 2, 4)})
        return tuple(
            Knob(
                f"batch.{name}",
                several,
                partial(getattr, self._limits, name),
                partial(self._turn, name),
            )
            for name, several in values.items()
        )

    def _turn(self, name: str, value: Any) -> None:
        with self._lock:
            setattr(self._limits, name, value)
        for batcher in self._made_over:
            batcher._turn(name, value)

    def relieve(self, needed_bytes: int) -> int:  # noqa: ARG002 - it cannot know what an item takes
        """Halve what may be in a call, for a `MemoryGuard`, until `restore`.

        It holds for all that are made by `over`, too.

        Returns:
            0, as nobody knows how many bytes that saves.
        """
        self._limits.shrink.by = min(self._limits.max_size, 2 * self._limits.shrink.by)
        return 0

    def restore(self) -> None:
        """Let as much be in a call as usual."""
        self._limits.shrink.by = 1

    def figures(self) -> list[telemetry.Figure]:
        """Return how many items wait now, as a metric."""
        with self._lock:
            loops = [loop() for loop in self._lanes.keyrefs()]  # at once: others may die meanwhile
            lanes = [self._lanes[loop] for loop in loops if loop is not None]
            waiting = len(self._line) + sum(map(len, lanes))
        return [telemetry.Figure("ragaccel.batch.queue_depth", waiting, {})]

    def after_fork_in_child(self) -> None:
        """Have nobody waiting: those who do are the parent's."""
        self._limits.shrink.by = 1
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._others = threading.Condition(self._lock)
        self._is_collecting = False
        self._line: Line[_Ticket] = Line(self._limits)
        self._busy = 0
        self._lanes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Lane[T, R]] = (
            weakref.WeakKeyDictionary()
        )
        self._last: tuple[Callable[[], Any], Lane[T, R]] | None = None

    def _lane(self, loop: asyncio.AbstractEventLoop) -> Lane[T, R]:
        """Return the lane of a loop, which is mostly that of the last caller."""
        last = self._last
        if last is not None and last[0]() is loop:
            return last[1]
        with self._lock:
            lane = self._lanes.get(loop)
            if lane is None:
                lane = self._lanes[loop] = Lane(self._acall, self._limits)
        self._last = weakref.ref(loop), lane
        return lane

    def _check_open(self) -> None:
        if self._is_closed:
            raise BatchError("the batcher is closed; make another one.")

    def _wait_for_room(self, ticket: _Ticket) -> None:
        """Wait until somebody was taken; with the lock held."""
        try:
            came = self._room.wait(ticket.time_left)
        except BaseException:
            self._room.notify()
            raise
        if not came:
            self._room.notify()  # who is woken and late at once has used up another's waking
            raise BatchTimeoutError(TOO_LATE)

    def _has_free_worker(self) -> bool:
        return self._busy < self._limits.workers

    def _collect(self, ticket: _Ticket) -> None:
        """Wait for others, as the worker of a ticket; with the lock held."""
        window = self._limits.wait(ticket.time_left)
        if not window:
            return
        self._is_collecting = True
        try:
            self._others.wait_for(lambda: len(self._line) >= self._limits.most, window)
        except BaseException:
            self._line.remove(ticket)
            self._busy -= 1
            raise
        finally:
            self._is_collecting = False

    def _run_alone(self, item: T) -> R:
        """Make the call for one item that nobody waits beside, as one worker."""
        try:
            # What the size raises must not depend on who else is there.
            with batch_stage([Waiter(item, None, None, self._limits.size)]):
                found: list[R] = list(self._call([item]))
            if len(found) != 1:
                raise odd_count(1, len(found))
            return cast("R", _given(found[0]))
        finally:
            self._free_worker()

    def _work(self, mine: _Ticket) -> None:
        """Make the call for some of those who wait, the own item among them, as one worker."""

        async def call(items: Sequence[T]) -> Sequence[R]:
            return self._call(items)

        with self._lock:
            batch = self._taken(mine)
        self._promote()
        try:
            with batch_stage(batch):
                found = run(outcomes(call, [ticket.item for ticket in batch]))
            for ticket, outcome in zip(batch, found, strict=True):
                ticket.end(outcome)
        except BaseException:
            # This thread is to end: one of the others asks again for their items.
            with self._lock:
                self._line.put_back([one for one in batch if one is not mine])
            raise
        finally:
            self._free_worker(mine)

    def _wait(self, ticket: _Ticket) -> None:
        """Wait for the outcome or for a worker."""
        try:
            came = ticket.wait() or ticket.outcome is not _NOTHING
        except BaseException:
            self._leave(ticket)
            raise
        if not came:
            self._leave(ticket)
            raise BatchTimeoutError(TOO_LATE)

    def _leave(self, ticket: _Ticket) -> None:
        """Wait no more."""
        with self._lock:
            if self._line.remove(ticket):
                self._room.notify()
        if ticket.has_worker:
            self._free_worker(ticket)

    def _taken(self, mine: _Ticket) -> list[_Ticket]:
        """Take a fair share of what waits, the own item first, unless another thread has that."""
        if not self._line.remove(mine):
            return []
        batch = self._line.take(self._limits.workers - self._busy + 1, [mine])
        if self._limits.max_waiting is not None:
            self._room.notify_all()
        return batch

    def _free_worker(self, ticket: _Ticket | None = None) -> None:
        """Give the own place to a thread that waits, if there is one."""
        with self._lock:
            if ticket is not None:
                ticket.has_worker = False
            self._busy -= 1
            leader = self._next_leader() if self._line else None
        if leader is not None:
            leader.wake()

    def _promote(self) -> None:
        """Give a free worker to a thread that waits, if there is one."""
        with self._lock:
            leader = self._next_leader()
        if leader is not None:
            leader.wake()

    def _next_leader(self) -> _Ticket | None:
        """Choose who is to work next, to be woken; with the lock held."""
        if not self._has_free_worker():
            return None
        leader = next((one for one in self._line if not one.has_worker), None)
        if leader is not None:
            leader.has_worker = True
            self._busy += 1
        return leader


class _Ticket(Waiter):
    """A thread's item, and its outcome once it is there.

    Attributes:
        outcome: A result or an error.
        has_worker: Whether its thread has one of the workers, or is to have it when it wakes.
    """

    __slots__ = ("_woken", "has_worker", "outcome")

    def __init__(
        self,
        item: Any,
        tenant: str | None,
        timeout: float | None,
        measure: Callable[[Any], float] | None,
    ) -> None:
        super().__init__(item, tenant, timeout, measure)
        self.outcome, self.has_worker = _NOTHING, False
        self._woken = threading.Lock()
        self._woken.acquire()

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, 0 at least; None if there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def wait(self) -> bool:
        """Wait for the outcome, or for being made the leader; return whether it came in time."""
        left = self.time_left
        return self._woken.acquire(timeout=-1 if left is None else left)

    def wake(self) -> None:
        """End the waiting; once is enough."""
        with contextlib.suppress(RuntimeError):
            self._woken.release()

    def end(self, outcome: Any) -> None:
        """Take the outcome."""
        self.outcome = outcome
        self.wake()

    def expire(self) -> None:
        """Hear that the deadline has passed."""
        self.end(BatchTimeoutError(TOO_LATE))


def _no_call(_: Any) -> Any:
    raise ConfigurationError("this MicroBatcher was made without a call; give it one.")


async def _in_thread(call: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    def made() -> Any:
        try:
            return call(items)
        except StopIteration as stop:  # asyncio cannot carry it out of a thread, and would wait
            raise RuntimeError("the call raised StopIteration") from stop

    return await asyncio.to_thread(made)


def _given(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _length(item: Any) -> float:
    return len(item) if isinstance(item, str) else 1
