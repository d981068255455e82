"""The fresh buffer: recent rows, kept as they are and searched exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Buffer:
    """Prepared rows by slot, in arrays that double when they are full."""

    def __init__(self, dim: int) -> None:
        self._slots = np.zeros(0, dtype=np.int64)
        self._rows = np.zeros((0, dim), dtype=np.float32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def slots(self) -> NDArray[np.int64]:
        """Slots, int64 of shape (n,), in any order."""
        return self._slots[: self._count]

    @property
    def rows(self) -> NDArray[np.float32]:
        """Prepared vectors, float32 of shape (n, dim)."""
        return self._rows[: self._count]

    @property
    def bytes_used(self) -> int:
        """Bytes that the arrays take, unused room included."""
        return self._rows.nbytes + self._slots.nbytes

    def add(self, slots: NDArray[np.int64], prepared: NDArray[np.float32]) -> None:
        """Append rows whose slots are higher than all that are here."""
        end = self._count + len(slots)
        if end > len(self._slots):
            room = max(end, 2 * len(self._slots))
            self._slots = np.resize(self._slots, room)
            grown = np.empty((room, self._rows.shape[1]), dtype=np.float32)
            grown[: self._count] = self.rows
            self._rows = grown
        self._slots[self._count : end] = slots
        self._rows[self._count : end] = prepared
        self._count = end

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Drop the rows of slots; the last ones take their places."""
        gone = self.slots == slots[0] if len(slots) == 1 else np.isin(self.slots, slots)
        for hole in np.flatnonzero(gone)[::-1].tolist():
            self._count -= 1
            self._slots[hole] = self._slots[self._count]
            self._rows[hole] = self._rows[self._count]

    def take(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return all rows, by ascending slots, and empty the buffer."""
        slots, rows = self.slots, self.rows
        if (np.diff(slots) < 0).any():
            order = np.argsort(slots)
            slots, rows = slots[order], rows[order]
        self._slots = np.zeros(0, dtype=np.int64)
        self._rows = np.zeros((0, self._rows.shape[1]), dtype=np.float32)
        self._count = 0
        return slots, rows
