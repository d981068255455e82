"""The ledger of a cache file, which every process that uses the file hears of at once.

The strikes lie in the cache file. A small file beside it, the epoch, holds the number of the last
one, and is read before every answer: one system call, and a look into the cache file only when the
number has changed. That it is still the file at its path is looked at a little less often.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from ragaccel.cache.ledger import CAPACITY, EVERYTHING, FEW, Position, Strike, Strikes, fair_share
from ragaccel.cache.levels.disk.file import BusyError, CacheFile, transact
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

_log = logging.getLogger("ragaccel.cache")

_SETTLE_AGAIN_SECONDS: Final = 1.0
_LOOK_AGAIN_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.0002  # less than it takes another process to open the files and strike


class _Epoch(NamedTuple):
    """What the epoch's file holds.

    Attributes:
        ledger: Whose strikes are numbered.
        seq: The number of the last one.
        pending: 1 while that one is about to be committed.
    """

    ledger: int
    seq: int
    pending: int = 0

    def packed(self) -> bytes:
        return _LAYOUT.pack(*self)


_LAYOUT: Final = struct.Struct("<QQQ")


class _State(NamedTuple):
    """What a look into the cache file found."""

    ledger: int
    seq: int
    floor: int
    struck: list[Strike]


class DiskLedger(Forkable):
    """Strikes in a cache file.

    While the file cannot be read any more, what was stored before does not stand: nobody can tell
    what was struck meanwhile. Where it never could be, nobody shares it, and the process goes by
    strikes of its own.

    Args:
        epoch: The small file; its folder is made with the cache file.
        file: The cache file.
    """

    shared = True

    def __init__(self, epoch: Path, file: CacheFile) -> None:
        self._path, self._cache = os.fspath(epoch), file
        self._lock = threading.Lock()
        self._file: int | None = None
        self._inode = 0
        self._heard: bytes | None = None
        self._strikes = Strikes(secrets.randbits(62))
        self._was_read = self._is_deaf = False
        self._settle_at = self._look_at = self._looked = 0.0
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

    def strike(self, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Let no entry of a namespace with one of the marks stand from now on."""
        try:
            self._cache.do(lambda db: self._strike(db, namespace, marks))
        except BaseException:
            with self._lock:
                if not self._was_read:
                    self._strikes.strike(namespace, marks)
            raise
        self._look_at = 0.0
        self._hear()

    async def astrike(self, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Do what `strike` does, in a worker thread."""
        await asyncio.to_thread(self.strike, namespace, marks)

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

    # ---- hearing ---------------------------------------------------------------------------------

    def _hear(self) -> None:
        file = self._file
        if file is not None and self._heard is not None:
            try:
                if self._is_there() and os.pread(file, _LAYOUT.size, 0) == self._heard:
                    return
            except OSError:  # closed or gone meanwhile
                pass
        with self._lock:
            if time.monotonic() < self._look_at:
                return
            try:
                self._catch_up()
            except Exception as error:  # noqa: BLE001 - a level's fault never reaches the caller
                self._lose_touch(error)

    def _is_there(self) -> bool:
        """Tell whether the open epoch was the one at its path a moment ago."""
        now = time.monotonic()
        if now > self._looked + _LOOK_SECONDS:
            if os.stat(self._path).st_ino != self._inode:  # noqa: PTH116 - see connections
                return False
            self._looked = now
        return True

    def _lose_touch(self, error: Exception) -> None:
        """Go on without the ledger."""
        self._heard = None
        if self._was_read:
            self._strikes = Strikes(secrets.randbits(62))
            if not self._is_deaf:
                self._is_deaf = True
                _log.warning(
                    "invalidations of the cache's disk level cannot be read, and nothing that was "
                    "stored before is served while that is so: %s: %s", type(error).__name__, error,
                )  # fmt: skip
        else:
            self._look_at = time.monotonic() + _LOOK_AGAIN_SECONDS

    def _catch_up(self) -> None:
        known = self._strikes
        state = self._cache.do(lambda db: _read(db, known))
        self._was_read = True
        epoch = os.pread(self._open(), _LAYOUT.size, 0)
        is_behind = known.ledger == state.ledger and state.seq < known.seq
        if is_behind or epoch != _Epoch(state.ledger, state.seq).packed():
            # New, or a writer was killed or is about to commit, or the file is an older copy.
            state, epoch = self._settled(state, known)
        strikes = known if known.ledger == state.ledger else Strikes(state.ledger)
        strikes.add(state.struck)
        strikes.seq = max(strikes.seq, state.seq)
        if state.floor > strikes.floor:
            strikes.forget(state.floor)
        strikes.fold()
        self._strikes = strikes
        self._heard = epoch if epoch == _Epoch(state.ledger, state.seq).packed() else None
        if self._is_deaf:
            self._is_deaf = False
            _log.warning("invalidations of the cache's disk level can be read again")

    def _settled(self, state: _State, known: Strikes) -> tuple[_State, bytes]:
        """Bring epoch and file together, with the file's lock held.

        An epoch ahead of the file shows that strikes were lost with a newer file: then nothing that
        was stored before stands any more. One strike that was pending may not have been committed.
        """

        def settle(db: sqlite3.Connection) -> tuple[_State, bytes]:
            ledger, seq = db.execute("SELECT id, seq FROM ledger").fetchone()
            ahead = known.seq if known.ledger == ledger else 0
            written = os.pread(self._open(), _LAYOUT.size, 0)
            if len(written) == _LAYOUT.size:
                found = _Epoch(*_LAYOUT.unpack(written))
                if found.ledger == ledger:
                    ahead = max(ahead, found.seq - found.pending)
            if ahead > seq:
                db.execute("DELETE FROM strike")
                db.execute("UPDATE ledger SET seq = ?, floor = ?", (ahead + 1, ahead + 1))
            read = _read(db, known)
            packed = _Epoch(read.ledger, read.seq).packed()
            os.pwrite(self._open(), packed, 0)
            return read, packed

        if time.monotonic() < self._settle_at:
            return state, b""
        try:
            return self._cache.do(lambda db: transact(db, lambda: settle(db)))
        except BusyError:  # whoever holds the lock may be about to write it
            self._settle_at = time.monotonic() + _SETTLE_AGAIN_SECONDS
            return state, b""

    # ---- striking --------------------------------------------------------------------------------

    def _strike(self, db: sqlite3.Connection, namespace: bytes, marks: Sequence[bytes]) -> None:
        epoch = transact(db, lambda: self._write(db, namespace, marks))
        # The strike is written down: whoever finds it pending still hears of it.
        with contextlib.suppress(OSError):
            os.pwrite(self._open(), epoch.packed(), 0)

    def _write(self, db: sqlite3.Connection, namespace: bytes, marks: Sequence[bytes]) -> _Epoch:
        db.execute("UPDATE ledger SET seq = seq + 1")
        ledger, seq = db.execute("SELECT id, seq FROM ledger").fetchone()
        if EVERYTHING in marks:
            db.execute("DELETE FROM strike")
            db.execute("UPDATE ledger SET floor = seq")
        elif namespace in marks:
            db.execute("DELETE FROM strike WHERE namespace = ?", (namespace,))
            db.execute("INSERT INTO strike VALUES (?, ?, ?)", (namespace, namespace, seq))
        else:
            rows = [(namespace, mark, seq) for mark in marks]
            db.executemany("INSERT OR REPLACE INTO strike VALUES (?, ?, ?)", rows)
            _fold(db)
        os.pwrite(self._open(), _Epoch(ledger, seq, 1).packed(), 0)
        return _Epoch(ledger, seq)

    # ---- the epoch's file ------------------------------------------------------------------------

    def _open(self) -> int:
        """Return the epoch's file, opened anew when another or none lies at its path."""
        if self._file is not None:
            try:
                if os.stat(self._path).st_ino == self._inode:  # noqa: PTH116 - see connections
                    return self._file
            except FileNotFoundError:
                pass
            self._close()
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        self._inode = os.fstat(self._file).st_ino
        return self._file

    def _close(self) -> None:
        file, self._file, self._heard = self._file, None, None
        if file is not None:
            os.close(file)

    def after_fork_in_child(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()


def _read(db: sqlite3.Connection, known: Strikes) -> _State:
    """Return what was struck since a process looked, in one transaction."""
    own = not db.in_transaction
    if own:
        db.execute("BEGIN")
    try:
        ledger, seq, floor = db.execute("SELECT id, seq, floor FROM ledger").fetchone()
        since = known.seq if known.ledger == ledger else -1
        rows = db.execute("SELECT namespace, mark, seq FROM strike WHERE seq > ?", (since,))
        return _State(ledger, seq, floor, [Strike(*row) for row in rows])
    finally:
        if own:
            db.execute("COMMIT")


def _fold(db: sqlite3.Connection) -> None:
    """Put marks together where they are too many; see `Strikes.fold`."""
    if db.execute("SELECT count(*) FROM strike").fetchone()[0] <= CAPACITY:
        return
    sizes = dict(db.execute("SELECT namespace, count(*) FROM strike GROUP BY namespace").fetchall())
    share = fair_share(sizes.values(), CAPACITY * 7 // 8)
    if share < FEW:
        (floor,) = db.execute(
            "SELECT seq FROM strike ORDER BY seq LIMIT 1 OFFSET ?", (CAPACITY // 2,)
        ).fetchone()
        db.execute("DELETE FROM strike WHERE seq <= ?", (floor,))
        db.execute("UPDATE ledger SET floor = max(floor, ?)", (floor,))
        return
    for namespace, size in sizes.items():
        if size > share:
            (oldest,) = db.execute(
                "SELECT seq FROM strike WHERE namespace = ? ORDER BY seq DESC LIMIT 1 OFFSET ?",
                (namespace, share),
            ).fetchone()
            db.execute("DELETE FROM strike WHERE namespace = ? AND seq <= ?", (namespace, oldest))
            row = (namespace, namespace, oldest)
            db.execute("INSERT OR REPLACE INTO strike VALUES (?, ?, ?)", row)
