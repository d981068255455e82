"""`RowSet`: the rows that a search may find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RowSet:
    """An immutable set of slots, as numbers and as bits; each form is made when it is asked for.

    Args:
        slots: int64 of shape (n,), ascending, each once.
    """

    __slots__ = ("_bitmap", "_count", "_slots")

    def __init__(self, slots: NDArray[np.int64]) -> None:
        self._count = len(slots)
        self._slots: NDArray[np.int64] | None = slots
        self._bitmap: NDArray[np.uint8] | None = None
        if self._count and slots.nbytes > _bytes_for(int(slots[-1]) + 1):
            self._bitmap, self._slots = _packed(slots), None

    def __len__(self) -> int:
        return self._count

    @property
    def slots(self) -> NDArray[np.int64]:
        """The slots, int64 of shape (n,), ascending."""
        slots = self._slots
        if slots is None:
            slots = np.flatnonzero(np.unpackbits(self.bitmap, bitorder="little"))
            self._slots = slots
        return slots

    @property
    def bitmap(self) -> NDArray[np.uint8]:
        """A bit per slot up to the highest one, uint8, lowest bit first, as faiss takes it."""
        bitmap = self._bitmap
        if bitmap is None:
            bitmap = self._bitmap = _packed(self.slots)
        return bitmap

    @property
    def bytes_used(self) -> int:
        """Bytes of the forms that were made so far."""
        return sum(form.nbytes for form in (self._slots, self._bitmap) if form is not None)

    def contains(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some slots, shape (m,), are in the set."""
        bitmap = self.bitmap
        found = np.zeros(len(slots), dtype=bool)
        known = slots < 8 * len(bitmap)
        asked = slots[known]
        found[known] = bitmap[asked >> 3] >> (asked & 7) & 1
        return found


def _bytes_for(end: int) -> int:
    return (end + 7) // 8


def _packed(slots: NDArray[np.int64]) -> NDArray[np.uint8]:
    bits = np.zeros(int(slots[-1]) + 1 if len(slots) else 0, dtype=bool)
    bits[slots] = True
    return np.packbits(bits, bitorder="little")
