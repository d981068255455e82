"""The slab: raw vectors by slot, append-only, in a memory-mapped file or in memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ragaccel.errors import CorruptCollectionError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Slab(Protocol):
    """Raw float32 vectors; row number = slot. Slots below `end` are stored."""

    end: int

    def append(self, slots: NDArray[np.int64], vectors: NDArray[np.float32], end: int) -> None:
        """Store vectors durably; slots up to `end` that are not given stay zero."""

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of slots, shape (n, dim)."""

    def close(self) -> None:
        """Let go of the file."""


class MemorySlab:
    """A slab that ends with the process."""

    def __init__(self, dim: int) -> None:
        self.end = 0
        self._rows = np.zeros((0, dim), dtype=np.float32)

    @property
    def bytes_used(self) -> int:
        """Bytes that the rows take."""
        return self._rows.nbytes

    def append(self, slots: NDArray[np.int64], vectors: NDArray[np.float32], end: int) -> None:
        """Store vectors; the array doubles when it is full."""
        if end > len(self._rows):
            room = max(end, 2 * len(self._rows), 1024)
            grown = np.zeros((room, self._rows.shape[1]), dtype=np.float32)
            grown[: self.end] = self._rows[: self.end]
            self._rows = grown
        self._rows[slots] = vectors
        self.end = end

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of slots, shape (n, dim)."""
        return self._rows[slots]

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
        self._file = os.open(path, os.O_RDWR | os.O_CREAT) if writable else None
        self._map = self._mapped()

    def append(self, slots: NDArray[np.int64], vectors: NDArray[np.float32], end: int) -> None:
        """Store vectors and wait until they are on disk."""
        assert self._file is not None  # noqa: S101 - read-only collections never append
        block = np.zeros((end - self.end, self._dim), dtype=np.float32)
        block[slots - self.end] = vectors
        view = memoryview(block.tobytes())
        offset = self.end * self._row_bytes
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written
        os.fsync(self._file)
        self.extend(end)

    def extend(self, end: int) -> None:
        """Take in rows that the writer has appended."""
        self.end = end
        self._map = self._mapped()

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of slots, shape (n, dim)."""
        return self._map[slots]

    def close(self) -> None:
        """Let go of the file."""
        self._map = np.zeros((0, self._dim), dtype=np.float32)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _mapped(self) -> NDArray[np.float32]:
        if self.end == 0:
            return np.zeros((0, self._dim), dtype=np.float32)
        return np.asarray(
            np.memmap(self._path, dtype=np.float32, mode="r", shape=(self.end, self._dim))
        )
