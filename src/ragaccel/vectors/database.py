"""The truth: documents, the change log and not yet checkpointed vectors, in SQLite."""

from __future__ import annotations

import contextlib
import functools
import secrets
import sqlite3
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np

from ragaccel.errors import CollectionError, CorruptCollectionError
from ragaccel.resources import Connections, DamagedFileError
from ragaccel.vectors import blocks, fields
from ragaccel.vectors.filters import as_json, compile_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ragaccel.vectors.filters import Filter
    from ragaccel.vectors.records import Document, Row

T = TypeVar("T")

FORMAT: Final = 2
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE doc (
  slot INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  text TEXT,
  metadata TEXT NOT NULL,
  document_id TEXT,
  payload BLOB
);
CREATE INDEX doc_document ON doc (document_id) WHERE document_id IS NOT NULL;
CREATE TABLE fresh (slot INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE change (seq INTEGER PRIMARY KEY, slot INTEGER NOT NULL, live INTEGER,
  mark INTEGER NOT NULL);
"""
#: What files of format 1 may lack; it is made at the first writable opening.
_LATER = f"""
{blocks.TABLE}
{fields.TABLES}
CREATE TABLE IF NOT EXISTS living (seq INTEGER NOT NULL, bits BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS question (number INTEGER PRIMARY KEY, vector BLOB NOT NULL);
PRAGMA user_version = {FORMAT};
"""


class Position(NamedTuple):
    """A place in the change log: its number, and a random mark that no other log has there."""

    seq: int
    mark: int


_COLUMNS = "slot, id, text, metadata, document_id, payload"
_WITHOUT_MORE: Final = (None, "{}", None, None)  # what a row has in `Document` after its id
_BUSY_SECONDS = 10.0
_AT_A_TIME: Final = 500
_MEMORY = ":memory:"
_MAPPED_BYTES: Final = 1 << 40  # SQLite takes the most that it can, mostly 2 GB


class Database:
    """SQLite with connections that threads take in turn; in memory there is one.

    Args:
        file: The database file, or None for memory.
        read_only: Open without the right to write.
        known: The collection is no new one: a missing or empty file is a damaged one.
        durable: Wait in every transaction until it is on disk.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        read_only: bool = False,
        known: bool = False,
        durable: bool = False,
    ) -> None:
        self._file = file
        self._synchronous = "FULL" if durable else "NORMAL"
        self._lock = threading.RLock()
        if known and file is not None and not (file.exists() and file.stat().st_size):
            raise CorruptCollectionError(
                f"{file} is missing or empty, but vectors are stored beside it; restore the folder "
                "from a backup."
            )
        connect = functools.partial(_connect, file, read_only=read_only)
        self._memory = connect() if file is None else None
        prepare = _nothing if read_only else functools.partial(_prepare, self._synchronous)
        self._pool = Connections(None, connect, prepare)
        if self._memory is not None:
            self._closing = weakref.finalize(self, self._memory.close)
        with self.read() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > FORMAT:
                raise CollectionError(
                    f"{file} was written by a later release (format {version}, this one reads up "
                    f"to {FORMAT}); upgrade ragaccel."
                )
            if version < FORMAT and not read_only:
                lacking = _LATER if version else _SCHEMA + _LATER
                db.executescript(f"BEGIN IMMEDIATE; {lacking} COMMIT;")

    @property
    def place(self) -> str:
        """A name of the file itself, other than any copy's; empty in memory."""
        if self._file is None:
            return ""
        found = self._file.stat()
        return f"{found.st_dev:x}.{found.st_ino:x}"

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to read with."""
        try:
            if self._memory is None:
                with self._pool.use() as db:
                    yield db
            else:
                with self._lock:
                    yield self._memory
        except (sqlite3.DatabaseError, DamagedFileError) as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> CollectionError:
        """Return what to raise for what SQLite found."""
        if isinstance(error, DamagedFileError):
            return CorruptCollectionError(
                f"{self._file} is damaged: {error.__cause__}; restore the folder from a backup."
            )
        if type(error) is sqlite3.DatabaseError or "no such table" in str(error):
            return CorruptCollectionError(f"{self._file} is damaged: {error}")
        return CollectionError(f"{self._file or 'the collection'}: {error}")

    def look(self, look: Callable[[sqlite3.Connection], T], *, still: bool = False) -> T:
        """Return what a function finds with a connection.

        Args:
            look: The function.
            still: Let it see one state of the file, whatever others write meanwhile.
        """
        if still or self._memory is not None:
            with self.snapshot() if still else self.read() as db:
                return look(db)
        try:
            return self._pool.run(look)
        except (sqlite3.DatabaseError, DamagedFileError) as error:
            raise self._fault(error) from error

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that sees one state of the file, whatever others write meanwhile."""
        with self.read() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("COMMIT")

    @contextlib.contextmanager
    def write(self, *, synced: bool = False) -> Iterator[sqlite3.Connection]:
        """Give a connection inside a transaction: all of it is stored, or nothing.

        Args:
            synced: Wait until it is on disk, and all before it.
        """
        with self._lock, self.read() as db:
            if synced:
                db.execute("PRAGMA synchronous = FULL")
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            finally:
                if synced:
                    db.execute(f"PRAGMA synchronous = {self._synchronous}")

    def meta(self) -> dict[str, Any]:
        """Return the collection's settings."""
        with self.read() as db:
            return meta(db)

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()
        if self._memory is not None:
            self._closing()


def _connect(file: Path | None, *, read_only: bool) -> sqlite3.Connection:
    mode = "ro" if read_only else "rwc"
    target = _MEMORY if file is None else f"{file.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(
        target, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.create_function("unicode_lower", 1, _lower, deterministic=True)
    connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
    return connection


def _prepare(synchronous: str, connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")


def _nothing(connection: sqlite3.Connection) -> None:
    del connection


def _lower(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) else None


def meta(db: sqlite3.Connection) -> dict[str, Any]:
    """Return the collection's settings."""
    return dict(db.execute("SELECT name, value FROM meta"))


def set_meta(db: sqlite3.Connection, **values: Any) -> None:
    """Store settings."""
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))


