"""What stands behind a collection: the database, the slab and the index, kept in step.

Callers hold the collection's lock: the write lock for what changes anything, the read lock for the
rest.
"""

from __future__ import annotations

import functools
import logging
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from ragaccel.errors import (
    CollectionError,
    ConfigurationError,
    CorruptCollectionError,
    DimensionMismatchError,
)
from ragaccel.vectors import blocks, database, integrity
from ragaccel.vectors.index import Index
from ragaccel.vectors.integrity import SEGMENT
from ragaccel.vectors.metric import are_unit
from ragaccel.vectors.plan import Asked
from ragaccel.vectors.records import Changes
from ragaccel.vectors.slab import SLAB, FileSlab, MemorySlab

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ragaccel.vectors.database import Database
    from ragaccel.vectors.filters import Filter
    from ragaccel.vectors.records import Row
    from ragaccel.vectors.spec import CompressionSpec, Metric

T = TypeVar("T")

_CHECKPOINT_ROWS: Final = 1024
#: Entries of the change log that a compaction leaves for those that follow.
_LOG_ENTRIES: Final = 100_000
_NO_SLOTS: Final = np.zeros(0, dtype=np.int64)

_log = logging.getLogger("ragaccel.vectors")


@dataclass(frozen=True)
class Settings:
    """What a collection was made with, and what it was opened with.

    Attributes:
        id: The collection's own id, made once; a copy of its folder has another.
        metric: How vectors are scored.
        compression: The asked compression; None lets the collection choose.
        recall: The recall@10 that rescoring keeps.
        memory_bytes: The most that the codes may take where the collection chooses.
    """

    id: str
    metric: Metric
    compression: CompressionSpec | None
    recall: float
    memory_bytes: int | None = None


