"""The change log of a vector store of another house: what writes did, in order, for a while.

A write is noted before it begins, so that no answer that is older can be served once it may have
taken effect, and until it has ended every answer is taken for older: see `ChangeLog.position`. A
write that failed, or whose process died, may still arrive at the store: it counts as under way for
another minute.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from abc import abstractmethod
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from ragaccel.resources import Forkable
from ragaccel.resources.living import Living

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Sequence

#: A change of more rows is noted as one of everything; after more rows, the oldest are forgotten.
MAX_ROWS_OF_CHANGE: Final = 1000
MAX_ROWS: Final = 4096
#: How long a write that failed counts as under way.
LINGER_SECONDS: Final = 60.0

Sort = Literal["upsert", "delete", "documents", "everything"]


class Change(msgspec.Struct, array_like=True, frozen=True):
    """What a write does.

    Attributes:
        sort: Rows are put in or replaced; rows go; all rows of documents go; or nobody knows.
        ids: Of the rows, or of the documents; where nobody knows, of those that were put in anyway.
        vectors: Of the rows that are put in, float32; empty where they are not known.
        hashes: Of the rows' contents; empty where they are not known.
    """

    sort: Sort
    ids: tuple[str, ...] = ()
    vectors: bytes = b""
    hashes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How much room it takes."""
        return max(1, len(self.ids))


EVERYTHING: Final = Change("everything")


class Position(NamedTuple):
    """A place in a log; a file that was replaced by another has another mark at the same place."""

    seq: int
    mark: int


class Writing:
    """A write that is under way.

    Attributes:
        change: What it does; it may be told more exactly before the write ends.
    """

    def __init__(self, change: Change) -> None:
        self.change = change


class ChangeLog(Forkable):
    """What was written to a store; `open_log` finds one by its id.

    Attributes:
        id: Its own, that no other log has.
    """

    id: str

    @abstractmethod
    def position(self) -> Position:
        """Return the place after which an answer that is searched for now has to be judged.

        That is the newest, or the one before the oldest write that is under way.
        """

    @abstractmethod
    def since(self, position: Position) -> tuple[Position, Sequence[Change]] | None:
        """Return where the log is now, and all changes after a place; None if they are forgotten.

        Changes that are under way are among them.
        """

    @abstractmethod
    def begin(self, change: Change) -> int:
        """Note a write that is about to begin; return its place.

        Raises:
            InvalidationError: It could not be noted, so that the write must not be made.
        """

    @abstractmethod
    def end(self, seq: int, change: Change, *, failed: bool) -> None:
        """Note that a write has ended, and what it did."""

    @contextlib.contextmanager
    def writing(self, change: Change) -> Generator[Writing, None, None]:
        """Note a write around itself; one that raises counts as under way for a while longer.

        Args:
            change: What it is about to do, at most.

        Raises:
            InvalidationError: See `begin`.
        """
        writing = Writing(_bounded(change))
        seq = self.begin(writing.change)
        try:
            yield writing
        except BaseException:
            self.end(seq, writing.change, failed=True)
            raise
        self.end(seq, _bounded(writing.change), failed=False)


class MemoryChanges(ChangeLog):
    """A log of this process alone, which begins empty and ends with it."""

    def __init__(self) -> None:
        self._begin_anew()
        self.follow_forks()
        _open_logs.add(self)

    def position(self) -> Position:
        """See `ChangeLog.position`."""
        with self._lock:
            return self._position()

    def since(self, position: Position) -> tuple[Position, Sequence[Change]] | None:
        """See `ChangeLog.since`."""
        with self._lock:
            if not 0 <= position.seq - self._forgotten <= len(self._changes):
                return None
            return self._position(), self._changes[position.seq - self._forgotten :]

    def begin(self, change: Change) -> int:
        """See `ChangeLog.begin`."""
        with self._lock:
            self._changes.append(change)
            seq = self._forgotten + len(self._changes)
            self._under_way[seq] = float("inf")
            self._rows += change.rows
            while self._rows > MAX_ROWS and len(self._changes) > 1:
                self._rows -= self._changes.pop(0).rows
                self._forgotten += 1
            return seq

    def end(self, seq: int, change: Change, *, failed: bool) -> None:
        """See `ChangeLog.end`."""
        with self._lock:
            at = seq - self._forgotten - 1
            if 0 <= at < len(self._changes):
                self._rows += change.rows - self._changes[at].rows
                self._changes[at] = change
            if failed:
                self._under_way[seq] = time.monotonic() + LINGER_SECONDS
            else:
                self._under_way.pop(seq, None)

    def hashes_of(self, rows: Collection[str]) -> dict[str, str | None]:
        """Return of those rows that were put in lately what they hold now; None if unknown."""
        with self._lock:
            changes = list(self._changes)
        wanted = frozenset(rows)
        return {
            row: told
            for change in changes
            for row, told in zip_longest(change.ids, change.hashes)
            if change.sort in {"upsert", "everything"} and row in wanted
        }

    def after_fork_in_child(self) -> None:
        """Begin another log: what the child writes, the parent's store does not see."""
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._changes: list[Change] = []
        self._forgotten = self._rows = 0
        self._under_way: dict[int, float] = {}

    def _position(self) -> Position:
        now = time.monotonic()
        for seq, until in list(self._under_way.items()):
            if until <= now:
                del self._under_way[seq]
        newest = self._forgotten + len(self._changes)
        return Position(min(self._under_way, default=newest + 1) - 1, 0)


def open_log(log: str) -> ChangeLog | None:
    """Return a log that this process has open by its id, or None."""
    return next((one for one in _open_logs if one.id == log), None)


def opened(log: ChangeLog) -> None:
    """Let a log be found by its id for as long as it lives."""
    _open_logs.add(log)


def _bounded(change: Change) -> Change:
    if len(change.ids) <= MAX_ROWS_OF_CHANGE:
        return change
    return Change("everything", change.ids, hashes=change.hashes)


_open_logs: Living[ChangeLog] = Living()
