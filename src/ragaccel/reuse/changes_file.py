"""A change log that processes share and that outlives them: a SQLite file.

Every change is on disk before the write that makes it begins, also after a power cut.
"""

from __future__ import annotations

import functools
import os
import secrets
import sqlite3
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import psutil

from ragaccel.errors import ConfigurationError, InvalidationError
from ragaccel.resources import Connections, DamagedFileError
from ragaccel.reuse.changes import (
    EVERYTHING,
    LINGER_SECONDS,
    MAX_ROWS,
    Change,
    ChangeLog,
    Position,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

_VERSION: Final = 0x5241_0001
_BUSY_SECONDS: Final = 5.0
_MARK_BITS: Final = 62
#: Of a process's start time, which is told in clock ticks.
_SAME_SECONDS: Final = 1.0
_SCHEMA: Final = (
    "CREATE TABLE log (id TEXT NOT NULL)",
    """CREATE TABLE change (
      seq INTEGER PRIMARY KEY AUTOINCREMENT, mark INTEGER NOT NULL, body BLOB NOT NULL,
      rows INTEGER NOT NULL, pid INTEGER, born REAL, until REAL
    )""",
    "CREATE INDEX under_way ON change (seq) WHERE until IS NOT NULL",
)
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Change)


class FileChanges(ChangeLog):
    """A log in a file; the processes that write to the store have it open on one machine.

    Args:
        path: The file; its folder has to exist.

    Raises:
        ConfigurationError: It cannot be opened, or is something else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._connections = Connections(
            self.path, functools.partial(_connect, self.path), _prepare, replaceable=True
        )
        try:
            self.id = self._connections.run(_id_of)
        except (sqlite3.Error, DamagedFileError, OSError) as error:
            raise ConfigurationError(
                f"changes={str(path)!r} cannot be opened as a change log ({error}); give the path "
                "of a file that ragaccel made, or of one that does not exist yet in a folder that "
                "does."
            ) from error
        opened(self)

    def position(self) -> Position:
        """See `ChangeLog.position`."""
        try:
            return self._connections.run(_position)
        except (sqlite3.Error, DamagedFileError):
            return Position(0, 0)

    def since(self, position: Position) -> tuple[Position, Sequence[Change]] | None:
        """See `ChangeLog.since`; a log that cannot be read remembers nothing."""

        def read(db: sqlite3.Connection) -> tuple[Position, Sequence[Change]] | None:
            now = _position(db)
            rows = db.execute(
                "SELECT seq, mark, body FROM change WHERE seq >= ? ORDER BY seq", (position.seq,)
            ).fetchall()
            if not rows or rows[0][:2] != position:
                return None
            return now, [_decoder.decode(body) for _, _, body in rows[1:]]

        try:
            return self._connections.run(read)
        except (sqlite3.Error, DamagedFileError, msgspec.MsgspecError):
            return None

    def begin(self, change: Change) -> int:
        """See `ChangeLog.begin`."""
        pid = os.getpid()
        row = (_mark(), _encoder.encode(change), change.rows, pid, _born(pid))

        def write(db: sqlite3.Connection) -> int:
            seq = db.execute(
                "INSERT INTO change (mark, body, rows, pid, born, until) VALUES (?, ?, ?, ?, ?, ?)",
                (*row, float("inf")),
            ).lastrowid
            db.execute(
                "DELETE FROM change WHERE seq < (SELECT max(seq) FROM (SELECT seq, "
                "sum(rows) OVER (ORDER BY seq DESC) AS total FROM change) WHERE total > ?)",
                (MAX_ROWS,),
            )
            return int(seq or 0)

        try:
            return self._connections.run(write)
        except (sqlite3.Error, DamagedFileError) as error:
            raise InvalidationError(
                f"the change log {self.path} could not be written ({error}), so nothing was "
                "written to the store: other processes would go on serving what it changes."
            ) from error

    def end(self, seq: int, change: Change, *, failed: bool) -> None:
        """See `ChangeLog.end`; if it cannot be noted, the write counts as under way."""
        until = time.time() + LINGER_SECONDS if failed else None
        row = (_encoder.encode(change), change.rows, until, seq)
        try:
            self._connections.run(
                lambda db: db.execute(
                    "UPDATE change SET body = ?, rows = ?, pid = NULL, until = ? WHERE seq = ?", row
                )
            )
        except (sqlite3.Error, DamagedFileError):
            return


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    if _version(db) == _VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if _version(db) != _VERSION:
            _check_empty(db)
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO log VALUES (?)", (uuid.uuid4().hex,))
            db.execute(
                "INSERT INTO change (mark, body, rows) VALUES (?, ?, 1)",
                (_mark(), _encoder.encode(EVERYTHING)),
            )
            db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _check_empty(db: sqlite3.Connection) -> None:
    if db.execute("SELECT 1 FROM sqlite_master").fetchone() or _version(db):
        raise sqlite3.OperationalError("it is another kind of database")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _id_of(db: sqlite3.Connection) -> str:
    return str(db.execute("SELECT id FROM log").fetchone()[0])


def _position(db: sqlite3.Connection) -> Position:
    """Return the place before the oldest write under way, in one state of the file."""
    _bury(db)
    found = db.execute(
        "SELECT seq, mark FROM change WHERE seq < coalesce("
        "(SELECT min(seq) FROM change WHERE until IS NOT NULL AND until > ?), ~(1 << 63)) "
        "ORDER BY seq DESC LIMIT 1", (time.time(),),
    ).fetchone()  # fmt: skip
    return Position(*found) if found else Position(0, 0)


def _bury(db: sqlite3.Connection) -> None:
    """See to it that writes of processes that died count as under way for a while only."""
    rows = db.execute(
        "SELECT seq, pid, born FROM change WHERE until IS NOT NULL AND pid IS NOT NULL"
    ).fetchall()
    for seq, pid, born in rows:
        if not _is_alive(pid, born):
            db.execute(
                "UPDATE change SET pid = NULL, until = ? WHERE seq = ? AND pid = ?",
                (time.time() + LINGER_SECONDS, seq, pid),
            )


def _is_alive(pid: int, born: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - born) < _SAME_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


@functools.lru_cache(maxsize=1)
def _born(pid: int) -> float:
    return psutil.Process(pid).create_time()


def _mark() -> int:
    return secrets.randbits(_MARK_BITS)
