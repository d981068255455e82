"""The disk level: a SQLite file in WAL mode that several processes share."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ragaccel.errors import ConfigurationError
from ragaccel.resources import Connections, DamagedFileError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from ragaccel.cache.levels import Stored

T = TypeVar("T")

_ROW_BYTES = 64
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS entry (
  hash INTEGER PRIMARY KEY,
  key BLOB NOT NULL,
  blob BLOB NOT NULL,
  expires REAL NOT NULL,
  written INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS entry_expires ON entry (expires);
CREATE INDEX IF NOT EXISTS entry_written ON entry (written);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS entry_in AFTER INSERT ON entry
  BEGIN UPDATE total SET bytes = bytes + length(new.blob) + {_ROW_BYTES}; END;
CREATE TRIGGER IF NOT EXISTS entry_out AFTER DELETE ON entry
  BEGIN UPDATE total SET bytes = bytes - length(old.blob) - {_ROW_BYTES}; END;
PRAGMA user_version = 1;
"""
_BUSY_SECONDS = 5.0


class DiskLevel:
    """Keeps entries in a file; what one process writes, the others read.

    The file is opened at the first use. A damaged file is set aside as `NAME.damaged-TIME` and a
    new one begun.

    Args:
        path: The SQLite file; its folder is made if need be.
        max_bytes: The most that the entries may take; expired ones, then the oldest, go first.
    """

    name = "disk"
    compress = True

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = 4 * 1024**3) -> None:
        if max_bytes <= 0:
            raise ConfigurationError(f"max_bytes must be positive, got {max_bytes}.")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._connections = Connections(
            self.path, functools.partial(_connect, self.path), _prepare, replaceable=True
        )

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the blobs of those keys that are here and have not expired."""
        return self._do(lambda db: _select(db, keys))

    def put_many(self, entries: Sequence[Stored]) -> None:
        """Keep the entries in one transaction and hold the size bound."""
        written = time.time_ns()
        rows = {_hash(e.key): (_hash(e.key), e.key, e.blob, e.expires, written) for e in entries}
        self._do(lambda db: self._write(db, list(rows.values())))

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys."""
        pairs = [(_hash(key), key) for key in keys]
        self._do(
            lambda db: _transact(
                db, lambda: db.executemany("DELETE FROM entry WHERE hash = ? AND key = ?", pairs)
            )
        )

    def clear(self) -> None:
        """Forget everything."""
        self._do(lambda db: _transact(db, lambda: db.execute("DELETE FROM entry")))

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._connections.close()

    async def aget_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what `get_many` does; a point read is shorter than a change of thread."""
        return self.get_many(keys)

    async def aput_many(self, entries: Sequence[Stored]) -> None:
        """Do what `put_many` does, in a worker thread: another process may hold the lock."""
        await asyncio.to_thread(self.put_many, entries)

    async def adelete_many(self, keys: Sequence[bytes]) -> None:
        """Do what `delete_many` does, in a worker thread."""
        await asyncio.to_thread(self.delete_many, keys)

    async def aclear(self) -> None:
        """Do what `clear` does, in a worker thread."""
        await asyncio.to_thread(self.clear)

    async def aclose(self) -> None:
        """Do what `close` does, in a worker thread."""
        await asyncio.to_thread(self.close)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._connections.use() as db:
                return work(db)
        except DamagedFileError as damaged:
            self._set_aside(damaged.inode)
        with self._connections.use() as db:
            return work(db)

    def _write(self, db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
        def work() -> None:
            db.executemany("DELETE FROM entry WHERE hash = ?", [row[:1] for row in rows])
            db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", rows)
            self._evict(db)

        _transact(db, work)

    def _evict(self, db: sqlite3.Connection) -> None:
        if 0 <= _total(db) <= self.max_bytes:
            return
        db.execute("DELETE FROM entry WHERE expires <= ?", (time.time(),))
        db.execute(
            "UPDATE total SET bytes = (SELECT coalesce(sum(length(blob) + ?), 0) FROM entry)",
            (_ROW_BYTES,),
        )
        excess = _total(db) - self.max_bytes
        gone = []
        oldest = db.execute("SELECT hash, length(blob) FROM entry ORDER BY written, hash")
        for found, size in oldest:
            if excess <= 0:
                break
            gone.append((found,))
            excess -= size + _ROW_BYTES
        oldest.close()
        db.executemany("DELETE FROM entry WHERE hash = ?", gone)

    def _set_aside(self, inode: int) -> None:
        """Rename a damaged file, unless another thread or process has done so."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        with self._connections.exclusive(), lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # freed when the file is closed
            if not self.path.exists() or self.path.stat().st_ino != inode:
                return
            stamp = time.time_ns()
            for suffix in ("-wal", "-shm", ""):
                file = self.path.with_name(self.path.name + suffix)
                with contextlib.suppress(FileNotFoundError):
                    file.rename(file.with_name(f"{file.name}.damaged-{stamp}"))

    def __reduce__(self) -> tuple[type[DiskLevel], tuple[Path, int]]:
        return DiskLevel, (self.path, self.max_bytes)


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        connection.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")


def _hash(key: bytes) -> int:
    return int.from_bytes(key[:8], "little", signed=True)


def _select(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    now = time.time()
    found = {}
    for key in keys:
        row = db.execute("SELECT key, blob, expires FROM entry WHERE hash = ?", (_hash(key),))
        for stored, blob, expires in row:
            if stored == key and expires > now:
                found[key] = blob
    return found


def _total(db: sqlite3.Connection) -> int:
    total: int = db.execute("SELECT bytes FROM total").fetchone()[0]
    return total


def _transact(db: sqlite3.Connection, work: Callable[[], object]) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        work()
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
