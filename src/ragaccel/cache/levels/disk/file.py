"""The cache file: its tables, and what happens when it is damaged or locked."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import secrets
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ragaccel.resources import Connections, DamagedFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

VERSION: Final = 3
_BUSY_SECONDS: Final = 0.5
_SCHEMA: Final = (
    "DROP TABLE IF EXISTS entry",
    "DROP TABLE IF EXISTS total",
    "DROP TABLE IF EXISTS ledger",
    "DROP TABLE IF EXISTS strike",
    """CREATE TABLE entry (
      hash INTEGER PRIMARY KEY,
      key BLOB NOT NULL,
      expires REAL NOT NULL,
      written INTEGER NOT NULL,
      namespace BLOB NOT NULL,
      size INTEGER NOT NULL,
      blob BLOB NOT NULL
    )""",
    "CREATE INDEX entry_expires ON entry (expires)",
    "CREATE INDEX entry_written ON entry (written)",
    "CREATE INDEX entry_namespace ON entry (namespace, written)",
    """CREATE TABLE total (
      namespace BLOB PRIMARY KEY, bytes INTEGER NOT NULL, entries INTEGER NOT NULL
    )""",
    """CREATE TRIGGER entry_in AFTER INSERT ON entry BEGIN
      INSERT INTO total VALUES (x'', new.size, 1), (new.namespace, new.size, 1)
        ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes, entries = entries + 1;
    END""",
    """CREATE TRIGGER entry_out AFTER DELETE ON entry BEGIN
      UPDATE total SET bytes = bytes - old.size, entries = entries - 1
        WHERE namespace IN (x'', old.namespace);
    END""",
    """CREATE TABLE ledger (
      id INTEGER NOT NULL, seq INTEGER NOT NULL, floor INTEGER NOT NULL, lost_until REAL NOT NULL
    )""",
    """CREATE TABLE strike (
      namespace BLOB NOT NULL, mark BLOB NOT NULL, seq INTEGER NOT NULL,
      PRIMARY KEY (namespace, mark)
    ) WITHOUT ROWID""",
    "CREATE INDEX strike_seq ON strike (seq)",
    f"PRAGMA user_version = {VERSION}",
)


class BusyError(sqlite3.OperationalError):
    """Another process holds the file's lock for longer than is waited for."""


class CacheFile:
    """A SQLite file in WAL mode. A damaged one is set aside, and the next use begins a new one.

    Args:
        path: Where; its folder is made if need be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connections = Connections(
            path, functools.partial(_connect, path), _prepare, replaceable=True
        )

    @property
    def is_open(self) -> bool:
        """Whether a use needs no opening first."""
        return self._connections.are_idle

    @property
    def generation(self) -> int:
        """A number that changes when another file lies at the path."""
        return self._connections.generation

    def do(self, work: Callable[[sqlite3.Connection], T], *, reading: bool = False) -> T:
        """Run a function with a connection of this thread's own; see `Connections.run`.

        Raises:
            BusyError: See there.
        """
        try:
            return self._connections.run(work, reading=reading)
        except DamagedFileError as damaged:
            self._set_aside(damaged.inode)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise BusyError(str(error)) from error
            raise
        return self._connections.run(work)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._connections.close()

    def _set_aside(self, inode: int) -> None:
        """Rename a damaged file, unless another thread or process has done so."""
        lock = self._path.with_name(f"{self._path.name}.lock")
        with self._connections.exclusive(), lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # freed when the file is closed
            if not self._path.exists() or self._path.stat().st_ino != inode:
                return
            stamp = time.time_ns()
            for suffix in ("-wal", "-shm", ""):
                file = self._path.with_name(self._path.name + suffix)
                with contextlib.suppress(FileNotFoundError):
                    file.rename(file.with_name(f"{file.name}.damaged-{stamp}"))


def transact(db: sqlite3.Connection, work: Callable[[], T]) -> T:
    """Do some work in a transaction of its own."""
    db.execute("BEGIN IMMEDIATE")
    try:
        done = work()
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
    return done


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    if _version(db) < VERSION:
        transact(db, lambda: _begin(db))


def _begin(db: sqlite3.Connection) -> None:
    if _version(db) == VERSION:  # another process has begun it meanwhile
        return
    for statement in _SCHEMA:
        db.execute(statement)
    db.execute("INSERT INTO ledger VALUES (?, 0, 0, 0)", (secrets.randbits(62),))


def _version(db: sqlite3.Connection) -> Any:
    return db.execute("PRAGMA user_version").fetchone()[0]
