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
        """Slots, int64 of shape (n,), ascending."""
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
        """Drop the rows of slots."""
        at = np.searchsorted(self.slots, slots)
        at = at[at < self._count]
        at = at[np.isin(self._slots[at], slots)]
        if len(at):
            first = int(at.min())
            keep = np.ones(self._count - first, dtype=bool)
            keep[at - first] = False
            kept = first + int(keep.sum())
            self._slots[first:kept] = self._slots[first : self._count][keep]
            self._rows[first:kept] = self._rows[first : self._count][keep]
            self._count = kept

    def take(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return all rows and empty the buffer."""
        taken = self.slots, self.rows
        self._slots = np.zeros(0, dtype=np.int64)
        self._rows = np.zeros((0, self._rows.shape[1]), dtype=np.float32)
        self._count = 0
        return taken
