"""The slab: raw vectors by slot, append-only, in a memory-mapped file or in memory."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import xxhash

from ragaccel.errors import CollectionError, CorruptCollectionError
from ragaccel.vectors.pages import Pages

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Sum = tuple[int, int, bytes]

SLAB: Final = "vectors.bin"
_BLOCK_ROWS: Final = 8192
_READ_ROWS: Final = 8192
_PAGE: Final = 4096
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_fallocate = getattr(ctypes.CDLL(None), "fallocate64", None)  # of Linux's glibc


class Rows(Protocol):
    """Where raw vectors are read."""

    @property
    def mapped(self) -> NDArray[np.float32]:
        """All rows, float32 of shape (end or more, dim), without a copy."""

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of slots, shape (n, dim)."""

    def ask_for(self, slots: NDArray[np.int64]) -> None:
        """Tell which slots, ascending, will be read next."""


class Slab(Rows, Protocol):
    """Raw float32 vectors; row number = slot. Slots below `end` are stored."""

    end: int

    def append(self, slots: NDArray[np.int64], vectors: NDArray[np.float32], end: int) -> list[Sum]:
        """Store vectors durably above `end`; `extend` makes them readable.

        Args:
            slots: Their slots, ascending, from `end` on.
            vectors: Shape (n, dim).
            end: The end to be; slots below it that are not given stay zero.

        Returns:
            The checksums of blocks from the old end to the new one, as (first, end, sum).
        """

    def extend(self, end: int) -> None:
        """Take in rows that were appended."""

    def bring_in(self, stopping: threading.Event) -> None:
        """Make reading of all rows fast, until that is not wanted any more."""

    def close(self) -> None:
        """Let go of the file."""


def blocks(slots: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield slots in parts whose vectors fit into little memory."""
    for start in range(0, len(slots), _READ_ROWS):
        yield slots[start : start + _READ_ROWS]


class MemorySlab:
    """A slab that ends with the process."""

    def __init__(self, dim: int) -> None:
        self.end = 0
        self._rows = np.zeros((0, dim), dtype=np.float32)

    @property
    def bytes_used(self) -> int:
        """Bytes that the rows take."""
        return self._rows.nbytes

    def append(self, slots: NDArray[np.int64], vectors: NDArray[np.float32], end: int) -> list[Sum]:
        """Store vectors; the array doubles when it is full. Nothing damages it: no sums."""
        if end > len(self._rows):
            room = max(end, 2 * len(self._rows), 1024)
            grown = np.zeros((room, self._rows.shape[1]), dtype=np.float32)
            grown[: self.end] = self._rows[: self.end]
            self._rows = grown
        self._rows[slots] = vectors
        return []

    def extend(self, end: int) -> None:
        """Take in rows that were appended."""
        self.end = end

    @property
    def mapped(self) -> NDArray[np.float32]:
        """All rows, without a copy."""
        return self._rows

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of slots, shape (n, dim)."""
        return self._rows[slots]

    def ask_for(self, slots: NDArray[np.int64]) -> None:
        """All are in memory."""

    def bring_in(self, stopping: threading.Event) -> None:
        """All are in memory."""

    def close(self) -> None:
        """Let go of the rows."""
        self._rows = self._rows[:0]


class FileSlab:
    """A slab in a file, mapped into memory: its pages are the page cache's, not the process's."""

    def __init__(self, path: Path, dim: int, end: int, *, writable: bool) -> None:
        self.end = end
        self._path, self._dim = path, dim
        self._row_bytes = dim * 4
        size = path.stat().st_size if path.exists() else 0
        if size < end * self._row_bytes:
            raise CorruptCollectionError(
                f"{path} holds {size} bytes where {end * self._row_bytes} were stored: raw vectors "
                "are lost; restore the folder from a backup."
            )
        self._file = _opened(path) if writable else None
        if self._file is not None:
            self._closing = weakref.finalize(self, os.close, self._file)
        self._map = self._mapped()
        self._pages = Pages(self._map)

    def append(self, slots: NDArray[np.int64], vectors: NDArray[np.float32], end: int) -> list[Sum]:
        """Store vectors and wait until they are on disk.

        Raises:
            CollectionError: The disk is full, or cannot be written.
        """
        assert self._file is not None  # noqa: S101 - read-only collections never append
        block = np.zeros((end - self.end, self._dim), dtype=np.float32)
        block[slots - self.end] = vectors
        view = block.reshape(-1).view(np.uint8).data
        offset = self.end * self._row_bytes
        try:
            while view:
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written
            os.fsync(self._file)
        except OSError as error:
            raise CollectionError(f"{self._path} cannot be written: {error.strerror}.") from error
        return [
            (
                self.end + at,
                min(self.end + at + _BLOCK_ROWS, end),
                checksum(block[at:][:_BLOCK_ROWS]),
            )
            for at in range(0, len(block), _BLOCK_ROWS)
        ]

    def extend(self, end: int) -> None:
        """Take in rows that were appended, by this or another process."""
        self.end = end
        self._map = self._mapped()
        self._pages.map(self._map)

    @property
    def mapped(self) -> NDArray[np.float32]:
        """All rows, without a copy."""
        return self._map

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of slots, shape (n, dim)."""
        return self._map[slots]

    def ask_for(self, slots: NDArray[np.int64]) -> None:
        """Let the system read slots, ascending, all at once where they are not in memory."""
        self._pages.ask_for(slots)

    def bring_in(self, stopping: threading.Event) -> None:
        """Read and map all pages, until that is not wanted any more."""
        self._pages.bring_in(stopping)

    def give_back(self, dead: NDArray[np.bool_]) -> None:
        """Give the pages of dead rows, by slot, back to the file system; they read as zeros.

        Nothing happens where the file system cannot do that.
        """
        assert self._file is not None  # noqa: S101 - read-only collections give nothing back
        edges = np.flatnonzero(np.diff(dead.astype(np.int8), prepend=0, append=0))
        starts = -(-edges[::2] * self._row_bytes // _PAGE) * _PAGE
        lengths = edges[1::2] * self._row_bytes // _PAGE * _PAGE - starts
        whole = lengths > 0
        for start, length in zip(starts[whole].tolist(), lengths[whole].tolist(), strict=True):
            if not _punch(self._file, start, length):
                return

    def close(self) -> None:
        """Let go of the file."""
        self._map = np.zeros((0, self._dim), dtype=np.float32)
        self._pages.map(self._map)
        if self._file is not None:
            self._file = None
            self._closing()

    def _mapped(self) -> NDArray[np.float32]:
        if self.end == 0:
            return np.zeros((0, self._dim), dtype=np.float32)
        shape = self.end, self._dim
        try:
            return np.asarray(np.memmap(self._path, dtype=np.float32, mode="r", shape=shape))
        except (OSError, ValueError) as error:
            raise CorruptCollectionError(
                f"{self._path} cannot be mapped, though rows are stored in it: {error}"
            ) from error


def checksum(rows: NDArray[np.float32]) -> bytes:
    """Return the xxh3-64 of rows as they lie in the slab."""
    return xxhash.xxh3_64_digest(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


def _opened(path: Path) -> int:
    """Open the file; a new one is made known to its folder on disk, too."""
    is_new = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    return file


def _punch(file: int, start: int, length: int) -> bool:
    """Punch a hole with Linux's fallocate(2); tell whether it could be done."""
    if _fallocate is None:
        return False
    mode = _KEEP_SIZE | _PUNCH_HOLE
    done: int = _fallocate(file, mode, ctypes.c_int64(start), ctypes.c_int64(length))
    return done == 0
