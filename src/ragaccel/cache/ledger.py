"""Invalidation without a scan: what may no longer be served is struck in a ledger.

A ledger counts strikes. Every strike of a mark (a tag, a document, a namespace, a key) writes the
mark down with its number; every entry carries the number the ledger stood at when its computation
began, and its marks. It stands if none of its marks was struck since. So invalidating costs the
same however many entries there are, and an answer that was being computed while its document
changed does not stand either.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: A mark is so many bytes of a digest; entries keep theirs joined.
MARK_BYTES: Final = 8
#: The mark of every entry of every namespace.
EVERYTHING: Final = b"\xff" * MARK_BYTES
#: How many different marks a ledger remembers; past that the oldest half goes, and entries older
#: than those do not stand any more.
CAPACITY: Final = 100_000


class Position(NamedTuple):
    """How many strikes a ledger had seen; a number of one ledger means nothing to another."""

    ledger: int
    seq: int


class Ledger(Protocol):
    """Where strikes are written down for everybody who shares a level.

    Attributes:
        shared: Whether other processes may strike here too.
    """

    shared: bool

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` has nothing to do."""

    def position(self) -> Position:
        """Return where the ledger stands, as far as this process has heard."""

    def stands(self, position: Position, created: float, marks: bytes) -> bool:
        """Tell whether an entry may be served.

        Args:
            position: Where the ledger stood when its computation began.
            created: When it was computed, in seconds since the epoch.
            marks: Its marks, joined.
        """

    def strike(self, marks: Sequence[bytes]) -> None:
        """Let no entry with one of the marks stand from now on.

        Raises:
            Exception: The strike could not be told to the others.
        """

    async def astrike(self, marks: Sequence[bytes]) -> None:
        """Do what `strike` does, without blocking the event loop."""

    def prepare(self) -> None:
        """Hear what was struck so far, once; waits for a moment at most and raises nothing."""

    async def aprepare(self) -> None:
        """Do what `prepare` does, without blocking the event loop."""


class Strikes:
    """What a process knows of a ledger.

    Args:
        ledger: Which one.
        seq: The number of its last strike.
        floor: Entries from before this number do not stand.
    """

    __slots__ = ("_struck", "floor", "ledger", "seq")

    def __init__(self, ledger: int, seq: int = 0, floor: int = 0) -> None:
        self.ledger, self.seq, self.floor = ledger, seq, floor
        self._struck: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._struck)

    @property
    def position(self) -> Position:
        """Where the ledger stands."""
        return Position(self.ledger, self.seq)

    def add(self, struck: Iterable[tuple[bytes, int]]) -> None:
        """Take note of marks and the numbers of their strikes."""
        for mark, seq in struck:
            self.seq = max(self.seq, seq)
            if mark == EVERYTHING:
                self.floor = max(self.floor, seq)
            else:
                self._struck[mark] = max(seq, self._struck.get(mark, 0))

    def strike(self, marks: Iterable[bytes], seq: int = 0) -> None:
        """Write down a strike of this process's own, with a number of its own if it is higher."""
        following = max(self.seq + 1, seq)
        self.add([(mark, following) for mark in marks])
        if len(self._struck) > CAPACITY:
            self.forget(sorted(self._struck.values())[CAPACITY // 2])

    def forget(self, floor: int) -> None:
        """Forget what was struck before a number, and with it all entries from before it."""
        self.floor = max(self.floor, floor)
        self._struck = {mark: seq for mark, seq in self._struck.items() if seq > self.floor}

    def stand(self, position: Position, marks: bytes) -> bool:
        """Tell whether an entry of a position and with these joined marks may be served."""
        ledger, seq = position
        if ledger != self.ledger:
            return False
        if seq >= self.seq:
            return True
        if seq < self.floor:
            return False
        struck = self._struck
        return all(
            struck.get(marks[at : at + MARK_BYTES], 0) <= seq
            for at in range(0, len(marks), MARK_BYTES)
        )


class ProcessLedger(Forkable):
    """A ledger in the memory of this process, which numbers strikes by the clock.

    It is that of the memory level. Beside a shared level that keeps no ledger it holds for what
    others stored there too, but others do not hear of it and a restart forgets it.
    """

    shared = False
    is_prepared = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._strikes = Strikes(0)
        self.follow_forks()

    def position(self) -> Position:
        """Return where the ledger stands."""
        return self._strikes.position

    def stands(self, position: Position, created: float, marks: bytes) -> bool:  # noqa: ARG002
        """Tell whether an entry may be served; see `Ledger`."""
        return self._strikes.stand(position, marks)

    def strike(self, marks: Sequence[bytes]) -> None:
        """Let no entry with one of the marks stand from now on."""
        with self._lock:
            self._strikes.strike(marks, time.time_ns())

    async def astrike(self, marks: Sequence[bytes]) -> None:
        """Do what `strike` does."""
        self.strike(marks)

    def prepare(self) -> None:
        """Do nothing: what this process struck it knows."""

    async def aprepare(self) -> None:
        """Do nothing."""

    def after_fork_in_child(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()
