"""What `VerifiedReuse` has learned, in a file beside the cache's; losing it means learning anew."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np

from ragaccel.resources import Connections, DamagedFileError
from ragaccel.reuse.verified_gate import Gate
from ragaccel.reuse.verified_labels import Label

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

T = TypeVar("T")

_BUSY_SECONDS: Final = 0.5
_VERSION: Final = 1
_SCHEMA: Final = (
    "DROP TABLE IF EXISTS entry",
    "DROP TABLE IF EXISTS label",
    """CREATE TABLE entry (
      number INTEGER PRIMARY KEY, part BLOB NOT NULL, key BLOB NOT NULL, vector BLOB NOT NULL,
      facts BLOB NOT NULL, words BLOB NOT NULL, answer INTEGER NOT NULL, UNIQUE (part, key)
    )""",
    """CREATE TABLE label (
      number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, score REAL NOT NULL,
      wrong INTEGER NOT NULL, audit INTEGER NOT NULL
    )""",
    f"PRAGMA user_version = {_VERSION}",
)
#: Beyond how many more than wanted the oldest rows are deleted.
_SLACK: Final = 1.1


class Kept(NamedTuple):
    """An entry of the index; see `Index.put`."""

    partition: bytes
    key: bytes
    vector: NDArray[np.float32]
    gate: Gate
    group: int


class VerifiedFile:
    """A SQLite file of entries and labels; a damaged one is deleted and begun anew.

    Args:
        path: Where; its folder is made if need be.
        max_entries: How many entries are kept.
        max_labels: How many labels are kept.
    """

    def __init__(self, path: Path, max_entries: int, max_labels: int) -> None:
        self._path = Path(path)
        self._most = {"entry": max_entries, "label": max_labels}
        self._connections = Connections(path, self._connect, _prepare, replaceable=True)

    def load(self) -> tuple[list[Kept], list[tuple[str, Label]]]:
        """Return the newest entries and labels, the oldest of them first."""
        return self._do(lambda db: (self._entries(db), self._labels(db)))

    def keep(self, namespace: str, entry: Kept, label: Label | None, *, anew: bool) -> None:
        """Keep an entry, in place of one with its key, and a label.

        Args:
            namespace: Of the label.
            entry: The entry.
            label: What was said when it came, if anything.
            anew: Whether labels are of no use any more, this one included.
        """
        row = (
            entry.partition, entry.key, entry.vector.tobytes(), entry.gate.facts,
            entry.gate.words.tobytes(), entry.group,
        )  # fmt: skip
        self._do(
            lambda db: self._insert(db, "entry (part, key, vector, facts, words, answer)", row)
        )
        if anew:
            self._do(lambda db: db.execute("DELETE FROM label"))
        elif label is not None:
            told = (namespace, label.score, label.wrong, label.audit)
            self._do(lambda db: self._insert(db, "label (namespace, score, wrong, audit)", told))

    def remove(self, partition: bytes, key: bytes) -> None:
        """Forget an entry."""
        self._do(
            lambda db: db.execute("DELETE FROM entry WHERE part = ? AND key = ?", (partition, key))
        )

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._connections.close()

    def _insert(self, db: sqlite3.Connection, columns: str, row: tuple[object, ...]) -> None:
        marks = ", ".join("?" * len(row))
        number = db.execute(f"INSERT OR REPLACE INTO {columns} VALUES ({marks})", row).lastrowid
        table = columns.partition(" ")[0]
        most = self._most[table]
        if number is not None and number % max(1, int(most * (_SLACK - 1))) == 0:
            db.execute(f"DELETE FROM {table} WHERE number <= ?", (number - most,))

    def _entries(self, db: sqlite3.Connection) -> list[Kept]:
        rows = db.execute(
            "SELECT part, key, vector, facts, words, answer FROM entry "
            "ORDER BY number DESC LIMIT ?", (self._most["entry"],),
        ).fetchall()  # fmt: skip
        return [
            Kept(
                part, key, np.frombuffer(vector, np.float32),
                Gate(facts, np.frombuffer(words, np.uint32)), group,
            )
            for part, key, vector, facts, words, group in reversed(rows)
        ]  # fmt: skip

    def _labels(self, db: sqlite3.Connection) -> list[tuple[str, Label]]:
        rows = db.execute(
            "SELECT namespace, score, wrong, audit FROM label ORDER BY number DESC LIMIT ?",
            (self._most["label"],),
        ).fetchall()
        return [
            (namespace, Label(score, bool(wrong), bool(audit)))
            for namespace, score, wrong, audit in reversed(rows)
        ]

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._connections.run(work)
        except DamagedFileError:
            with self._connections.exclusive():
                for suffix in ("-wal", "-shm", ""):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        return self._connections.run(work)

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
        for statement in _SCHEMA:
            db.execute(statement)
