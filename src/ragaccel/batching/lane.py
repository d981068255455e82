"""The callers of one event loop, whose batches are tasks of that loop."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ragaccel import telemetry
from ragaccel.batching.halves import outcomes
from ragaccel.batching.line import TOO_LATE, Limits, Line, Waiter
from ragaccel.errors import BatchTimeoutError
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

T = TypeVar("T")
R = TypeVar("R")


class _Asked(Waiter):
    """A coroutine that waits for a future."""

    __slots__ = ("future",)

    future: asyncio.Future[Any]

    def expire(self) -> None:
        """Hear that the deadline has passed."""
        if not self.future.done():
            self.future.set_exception(BatchTimeoutError(TOO_LATE))

    @property
    def is_wanted(self) -> bool:
        """Whether it was not cancelled."""
        return not self.future.done()


class Lane(Generic[T, R]):
    """The callers of one event loop.

    Args:
        call: Takes items and gives as many results, in their order.
        limits: What a batch may be.
    """

    def __init__(
        self, call: Callable[[Sequence[T]], Awaitable[Sequence[R]]], limits: Limits
    ) -> None:
        self._call, self._limits = call, limits
        self._line: Line[_Asked] = Line(limits)
        self._tasks: set[asyncio.Task[None]] = set()
        self._room: list[asyncio.Future[None]] = []
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._line)

    @property
    def is_full(self) -> bool:
        """Whether nobody else may wait."""
        return self._line.is_full

    def ask(
        self, item: T, tenant: str | None, timeout: float | None, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Future[R | Exception]:
        """Return the future of an item's outcome; it ends with the deadline, if there is one."""
        asked = _Asked(item, tenant, timeout, self._limits.size)
        future = asked.future = loop.create_future()
        if timeout is not None:
            timer = loop.call_later(timeout, asked.expire)
            future.add_done_callback(lambda _: timer.cancel())
        self._line.put(asked)
        if self._timer is not None:
            if len(self._line) >= self._limits.most:
                self._timer.cancel()
                self._timer = None
                self._schedule(loop)
        elif not self._is_due and len(self._tasks) < self._limits.workers:
            self._schedule(loop, self._limits.wait(timeout))
        return future

    async def wait_for_room(self, timeout: float | None) -> None:
        """Wait until somebody else may wait.

        Raises:
            BatchTimeoutError: Nobody could in time.
        """
        room = asyncio.get_running_loop().create_future()
        self._room.append(room)
        try:
            await asyncio.wait_for(room, timeout)
        except asyncio.TimeoutError as error:
            self._pass_on(room)
            raise BatchTimeoutError(TOO_LATE) from error
        except asyncio.CancelledError:
            self._pass_on(room)
            raise
        finally:
            if room in self._room:
                self._room.remove(room)

    def _pass_on(self, room: asyncio.Future[None]) -> None:
        """Wake others where somebody was woken who does not come any more."""
        if room.done() and not room.cancelled():
            self._make_room()

    def _make_room(self) -> None:
        """Wake as many as there is room for."""
        free = self._line.room
        while self._room and free > 0:
            room = self._room.pop(0)
            if not room.done():
                room.set_result(None)
                free -= 1

    def _schedule(self, loop: asyncio.AbstractEventLoop, window: float = 0.0) -> None:
        """Begin after the window, or at the end of the loop's turn.

        Who was woken by one batch comes back in that turn.
        """
        self._is_due = True
        if window and len(self._line) < self._limits.most:
            context = contextvars.Context()
            self._timer = loop.call_later(window, self._begin, loop, context=context)
        else:
            loop.call_soon(self._begin, loop, context=contextvars.Context())

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have as many workers as there is work for."""
        self._is_due, self._timer = False, None
        while batch := self._taken(self._limits.workers - len(self._tasks)):
            task = loop.create_task(self._work(batch))
            self._tasks.add(task)
            task.add_done_callback(self._end)

    def _taken(self, free: int) -> list[_Asked]:
        """Take a batch, unless nobody waits or no worker is free."""
        batch: list[_Asked] = []
        while self._line and free > 0 and not batch:
            batch = self._line.take(free)
            if self._room:
                self._make_room()
        return batch

    async def _work(self, batch: list[_Asked]) -> None:
        """Make one call after another, as one worker, until nobody waits."""
        while batch:
            try:
                with batch_stage(batch):
                    found = await outcomes(self._call, [one.item for one in batch])
            except BaseException:
                for one in batch:  # the call was cancelled, and with it all who wait for it
                    one.future.cancel()
                raise
            for one, outcome in zip(batch, found, strict=True):
                if not one.future.done():
                    one.future.set_result(outcome)
            await _TURN  # who was woken comes back before the next batch is made
            batch = self._taken(self._limits.workers - len(self._tasks) + 1)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._line and not self._is_due:
            self._schedule(task.get_loop())


def batch_stage(batch: Sequence[Waiter]) -> telemetry.Stage:
    """Return the stage of a call, linked to the requests that it serves; none has it alone."""
    serves = [one.place for one in batch if one.place is not None]
    if not serves:
        return telemetry.OFF
    return telemetry.stage("batch", {attributes.ITEMS: len(batch)}, serves=serves)


class _Turn:
    """Lets the others of an event loop have their turn, as `asyncio.sleep(0)` does at more cost."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_TURN: Final = _Turn()
