"""The page cache: which pages of a mapped file are in memory, and asking for those that are not."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from numpy.typing import NDArray

_PAGE: Final = mmap.PAGESIZE
_WARM_SHARE: Final = 0.98
_SEARCHES: Final = 32  # between two looks at what is in memory
_AT_ONCE_BYTES: Final = 64 << 20
_POPULATE: Final = 22 if sys.platform == "linux" else None  # MADV_POPULATE_READ, Linux 5.14
_madvise = getattr(ctypes.CDLL(None), "madvise", None)
_mincore = getattr(ctypes.CDLL(None), "mincore", None)
_WILL_NEED: Final = getattr(mmap, "MADV_WILLNEED", None)


def ask_for_file(file: Path) -> None:
    """Ask for all of a file."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)


class Pages:
    """Pages of a mapped file of rows.

    Reading a row that is not in memory stops the reader, and brings in its neighbours, which no
    search wants. Where much of the file is not there, the rows of a search are asked for all at
    once and by themselves; where it is, asking would take longer than reading.

    Args:
        rows: Shape (n, dim), mapped from the start of a file.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._left = 0
        self._is_cold = True
        self.map(rows)

    def map(self, rows: NDArray[np.float32]) -> None:
        """Take another mapping of the same file, which has grown; what was written is in memory."""
        mapped: Any = rows.base
        while isinstance(mapped, np.ndarray):
            mapped = mapped.base
        self._map: mmap.mmap | None = mapped if isinstance(mapped, mmap.mmap) else None
        self._rows = rows

    def ask_for(self, rows: NDArray[np.int64]) -> None:
        """Ask for rows, in ascending order, that will be read soon."""
        if not self._is_cold or self._map is None or _WILL_NEED is None:
            return
        if self._left == 0:
            self._is_cold, self._left = self.share_in_memory() < _WARM_SHARE, _SEARCHES
            if not self._is_cold:
                return
        self._left -= 1
        size = self._rows.strides[0]
        starts = rows * size // _PAGE * _PAGE
        lengths = (rows + 1) * size - starts
        with contextlib.suppress(OSError, ValueError):  # it is only a hint
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
                self._map.madvise(_WILL_NEED, start, length)

    def bring_in(self, stopping: threading.Event) -> None:
        """Read and map all pages, until that is not wanted any more.

        The first look at a page that is in memory takes longer than the reading of its rows: a
        search of a million rows looks at hundreds.
        """
        rows = self._rows  # they stay mapped as long as somebody holds them
        if self._map is None or _POPULATE is None or _madvise is None:
            return
        start, end = rows.ctypes.data, rows.ctypes.data + rows.nbytes
        for address in range(start, end, _AT_ONCE_BYTES):
            size = min(_AT_ONCE_BYTES, end - address)
            if stopping.is_set() or _madvise(
                ctypes.c_void_p(address), ctypes.c_size_t(size), _POPULATE
            ):
                return

    def share_in_memory(self) -> float:
        """Return which share of the pages is in memory; 1.0 where the system does not tell."""
        if self._map is None or _mincore is None:
            return 1.0
        told = np.zeros(-(-self._rows.nbytes // _PAGE), dtype=np.uint8)
        address, size = self._rows.ctypes.data, self._rows.nbytes
        if _mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), told.ctypes.data_as(
            ctypes.c_void_p
        )):  # fmt: skip
            return 1.0
        return float((told & 1).mean()) if len(told) else 1.0
