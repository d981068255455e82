"""The truth: documents, the change log and not yet checkpointed vectors, in SQLite."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.errors import CollectionError, CorruptCollectionError
from ragaccel.vectors.records import Record, decode_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ragaccel.vectors.filters import Filter
    from ragaccel.vectors.records import Row

FORMAT: Final = 1
_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE doc (
  slot INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  text TEXT,
  metadata TEXT NOT NULL,
  document_id TEXT,
  payload BLOB
);
CREATE INDEX doc_document ON doc (document_id);
CREATE TABLE fresh (slot INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE change (seq INTEGER PRIMARY KEY AUTOINCREMENT, slot INTEGER NOT NULL, live INTEGER);
PRAGMA user_version = {FORMAT};
"""
_COLUMNS = "slot, id, text, metadata, document_id, payload"
_BUSY_SECONDS = 10.0
_MEMORY = ":memory:"


class Database:
    """SQLite with a connection per thread; in memory, one connection that threads take in turn.

    Args:
        file: The database file, or None for memory.
        read_only: Open without the right to write.
    """

    def __init__(self, file: Path | None, *, read_only: bool = False) -> None:
        self._file = file
        self._read_only = read_only
        self._local = threading.local()
        self._lock = threading.RLock()
        self._open: list[sqlite3.Connection] = []
        self._shared = self._connect() if file is None else None
        with self.read() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > FORMAT:
                raise CollectionError(
                    f"{file} was written by a later release (format {version}, this one reads up "
                    f"to {FORMAT}); upgrade ragaccel."
                )
            if version == 0 and not read_only:
                db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to read with."""
        with self._lock if self._shared is not None else contextlib.nullcontext():
            try:
                yield self._shared or self._own()
            except sqlite3.OperationalError as error:
                raise CollectionError(f"{self._file or 'the collection'}: {error}") from error
            except sqlite3.DatabaseError as error:
                raise CorruptCollectionError(f"{self._file} is damaged: {error}") from error

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Give a connection inside a transaction: all of it is stored, or nothing."""
        with self._lock, self.read() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def meta(self) -> dict[str, Any]:
        """Return the collection's settings."""
        with self.read() as db:
            return dict(db.execute("SELECT name, value FROM meta"))

    def version(self) -> int:
        """Return a number that differs when another connection has written."""
        with self.read() as db:
            version: int = db.execute("PRAGMA data_version").fetchone()[0]
            return version

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def _own(self) -> sqlite3.Connection:
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.connection, self._local.pid = self._connect(), os.getpid()
        connection: sqlite3.Connection = self._local.connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self._read_only else "rwc"
        target = _MEMORY if self._file is None else f"{self._file.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            target,
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.create_function("unicode_lower", 1, str.lower, deterministic=True)
        if not self._read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
        with self._lock:
            self._open.append(connection)
        return connection


def set_meta(db: sqlite3.Connection, **values: Any) -> None:
    """Store settings."""
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))


def seq(db: sqlite3.Connection) -> int:
    """Return the position of the change log."""
    found: int = db.execute("SELECT coalesce(max(seq), 0) FROM change").fetchone()[0]
    return found


def live_slots(db: sqlite3.Connection) -> NDArray[np.int64]:
    """Return the slots of all rows, ascending."""
    rows = db.execute("SELECT slot FROM doc ORDER BY slot")
    return np.fromiter((slot for (slot,) in rows), dtype=np.int64)


def fresh(db: sqlite3.Connection, dim: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return slots and vectors that are not in the slab yet."""
    rows = db.execute("SELECT slot, vector FROM fresh ORDER BY slot").fetchall()
    slots = np.array([slot for slot, _ in rows], dtype=np.int64)
    data = b"".join(vector for _, vector in rows)
    return slots, np.frombuffer(data, dtype=np.float32).reshape(len(rows), dim)


def slots_of(db: sqlite3.Connection, ids: Iterable[str]) -> list[int]:
    """Return the slots of the ids that exist."""
    found = []
    for one in ids:
        row = db.execute("SELECT slot FROM doc WHERE id = ?", (one,)).fetchone()
        if row is not None:
            found.append(row[0])
    return found


def slots_where(db: sqlite3.Connection, where: Filter | None) -> NDArray[np.int64]:
    """Return the slots of the rows that pass a filter, ascending."""
    if where is None:
        return live_slots(db)
    sql, parameters = where.sql()
    # The condition is made of our own constants; keys and values are parameters.
    rows = db.execute(f"SELECT slot FROM doc WHERE {sql} ORDER BY slot", parameters)
    return np.fromiter((slot for (slot,) in rows), dtype=np.int64)


def insert(
    db: sqlite3.Connection,
    slots: Sequence[int],
    rows: Sequence[Row],
    vectors: NDArray[np.float32],
) -> None:
    """Write rows under new slots, with their vectors (n, dim)."""
    db.executemany(
        f"INSERT INTO doc ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
        [(slot, *row) for slot, row in zip(slots, rows, strict=True)],
    )
    db.executemany(
        "INSERT INTO fresh VALUES (?, ?)",
        [(slot, vector.tobytes()) for slot, vector in zip(slots, vectors, strict=True)],
    )
    db.executemany("INSERT INTO change (slot, live) VALUES (?, 1)", [(slot,) for slot in slots])


def fresh_of(db: sqlite3.Connection, slots: Iterable[int]) -> Iterator[bytes | None]:
    """Yield the stored bytes of vectors that are not in the slab yet; None for others."""
    for slot in slots:
        row = db.execute("SELECT vector FROM fresh WHERE slot = ?", (slot,)).fetchone()
        yield None if row is None else row[0]


def log(db: sqlite3.Connection, after: int, upto: int, limit: int) -> list[tuple[int, int, int]]:
    """Return entries (seq, slot, live) of the change log; a limit of -1 is none."""
    return db.execute(
        "SELECT seq, slot, live FROM change WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (after, upto, limit),
    ).fetchall()


def remove(db: sqlite3.Connection, slots: Iterable[int]) -> None:
    """Delete documents."""
    keys = [(slot,) for slot in slots]
    db.executemany("DELETE FROM doc WHERE slot = ?", keys)
    db.executemany("DELETE FROM fresh WHERE slot = ?", keys)
    db.executemany("INSERT INTO change (slot, live) VALUES (?, 0)", keys)


def records(db: sqlite3.Connection, slots: Sequence[int]) -> dict[int, Record]:
    """Return the rows of slots; those that are gone are left out."""
    found = {}
    for start in range(0, len(slots), 500):
        part = slots[start : start + 500]
        marks = ",".join("?" * len(part))
        sql = f"SELECT {_COLUMNS} FROM doc WHERE slot IN ({marks})"
        for row in db.execute(sql, part):
            found[row[0]] = _record(row)
    return found


def scan(db: sqlite3.Connection) -> Iterator[Record]:
    """Yield every row, in the order of writing."""
    for row in db.execute(f"SELECT {_COLUMNS} FROM doc ORDER BY slot"):
        yield _record(row)


def _record(row: tuple[Any, ...]) -> Record:
    slot, id_, text, metadata, document_id, payload = row
    return Record(id_, text, decode_metadata(metadata), document_id, payload, slot)
