"""What filters passed before, brought up to date from the change log instead of asked again."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ragaccel.vectors import database
from ragaccel.vectors.filters import compile_filter
from ragaccel.vectors.rowset import RowSet

if TYPE_CHECKING:
    import sqlite3

    from ragaccel.vectors.database import Position
    from ragaccel.vectors.filters import Filter

    Key = tuple[str, tuple[Any, ...]]

_MAX_BYTES: Final = 16 * 2**20
_MAX_FILTERS: Final = 1000
#: With more changes than these, all rows are asked again.
_MAX_CHANGES: Final = 10_000


class _Passed(NamedTuple):
    """Which rows passed a filter at a position of the change log."""

    position: Position
    rows: RowSet


class FilterCache:
    """The rows that filters passed, the most recently asked ones in so many bytes.

    Filters are told apart by their SQL and its parameters. Threads may share a cache.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._passed: OrderedDict[Key, _Passed] = OrderedDict()

    @property
    def bytes_used(self) -> int:
        """Bytes that filters and their rows take."""
        with self._lock:
            return self._bytes()

    def rows(self, db: sqlite3.Connection, where: Filter, position: Position) -> RowSet:
        """Return the rows that pass a filter.

        Args:
            db: A connection whose snapshot is at the position.
            where: The filter.
            position: Position of the change log.

        Raises:
            FilterError: The filter cannot be understood.
        """
        sql, parameters = compile_filter(where)
        key = (sql, tuple(parameters))
        with self._lock:
            known = self._passed.get(key)
            if known is not None:
                self._passed.move_to_end(key)
        if known is not None and known.position == position:
            return known.rows
        rows = None if known is None else _followed(db, where, known, position)
        if rows is None:
            rows = RowSet(database.slots_where(db, where))
        self._keep(key, _Passed(position, rows))
        return rows

    def _keep(self, key: Key, passed: _Passed) -> None:
        with self._lock:
            self._passed[key] = passed
            self._passed.move_to_end(key)
            excess = self._bytes() - self._max_bytes
            while excess > 0 or len(self._passed) > _MAX_FILTERS:
                excess -= _bytes_of(*self._passed.popitem(last=False))

    def _bytes(self) -> int:
        return sum(_bytes_of(key, passed) for key, passed in self._passed.items())


def _followed(
    db: sqlite3.Connection, where: Filter, known: _Passed, position: Position
) -> RowSet | None:
    """Return the rows that pass now; None if the log does not lead from there to here."""
    start = known.position
    if start.seq > position.seq or database.mark_of(db, start.seq) != start.mark:
        return None
    changes = database.log(db, start.seq, position.seq, _MAX_CHANGES + 1)
    if len(changes) > _MAX_CHANGES:
        return None
    gone = {slot for _, slot, live in changes if not live}
    added = sorted(slot for _, slot, live in changes if live and slot not in gone)
    return known.rows.changed(
        np.array(sorted(gone), dtype=np.int64), database.slots_where(db, where, among=added)
    )


def _bytes_of(key: Key, passed: _Passed) -> int:
    sql, parameters = key
    return sys.getsizeof(sql) + sum(map(sys.getsizeof, parameters)) + passed.rows.bytes_used
