"""Upkeep: codes are made anew as rows come and go, or when the user asks for it."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ragaccel import telemetry
from ragaccel.errors import CollectionClosedError, ConfigurationError
from ragaccel.resources.heap import give_back
from ragaccel.telemetry import attributes
from ragaccel.vectors.background import Background, StoppableSlab, StoppedError
from ragaccel.vectors.calibrate import set_effort
from ragaccel.vectors.choice import build_best
from ragaccel.vectors.pages import ask_for_file
from ragaccel.vectors.plan import MIN_TRAIN_ROWS
from ragaccel.vectors.trials import Bench

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ragaccel.vectors.choice import Choice
    from ragaccel.vectors.index import Index
    from ragaccel.vectors.locks import ReadWriteLock
    from ragaccel.vectors.plan import Plan
    from ragaccel.vectors.segment import Segment
    from ragaccel.vectors.spec import CompressionSpec
    from ragaccel.vectors.store import Store

_AT_ONCE_ROWS: Final = 20_000


class Upkeep:
    """Makes the codes of a store anew; searches and writes are held up at the end only.

    Args:
        store: What to keep up.
        lock: The lock that searches and writes take.
    """

    def __init__(self, store: Store, lock: ReadWriteLock) -> None:
        self._store, self._lock = store, lock
        self._background = Background(
            "codes could not be made anew; the collection goes on with those it has"
        )
        self._warming = Background("files could not be read ahead; they are read when needed")
        self._saving = threading.Lock()

    def keep_up(self) -> None:
        """Do what is due: at once where that is short, else in the background; lock held."""
        index = self._store.index
        if index is not None and index.is_due:
            if index.live_count <= _AT_ONCE_ROWS:
                with telemetry.stage("compact", {attributes.ROWS: index.live_count}):
                    index.keep_up()
                give_back()
            else:
                self._background.begin(self._remake)

    def build(
        self,
        specs: Sequence[CompressionSpec],
        *,
        memory_mb: float | None,
        latency_ms: float | None,
        workers: int | None,
        progress: bool,
    ) -> Choice:
        """Build candidates, compare them and search with the best; see `VectorCollection.build`."""
        with self._lock.write():
            store = self._store
            asked = store.settings
            if asked.compression is not None:
                raise ConfigurationError(
                    f"the collection was opened with compression={asked.compression.codec!r}; open "
                    'it with compression="auto" to let it choose.'
                )
            store.checkpoint()
            index = store.index
            rows = 0 if index is None else index.live_count
            if index is None or rows < MIN_TRAIN_ROWS or not specs:
                raise ConfigurationError(
                    f"building needs at least {MIN_TRAIN_ROWS} rows and a candidate, got {rows} "
                    f"rows and {len(specs)} candidates; few rows are searched exactly."
                )
            plan, unit = self._plan(index), index.unit
        at_once = min(len(specs), workers or os.cpu_count() or 1)
        try:
            exam = plan.exam()
            bench = Bench(plan.slab, plan.slots, rows, asked.metric, asked.recall, exam, unit=unit)
            choice, segment = build_best(
                bench, specs, memory_mb=memory_mb, latency_ms=latency_ms, workers=at_once,
                progress=progress,
            )  # fmt: skip
            self._adopt(index, plan, segment)
        except StoppedError as error:
            raise CollectionClosedError("the collection was closed meanwhile.") from error
        return choice

    def encoded(self, spec: CompressionSpec) -> Segment:
        """Return codes of all rows, with the effort that keeps the recall; nothing is held up.

        Raises:
            CollectionClosedError: The collection was closed meanwhile.
        """
        with self._lock.write():
            self._store.checkpoint()
            index = self._store.index
            if index is None:
                raise ConfigurationError("there are no rows to encode.")
            plan = self._plan(index)
        try:
            return replace(plan, asked=replace(plan.asked, spec=spec)).made()
        except StoppedError as error:
            raise CollectionClosedError("the collection was closed meanwhile.") from error

    def search_with(self, segment: Segment) -> None:
        """Search with codes that are made from now on; they are stored when the rows are."""
        with self._lock.write():
            if self._store.index is not None:
                self._store.index.adopt(segment.unsaved())

    def warm(self, files: Sequence[Path]) -> None:
        """Read files into the page cache and map the slab's pages, in the background."""
        self._warming.begin(lambda: self._warm(files))

    def wait(self) -> None:
        """Wait until no work is under way."""
        self._background.wait()
        self._warming.wait()

    def stop(self) -> None:
        """Let the work end soon, and begin no other."""
        self._background.stop()
        self._warming.stop()

    def _plan(self, index: Index) -> Plan:
        slab = StoppableSlab(index.slab, self._background.stopping)
        return replace(index.plan(), slab=slab)

    def _remake(self) -> None:
        with self._lock.read():
            index = self._store.index
            if index is None:
                return
            plan = self._plan(index)
        with telemetry.stage("compact", {attributes.ROWS: len(plan.slots)}):
            self._make_codes(index, plan)
        give_back()

    def _make_codes(self, index: Index, plan: Plan) -> None:
        """Set the effort anew, or make other codes if no effort keeps the recall."""
        while True:
            exam = plan.exam()
            with self._lock.write():
                if self._store.index is not index:
                    return
                is_right = index.questions is plan.questions
                serves = is_right and index.retune(exam)
            if serves:
                self._save()
                return
            if is_right:
                break
            plan = replace(plan, questions=index.questions)
        self._adopt(index, plan, plan.run(exam))

    def _adopt(self, index: Index, plan: Plan, segment: Segment | None) -> None:
        """Search with other codes from now on, unless the collection was read anew meanwhile.

        If it was calibrated with other queries meanwhile, the effort is set with those first.

        Raises:
            StoppedError: The collection is closed.
        """
        while True:
            with self._lock.write():
                self._check_open()
                if self._store.index is not index:
                    return
                if index.questions is plan.questions or segment is None:
                    index.adopt(segment)
                    break
                plan = replace(plan, questions=index.questions)
            set_effort(segment, plan.exam(), plan.asked.recall)
        self._save()
        with self._lock.write():
            self._check_open()
            if self._store.writable:
                self._store.give_back()

    def _save(self) -> None:
        """Store the codes; searches go on meanwhile, and writes wait."""
        with self._saving, self._lock.read():
            self._check_open()
            if self._store.writable:
                self._store.save_segment()

    def _check_open(self) -> None:
        if self._background.stopping.is_set():
            raise StoppedError

    def _warm(self, files: Sequence[Path]) -> None:
        for file in files:
            with contextlib.suppress(OSError):  # it is only a hint
                ask_for_file(file)
        index = self._store.index
        if index is not None:
            index.slab.bring_in(self._warming.stopping)
