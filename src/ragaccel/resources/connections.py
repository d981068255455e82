"""SQLite connections that threads take in turn and that never cross a fork."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ragaccel.resources.forks import Forkable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

_IDLE: Final = 8
_BUSY_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.01
_FORK_SECONDS: Final = 5.0


class DamagedFileError(Exception):
    """SQLite found that a file is no database, or a broken one.

    Attributes:
        inode: The number of that file; another one may lie at its path by now.
    """

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode


class _Lease(NamedTuple):
    db: sqlite3.Connection
    generation: int
    inode: int


class Connections(Forkable):
    """Connections to one file, opened when needed; a few are kept while nobody uses them.

    Args:
        path: The file.
        connect: Opens a connection with autocommit; it must not refer back to the owner.
        prepare: Is given each new connection, to set it up; waited for while another process
            holds the lock.
        replaceable: Whether another file may be put at the path: that is noticed, and its content
            used.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        connect: Callable[[], sqlite3.Connection],
        prepare: Callable[[sqlite3.Connection], object],
        *,
        replaceable: bool = False,
    ) -> None:
        self._path = path if replaceable else None
        self._connect, self._prepare = connect, prepare
        self._free = threading.Condition()
        self._idle: list[_Lease] = []
        self._in_use = self._generation = self._inode = 0
        self._held = False
        self._closing = weakref.finalize(self, _close, self._idle)
        self.follow_forks()

    @property
    def are_idle(self) -> bool:
        """Whether a use need not open a connection first."""
        return bool(self._idle)

    @property
    def generation(self) -> int:
        """A number that changes when connections of before are of no use any more."""
        return self._generation

    @contextlib.contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Give a connection of this thread's own for a while.

        Raises:
            DamagedFileError: What was done inside, or opening, found the file damaged.
        """
        lease = self._take()
        try:
            yield lease.db
        except sqlite3.DatabaseError as error:
            _raise_if_damaged(error, lease.inode)
            raise
        finally:
            self._put(lease)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no connection is open, and keep it so for a while."""
        self._hold(None)
        try:
            yield
        finally:
            self._release()

    def close(self) -> None:
        """Close what nobody uses, and the others when they come back; the next use opens again."""
        with self._free:
            self._drop_idle()

    def _take(self) -> _Lease:
        current = _inode(self._path)
        with self._free:
            self._free.wait_for(lambda: not self._held)
            self._in_use += 1
            if current != self._inode:
                self._drop_idle()
                self._inode = current
            if self._idle:
                return self._idle.pop()
            generation = self._generation
        try:
            return self._open(generation)
        except BaseException:
            self._leave()
            raise

    def _put(self, lease: _Lease) -> None:
        with self._free:
            kept = lease.generation == self._generation and len(self._idle) < _IDLE
            if kept:
                self._idle.append(lease)
        if not kept:
            lease.db.close()
        self._leave()

    def _leave(self) -> None:
        with self._free:
            self._in_use -= 1
            self._free.notify_all()

    def _open(self, generation: int) -> _Lease:
        while True:
            before = _inode(self._path)
            connection = self._prepared(before)
            inode = _inode(self._path)
            if before in (0, inode):
                break
            connection.close()  # the file was replaced while it was opened
        with self._free:
            if generation == self._generation and not self._inode:
                self._inode = inode
        return _Lease(connection, generation, inode)

    def _prepared(self, inode: int) -> sqlite3.Connection:
        connection = self._connect()
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._prepare(connection)
            except sqlite3.DatabaseError as error:
                # SQLite does not wait by itself for the lock that changes the journal mode.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    connection.close()
                    _raise_if_damaged(error, inode)
                    raise
                time.sleep(_RETRY_SECONDS)
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def _hold(self, seconds: float | None) -> None:
        with self._free:
            self._free.wait_for(lambda: not self._held)
            self._held = True
            self._free.wait_for(lambda: not self._in_use, seconds)
            self._drop_idle()

    def _release(self) -> None:
        with self._free:
            self._held = False
            self._free.notify_all()

    def _drop_idle(self) -> None:
        self._inode = 0
        self._generation += 1
        _close(self._idle)

    def before_fork(self) -> None:
        """Wait until no thread is inside, close everything and keep the others out."""
        self._hold(_FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Let the threads in again."""
        self._release()

    def after_fork_in_child(self) -> None:
        """Begin with no connection."""
        self._free = threading.Condition()
        self._in_use = 0
        self._held = False


def _raise_if_damaged(error: sqlite3.DatabaseError, inode: int) -> None:
    if type(error) is sqlite3.DatabaseError:  # its subclasses mean locked, full, a bad argument
        raise DamagedFileError(inode) from error


def _close(idle: list[_Lease]) -> None:
    while idle:
        idle.pop().db.close()


def _inode(path: str | os.PathLike[str] | None) -> int:
    if path is None:
        return 0
    try:
        return Path(path).stat().st_ino
    except FileNotFoundError:
        return 0
