"""SQLite connections that threads take in turn and that never cross a fork."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ragaccel.resources.forks import Forkable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

_IDLE: Final = 8
_BUSY_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.01
_FORK_SECONDS: Final = 5.0


class Connections(Forkable):
    """Connections to one file, opened when needed; a few are kept while nobody uses them.

    Args:
        path: The file, if its content may be replaced by another one's: that is noticed, and the
            new content used. None where it may not.
        connect: Opens a connection with autocommit; it must not refer back to the owner.
        prepare: Is given each new connection, to set it up; waited for while another process
            holds the lock.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        connect: Callable[[], sqlite3.Connection],
        prepare: Callable[[sqlite3.Connection], object],
    ) -> None:
        self._path = path
        self._connect, self._prepare = connect, prepare
        self._free = threading.Condition()
        self._idle: list[tuple[sqlite3.Connection, int]] = []
        self._in_use = 0
        self._generation = 0
        self._inode = 0
        self._closing = weakref.finalize(self, _close, self._idle)
        self.follow_forks()

    @contextlib.contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Give a connection of this thread's own for a while."""
        connection, generation = self._take()
        try:
            yield connection
        finally:
            self._put(connection, generation)

    def close(self) -> None:
        """Close what nobody uses, and the others when they come back; the next use opens again."""
        with self._free:
            self._inode = 0
            self._generation += 1
            idle = self._idle[:]
            self._idle.clear()
        _close(idle)

    @property
    def inode(self) -> int:
        """The number of the file that connections are open to now; 0 for none."""
        return self._inode

    def _take(self) -> tuple[sqlite3.Connection, int]:
        current = _inode(self._path)
        stale: list[tuple[sqlite3.Connection, int]] = []
        with self._free:
            self._in_use += 1
            if current != self._inode:
                self._inode = current
                self._generation += 1
                stale = self._idle[:]
                self._idle.clear()
            taken = self._idle.pop() if self._idle else None
        _close(stale)
        if taken is not None:
            return taken
        generation = self._generation
        try:
            connection = self._open()
        except BaseException:
            with self._free:
                self._in_use -= 1
                self._free.notify_all()
            raise
        with self._free:
            if generation == self._generation:
                self._inode = _inode(self._path)
        return connection, generation

    def _put(self, connection: sqlite3.Connection, generation: int) -> None:
        with self._free:
            self._in_use -= 1
            kept = generation == self._generation and len(self._idle) < _IDLE
            if kept:
                self._idle.append((connection, generation))
            self._free.notify_all()
        if not kept:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._prepare(connection)
            except sqlite3.OperationalError as error:
                # SQLite does not wait by itself for the lock that changes the journal mode.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    connection.close()
                    raise
                time.sleep(_RETRY_SECONDS)
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def before_fork(self) -> None:
        """Wait until no thread is inside, close everything and keep the others out."""
        self._free.acquire()
        self._free.wait_for(lambda: not self._in_use, _FORK_SECONDS)
        _close(self._idle)
        self._idle.clear()

    def after_fork_in_parent(self) -> None:
        """Let the threads in again."""
        self._free.release()

    def after_fork_in_child(self) -> None:
        """Begin with no connection."""
        self._free = threading.Condition()
        self._in_use = 0


def _close(idle: list[tuple[sqlite3.Connection, int]]) -> None:
    for connection, _ in idle:
        connection.close()


def _inode(path: str | os.PathLike[str] | None) -> int:
    if path is None:
        return 0
    try:
        return Path(path).stat().st_ino
    except FileNotFoundError:
        return 0
