"""What stands behind a collection: the database, the slab and the index, kept in step.

Callers hold the collection's lock: the write lock for what changes anything, the read lock for the
rest.
"""

from __future__ import annotations

import functools
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
    from ragaccel.vectors.records import Row
    from ragaccel.vectors.spec import CompressionSpec, Metric

SLAB: Final = "vectors.bin"
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
    *,
    writable: bool,
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
    if dim is not None and meta["dim"] is None and writable:
        with db.write() as connection:
            database.set_meta(connection, dim=dim)
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
        self._revision = 0
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
            self.index.save(self._folder / _SEGMENT, self._name_of(self.position))

    def close(self) -> None:
        """Let go of the files."""
        if self.index is not None:
            self.index.slab.close()
        self.db.close()

    # -- reading -----------------------------------------------------------------------------------

    def raw(self, db: sqlite3.Connection, slots: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return raw vectors by slot."""
        if self.index is None:
            return {}
        fresh = functools.partial(self._fresh, db)
        rows = self.index.raw(np.array(slots, dtype=np.int64), fresh)
        return dict(zip(slots, rows, strict=True))

    def changes_since(self, after: database.Position, limit: int) -> Changes | None:
        """Return what happened after a position.

        Returns:
            None if it is more than `limit`, or if this log never went through the position.
        """
        dim = 0 if self.index is None else self.index.dim
        if after == self.position:
            none = np.zeros((0, dim), np.float32)
            return Changes(after.seq, after.mark, _NO_SLOTS, none, _NO_SLOTS)
        with self.db.snapshot() as db:
            if after.seq > self.position.seq or database.mark_of(db, after.seq) != after.mark:
                return None
            # A follower may be a little behind: rows that are gone since are told as such.
            upto = self.position if self._writable else database.position(db)
            rows = database.log(db, after.seq, upto.seq, limit + 1)
            if len(rows) > limit or self.index is None:
                return None
            added, gone = _net(rows)
            fresh = functools.partial(self._fresh, db)
            return Changes(*upto, added, self.index.raw(added, fresh), gone)

    # -- following another writer ------------------------------------------------------------------

    def is_behind(self) -> bool:
        """Tell whether another process has written since the last look."""
        return self.db.revision() != self._revision

    def follow(self) -> None:
        """Take in what another process has written."""
        if self.index is None:
            self._load()
            return
        with self.db.snapshot() as db:
            meta = database.meta(db)
            position = database.position(db)
            rows = database.log(db, self.position.seq, position.seq, -1)
            late_slots, late_vectors = database.fresh(db, self.index.dim)
        self._revision = meta.get("revision", 0)
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
        with self.db.snapshot() as db:
            meta = database.meta(db)
            self._revision = meta.get("revision", 0)
            self._next_slot = meta.get("next_slot", 0)
            self.position = database.position(db)
            if meta.get("dim") is None:
                return
            index = self._begin(meta["dim"], meta.get("slab_end", 0))
            if self._folder is not None:
                index.load(self._folder / _SEGMENT, functools.partial(self._is_known, db))
            index.restore(database.live_slots(db), *database.fresh(db, index.dim))

    def _begin(self, dim: int, slab_end: int) -> Index:
        slab: MemorySlab | FileSlab = MemorySlab(dim)
        if self._folder is not None:
            slab = FileSlab(self._folder / SLAB, dim, slab_end, writable=self._writable)
        asked = self.settings
        self.index = Index(dim, asked.metric, asked.compression, asked.recall, slab)
        return self.index

    def _fresh(self, db: sqlite3.Connection, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return raw vectors that are not in the slab yet, or were moved there a moment ago."""
        assert self.index is not None  # noqa: S101 - callers have one
        slab = self.index.slab
        found = np.zeros((len(slots), self.index.dim), dtype=np.float32)
        for at, vector in enumerate(database.fresh_of(db, slots.tolist())):
            if vector is not None:
                found[at] = np.frombuffer(vector, dtype=np.float32)
            elif isinstance(slab, FileSlab):
                slab.extend(database.meta(db).get("slab_end", 0))
                if slots[at] < slab.end:
                    found[at] = slab.read(slots[at : at + 1])[0]
        return found

    def _name_of(self, position: database.Position) -> str:
        return f"{self.settings.id.split('.')[0]}:{position.seq}:{position.mark}"

    def _is_known(self, db: sqlite3.Connection, name: str) -> bool:
        """Tell whether the collection went through a state of that name."""
        seq = name.split(":")[1] if name.count(":") > 1 else ""
        mark = database.mark_of(db, int(seq)) if seq.isdigit() else None
        return mark is not None and name == self._name_of(database.Position(int(seq), mark))


def _net(rows: Sequence[tuple[int, int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the slots that log entries added and left, and those that they removed."""
    gone = {slot for _, slot, live in rows if not live}
    added = [slot for _, slot, live in rows if live and slot not in gone]
    return np.array(added, dtype=np.int64), np.array(sorted(gone), dtype=np.int64)
