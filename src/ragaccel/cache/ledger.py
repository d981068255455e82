"""Invalidation without a scan: what may no longer be served is struck in a ledger.

A ledger counts strikes. Every strike of a mark (a tag, a document, a namespace, a key) writes the
mark down with its number; every entry carries the number the ledger stood at when its computation
began, and its marks. It stands if none of its marks was struck since. So invalidating costs the
same however many entries there are, and an answer that was being computed while its document
changed does not stand either.

Marks are written down by namespace, so that a tenant who strikes much crowds out nobody: when a
ledger is full, the tenants with the most marks have the oldest of them put together into one
strike of everything of theirs from before.
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
#: How many different marks a ledger remembers.
CAPACITY: Final = 100_000
#: With fewer marks than this, those of one namespace are not worth putting together.
FEW: Final = 16


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
            marks: Its marks, joined; that of its namespace first.
        """

    def strike(self, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Let no entry of a namespace with one of the marks stand from now on.

        Args:
            namespace: The tenant's mark; EVERYTHING to strike all entries of all tenants.
            marks: What is struck; the tenant's mark for all entries of the tenant.

        Raises:
            Exception: The strike could not be told to the others.
        """

    async def astrike(self, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Do what `strike` does, without blocking the event loop."""

    def prepare(self) -> None:
        """Hear what was struck so far, once; waits for a moment at most and raises nothing."""

    async def aprepare(self) -> None:
        """Do what `prepare` does, without blocking the event loop."""


class Strike(NamedTuple):
    """One mark of a namespace, and the number of its last strike."""

    namespace: bytes
    mark: bytes
    seq: int


class Strikes:
    """What a process knows of a ledger.

    Args:
        ledger: Which one.
        seq: The number of its last strike.
        floor: Entries from before this number do not stand.
    """

    __slots__ = ("_count", "_struck", "floor", "ledger", "seq")

    def __init__(self, ledger: int, seq: int = 0, floor: int = 0) -> None:
        self.ledger, self.seq, self.floor = ledger, seq, floor
        self._struck: dict[bytes, dict[bytes, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def position(self) -> Position:
        """Where the ledger stands."""
        return Position(self.ledger, self.seq)

    def add(self, struck: Iterable[Strike]) -> None:
        """Take note of marks and the numbers of their strikes."""
        for namespace, mark, seq in struck:
            self.seq = max(self.seq, seq)
            if mark == EVERYTHING:
                self.forget(seq)
                continue
            marks = self._struck.setdefault(namespace, {})
            before = len(marks)
            marks[mark] = max(seq, marks.get(mark, 0))
            if mark == namespace:
                kept = {one: at for one, at in marks.items() if at > seq or one == mark}
                self._struck[namespace] = marks = kept
            self._count += len(marks) - before

    def strike(self, namespace: bytes, marks: Iterable[bytes], seq: int = 0) -> None:
        """Write down a strike of this process's own, with a number of its own if it is higher."""
        following = max(self.seq + 1, seq)
        self.add([Strike(namespace, mark, following) for mark in marks])
        self.fold()

    def fold(self) -> None:
        """Put marks together where they are too many: an eighth of them, once in a long while.

        Each namespace keeps as many of its newest marks as any other, so that only those that have
        more lose any.
        """
        if self._count <= CAPACITY:
            return
        share = fair_share(map(len, self._struck.values()), CAPACITY * 7 // 8)
        if share < FEW:  # so many namespaces that none has much to put together
            numbers = sorted(at for marks in self._struck.values() for at in marks.values())
            self.forget(numbers[len(numbers) // 2])
            return
        for namespace, marks in list(self._struck.items()):
            if len(marks) > share:
                oldest = sorted(marks.values())[-share]
                self.add([Strike(namespace, namespace, oldest)])

    def forget(self, floor: int) -> None:
        """Let no entry from before a number stand, so that what was struck before it can go."""
        self.floor = max(self.floor, floor)
        self._struck = {
            namespace: kept
            for namespace, marks in self._struck.items()
            if (kept := {mark: seq for mark, seq in marks.items() if seq > self.floor})
        }
        self._count = sum(map(len, self._struck.values()))

    def stand(self, position: Position, marks: bytes) -> bool:
        """Tell whether an entry of a position and with these joined marks may be served.

        The first of the marks is that of its namespace.
        """
        ledger, seq = position
        if ledger != self.ledger:
            return False
        if seq >= self.seq:
            return True
        if seq < self.floor:
            return False
        struck = self._struck.get(marks[:MARK_BYTES])
        return struck is None or all(
            struck.get(marks[at : at + MARK_BYTES], 0) <= seq
            for at in range(0, len(marks), MARK_BYTES)
        )


def fair_share(sizes: Iterable[int], total: int) -> int:
    """Return the most that each may keep so that all together keep no more than a total."""
    left = sorted(sizes)
    for at, size in enumerate(left):
        share = total // (len(left) - at)
        if size >= share:
            return share
        total -= size
    return left[-1] if left else 0


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

    def strike(self, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Let no entry of a namespace with one of the marks stand from now on."""
        with self._lock:
            self._strikes.strike(namespace, marks, time.time_ns())

    async def astrike(self, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Do what `strike` does."""
        self.strike(namespace, marks)

    def prepare(self) -> None:
        """Do nothing: what this process struck it knows."""

    async def aprepare(self) -> None:
        """Do nothing."""

    def after_fork_in_child(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()
