"""Blocks of the slab and their checksums: rows are summed when they are appended.

Rows that died can be given back to the file system. The block is then summed anew with zeros in
their place, and says which they are; so it is whole before the pages are given back and after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ragaccel.vectors.slab import checksum

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ragaccel.vectors.slab import Slab

    Sum = tuple[int, int, bytes]

TABLE: Final = """
CREATE TABLE IF NOT EXISTS block (
  first INTEGER PRIMARY KEY,
  end INTEGER NOT NULL,
  sum BLOB NOT NULL,
  dead BLOB
);
"""
#: The least share of a block whose deletion is worth reading and summing it anew.
_WORTH: Final = 1 / 16


class Block(NamedTuple):
    """Rows of the slab, from slot `first` to before `end`.

    Attributes:
        first: The first slot.
        end: One more than the last slot.
        sum: The xxh3-64 of the rows, with zeros for those that were given back.
        dead: Bit per row, whether it was given back; None if none was.
    """

    first: int
    end: int
    sum: bytes
    dead: bytes | None

    @property
    def given_back(self) -> NDArray[np.bool_]:
        """By row, whether it was given back."""
        if self.dead is None:
            return np.zeros(self.end - self.first, dtype=bool)
        bits = np.frombuffer(self.dead, dtype=np.uint8)
        return np.unpackbits(bits, count=self.end - self.first).astype(bool)

    def is_whole(self, rows: NDArray[np.float32]) -> bool:
        """Tell whether rows of shape (end - first, dim) are those that were summed."""
        if self.dead is not None:
            rows = np.where(self.given_back[:, None], np.float32(0), rows)
        return checksum(rows) == self.sum


def add(db: sqlite3.Connection, sums: Sequence[Sum]) -> None:
    """Store the checksums (first, end, sum) of rows that were appended."""
    db.executemany("INSERT OR REPLACE INTO block VALUES (?, ?, ?, NULL)", sums)


def stored(db: sqlite3.Connection) -> Iterator[Block]:
    """Yield the blocks in their order; collections of older releases lack some or all."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'block'").fetchone():
        yield from map(Block._make, db.execute("SELECT * FROM block ORDER BY first"))


def give_up(db: sqlite3.Connection, slab: Slab, live: NDArray[np.bool_]) -> bool:
    """Sum blocks anew without their dead rows, where many have died since the last time.

    A damaged block is left as it is, for `verify` to tell.

    Args:
        db: A connection inside a transaction.
        slab: The rows.
        live: By slot, whether its row lives; slots that are not told of do not.

    Returns:
        Whether there are such blocks; their room can go once the transaction is on disk.
    """
    dead = np.ones(slab.end, dtype=bool)
    dead[: len(live)] = ~live[: slab.end]
    renewed = []
    for block in stored(db):
        gone = dead[block.first : block.end]
        new = gone & ~block.given_back
        if new.mean() < _WORTH and not (new.any() and gone.all()):
            continue
        rows = slab.read(np.arange(block.first, block.end))
        if block.is_whole(rows):
            rows[gone] = 0
            renewed.append((checksum(rows), np.packbits(gone).tobytes(), block.first))
    db.executemany("UPDATE block SET sum = ?, dead = ? WHERE first = ?", renewed)
    return bool(renewed)


def given_up(db: sqlite3.Connection, end: int) -> NDArray[np.bool_]:
    """Return by slot, below `end`, whether its room can be given back, or was."""
    free = np.zeros(end, dtype=bool)
    for block in stored(db):
        free[block.first : block.end] = block.given_back
    return free
