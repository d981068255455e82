"""Single flight across processes: the right to compute a key, held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from pathlib import Path
from typing import Final, Protocol

from ragaccel.resources import Forkable


class Leases(Protocol):
    """Gives the lease of a key to one process; another gets it when it is released or runs out."""

    def acquire(self, key: bytes) -> bool:
        """Try to get the lease of a key, without waiting; tell whether it was had."""

    def release(self, key: bytes) -> None:
        """Give a lease back; one that ran out is left to its new holder."""

    async def aacquire(self, key: bytes) -> bool:
        """Do what `acquire` does, without blocking the event loop."""

    async def arelease(self, key: bytes) -> None:
        """Do what `release` does, without blocking the event loop."""


_SETLK: Final[int | None] = getattr(fcntl, "F_OFD_SETLK", None)
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of Linux on 64 bits
_HELD = fcntl.F_WRLCK
_FREE = fcntl.F_UNLCK


class FileLeases(Forkable):
    """Leases as locked bytes of a file: the system releases those of a process that dies.

    On Linux the locks belong to the open file, so that two caches of one process over one folder
    keep each other out too. Elsewhere they belong to the process, whose own calls single flight of
    each cache keeps apart.

    Args:
        path: The file; it and its folder are made at the first use.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._file: int | None = None
        self.follow_forks()

    def acquire(self, key: bytes) -> bool:
        """Try to get the lease of a key; see `Leases`."""
        try:
            _lock(self._open(), _HELD, _offset(key))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, key: bytes) -> None:
        """Give a lease back."""
        if self._file is not None:
            _lock(self._file, _FREE, _offset(key))

    async def aacquire(self, key: bytes) -> bool:
        """Do what `acquire` does, which never waits."""
        return self.acquire(key)

    async def arelease(self, key: bytes) -> None:
        """Do what `release` does, which never waits."""
        self.release(key)

    def close(self) -> None:
        """Give every lease back."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)

    def _open(self) -> int:
        with self._lock:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            return self._file

    def after_fork_in_child(self) -> None:
        """Begin with no lease; closing the parent's file here does not touch its locks."""
        self._lock = threading.Lock()
        with contextlib.suppress(OSError):
            self.close()


def _lock(file: int, kind: int, offset: int) -> None:
    """Lock or free one byte of a file, without waiting."""
    if _SETLK is not None:
        fcntl.fcntl(file, _SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
    else:
        flags = fcntl.LOCK_UN if kind == _FREE else fcntl.LOCK_EX | fcntl.LOCK_NB
        fcntl.lockf(file, flags, 1, offset)


def _offset(key: bytes) -> int:
    return int.from_bytes(key[:8], "little") >> 2  # file offsets are 63 bits wide, locks end there
