"""SQLite connections that threads take in turn and that never cross a fork."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ragaccel.resources.forks import Forkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_IDLE: Final = 8
_BUSY_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.01
_FORK_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.005


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
        self._path = os.fspath(path) if replaceable and path is not None else None
        self._look_at = 0.0
        self._connect, self._prepare = connect, prepare
        self._lock = threading.RLock()
        self._free = threading.Condition(self._lock)
        self._idle: list[_Lease] = []
        self._count = self._generation = self._inode = 0
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

    def run(self, work: Callable[[sqlite3.Connection], T], *, reading: bool = False) -> T:
        """Run a function with a connection of this thread's own.

        Args:
            work: The function.
            reading: Whether a file that was replaced some milliseconds ago may still be read.

        Raises:
            DamagedFileError: See `use`.
        """
        lease = (self._take_at_once() if reading else None) or self._take()
        try:
            return work(lease.db)
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
        with self._lock:
            self._drop_idle()

    def _take_at_once(self) -> _Lease | None:
        """Return an idle connection, unless the path has to be looked at or somebody holds all.

        This and `_put` do without the lock: a list's `pop` and `append` are atomic, and who holds
        all connections says so before the idle ones are closed and the others waited for.
        """
        if self._held or time.monotonic() > self._look_at:
            return None
        return self._pop()

    def _take(self) -> _Lease:
        current, self._look_at = _inode(self._path), time.monotonic() + _LOOK_SECONDS
        with self._lock:
            while self._held:
                self._free.wait()
            if current != self._inode:
                self._drop_idle()
                self._inode = current
            lease = self._pop()
            if lease is not None:
                return lease
            self._count += 1
            generation = self._generation
        try:
            return self._open(generation)
        except BaseException:
            self._forget()
            raise

    def _put(self, lease: _Lease) -> None:
        if lease.generation != self._generation or len(self._idle) >= _IDLE:
            lease.db.close()
            self._forget()
            return
        self._idle.append(lease)
        if self._held:
            with self._lock:
                self._free.notify_all()

    def _pop(self) -> _Lease | None:
        while True:
            try:
                lease = self._idle.pop()
            except IndexError:
                return None
            if lease.generation == self._generation:
                return lease
            lease.db.close()  # it was put back while the others were dropped
            self._forget()

    def _forget(self) -> None:
        """Count a connection that is no more."""
        with self._lock:
            self._count -= 1
            if self._held:
                self._free.notify_all()

    def _open(self, generation: int) -> _Lease:
        while True:
            before = _inode(self._path)
            connection = self._prepared(before)
            inode = _inode(self._path)
            if before in (0, inode):
                break
            connection.close()  # the file was replaced while it was opened
        with self._lock:
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
        with self._lock:
            self._free.wait_for(lambda: not self._held)
            self._held = True
            self._free.wait_for(self._is_closed, seconds)

    def _is_closed(self) -> bool:
        """Close what nobody uses, and tell whether that was all."""
        self._drop_idle()
        return not self._count

    def _release(self) -> None:
        with self._lock:
            self._held = False
            self._free.notify_all()

    def _drop_idle(self) -> None:
        self._inode = 0
        self._generation += 1
        self._count -= _close(self._idle)

    def before_fork(self) -> None:
        """Wait until no thread is inside, close everything and keep the others out."""
        self._hold(_FORK_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Let the threads in again."""
        self._release()

    def after_fork_in_child(self) -> None:
        """Begin with no connection."""
        self._lock = threading.RLock()
        self._free = threading.Condition(self._lock)
        self._count = len(self._idle)
        self._held = False


def _raise_if_damaged(error: sqlite3.DatabaseError, inode: int) -> None:
    if type(error) is sqlite3.DatabaseError:  # its subclasses mean locked, full, a bad argument
        raise DamagedFileError(inode) from error


def _close(idle: list[_Lease]) -> int:
    """Close connections that nobody uses, and return how many."""
    closed = 0
    while True:
        try:
            lease = idle.pop()
        except IndexError:
            return closed
        lease.db.close()
        closed += 1


def _inode(path: str | None) -> int:
    if path is None:
        return 0
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - a third of the time that Path takes
    except FileNotFoundError:
        return 0