def position(db: sqlite3.Connection) -> Position:
    """Return the position of the change log."""
    row = db.execute("SELECT seq, mark FROM change ORDER BY seq DESC LIMIT 1").fetchone()
    return Position(0, 0) if row is None else Position(*row)


def mark_of(db: sqlite3.Connection, seq: int) -> int | None:
    """Return the mark of a position of the change log; None if the log does not reach there."""
    if seq == 0:
        (first,) = db.execute("SELECT min(seq) FROM change").fetchone()
        return 0 if first in {None, 1} else None
    row = db.execute("SELECT mark FROM change WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else int(row[0])


def questions(db: sqlite3.Connection, dim: int) -> NDArray[np.float32] | None:
    """Return the query vectors that were given to calibrate with, shape (m, dim); None for none."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'question'").fetchone():
        return None
    data = b"".join(row[0] for row in db.execute("SELECT vector FROM question ORDER BY number"))
    return np.frombuffer(data, dtype=np.float32).reshape(-1, dim) if data else None


def set_questions(db: sqlite3.Connection, vectors: NDArray[np.float32]) -> None:
    """Store query vectors to calibrate with, in the place of those before."""
    db.execute("DELETE FROM question")
    db.executemany(
        "INSERT INTO question (vector) VALUES (?)", [(row.tobytes(),) for row in vectors]
    )


def live_slots(db: sqlite3.Connection) -> NDArray[np.int64]:
    """Return the slots of all rows, ascending."""
    rows = db.execute("SELECT slot FROM doc ORDER BY slot")
    return np.fromiter((slot for (slot,) in rows), dtype=np.int64)


def ids_after(db: sqlite3.Connection, slot: int, limit: int) -> list[tuple[int, str]]:
    """Return slots and ids of the first rows after a slot."""
    rows = "SELECT slot, id FROM doc WHERE slot > ? ORDER BY slot LIMIT ?"
    return db.execute(rows, (slot, limit)).fetchall()


def fresh(db: sqlite3.Connection, dim: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return slots and vectors of rows that are not in the slab yet.

    Vectors of deleted rows stay in the table until all of it is moved: taking out one of them would
    write half a dozen pages.

    Raises:
        CorruptCollectionError: A vector is not as long as it should be.
    """
    stored = "SELECT slot, vector FROM fresh JOIN doc USING (slot) ORDER BY slot"
    rows = db.execute(stored).fetchall()
    slots = np.array([slot for slot, _ in rows], dtype=np.int64)
    if any(len(vector) != 4 * dim for _, vector in rows):
        raise CorruptCollectionError(
            f"recent rows have vectors that are not of {dim} dimensions; restore the folder from "
            "a backup."
        )
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


def slots_where(
    db: sqlite3.Connection, where: Filter | None, among: Sequence[int] | None = None
) -> NDArray[np.int64]:
    """Return the slots of the rows that pass a filter, ascending; only some of them, if told."""
    if where is None:
        return live_slots(db)
    sql, parameters = compile_filter(where)
    if among is not None:
        sql = f"slot IN (SELECT value FROM json_each(?)) AND ({sql})"
        parameters = [as_json(among), *parameters]
    elif known := fields.indexed(db):
        sql, parameters = compile_filter(fields.with_lookups(where, known))
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
    fields.add(db, slots)
    _append(db, slots, live=True)


def fresh_of(db: sqlite3.Connection, slots: Sequence[int]) -> dict[int, bytes]:
    """Return the stored bytes of vectors that are not in the slab yet, by their slots."""
    found: dict[int, bytes] = {}
    for start in range(0, len(slots), _AT_A_TIME):
        part = slots[start : start + _AT_A_TIME]
        found.update(db.execute(_select("slot, vector", len(part), "fresh"), part).fetchall())
    return found


def log(db: sqlite3.Connection, after: int, upto: int, limit: int) -> list[tuple[int, int, int]]:
    """Return entries (seq, slot, live) of the change log; a limit of -1 is none."""
    return db.execute(
        "SELECT seq, slot, live FROM change WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (after, upto, limit),
    ).fetchall()


def given_back(db: sqlite3.Connection) -> int:
    """Return how often room of deleted rows was given back."""
    row = db.execute("SELECT value FROM meta WHERE name = 'given_back'").fetchone()
    return 0 if row is None else int(row[0])


def trim(db: sqlite3.Connection, keep: int) -> None:
    """Forget the change log but for its newest entries; at least one, so that numbers go on."""
    newest = position(db).seq
    db.execute("DELETE FROM change WHERE seq <= ?", (newest - keep,))


def save_live(db: sqlite3.Connection, seq: int, live: NDArray[np.bool_]) -> None:
    """Store which slots live at a position of the change log, unless that is known."""
    if db.execute("SELECT 1 FROM living WHERE seq = ?", (seq,)).fetchone():
        return
    db.execute("DELETE FROM living")
    db.execute("INSERT INTO living VALUES (?, ?)", (seq, np.packbits(live).tobytes()))


def saved_live(db: sqlite3.Connection) -> tuple[int, NDArray[np.bool_]] | None:
    """Return which slots lived at a position of the change log, and the position."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'living'").fetchone():
        return None
    row = db.execute("SELECT seq, bits FROM living").fetchone()
    if row is None:
        return None
    return row[0], np.unpackbits(np.frombuffer(row[1], dtype=np.uint8)).astype(bool)


def remove(db: sqlite3.Connection, slots: Iterable[int]) -> None:
    """Delete documents; see `fresh` for their vectors."""
    keys = [(slot,) for slot in slots]
    db.executemany("DELETE FROM doc WHERE slot = ?", keys)
    fields.remove(db, [slot for (slot,) in keys])
    _append(db, [slot for (slot,) in keys], live=False)


def _append(db: sqlite3.Connection, slots: Sequence[int], *, live: bool) -> None:
    mark = secrets.randbits(62)
    db.executemany(
        "INSERT INTO change (slot, live, mark) VALUES (?, ?, ?)",
        [(slot, live, mark) for slot in slots],
    )


def documents(
    db: sqlite3.Connection, slots: Sequence[int], *, whole: bool = True
) -> dict[int, Document]:
    """Return the documents of slots; those that are gone are left out.

    Args:
        db: The connection.
        slots: Of the rows.
        whole: Whether to read more than their ids.
    """
    columns, rest = (_COLUMNS, ()) if whole else ("slot, id", _WITHOUT_MORE)
    found: dict[int, Document] = {}
    for start in range(0, len(slots), _AT_A_TIME):
        part = slots[start : start + _AT_A_TIME]
        rows = db.execute(_select(columns, len(part)), part)
        found.update({row[0]: (*row, *rest) for row in rows})
    return found


@functools.cache
def _select(columns: str, count: int, table: str = "doc") -> str:
    """Return a join with the wanted slots: SQLite makes no sorted table of them, as for IN."""
    marks = ",".join(["(?)"] * count)
    wanted = f"WITH wanted (slot) AS (VALUES {marks})"
    return f"{wanted} SELECT {columns} FROM wanted CROSS JOIN {table} USING (slot)"
