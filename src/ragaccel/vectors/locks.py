"""Locks: many searches or one write in a process; one writer among processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import weakref
from typing import TYPE_CHECKING

from ragaccel.errors import CollectionLockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


class ReadWriteLock:
    """Readers together, a writer alone; they take turns where both wait."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = self._readers_waiting = self._readers_admitted = 0
        self._writing = False
        self._writers_waiting = 0
        self._reading = _Reading(self)

    def read(self) -> AbstractContextManager[None]:
        """Hold the lock for reading."""
        return self._reading

    def begin_reading(self) -> None:
        """Take the lock for reading; `end_reading` lets go of it."""
        with self._condition:
            if not self._may_read():
                self._readers_waiting += 1
                try:
                    self._condition.wait_for(self._may_read)
                finally:
                    self._readers_waiting -= 1
            self._readers_admitted = max(0, self._readers_admitted - 1)
            self._readers += 1

    def end_reading(self) -> None:
        """Let go of what `begin_reading` took."""
        with self._condition:
            self._readers -= 1
            if not self._readers:
                self._condition.notify_all()

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock for writing."""
        with self._condition:
            self._writers_waiting += 1
            try:
                self._condition.wait_for(self._may_write)
            finally:
                self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                # Those who waited for this write go before the next one.
                self._readers_admitted = self._readers_waiting
                self._condition.notify_all()

    def _may_read(self) -> bool:
        return not self._writing and (not self._writers_waiting or self._readers_admitted > 0)

    def _may_write(self) -> bool:
        admitted = min(self._readers_admitted, self._readers_waiting)
        return not (self._writing or self._readers or admitted)


class _Reading:
    """Holds a lock for reading; many hold it at a time, so it keeps nothing of its own."""

    def __init__(self, lock: ReadWriteLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.begin_reading()

    def __exit__(self, *_: object) -> None:
        self._lock.end_reading()


class WriterLock:
    """The right to write a collection, held through an open file: a killed holder frees it."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise CollectionLockedError(
                f"another writer has {file.parent} open; close it, or open with read_only=True."
            ) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def release(self) -> None:
        """Let the next writer in; so does dropping the last reference."""
        self._close()