def settings(
    db: Database,
    dim: int | None,
    metric: Metric,
    compression: CompressionSpec | None,
    recall: float,
    *,
    memory_bytes: int | None = None,
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
    return Settings(own, metric, compression, recall, memory_bytes)


class Store:
    """Applies writes to the database first and to the index after the commit.

    Attributes:
        writable: Whether this process has the right to write.
    """

    def __init__(
        self, folder: Path | None, db: Database, settings: Settings, *, writable: bool
    ) -> None:
        """Take in what is stored."""
        self.db = db
        self.settings = settings
        self.index: Index | None = None
        self.position = database.Position(0, 0)
        self._folder, self.writable = folder, writable
        self._next_slot = 0
        self._load()

    # -- writing -----------------------------------------------------------------------------------

    def write(self, rows: Sequence[Row], vectors: NDArray[np.float32]) -> None:
        """Add rows, replacing those of the same ids: in one transaction."""
        first, dim = self._next_slot, vectors.shape[1]
        index = self.index or self._made(dim, 0)
        slots = np.arange(first, first + len(rows), dtype=np.int64)
        unit = are_unit(vectors) and (self.index is None or index.unit)
        with self.db.write() as db:
            replaced = database.slots_of(db, (row.id for row in rows))
            database.remove(db, replaced)
            database.insert(db, slots.tolist(), rows, vectors)
            database.set_meta(db, next_slot=first + len(rows))
            if self.index is None:
                database.set_meta(db, dim=dim)
            if unit != index.unit or not first:
                database.set_meta(db, normalised=unit)
            position = database.position(db)
        self.index, self._next_slot, self.position = index, first + len(rows), position
        index.unit = unit
        index.forget(np.array(replaced, dtype=np.int64))
        index.add(slots, vectors)
        if self._next_slot - index.slab.end >= _CHECKPOINT_ROWS:
            self._seal(index)

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
        slab = self.index.slab
        with self.db.write() as db:
            slots, vectors = database.fresh(db, self.index.dim)
            blocks.add(db, slab.append(slots, vectors, self._next_slot))
            db.execute("DELETE FROM fresh")
            database.set_meta(db, slab_end=self._next_slot)
        slab.extend(self._next_slot)

    def save_segment(self) -> None:
        """Store the codes beside the truth they are derived from, and which slots live.

        Raises:
            CollectionError: The disk is full, or cannot be written.
        """
        if self._folder is None or self.index is None:
            return
        try:
            self.index.save(self._folder / SEGMENT, self._name_of(self.position))
        except OSError as error:
            raise CollectionError(
                f"codes cannot be stored in {self._folder}: {error.strerror}; the rows are safe."
            ) from error
        with self.db.write() as db:
            database.save_live(db, self.position.seq, self.index.live[: self._next_slot])

    def calibrate(self, questions: NDArray[np.float32]) -> None:
        """Store query vectors, shape (m, dim), and set the effort with them from now on."""
        index = self.index
        if index is None:
            return
        with self.db.write() as db:
            database.set_questions(db, questions)
        index.questions = questions
        if index.compressed:
            index.keep_up()
            self.save_segment()

    def give_back(self) -> None:
        """Give the room of deleted rows back to the file system, and forget old changes.

        The segment must be stored first: codes of before the forgotten changes are of no use.
        """
        if self.index is None:
            return
        # Deletions must be on disk before their vectors go: power may fail in between.
        with self.db.write(synced=True) as db:
            database.trim(db, _LOG_ENTRIES)
            if blocks.give_up(db, self.index.slab, self.index.live):
                database.set_meta(db, given_back=database.given_back(db) + 1)
            free = blocks.given_up(db, self.index.slab.end)
        if isinstance(self.index.slab, FileSlab):
            self.index.slab.give_back(free)

    def close(self) -> None:
        """Let go of the files."""
        if self.index is not None:
            self.index.slab.close()
        self.db.close()

    # -- reading -----------------------------------------------------------------------------------

    def settled(self, look: Callable[[], T]) -> T:
        """Return what `look` finds; if room of rows was given back meanwhile, it looks again."""
        while True:
            before = self._given_back()
            found = look()
            if self._given_back() == before:
                return found

    def damage(self) -> tuple[list[str], list[str]]:
        """Return in words what is damaged of the truth, and what of that which is derived."""
        return self.settled(self._damage)

    def raw(self, db: sqlite3.Connection, slots: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return raw vectors by slot."""
        if self.index is None:
            return {}
        fresh = functools.partial(self._fresh, db)
        rows = self.index.raw(np.array(slots, dtype=np.int64), fresh)
        return dict(zip(slots, rows, strict=True))

    def changes_since(
        self, after: database.Position, limit: int, where: Filter | None = None
    ) -> Changes | None:
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
            upto = self.position if self.writable else database.position(db)
            rows = database.log(db, after.seq, upto.seq, limit + 1)
            if len(rows) > limit or self.index is None:
                return None
            added, gone = _net(rows)
            if where is not None and len(added):
                added = database.slots_where(db, where, among=added.tolist())
            fresh = functools.partial(self._fresh, db)
            return Changes(*upto, added, self.index.raw(added, fresh), gone)

    # -- following another writer ------------------------------------------------------------------

    def is_behind(self) -> bool:
        """Tell whether another process has written since the last look."""
        with self.db.read() as db:
            return database.position(db) != self.position

    def follow(self) -> None:
        """Take in what another process has written."""
        with self.db.snapshot() as db:
            is_known = database.mark_of(db, self.position.seq) == self.position.mark
            if self.index is None or not is_known:
                self._load()  # too much has changed since the last look, or all of it
                return
            meta = database.meta(db)
            position = database.position(db)
            rows = database.log(db, self.position.seq, position.seq, -1)
            late_slots, late_vectors = database.fresh(db, self.index.dim)
        self.index.unit = bool(meta.get("normalised", False))
        if isinstance(self.index.slab, FileSlab):
            self.index.slab.extend(meta.get("slab_end", 0))
        added, gone = _net(rows)
        self.index.forget(self.index.living(gone))
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
            self._next_slot = meta.get("next_slot", 0)
            self.position = database.position(db)
            if meta.get("dim") is None:
                self.index = None
                return
            index = self._made(meta["dim"], meta.get("slab_end", 0))
            index.unit = bool(meta.get("normalised", not self._next_slot))
            index.questions = database.questions(db, index.dim)
            if self._folder is not None:
                index.load(self._folder / SEGMENT, functools.partial(self._is_known, db))
            index.restore(self._live_slots(db), *database.fresh(db, index.dim))
            self.index = index

    def _live_slots(self, db: sqlite3.Connection) -> NDArray[np.int64]:
        """Return the slots of all rows, ascending: those of a stored state, brought up to date."""
        saved = database.saved_live(db)
        if saved is None or database.mark_of(db, saved[0]) is None:
            return database.live_slots(db)
        seq, live = saved
        rows = database.log(db, seq, self.position.seq, _LOG_ENTRIES + 1)
        if len(rows) > _LOG_ENTRIES:
            return database.live_slots(db)
        added, gone = _net(rows)
        live[gone[gone < len(live)]] = False
        return np.concatenate((np.flatnonzero(live), added))

    def _seal(self, index: Index) -> None:
        """Move vectors to the slab and compress; what cannot be moved now stays in SQLite."""
        try:
            self.checkpoint()
        except CorruptCollectionError:
            raise
        except CollectionError as error:
            _log.warning("vectors stay in the database for now: %s", error)
        else:
            index.seal()

    def _damage(self) -> tuple[list[str], list[str]]:
        with self.db.snapshot() as db:
            return integrity.damage(db, self._folder), integrity.damage_of_codes(self._folder)

    def _given_back(self) -> int:
        with self.db.read() as db:
            return database.given_back(db)

    def _made(self, dim: int, slab_end: int) -> Index:
        slab: MemorySlab | FileSlab = MemorySlab(dim)
        if self._folder is not None:
            slab = FileSlab(self._folder / SLAB, dim, slab_end, writable=self.writable)
        of = self.settings
        asked = Asked(of.metric, of.compression, of.recall, of.memory_bytes)
        return Index(dim, asked, slab)

    def _fresh(self, db: sqlite3.Connection, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return raw vectors that are not in the slab yet, or were moved there a moment ago."""
        assert self.index is not None  # noqa: S101 - callers have one
        slab = self.index.slab
        wanted, stored = slots.tolist(), database.fresh_of(db, slots.tolist())
        if len(stored) == len(wanted):
            data = b"".join([stored[slot] for slot in wanted])
            return np.frombuffer(data, dtype=np.float32).reshape(len(wanted), self.index.dim)
        found = np.zeros((len(slots), self.index.dim), dtype=np.float32)
        for at, slot in enumerate(wanted):
            if slot in stored:
                found[at] = np.frombuffer(stored[slot], dtype=np.float32)
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
