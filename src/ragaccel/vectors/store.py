"""What stands behind a collection: the database, the slab and the index, kept in step.

Callers hold the collection's lock: the write lock for what changes anything, the read lock for the
rest.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ragaccel.errors import ConfigurationError, DimensionMismatchError
from ragaccel.vectors import database
from ragaccel.vectors.index import Index
from ragaccel.vectors.records import Changes
from ragaccel.vectors.slab import FileSlab, MemorySlab

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ragaccel.vectors.database import Database
    from ragaccel.vectors.filters import Filter
    from ragaccel.vectors.records import Row
    from ragaccel.vectors.spec import CompressionSpec, Metric

_SLAB: Final = "vectors.bin"
_SEGMENT: Final = "segment.faiss"
_CHECKPOINT_ROWS: Final = 1024
_NO_SLOTS: Final = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Settings:
    """What a collection was made with, and what it was opened with.

    Attributes:
        id: The collection's own id, made once; a copy of its folder has another.
        metric: How vectors are scored.
        compression: The asked codec; None lets the collection choose.
        recall: The recall@10 that rescoring keeps.
    """

    id: str
    metric: Metric
    compression: CompressionSpec | None
    recall: float


def settings(
    db: Database,
    dim: int | None,
    metric: Metric,
    compression: CompressionSpec | None,
    recall: float,
) -> Settings:
    """Return the settings, storing them first where the collection is new.

    Raises:
        ConfigurationError: The arguments contradict the stored collection.
    """
    meta = db.meta()
    if not meta:
        meta = {"id": uuid.uuid4().hex, "metric": metric, "dim": dim}
        with db.write() as connection:
            database.set_meta(connection, **meta)
    if meta["metric"] != metric:
        raise ConfigurationError(
            f"the collection was made with metric={meta['metric']!r}, got {metric!r}; "
            "open it with its own metric."
        )
    if dim is not None and meta["dim"] not in (None, dim):
        raise DimensionMismatchError(
            f"the collection holds vectors of {meta['dim']} dimensions, got dim={dim}."
        )
    own = f"{meta['id']}.{db.place}" if db.place else meta["id"]
    return Settings(own, metric, compression, recall)


class Store:
    """Applies writes to the database first and to the index after the commit."""

    def __init__(
        self, folder: Path | None, db: Database, settings: Settings, *, writable: bool
    ) -> None:
        """Take in what is stored."""
        self.db = db
        self.settings = settings
        self.index: Index | None = None
        self.position = database.Position(0, 0)
        self._folder, self._writable = folder, writable
        self._next_slot = 0
        self._revision = db.revision()
        self._load()

    # -- writing -----------------------------------------------------------------------------------

    def write(self, rows: Sequence[Row], vectors: NDArray[np.float32]) -> None:
        """Add rows, replacing those of the same ids: in one transaction."""
        first, dim = self._next_slot, vectors.shape[1]
        slots = np.arange(first, first + len(rows), dtype=np.int64)
        with self.db.write() as db:
            replaced = database.slots_of(db, (row.id for row in rows))
            database.remove(db, replaced)
            database.insert(db, slots.tolist(), rows, vectors)
            database.set_meta(db, dim=dim, next_slot=first + len(rows))
            position = database.position(db)
        index = self.index or self._begin(dim, 0)
        self._next_slot, self.position = first + len(rows), position
        index.forget(np.array(replaced, dtype=np.int64))
        index.add(slots, vectors)
        if self._next_slot - index.slab.end >= _CHECKPOINT_ROWS:
            self.checkpoint()
            index.seal()

    def remove(self, find: Callable[[sqlite3.Connection], Iterable[int]]) -> int:
        """Delete the rows whose slots `find(connection)` gives, and return how many."""
        with self.db.write() as db:
            slots = np.fromiter(find(db), dtype=np.int64)
            database.remove(db, slots.tolist())
            position = database.position(db)
        self.position = position
        if self.index is not None:
            self.index.forget(slots)
        return len(slots)

    def checkpoint(self) -> None:
        """Move vectors from SQLite to the slab: first the slab, then the commit that says so."""
        if self.index is None or self.index.slab.end == self._next_slot:
            return
        with self.db.write() as db:
            slots, vectors = database.fresh(db, self.index.dim)
            self.index.slab.append(slots, vectors, self._next_slot)
            db.execute("DELETE FROM fresh")
            database.set_meta(db, slab_end=self._next_slot)

    def save_segment(self) -> None:
        """Store the codes beside the truth they are derived from."""
        if self._folder is not None and self.index is not None:
            self.index.save(self._folder / _SEGMENT)

    def close(self) -> None:
        """Let go of the files."""
        if self.index is not None:
            self.index.slab.close()
        self.db.close()

    # -- reading -----------------------------------------------------------------------------------

    def raw(self, slots: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return raw vectors by slot."""
        if self.index is None:
            return {}
        rows = self.index.raw(np.array(slots, dtype=np.int64), self._fresh)
        return dict(zip(slots, rows, strict=True))

    def slots_where(self, where: Filter | None) -> NDArray[np.int64]:
        """Return the slots of the rows that pass a filter, ascending."""
        with self.db.read() as db:
            return database.slots_where(db, where)

    def changes_since(self, after: database.Position, limit: int) -> Changes | None:
        """Return what happened after a position.

        Returns:
            None if it is more than `limit`, or if this log never went through the position.
        """
        dim = 0 if self.index is None else self.index.dim
        if after == self.position:
            none = np.zeros((0, dim), np.float32)
            return Changes(after.seq, after.mark, _NO_SLOTS, none, _NO_SLOTS)
        with self.db.read() as db:
            if after.seq > self.position.seq or database.mark_of(db, after.seq) != after.mark:
                return None
            rows = database.log(db, after.seq, self.position.seq, limit + 1)
        if len(rows) > limit or self.index is None:
            return None
        added, gone = _net(rows)
        return Changes(*self.position, added, self.index.raw(added, self._fresh), gone)

    # -- following another writer ------------------------------------------------------------------

    def is_behind(self) -> bool:
        """Tell whether another process has written since the last look."""
        return self.db.revision() != self._revision

    def follow(self) -> None:
        """Take in what another process has written."""
        meta = self.db.meta()
        self._revision = meta.get("revision", 0)
        if self.index is None:
            self._load()
            return
        with self.db.read() as db:
            position = database.position(db)
            rows = database.log(db, self.position.seq, position.seq, -1)
            late_slots, late_vectors = database.fresh(db, self.index.dim)
        if isinstance(self.index.slab, FileSlab):
            self.index.slab.extend(meta.get("slab_end", 0))
        added, gone = _net(rows)
        self.index.forget(gone)
        stored = added[added < self.index.slab.end]
        self.index.add(stored, self.index.slab.read(stored))
        new = np.isin(late_slots, added) & (late_slots >= self.index.slab.end)
        self.index.add(late_slots[new], late_vectors[new])
        self.index.seal()
        self.position = position

    # -- inside ------------------------------------------------------------------------------------

    def _load(self) -> None:
        meta = self.db.meta()
        self._next_slot = meta.get("next_slot", 0)
        with self.db.read() as db:
            self.position = database.position(db)
            if meta.get("dim") is None:
                return
            index = self._begin(meta["dim"], meta.get("slab_end", 0))
            if self._folder is not None:
                index.load(self._folder / _SEGMENT)
            index.restore(database.live_slots(db), *database.fresh(db, index.dim))

    def _begin(self, dim: int, slab_end: int) -> Index:
        slab: MemorySlab | FileSlab = MemorySlab(dim)
        if self._folder is not None:
            slab = FileSlab(self._folder / _SLAB, dim, slab_end, writable=self._writable)
        asked = self.settings
        self.index = Index(dim, asked.metric, asked.compression, asked.recall, slab)
        return self.index

    def _fresh(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return raw vectors that are not in the slab yet."""
        found = np.zeros((len(slots), self.index.dim if self.index else 0), dtype=np.float32)
        with self.db.read() as db:
            for at, vector in enumerate(database.fresh_of(db, slots.tolist())):
                if vector is not None:
                    found[at] = np.frombuffer(vector, dtype=np.float32)
                elif isinstance(self.index and self.index.slab, FileSlab):
                    found[at] = self._checkpointed(slots[at])
        return found

    def _checkpointed(self, slot: np.int64) -> NDArray[np.float32]:
        """Return a vector that the writing process has moved to the slab a moment ago."""
        assert self.index is not None  # noqa: S101 - callers have one
        assert isinstance(self.index.slab, FileSlab)  # noqa: S101
        self.index.slab.extend(self.db.meta().get("slab_end", 0))
        row: NDArray[np.float32] = self.index.slab.read(np.array([slot]))[0]
        return row


def _net(rows: Sequence[tuple[int, int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the slots that log entries added and left, and those that they removed."""
    gone = {slot for _, slot, live in rows if not live}
    added = [slot for _, slot, live in rows if live and slot not in gone]
    return np.array(added, dtype=np.int64), np.array(sorted(gone), dtype=np.int64)
