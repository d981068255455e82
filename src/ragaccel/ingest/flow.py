"""The way of a document: read, looked up, transformed by workers, embedded and written.

One thread reads, looks up and hands out; workers transform; one thread embeds and writes. Documents
come out of the workers in the order that they went in.
"""

from __future__ import annotations

import contextvars
import hashlib
import itertools
import time
from array import array
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.ingest.chunks import Task, complete_ids, is_made_here
from ragaccel.ingest.embedding import CALL_TEXTS, Stopped
from ragaccel.ingest.pace import OBJECT_BYTES, Pace
from ragaccel.ingest.report import Failure
from ragaccel.ingest.storage import Change
from ragaccel.vectors.filters import Documents, Ids, Or

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from threading import Event

    from ragaccel.ingest.adapter import Adapter, Reader, Source
    from ragaccel.ingest.cluster import OnCluster
    from ragaccel.ingest.report import Tally
    from ragaccel.ingest.storage import Storage, Stored
    from ragaccel.ingest.worker import Done, Outcome
    from ragaccel.ingest.workers import Workers
    from ragaccel.vectors import Record

_BLOCK_DOCUMENTS: Final = 256
_BLOCK_BYTES: Final = 1 << 20
_BLOCK_SECONDS: Final = 0.2
_WINDOW_CHUNKS: Final = 2000
_WINDOW_BYTES: Final = 16 << 20
_IDS_AT_A_TIME: Final = 1000


