"""Single flight: of many calls that miss the same key at once, one computes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from ragaccel.cache.ledger import Position
    from ragaccel.cache.values import Entry


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a flight ended: an entry to share, the leader's error, or neither.

    Neither means that followers compute for themselves: the leader was cancelled, or its value
    cannot be shared.
    """

    entry: Entry | None = None
    error: Exception | None = None
    traceback: TracebackType | None = None


class Flight:
    """One computation under way, and those who wait for it."""

    __slots__ = ("_done", "_lock", "_wake", "loop", "marks", "outcome", "position")

    def __init__(
        self, loop: asyncio.AbstractEventLoop | None, position: Position, marks: bytes
    ) -> None:
        """Begin a flight.

        Args:
            loop: What its leader runs on, if on any.
            position: Where the ledger stands.
            marks: What is known already of what its answer is struck by.
        """
        self.loop, self.position, self.marks = loop, position, marks
        self.outcome: Outcome | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._wake: list[Callable[[], None]] = []

    def land(self, outcome: Outcome) -> None:
        """End the flight and wake everybody who waits."""
        with self._lock:
            if self.outcome is None:
                self.outcome = outcome
            wake, self._wake = self._wake, []
        self._done.set()
        for call in wake:
            call()

    def wait(self, timeout: float) -> Outcome | None:
        """Block until the flight ends.

        Returns:
            The outcome, or None where waiting could never end (the leader runs on this thread's
            own event loop) or took longer than `timeout` seconds.
        """
        if self.loop is not None and self.loop is running_loop():
            return None
        self._done.wait(timeout)
        return self.outcome

    async def await_(self, timeout: float) -> Outcome | None:
        """Wait on the running loop until the flight ends, `timeout` seconds at most."""
        loop = asyncio.get_running_loop()
        landed: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the waiter's loop was closed meanwhile
                loop.call_soon_threadsafe(_finish, landed)

        with self._lock:
            if self.outcome is not None:
                return self.outcome
            self._wake.append(wake)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(landed, timeout)
        return self.outcome


def _finish(landed: asyncio.Future[None]) -> None:
    if not landed.done():
        landed.set_result(None)


class Flights(Forkable):
    """The computations under way in this process.

    Attributes:
        landed: How many have ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[bytes, Flight] = {}
        self.landed = 0
        self.follow_forks()

    def join(
        self, key: bytes, position: Position, marks: bytes, fits: Callable[[Flight], bool]
    ) -> tuple[Flight, bool]:
        """Return the key's flight, and whether the caller leads it.

        Args:
            key: The digest.
            position: See `Flight`.
            marks: See `Flight`.
            fits: Tells of a flight whether its answer may be right for the caller; in the place of
                one that does not fit another one begins.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and fits(flight):
                return flight, False
            flight = self._flights[key] = Flight(running_loop(), position, marks)
            return flight, True

    def is_under_way(self, key: bytes) -> bool:
        """Tell whether the key is being computed."""
        return key in self._flights

    def is_inside(self, key: bytes) -> bool:
        """Tell whether this call happens inside the computation of the key itself."""
        leading = _leading.get()
        return bool(leading) and self._flights.get(key) in leading

    def end(self, key: bytes, flight: Flight, outcome: Outcome) -> None:
        """Let the next miss of the key lead a new flight, and wake those who waited."""
        with self._lock:
            self.landed += 1
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.land(outcome)

    def after_fork_in_child(self) -> None:
        """Begin with none: their leaders are threads of the parent."""
        self._lock = threading.Lock()
        self._flights = {}

    def __reduce__(self) -> tuple[type[Flights], tuple[()]]:
        return Flights, ()


_leading: ContextVar[frozenset[Flight]] = ContextVar("ragaccel_leading", default=frozenset())


@contextlib.contextmanager
def leading(flight: Flight) -> Iterator[None]:
    """Mark everything called inside as part of the flight's computation."""
    token = _leading.set(_leading.get() | {flight})
    try:
        yield
    finally:
        _leading.reset(token)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs on this thread, or None."""
    return asyncio._get_running_loop()
