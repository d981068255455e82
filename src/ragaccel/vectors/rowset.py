"""`RowSet`: the rows that a search may find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self


class RowSet:
    """An immutable set of slots, kept as numbers or as bits, whatever is smaller.

    The other form is made when it is asked for.

    Args:
        slots: int64 of shape (n,), ascending, each once.
    """

    __slots__ = ("_bitmap", "_count", "_slots")

    def __init__(self, slots: NDArray[np.int64]) -> None:
        self._count = len(slots)
        self._slots: NDArray[np.int64] | None = slots
        self._bitmap: NDArray[np.uint8] | None = None
        if slots.nbytes > _bytes_for(slots):
            self._slots, self._bitmap = None, _packed(slots)

    @classmethod
    def _of_bits(cls, bitmap: NDArray[np.uint8], count: int) -> Self:
        rows = cls.__new__(cls)
        rows._count, rows._slots, rows._bitmap = count, None, bitmap
        return rows

    def __len__(self) -> int:
        return self._count

    @property
    def slots(self) -> NDArray[np.int64]:
        """The slots, int64 of shape (n,), ascending."""
        slots = self._slots
        if slots is None:
            slots = np.flatnonzero(np.unpackbits(self.bitmap, bitorder="little").view(bool))
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
        """Return which of some slots, int64 of shape (m,), are in the set."""
        if self._bitmap is None:
            return _among(self.slots, slots)
        found = np.zeros(len(slots), dtype=bool)
        known = slots < 8 * len(self._bitmap)
        asked = slots[known]
        found[known] = self._bitmap[asked >> 3] >> (asked & 7) & 1
        return found

    def changed(self, gone: NDArray[np.int64], added: NDArray[np.int64]) -> RowSet:
        """Return the set without slots that may be in it, and with slots above all that are.

        Args:
            gone: int64 of shape (m,), ascending, each once.
            added: int64 of shape (n,), ascending, each once.
        """
        gone = gone[self.contains(gone)]
        if self._bitmap is None:
            return RowSet(np.concatenate((self.slots[~_among(gone, self.slots)], added)))
        bitmap = np.zeros(max(len(self._bitmap), _bytes_for(added)), dtype=np.uint8)
        bitmap[: len(self._bitmap)] = self._bitmap
        np.bitwise_xor.at(bitmap, gone >> 3, _bits(gone))
        np.bitwise_or.at(bitmap, added >> 3, _bits(added))
        return self._of_bits(bitmap, self._count - len(gone) + len(added))


def _bytes_for(slots: NDArray[np.int64]) -> int:
    return int(slots[-1] >> 3) + 1 if len(slots) else 0


def _bits(slots: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.uint8(1) << (slots & 7).astype(np.uint8)


def _packed(slots: NDArray[np.int64]) -> NDArray[np.uint8]:
    bits = np.zeros(8 * _bytes_for(slots), dtype=bool)
    bits[slots] = True
    return np.packbits(bits, bitorder="little")


def _among(ordered: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some slots are among others, which are ascending."""
    if not len(ordered):
        return np.zeros(len(slots), dtype=bool)
    at = np.searchsorted(ordered, slots)
    at[at == len(ordered)] = 0
    found: NDArray[np.bool_] = ordered[at] == slots
    return found