class Ingestion:
    """One ingestion.

    Args:
        adapter: Of the store.
        reader: Tells documents apart.
        workers: Transform.
        storage: Embeds and writes.
        tally: Counts.
        tell: Is told how many documents are done with.
        stopped: Whether to end.
        resume: Whether what is stored is right if its mark says so.
        prune: Whether rows go that are no chunk of a document that was read.
    """

    def __init__(
        self,
        adapter: Adapter,
        reader: Reader,
        workers: Workers | OnCluster,
        storage: Storage,
        tally: Tally,
        *,
        tell: Callable[[int], None],
        stopped: Event,
        resume: bool,
        prune: bool,
    ) -> None:
        self._collection, self._reader, self._workers = adapter.collection, reader, workers
        self._whole = adapter.transformation is None
        self._storage, self._tally, self._tell, self._stopped = storage, tally, tell, stopped
        self._resume, self._prune = resume, prune
        self._pace = Pace(workers.count)
        self._most_chunks = max(_WINDOW_CHUNKS, 2 * CALL_TEXTS * storage.lanes)
        self._most_bytes = _WINDOW_BYTES * self._most_chunks // _WINDOW_CHUNKS
        self._under_way: dict[str, str] = {}
        self._groups: deque[tuple[list[_Looked], Future[Done]]] = deque()
        self._window: list[Change] = []
        self._writer = ThreadPoolExecutor(1, "ragaccel-ingest-writer")
        self._writing: Future[Stored] | None = None
        self._chunks = self._bytes = 0
        self._broken: Exception | None = None
        self._right = array("Q")

    def run(self, documents: Iterable[Any]) -> None:
        """Take in documents.

        Raises:
            IngestionError: A document failed, and that was not to be.
            Stopped: It was stopped.
            Exception: What the documents' source raised; what came before is stored.
        """
        try:
            self._read(documents)
            self._drain()
            self._finish()
        except BaseException:
            self._stopped.set()
            raise
        finally:
            self._writer.shutdown(cancel_futures=True)

    # -- reading -----------------------------------------------------------------------------------

    def _read(self, documents: Iterable[Any]) -> None:
        block: list[Source] = []
        began, size = time.monotonic(), 0
        for document in self._given(documents):
            if self._stopped.is_set():
                raise Stopped
            source = self._source(document)
            if source is None:
                continue
            known = self._under_way.get(source.id)
            if known == source.mark:
                self._tally.succeeded(unchanged=True)
                continue
            if known is not None:  # it has changed since: in the store, too, the last one counts
                self._begin(block)
                self._drain()
                block = []
            if not block:
                began, size = time.monotonic(), 0
            self._under_way[source.id] = source.mark
            block.append(source)
            size += source.size
            if (
                len(block) >= _BLOCK_DOCUMENTS
                or size >= _BLOCK_BYTES
                or time.monotonic() - began > _BLOCK_SECONDS
            ):
                self._begin(block)
                block = []
        self._begin(block)

    def _given(self, documents: Iterable[Any]) -> Iterator[Any]:
        """Give documents until there are no more, or their source breaks off."""
        try:
            yield from documents
        except Exception as error:  # noqa: BLE001 - raised once all is stored that came before
            self._broken = error

    def _source(self, document: Any) -> Source | None:
        self._tally.documents += 1
        try:
            source = self._reader.read(document)
        except Exception as error:  # noqa: BLE001 - a bad document is the report's
            self._tally.fail(Failure(None, "read", error))
            return None
        self._tally.passed("read")
        return source

    # -- looking up --------------------------------------------------------------------------------

    def _begin(self, block: Sequence[Source]) -> None:
        """Pass over what is stored and hand out the rest."""
        if not block:
            return
        rows = self._stored(block)
        looked = [
            _Looked(source, rows.get(source.id, []))
            for source in block
            if not self._is_complete(source, rows.get(source.id, []))
        ]
        while looked:
            count = self._pace.cut([one.size for one in looked])
            self._hand_out(looked[:count])
            looked = looked[count:]
        self._tell(self._tally.ended)

    def _stored(self, block: Sequence[Source]) -> dict[str, list[Record]]:
        """Return the rows that are stored of documents."""
        ids = tuple(source.id for source in block)
        rows: dict[str, list[Record]] = {}
        for row in self._collection.select(Or((Ids(ids), Documents(ids)))):
            of = row.id if row.id in self._under_way else row.document_id or row.id
            rows.setdefault(of, []).append(row)
        return rows

    def _is_complete(self, source: Source, rows: Sequence[Record]) -> bool:
        """Tell whether a document is stored as it is; then what is too many of it may go."""
        if self._whole or not self._resume:
            return False
        ids = complete_ids(source.mark, {row.id for row in rows})
        if ids is None:
            return False
        replaced = [row for row in rows if row.id not in ids]
        self._add(Change(source.id, [], list(ids), replaced))
        return True

    # -- transforming ------------------------------------------------------------------------------

    def _hand_out(self, group: list[_Looked]) -> None:
        while not self._pace.has_room():
            self._take_back()
        tasks = [
            Task(one.source.document, one.source.id, None if self._whole else one.source.mark)
            for one in group
        ]
        self._pace.began(sum(one.size for one in group))
        self._groups.append((group, self._workers.submit(tasks)))
        while self._groups and self._groups[0][1].done():
            self._take_back()

    def _take_back(self) -> None:
        """Wait for the group that was handed out first."""
        group, future = self._groups.popleft()
        done = future.result()
        self._pace.ended(done)
        for looked, outcome in zip(group, done.outcomes, strict=True):
            if outcome.error is None:
                self._tally.passed("transform")
                self._add(self._change(looked, outcome))
            else:
                failure = Failure(looked.source.id, "transform", outcome.error, outcome.traceback)
                self._fail(failure, (row.id for row in looked.rows))

    def _change(self, looked: _Looked, outcome: Outcome) -> Change:
        """Compare a document's chunks with the rows that are stored of it."""
        rows = {row.id: row for row in looked.rows} if self._resume else {}
        ids = {chunk.id for chunk in outcome.chunks}
        kept = {
            chunk.id
            for chunk in outcome.chunks
            if chunk.id in rows and chunk.is_stored_as(rows[chunk.id])
        }
        changed = [chunk for chunk in outcome.chunks if chunk.id not in kept]
        replaced = [
            row
            for row in looked.rows
            if row.id not in ids and (not self._whole or self._is_of(looked.source, row))
        ]
        self._tally.empty += not outcome.chunks
        return Change(looked.source.id, changed, list(kept), replaced)

    @staticmethod
    def _is_of(source: Source, row: Record) -> bool:
        """Tell whether a row is a document's own, or one of the chunks that it once had.

        Others that name it as their document may be documents themselves.
        """
        return row.id == source.id or is_made_here(row.id)

    # -- writing -----------------------------------------------------------------------------------

    def _add(self, change: Change) -> None:
        """Put a document to those that are written together."""
        if not change.chunks and not change.replaced:
            self._keep(change.kept)
            self._end(change)
            return
        chunks = len(change.chunks)
        size = sum(chunk.size + OBJECT_BYTES for chunk in change.chunks)
        if self._chunks + chunks > self._most_chunks or self._bytes + size > self._most_bytes:
            self._write()
        self._window.append(change)
        self._chunks += chunks
        self._bytes += size

    def _write(self) -> None:
        """Have the window written, once the one before it is."""
        self._wait()
        if not self._window:
            return
        window, self._window = self._window, []
        self._chunks = self._bytes = 0
        context = contextvars.copy_context()
        self._writing = self._writer.submit(context.run, self._storage.store, window)

    def _wait(self) -> None:
        if self._writing is None:
            return
        stored, self._writing = self._writing.result(), None
        self._tally.chunks += stored.chunks
        self._tally.deleted += stored.deleted
        for change in stored.done:
            self._tally.passed("embed")
            self._keep([*change.kept, *(chunk.id for chunk in change.chunks)])
            self._end(change)
        for change, error in stored.failed:
            self._fail(
                Failure(change.id, "embed", error),
                [*change.kept, *(row.id for row in change.replaced)],
            )
        self._tell(self._tally.ended)

    def _drain(self) -> None:
        """Wait until all is written that was read."""
        while self._groups:
            self._take_back()
        self._write()
        self._wait()
        self._tell(self._tally.ended)

    def _end(self, change: Change) -> None:
        self._under_way.pop(change.id, None)
        self._tally.succeeded(unchanged=bool(change.kept) and not change.chunks)

    def _fail(self, failure: Failure, ids: Iterable[str]) -> None:
        self._under_way.pop(failure.document_id or "", None)
        self._keep(ids)
        self._tally.fail(failure)

    # -- pruning -----------------------------------------------------------------------------------

    def _keep(self, ids: Iterable[str]) -> None:
        """Note rows that are not to be pruned: 8 bytes each."""
        if self._prune:
            self._right.extend(map(_number, ids))

    def _finish(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._prune and not self._tally.unread:
            self._delete_others()

    def _delete_others(self) -> None:
        right = np.unique(np.frombuffer(self._right, np.uint64))
        ids = self._collection.ids()
        while page := list(itertools.islice(ids, _IDS_AT_A_TIME)):
            numbers = np.fromiter(map(_number, page), np.uint64)
            others = np.flatnonzero(~np.isin(numbers, right)).tolist()
            if others:
                self._tally.deleted += self._collection.delete([page[at] for at in others])


class _Looked:
    """A document to transform, and the rows that are stored of it."""

    __slots__ = ("rows", "size", "source")

    def __init__(self, source: Source, rows: list[Record]) -> None:
        self.source, self.rows = source, rows
        held = sum(len(row.text or "") + len(row.payload or b"") for row in rows)
        self.size = source.size + held + OBJECT_BYTES * (1 + len(rows))


def _number(id_: str) -> int:
    return int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "big")
