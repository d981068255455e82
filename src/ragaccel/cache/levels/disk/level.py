"""The disk level: a SQLite file in WAL mode that several processes share."""

from __future__ import annotations

import asyncio
import functools
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ragaccel.cache.leases import FileLeases
from ragaccel.cache.levels import Stored, Usage
from ragaccel.cache.levels.breaker import Breaker
from ragaccel.cache.levels.disk.file import BusyError, CacheFile, transact
from ragaccel.cache.levels.disk.ledger import DiskLedger
from ragaccel.cache.levels.disk.report import report
from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Iterator, Sequence

_PAGE_BYTES: Final = 4096
_ROW_BYTES: Final = 160  # a row's columns, its places in three indexes, and what pages leave empty
_ALL: Final = b""  # the row of `total` that counts every namespace
_RETRY_AFTER: Final = 1.0
_EVICTED_SHARE: Final = 50  # what is evicted at once beyond what has to be, as a part of the limit
_GET: Final = "SELECT key, expires, blob FROM entry WHERE hash = ?"
_HASH: Final = struct.Struct("<q")


class DiskLevel:
    """Keeps entries in a file; what one process writes, the others read.

    The file is opened at the first use. A damaged file is set aside as `NAME.damaged-TIME` and a
    new one begun. When another process holds the file's lock for long, writes are left out for a
    while; reads never wait for it.

    Args:
        path: The SQLite file; its folder is made if need be.
        max_bytes: The most that the entries may take; expired ones, then the oldest, go first.
        namespace_bytes: The most that the entries of one namespace may take; its own oldest go
            first. None for no limit but `max_bytes`.
    """

    name = "disk"
    compress = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int = 4 * 1024**3,
        *,
        namespace_bytes: int | None = None,
    ) -> None:
        for size in (max_bytes, namespace_bytes):
            if size is not None and size <= 0:
                raise ConfigurationError(f"sizes in bytes must be positive, got {size}.")
        self.path = Path(path)
        self.max_bytes, self.namespace_bytes = max_bytes, namespace_bytes
        self._file = CacheFile(self.path)
        self._writes = Breaker("the cache file's lock", (BusyError,), _RETRY_AFTER)
        self._evictions = 0
        self.leases = FileLeases(self._beside("leases"))
        self.ledger = DiskLedger(self._beside("epoch"), self._file)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the blobs of those keys that are here and have not expired."""
        return self._file.do(lambda db: _select(db, keys), reading=True)

    def put_many(self, entries: Sequence[Stored]) -> None:
        """Keep the entries in one transaction and hold the size bounds."""
        # A number of its own for each, by which a scan and an eviction find their place.
        rows = {
            _hash(e.key): (
                _hash(e.key), e.key, e.expires, written, e.namespace, _size(e.blob), e.blob
            )
            for written, e in enumerate(entries, time.time_ns())
        }  # fmt: skip
        with self._writes.call():
            self._file.do(lambda db: self._write(db, list(rows.values())))

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys."""
        pairs = [(_hash(key), key) for key in keys]
        with self._writes.call():
            self._file.do(
                lambda db: transact(
                    db,
                    lambda: db.executemany("DELETE FROM entry WHERE hash = ? AND key = ?", pairs),
                )
            )

    def scan(self, namespace: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and blobs of a namespace, in batches; expired ones may be among them."""
        after = (-(2**63), -(2**63))
        while True:
            rows = self._file.do(functools.partial(_batch, namespace=namespace, after=after))
            for *_, key, blob in rows:
                yield key, blob
            if not rows:
                return
            after = rows[-1][:2]

    def clear(self) -> None:
        """Forget everything."""

        def work(db: sqlite3.Connection) -> None:
            _lose(db, "1")
            db.execute("DELETE FROM entry")

        self._file.do(lambda db: transact(db, lambda: work(db)))

    def has_lost(self) -> bool:
        """Tell whether entries are gone before their time that others may have copies of."""
        return self._file.do(_has_lost, reading=True)

    def usage(self) -> Usage:
        """Return what the file holds, and what this process had to evict."""
        entries, size = self._file.do(_total)
        return Usage(entries, size, self._evictions, self._writes.state)

    def describe(self, *, check: bool = False) -> dict[str, Any]:
        """Return what lies in the file; see `report`."""
        return self._file.do(lambda db: report(db, check=check))

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._file.close()
        self.leases.close()
        self.ledger.close()

    async def aget_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what `get_many` does; a point read is shorter than a change of thread."""
        if self._file.is_open:
            return self.get_many(keys)
        return await asyncio.to_thread(self.get_many, keys)

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

    def _write(self, db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
        def work() -> None:
            db.executemany("DELETE FROM entry WHERE hash = ?", [row[:1] for row in rows])
            db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            if self.namespace_bytes is not None:
                for namespace in {row[4] for row in rows}:
                    self._evict(db, namespace, self.namespace_bytes)
            self._evict(db, _ALL, self.max_bytes)

        transact(db, work)

    def _evict(self, db: sqlite3.Connection, namespace: bytes, limit: int) -> None:
        """Bring a namespace, or all of them, a little below a limit."""
        held = _bytes(db, namespace)
        if 0 <= held <= limit:
            return
        db.execute("DELETE FROM entry WHERE expires <= ?", (time.time(),))
        if not 0 <= _bytes(db, namespace) <= 2 * limit:  # a damaged count, or a very large write
            _recount(db)
        excess = _bytes(db, namespace) - limit
        if excess <= 0:
            return
        excess += limit // _EVICTED_SHARE
        where, whose = ("1", ()) if namespace == _ALL else ("namespace = ?", (namespace,))
        oldest = db.execute(
            f"SELECT hash, written, size FROM entry WHERE {where} ORDER BY written, hash", whose
        )
        last = (-(2**63), -(2**63))
        for found, written, size in oldest:
            if excess <= 0:
                break
            last, excess = (written, found), excess - size
        oldest.close()
        gone = f"{where} AND (written, hash) <= (?, ?)"
        _lose(db, gone, *whose, *last)
        self._evictions += db.execute(f"DELETE FROM entry WHERE {gone}", (*whose, *last)).rowcount

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{ending}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.max_bytes, self.namespace_bytes)


def _reopen(path: Path, max_bytes: int, namespace_bytes: int | None) -> DiskLevel:
    return DiskLevel(path, max_bytes, namespace_bytes=namespace_bytes)


def _hash(key: bytes) -> int:
    hashed: int = _HASH.unpack_from(key)[0]
    return hashed


def _size(blob: bytes) -> int:
    """Return what a row takes of the file: long blobs fill whole pages of their own."""
    size = len(blob) + _ROW_BYTES
    return size if size < _PAGE_BYTES else -(-size // _PAGE_BYTES) * _PAGE_BYTES


def _select(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    now = time.time()
    found = {}
    for key in keys:
        row = db.execute(_GET, _HASH.unpack_from(key)).fetchone()
        # A damaged row may hold anything.
        if row is not None and row[0] == key and type(row[1]) is float and row[1] > now:
            found[key] = row[2]
    return found


def _batch(
    db: sqlite3.Connection, namespace: bytes, after: tuple[int, int]
) -> list[tuple[Any, ...]]:
    """Return rows of written, hash, key and blob that come after a place, in the index's order."""
    return db.execute(
        "SELECT written, hash, key, blob FROM entry WHERE namespace = ?"
        " AND (written, hash) > (?, ?) ORDER BY written, hash LIMIT 256",
        (namespace, *after),
    ).fetchall()


def _lose(db: sqlite3.Connection, where: str, *parameters: Any) -> None:
    """Note until when there may be copies elsewhere of entries that are about to go.

    A damaged row may hold a time that is no number.
    """
    (until,) = db.execute(
        f"SELECT max(expires) FROM entry WHERE typeof(expires) = 'real' AND {where}", parameters
    ).fetchone()
    if until is not None:
        db.execute("UPDATE ledger SET lost_until = max(lost_until, ?)", (until,))


def _has_lost(db: sqlite3.Connection) -> bool:
    (until,) = db.execute("SELECT lost_until FROM ledger").fetchone()
    return bool(time.time() < until)


def _total(db: sqlite3.Connection) -> tuple[int, int]:
    row = db.execute("SELECT entries, bytes FROM total WHERE namespace = ?", (_ALL,)).fetchone()
    return row or (0, 0)


def _bytes(db: sqlite3.Connection, namespace: bytes) -> int:
    row = db.execute("SELECT bytes FROM total WHERE namespace = ?", (namespace,)).fetchone()
    return row[0] if row else 0


def _recount(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM total")
    db.execute("INSERT INTO total SELECT x'', coalesce(sum(size), 0), count(*) FROM entry")
    db.execute("INSERT INTO total SELECT namespace, sum(size), count(*) FROM entry GROUP BY 1")
