"""The ledger of a cache file, which every process that uses the file hears of at once.

The strikes lie in the cache file. A small file beside it, the epoch, holds the number of the last
one, and is read before every answer: one system call, and a look into the cache file only when the
number has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import struct
import threading
from typing import TYPE_CHECKING, Final

from ragaccel.cache.ledger import CAPACITY, EVERYTHING, Position, Strikes
from ragaccel.cache.levels.disk.file import BusyError, CacheFile, transact
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

_State = tuple[int, int, int, list[tuple[bytes, int]]]
_EPOCH: Final = struct.Struct("<QQ")


class DiskLedger(Forkable):
    """Strikes in a cache file.

    While the file cannot be read, what was stored before does not stand: nobody can tell what was
    struck meanwhile.

    Args:
        epoch: The small file; its folder is made with the cache file.
        file: The cache file.
    """

    shared = True

    def __init__(self, epoch: Path, file: CacheFile) -> None:
        self._path, self._cache = epoch, file
        self._lock = threading.Lock()
        self._file: int | None = None
        self._generation = -1
        self._heard = b""
        self._strikes = Strikes(secrets.randbits(62))
        self.follow_forks()

    @property
    def is_prepared(self) -> bool:
        """Whether the files are open."""
        return self._file is not None

    def position(self) -> Position:
        """Return where the ledger stands."""
        self._hear()
        return self._strikes.position

    def stands(self, position: Position, created: float, marks: bytes) -> bool:  # noqa: ARG002
        """Tell whether an entry may be served; see `Ledger`."""
        self._hear()
        return self._strikes.stand(position, marks)

    def strike(self, marks: Sequence[bytes]) -> None:
        """Let no entry with one of the marks stand from now on."""
        self._cache.do(lambda db: transact(db, lambda: self._write(db, marks)))
        self._hear()

    async def astrike(self, marks: Sequence[bytes]) -> None:
        """Do what `strike` does, in a worker thread."""
        await asyncio.to_thread(self.strike, marks)

    def prepare(self) -> None:
        """Open the files."""
        if self._file is None:
            self._hear()

    async def aprepare(self) -> None:
        """Do what `prepare` does, in a worker thread."""
        if self._file is None:
            await asyncio.to_thread(self.prepare)

    def close(self) -> None:
        """Close the epoch's file; the next use opens it again."""
        with self._lock:
            self._close()

    def _hear(self) -> None:
        file = self._file
        if file is not None and self._generation == self._cache.generation:
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.pread(file, _EPOCH.size, 0) == self._heard:
                    return
        with self._lock:
            try:
                self._catch_up()
            except Exception:  # noqa: BLE001 - a level's fault never reaches the caller
                self._heard, self._strikes = b"", Strikes(secrets.randbits(62))

    def _catch_up(self) -> None:
        ledger, seq, floor, struck = self._cache.do(self._read)
        heard = _EPOCH.pack(ledger, seq)
        if os.pread(self._open(), _EPOCH.size, 0) != heard:
            # New, or its last writer was killed, or one is about to commit.
            heard = self._settle()
        strikes = self._strikes if self._strikes.ledger == ledger else Strikes(ledger)
        strikes.add(struck)
        strikes.seq = max(strikes.seq, seq)
        if floor > strikes.floor:
            strikes.forget(floor)
        self._strikes = strikes
        self._heard, self._generation = heard, self._cache.generation

    def _read(self, db: sqlite3.Connection) -> _State:
        ledger, seq, floor = db.execute("SELECT id, seq, floor FROM ledger").fetchone()
        known = self._strikes.seq if self._strikes.ledger == ledger else 0
        struck = db.execute("SELECT mark, seq FROM strike WHERE seq > ?", (known,)).fetchall()
        return ledger, seq, floor, struck

    def _settle(self) -> bytes:
        """Write the epoch where it is not right; return what to believe of it: nothing as yet."""

        def write(db: sqlite3.Connection) -> None:
            ledger, seq = db.execute("SELECT id, seq FROM ledger").fetchone()
            os.pwrite(self._open(), _EPOCH.pack(ledger, seq), 0)

        with contextlib.suppress(BusyError):  # whoever holds the lock may be about to write it
            self._cache.do(lambda db: transact(db, lambda: write(db)))
        return b""

    def _write(self, db: sqlite3.Connection, marks: Sequence[bytes]) -> None:
        db.execute("UPDATE ledger SET seq = seq + 1")
        ledger, seq = db.execute("SELECT id, seq FROM ledger").fetchone()
        if EVERYTHING in marks:
            db.execute("DELETE FROM strike")
            db.execute("UPDATE ledger SET floor = seq")
        else:
            db.executemany(
                "INSERT OR REPLACE INTO strike VALUES (?, ?)", [(mark, seq) for mark in marks]
            )
            if db.execute("SELECT count(*) FROM strike").fetchone()[0] > CAPACITY:
                _halve(db)
        os.pwrite(self._open(), _EPOCH.pack(ledger, seq), 0)

    def _open(self) -> int:
        """Return the epoch's file, which is opened anew when it was deleted."""
        if self._file is not None and not os.fstat(self._file).st_nlink:
            self._close()
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        return self._file

    def _close(self) -> None:
        file, self._file, self._heard = self._file, None, b""
        if file is not None:
            os.close(file)

    def after_fork_in_child(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()


def _halve(db: sqlite3.Connection) -> None:
    """Forget the older half of the strikes, and with it all entries from before them."""
    floor = db.execute(
        "SELECT seq FROM strike ORDER BY seq LIMIT 1 OFFSET ?", (CAPACITY // 2,)
    ).fetchone()[0]
    db.execute("DELETE FROM strike WHERE seq <= ?", (floor,))
    db.execute("UPDATE ledger SET floor = max(floor, ?)", (floor,))
