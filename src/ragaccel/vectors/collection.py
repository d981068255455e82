"""`VectorCollection`: documents and vectors, stored safely and searched compressed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from ragaccel import telemetry
from ragaccel.errors import (
    CollectionClosedError,
    CollectionError,
    CollectionNotFoundError,
    ConfigurationError,
    CorruptCollectionError,
    FilterError,
    InvalidRecordError,
    InvalidVectorError,
    UnsupportedComponentError,
)
from ragaccel.resources import Forkable, Living
from ragaccel.telemetry import attributes
from ragaccel.vectors import database, fields, records, scans, spec, tunables
from ragaccel.vectors.bitmaps import FilterCache
from ragaccel.vectors.database import Database
from ragaccel.vectors.figures import figures
from ragaccel.vectors.filters import Ids
from ragaccel.vectors.locks import ReadWriteLock, WriterLock
from ragaccel.vectors.metric import check_vectors
from ragaccel.vectors.records import Changes, CollectionStats, Hit, Record
from ragaccel.vectors.search import Search, check_k, check_score
from ragaccel.vectors.slab import SLAB
from ragaccel.vectors.store import Store, settings
from ragaccel.vectors.upkeep import Upkeep
from ragaccel.vectors.watch import shortcut, spare, tell

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike
    from typing_extensions import Self

    from ragaccel.knobs import Knob
    from ragaccel.vectors.choice import Choice
    from ragaccel.vectors.filters import Filter
    from ragaccel.vectors.rowset import RowSet
    from ragaccel.vectors.search import Answers
    from ragaccel.vectors.spec import Compression, CompressionSpec, Metric, Structure

_DATABASE: Final = "collection.sqlite"
_FOLLOW_TRIES: Final = 100
_MOST_QUESTIONS: Final = 1000
_IDS_AT_A_TIME: Final = 1000
_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system
T = TypeVar("T")

_open_collections: Living[VectorCollection] = Living()


def find_open(collection: str) -> VectorCollection | None:
    """Return a collection that this process has open by its own id, or None."""
    for one in _open_collections:
        if one.id == collection and not one.closed:
            return one
    return None


class VectorCollection(Forkable):
    """Texts, metadata and vectors that are searched in compressed form with exact scores.

    On disk a collection is a folder: the truth in `collection.sqlite` and `vectors.bin`, and
    `segment.faiss` with codes that are derived from it and rebuilt when they are missing. In memory
    it is the same code on SQLite's memory mode. One object writes at a time; searches run beside
    each other in threads. Make one with `open`.

    Example:
        >>> with VectorCollection.open(dim=2) as collection:
        ...     collection.upsert(["a", "b"], [[1, 0], [0, 1]], texts=["east", "north"])
        ...     [hit.text for hit in collection.search([0.9, 0.1], k=1)[0]]
        ['east']
    """

    def __init__(self, path: Path | None, store: Store, lock: WriterLock | None) -> None:
        """Put ready parts together; use `open`."""
        self.path = path
        self.read_only = path is not None and lock is None
        self.id = store.settings.id
        self.metric = store.settings.metric
        self._store, self._writer = store, lock
        self._lock = ReadWriteLock()
        self._filters = FilterCache()
        self._upkeep = Upkeep(store, self._lock)
        self._scans = scans.joined_scans()
        self._closed = self._is_exact = False
        self._hears_answers: Callable[[Callable[[], float | None]], object] | None = None
        _open_collections.add(self)
        self.follow_forks()
        telemetry.measure(self)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        dim: int | None = None,
        metric: Metric = "cosine",
        compression: Compression | CompressionSpec = "auto",
        recall: float = 0.99,
        memory_mb: float | None = None,
        read_only: bool = False,
        durable: bool = False,
        warm: bool = False,
    ) -> Self:
        """Open a collection, or make one where there is none.

        Args:
            path: A folder; None keeps everything in memory.
            dim: Dimensions of the vectors; by default told by the first ones.
            metric: "cosine", "ip" (inner product) or "l2"; scores are higher for nearer rows.
            compression: A codec, a `CompressionSpec`, or "auto": exact while the collection is
                small; from 4,096 rows on what `choose` finds on the rows themselves, and again
                whenever they have become eight times as many.
            recall: The recall@10 against exact search that rescoring is set to keep, 0 to 1. For
                another one than it was closed with, it is set anew: in the background where there
                are many rows.
            memory_mb: The most that the codes may take where the collection chooses; 1/24 of the
                vectors by default.
            read_only: Follow a collection that another process writes.
            durable: Let every call wait until the disk has what it wrote. What was acknowledged
                survives a killed process either way, and after a power failure the collection
                opens as it was after some call; with this, after the last one.
            warm: Read the files into the page cache and map them, in the background, so that the
                first queries after a start need not wait: on a million rows they take twice as long
                without, and much longer after a start of the machine.

        Raises:
            ConfigurationError: An argument is out of range or contradicts the stored collection.
            CollectionNotFoundError: `read_only` and there is nothing at the path.
            CollectionLockedError: Another writer has it open.
            CorruptCollectionError: The stored truth is damaged.
        """
        spec.check_options(dim, metric, recall, memory_mb)
        asked = spec.resolve(compression)
        folder = None if path is None else Path(path)
        lock = None
        if folder is not None and read_only:
            if not (folder / _DATABASE).exists():
                raise CollectionNotFoundError(f"there is no collection at {folder}.")
        elif folder is not None:
            if folder.exists() and not folder.is_dir():
                raise ConfigurationError(f"{folder} is a file; a collection is a folder.")
            folder.mkdir(parents=True, exist_ok=True)
            lock = WriterLock(folder / "writer.lock")
        writable = folder is None or lock is not None
        try:
            known = folder is not None and (folder / SLAB).exists()
            file = folder and folder / _DATABASE
            db = Database(file, read_only=not writable, known=known, durable=durable)
            memory = None if memory_mb is None else int(memory_mb * 1e6)
            chosen = settings(
                db, dim, metric, asked, recall, memory_bytes=memory, writable=writable
            )
            collection = cls(folder, Store(folder, db, chosen, writable=writable), lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        with collection._lock.write():
            collection._upkeep.keep_up()
        if folder is not None and warm:
            collection._upkeep.warm([folder / SLAB, folder / _DATABASE])
        return collection

    # -- writing -----------------------------------------------------------------------------------

    def upsert(
        self,
        ids: Sequence[str],
        vectors: ArrayLike,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        document_ids: Sequence[str | None] | None = None,
        payloads: Sequence[bytes | None] | None = None,
    ) -> None:
        """Add rows, or replace those whose ids exist; all of them or, on an error, none.

        When it returns, the rows are stored and the next search finds them.

        Args:
            ids: Non-empty strings; of equal ids in one call the last counts.
            vectors: Array of numbers of shape (n, dim).
            texts: One text or None per row.
            metadata: One dict of JSON values or None per row.
            document_ids: The document each row is a part of, or None.
            payloads: Bytes to keep beside each row.

        Raises:
            InvalidVectorError: Wrong shape or dimension, NaN or infinity.
            InvalidRecordError: Ids, texts or metadata that cannot be stored.
            CollectionClosedError: The collection is closed.
        """
        rows = records.check_rows(ids, texts, metadata, document_ids, payloads)
        empty = not len(ids) and not np.size(np.asarray(vectors, dtype=object))
        array = np.zeros((0, 0), np.float32) if empty else check_vectors(vectors, self.dim)
        if len(array) != len(ids):
            raise InvalidRecordError(f"{len(ids)} ids need {len(ids)} vectors, got {len(array)}.")
        if not rows:
            return
        with telemetry.stage("ingest", {attributes.ROWS: len(rows)}), self._lock.write():
            store = self._writable()
            check_vectors(array, self.dim)  # another thread may have decided it meanwhile
            store.write(list(rows.values()), array[list(rows)])
            self._upkeep.keep_up()

    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows; unknown ids are passed over.

        Returns:
            How many rows were deleted.
        """
        keys = set(records.check_ids(ids))
        return self._remove(lambda db: database.slots_of(db, keys))

    def delete_where(self, where: Filter) -> int:
        """Delete the rows that pass a filter.

        Returns:
            How many rows were deleted.

        Raises:
            FilterError: It is none, or cannot be understood.
        """
        if where is None:
            raise FilterError("delete_where needs a filter; use clear() to delete every row.")
        return self._remove(lambda db: database.slots_where(db, where))

    def clear(self) -> None:
        """Delete every row."""
        self._remove(database.live_slots)
        self.compact()

    def create_index(self, field: str) -> None:
        """Index a metadata field, so that the first search with a filter on it is fast, too.

        Filters that were asked before are remembered and need none. An index takes room on disk,
        and time in every upsert and delete. Where there is one already, nothing is done.

        Raises:
            FilterError: It is no name of a field.
        """
        with self._lock.write(), self._writable().db.write() as db:
            fields.create(db, field)

    def drop_index(self, field: str) -> None:
        """Forget the index of a metadata field; filters on it find the same without."""
        with self._lock.write(), self._writable().db.write() as db:
            fields.drop(db, field)

    def indexes(self) -> list[str]:
        """Return the metadata fields that are indexed, in the order of their names."""
        with self._lock.read(), self._readable().db.read() as db:
            return list(fields.indexed(db))

    def flush(self) -> None:
        """Move recent vectors into the slab, compress them and store the codes.

        Codes that are being made in the background are waited for first.
        """
        self._writable()
        self._upkeep.wait()
        with self._lock.write():
            store = self._writable()
            store.checkpoint()
            if store.index is not None:
                store.index.seal(flush=True)
            store.save_segment()

    def compact(self) -> None:
        """Encode the rows anew without deleted ones, with a codec trained on what is there now.

        The room of deleted vectors goes back to the file system where it can take single pages of
        a file, and changes before the newest 100,000 are forgotten.
        """
        with self._lock.write():
            store = self._writable()
            store.checkpoint()
            if store.index is not None:
                store.index.compact()
            store.save_segment()
            store.give_back()

    def build(
        self,
        structures: Sequence[Structure] = ("flat", "ivf", "hnsw"),
        *,
        candidates: Iterable[CompressionSpec] | None = None,
        memory_mb: float | None = None,
        latency_ms: float | None = None,
        workers: int | None = None,
        progress: bool = True,
    ) -> Choice:
        """Build codes of all rows in several ways, compare them, and search with the best.

        Unlike `choose`, which judges by a sample, this measures what is searched with afterwards.
        Searches and writes go on meanwhile. At most `workers` candidates, and the best so far, are
        in memory at a time; nothing is built while one is timed.

        Args:
            structures: A candidate for each: "pq" codes in "flat" and "ivf", "int8" in "hnsw".
            candidates: What to build instead.
            memory_mb: The most that the codes may take; by default what the collection was opened
                with, or 1/24 of the vectors.
            latency_ms: The longest that a query may take at the median; None for any.
            workers: How many to build at a time, with as many threads each as leave none without a
                core; by default one for each core.
            progress: Whether to show a progress bar on the terminal.

        Returns:
            The decision with its measurements; `rich.print` draws it.

        Raises:
            ConfigurationError: The collection was opened with a compression of its own, has too
                few rows, or no candidate keeps to the limits: then it is searched as before.
        """
        specs = [spec.CompressionSpec(spec.IN_STRUCTURES.get(one, "pq"), one) for one in structures]
        if candidates is not None:
            specs = list(candidates)
        store = self._writable()
        given = store.settings.memory_bytes
        limit = given / 1e6 if memory_mb is None and given else memory_mb
        return self._upkeep.build(
            specs, memory_mb=limit, latency_ms=latency_ms, workers=workers, progress=progress
        )

    def close(self) -> None:
        """Store the codes and let go of files and the right to write; twice is fine."""
        self._upkeep.stop()
        with self._lock.write():
            if self._closed:
                return
            try:
                if self._writer is not None:
                    self._store.checkpoint()
                    self._store.save_segment()
            finally:
                self._closed = True
                self._store.close()
                if self._writer is not None:
                    self._writer.release()

    # -- reading -----------------------------------------------------------------------------------

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        where: Filter | None = None,
        min_score: float | None = None,
        exact: bool = False,
        vectors: bool = False,
        documents: bool = True,
    ) -> list[list[Hit]]:
        """Find the nearest rows of each query.

        Args:
            queries: One query of shape (dim,) or several of shape (m, dim).
            k: Rows per query; fewer come back only if fewer exist.
            where: A filter that rows must pass; it is applied before the search, not after.
            min_score: Leave out rows that score less.
            exact: Compare with every vector instead of the codes.
            vectors: Give the hits their raw vectors.
            documents: Give the hits texts, metadata, document ids and payloads; without, they have
                ids and scores alone, and the search is faster.

        Returns:
            Per query, hits with exact scores, nearest first; of equal scores the earlier row first.

        Raises:
            InvalidVectorError: Wrong shape or dimension, NaN or infinity.
            FilterError: The filter cannot be understood.
            CollectionClosedError: The collection is closed.
        """
        asked = check_vectors(queries, self.dim)
        floor = check_score(min_score)
        exact = exact or self._is_exact
        search = Search(asked, check_k(k), where, floor, exact, vectors, documents, spare())
        return self._answer(search).hits()

    def search_by_id(
        self,
        ids: Sequence[str],
        k: int = 10,
        *,
        where: Filter | None = None,
        min_score: float | None = None,
        exact: bool = False,
        vectors: bool = False,
        documents: bool = True,
    ) -> list[list[Hit]]:
        """Find the nearest other rows of rows; see `search`.

        Returns:
            Per id, in their order, hits without the row itself; of an unknown id none.
        """
        count, floor = check_k(k), check_score(min_score)
        known = {row.id: row.vector for row in self.get(ids, vectors=True)}
        asked = np.array([row for row in known.values() if row is not None], dtype=np.float32)
        found: dict[str, list[Hit]] = {}
        if known:
            exact = exact or self._is_exact
            search = Search(asked, count + 1, where, floor, exact, vectors, documents)
            found = dict(zip(known, self._answer(search).hits(), strict=True))
        return [[hit for hit in found.get(one, []) if hit.id != one][:count] for one in ids]

    def _answer(self, search: Search) -> Answers:
        with telemetry.stage("search", {attributes.TOP_K: search.k}) as span:
            short = shortcut()
            if short is None or len(search.queries) != 1:
                answers = self._make_any(search)
            else:
                answers = short(self, search, self._make_any, span)
            self._tell_all(span, search, answers)
        return answers

    def _make_any(self, search: Search) -> Answers:
        if scans.is_scan(search, self._store.index):
            return self._scans(scans.Scan(search, self._make))
        return self._make(search)

    @contextlib.contextmanager
    def exactly(self) -> Iterator[None]:
        """Compare with every vector in all searches of this object meanwhile; for a ground truth.

        Example:
            >>> collection = VectorCollection.open(dim=2)
            >>> with collection.exactly():
            ...     collection.search([1, 0])
            [[]]
        """
        self._is_exact, was = True, self._is_exact
        try:
            yield
        finally:
            self._is_exact = was

    async def asearch(
        self, query: ArrayLike, k: int = 10, *, where: Filter | None = None
    ) -> list[Hit]:
        """Find the nearest rows of one query without blocking the event loop; see `search`.

        Raises:
            InvalidVectorError: There are several queries, or none, or see `search`.
        """
        asked = check_vectors(query, self.dim)
        if len(asked) != 1:
            raise InvalidVectorError(f"asearch takes one query vector, got {len(asked)}.")
        search = Search(asked, check_k(k), where, exact=self._is_exact, spare=spare())
        if shortcut() is not None or not scans.is_scan(search, self._store.index):
            found = await asyncio.to_thread(self._answer, search)
            return found.hits()[0]
        with telemetry.stage("search", {attributes.TOP_K: k}) as span:
            answers = await self._scans.get(scans.Scan(search, self._make))
            self._tell_all(span, search, answers)
        return answers.hits()[0]

    def _tell_all(self, span: telemetry.Stage, search: Search, answers: Answers) -> None:
        """Tell the caller's watcher, and the stage, what was found."""
        tell(self.id, search, answers.found, answers.position, answers.floor)
        if self._hears_answers is not None and not search.exact:
            self._hears_answers(functools.partial(self._recall_of, search, answers))
        index = self._store.index
        if span is not telemetry.OFF and index is not None:
            span.set(answers.told(search, index))

    def hear_answers(self, hear: Callable[[Callable[[], float | None]], object] | None) -> None:
        """Let someone hear of each answer that is not exact, for a measure of live recall.

        Args:
            hear: Gets a function that compares the answer with that of an exact search: it takes as
                long as one, and returns the recall, or None where rows have changed since. None for
                nobody, as at first.
        """
        self._hears_answers = hear

    def _recall_of(self, search: Search, answers: Answers) -> float | None:
        return answers.recall(self._make(search._replace(exact=True)))

    def _make(self, search: Search) -> Answers:
        return self._settled(lambda: self._look(search))

    def _look(self, search: Search) -> Answers:
        """Search once; a follower does it again where the writer has gone on in between.

        The writer's own searches need no snapshot: no other process writes, and its own writes
        wait for them.
        """
        for tries_left in range(_FOLLOW_TRIES, -1, -1):
            self._follow()
            with self._lock.read():
                store = self._readable()
                look = functools.partial(self._run, search, store, anyway=not tries_left)
                answers = store.db.look(look, still=self.read_only)
            if answers is not None:
                return answers
        raise AssertionError("unreachable: the last try always answers")

    def _run(
        self, search: Search, store: Store, db: sqlite3.Connection, *, anyway: bool
    ) -> Answers | None:
        """Search; None where the writer has gone on since the last look."""
        if self.read_only and not anyway and database.position(db) != store.position:
            return None
        allowed = None if search.where is None else self._passed(db, search.where)
        return search.run(store, db, allowed)

    def get(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        """Return the rows of ids, in their order; unknown ids are left out."""
        keys = records.check_ids(ids)
        return self.select(Ids(tuple(keys)), vectors=vectors, order=keys)

    def select(
        self,
        where: Filter | None = None,
        *,
        vectors: bool = False,
        order: Sequence[str] | None = None,
    ) -> list[Record]:
        """Return the rows that pass a filter, in the order of writing or of the ids in `order`."""
        return self._settled(lambda: self._select(where, vectors=vectors, order=order))

    def _select(
        self, where: Filter | None, *, vectors: bool, order: Sequence[str] | None
    ) -> list[Record]:
        self._follow()
        with self._lock.read():
            store = self._readable()
            with store.db.snapshot() as db:
                slots = database.slots_where(db, where).tolist()
                raw = store.raw(db, slots) if vectors else {}
                found = {
                    slot: Record.of(one, raw.get(slot))
                    for slot, one in database.documents(db, slots).items()
                }
            nothing = np.zeros((1, self.dim or 0), np.float32)
            tell(self.id, Search(nothing, 0, where), [([], slots)], store.position)
        if order is None:
            return [found[slot] for slot in slots if slot in found]
        by_id = {record.id: record for record in found.values()}
        return [by_id[one] for one in order if one in by_id]

    def hits_at(self, slots: Sequence[int], scores: Sequence[float]) -> list[Hit]:
        """Return rows by their numbers as hits with given scores; rows that are gone are left out.

        Args:
            slots: Numbers of rows; see `Record`.
            scores: Their scores.
        """
        self._follow()
        with self._lock.read(), self._readable().db.snapshot() as db:
            found = database.documents(db, list(slots))
        return [
            Hit.found(found[slot], score)
            for slot, score in zip(slots, scores, strict=True)
            if slot in found
        ]

    def scan(self) -> Iterator[Record]:
        """Yield every row, in the order of writing."""
        yield from self.select()

    def ids(self) -> Iterator[str]:
        """Yield the id of every row, in the order of writing, reading a few at a time.

        Of rows that are written meanwhile it may miss some.
        """
        after = -1
        while True:
            self._follow()
            with self._lock.read(), self._readable().db.read() as db:
                rows = database.ids_after(db, after, _IDS_AT_A_TIME)
            if not rows:
                return
            yield from (id_ for _, id_ in rows)
            after = rows[-1][0]

    def count(self, where: Filter | None = None) -> int:
        """Return how many rows there are, or pass a filter."""
        self._follow()
        with self._lock.read():
            store = self._readable()
            if where is not None:
                with store.db.snapshot() as db:
                    return len(self._passed(db, where))
            return 0 if store.index is None else store.index.live_count

    def __len__(self) -> int:
        return self.count()

    def changes_since(
        self,
        seq: int,
        *,
        mark: int | None = None,
        limit: int = 1000,
        where: Filter | None = None,
    ) -> Changes | None:
        """Return what happened after a position of the change log.

        Args:
            seq: The position.
            mark: Its mark, to be sure that it is this log's; see `SearchTrace`.
            limit: The most changes to return.
            where: Leave out the rows that were written but do not pass a filter.

        Returns:
            The changes; None if there were more, or if the log never had that position.
        """
        self._follow()
        with self._lock.read():
            store = self._readable()
            if mark is None:
                with store.db.read() as db:
                    mark = database.mark_of(db, seq)
            if mark is None:
                return None
            asked = database.Position(seq, mark)
            return self._settled(lambda: store.changes_since(asked, limit, where))

    def measure_recall(self, queries: int | ArrayLike = 200, k: int = 10) -> float:
        """Return the measured recall@k of a search against an exact search of the same rows.

        Args:
            queries: Query vectors of shape (m, dim), best real ones; or how many stand-ins
                to make from rows of the collection.
            k: Results per query.
        """
        self._follow()
        with self._lock.read():
            index = self._readable().index
            if index is None or not index.live_count:
                return 1.0
            if isinstance(queries, int):
                return index.recall_on_rows(queries, k)
            return index.recall(check_vectors(queries, index.dim), k)

    def calibrate(self, queries: ArrayLike) -> float:
        """Set how hard searches try with real query vectors, which a stand-in is only like.

        They are stored, and used again whenever the codes are made anew. Stand-ins are chosen to
        err on the safe side: real questions mostly need half the candidates or fewer.

        Args:
            queries: Query vectors, shape (m, dim), best some hundreds; of more than 1,000 a sample
                is taken.

        Returns:
            The estimated recall@10.
        """
        with self._lock.write():
            store = self._writable()
            if store.index is None:
                raise ConfigurationError("the collection is empty; calibrate it with rows in it.")
            asked = check_vectors(queries, store.index.dim)
            if not len(asked):
                raise ConfigurationError("calibrating needs some query vectors, got none.")
            store.calibrate(np.ascontiguousarray(asked[:: -(-len(asked) // _MOST_QUESTIONS)]))
            return store.index.estimated_recall

    def verify(self) -> list[str]:
        """Read all that is stored and compare it with its checksums.

        Returns:
            What is damaged of the codes, in words; they are made anew when they are needed.

        Raises:
            CorruptCollectionError: Documents or raw vectors are damaged; the message tells which.
        """
        truth, derived = self._readable().damage()
        if truth:
            raise CorruptCollectionError(
                f"{self.path or 'the collection'} is damaged: {'; '.join(truth)}. Restore the "
                "folder from a backup."
            )
        return derived

    def stats(self) -> CollectionStats:
        """Return the collection in numbers."""
        self._follow()
        with self._lock.read():
            store = self._readable()
            index = store.index
            return CollectionStats(
                rows=0 if index is None else index.live_count,
                dim=self.dim or 0,
                bytes_in_memory=self._filters.bytes_used
                + (0 if index is None else index.bytes_used),
                bytes_on_disk=0 if self.path is None else _size_of(self.path),
                compression=spec.CompressionSpec("float32") if index is None else index.spec,
                recall=1.0 if index is None else index.estimated_recall,
                seq=store.position.seq,
            )

    def tunables(self) -> tuple[Knob, ...]:
        """Return what can be turned while it is searched: candidates, and probes if it has them.

        Where the collection chooses its compression, that can be turned, too: other codes are made
        while it is searched as before, and kept for as long as the knob is. All hold until the
        codes are made anew, as when rows become many more.
        """
        asked = self._readable().settings.compression
        chooses = asked is None and not self.read_only
        upkeep = self._upkeep if chooses else None
        return tunables.knobs(lambda: self._store.index, self._lock, upkeep)

    def figures(self) -> list[telemetry.Figure]:
        """Return the collection as metrics, as it is known to this process."""
        index = None if self._closed else self._store.index
        return figures(self.path, index, self._filters.bytes_used)

    @property
    def dim(self) -> int | None:
        """Dimensions of the vectors; None before the first ones."""
        return None if self._store.index is None else self._store.index.dim

    @property
    def seq(self) -> int:
        """Position of the change log; it grows with every change."""
        self._follow()
        return self._store.position.seq

    @property
    def position(self) -> tuple[int, int]:
        """Position of the change log and its mark; see `SearchTrace`."""
        self._follow()
        return self._store.position

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise UnsupportedComponentError(
                "a collection in memory cannot be pickled; give it a path."
            )
        asked = self._store.settings
        return _reopen, (self.path, asked.metric, asked.compression or "auto", asked.recall)

    def after_fork_in_child(self) -> None:
        """Leave the right to write to the parent."""
        self._lock = ReadWriteLock()
        self._upkeep = Upkeep(self._store, self._lock)
        self._filters = FilterCache()
        if self._writer is not None:
            self._writer.release()
            self._writer, self.read_only = None, True
            self._store.writable = False

    # -- inside ------------------------------------------------------------------------------------

    def _remove(self, find: Callable[[Any], Iterable[int]]) -> int:
        with self._lock.write():
            store = self._writable()
            removed = store.remove(find)
            self._upkeep.keep_up()
            return removed

    def _settled(self, look: Callable[[], T]) -> T:
        """Look, and if a writer elsewhere gave room of rows back meanwhile, look again.

        The writer's own readers are kept out while it does so.
        """
        return self._readable().settled(look) if self.read_only else look()

    def _passed(self, db: sqlite3.Connection, where: Filter) -> RowSet:
        """Return the rows that pass a filter, as a snapshot of the file sees them."""
        position = database.position(db) if self.read_only else self._store.position
        return self._filters.rows(db, where, position)

    def _follow(self) -> None:
        """Take in what another process has written since the last look."""
        if self.read_only and not self._closed and self._store.is_behind():
            with self._lock.write():
                self._store.follow()
                self._upkeep.keep_up()

    def _readable(self) -> Store:
        if self._closed:
            raise CollectionClosedError("the collection is closed; open it again.")
        return self._store

    def _writable(self) -> Store:
        if self.read_only:
            raise CollectionError(
                "the collection is open for reading only; open it without read_only."
            )
        return self._readable()


def _size_of(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # the writer replaces files meanwhile
            found = file.stat()
            size += min(found.st_size, found.st_blocks * _BLOCK_BYTES)
    return size


def _reopen(path: Path, metric: Metric, compression: Any, recall: float) -> VectorCollection:
    """Open a pickled collection; the process that it came from may still be writing it."""
    return VectorCollection.open(
        path, metric=metric, compression=compression, recall=recall, read_only=True
    )
