"""The index of a collection: which rows live, the fresh buffer, the segment, and the search."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from ragaccel.vectors import calibrate
from ragaccel.vectors import metric as metrics
from ragaccel.vectors.buffer import Buffer
from ragaccel.vectors.plan import Plan, is_outgrown
from ragaccel.vectors.rescore import rescored
from ragaccel.vectors.segment import TRAIN_ROWS, Segment
from ragaccel.vectors.slab import blocks
from ragaccel.vectors.spec import CompressionSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from ragaccel.vectors.calibrate import Exam
    from ragaccel.vectors.engines import Effort
    from ragaccel.vectors.metric import Found
    from ragaccel.vectors.plan import Asked
    from ragaccel.vectors.rowset import RowSet
    from ragaccel.vectors.slab import Slab
    from ragaccel.vectors.spec import Metric


#: A filter that leaves no more rows than this is answered by comparing with all of them.
_EXACT_ROWS: Final = 2048
_SEAL_ROWS: Final = 1024
_GROWTH: Final = 2
_RETUNE_GROWTH: Final = 1.25
_TRAIN_GROWTH: Final = 4
_MOST_DEAD: Final = 0.3
_LEAST_LIMIT: Final = 32  # oversampling that is no reason to make a codec new
_FULL = CompressionSpec("float32")


class Index:
    """Finds slots by vector; knows no documents. Callers hold the collection's lock.

    Attributes:
        live_count: Rows that live.
        questions: Real query vectors, raw, that efforts are set with; None for stand-ins.
    """

    def __init__(self, dim: int, asked: Asked, slab: Slab) -> None:
        self.dim = dim
        self.slab = slab
        self.asked = asked
        self._metric: Metric = asked.metric
        self._live = np.zeros(0, dtype=bool)
        self._live_bitmap: NDArray[np.uint8] | None = None
        self._buffer = Buffer(dim)
        self._segment: Segment | None = None
        self._tombstones = 0
        self.live_count = 0
        self._unit = False
        self.questions: NDArray[np.float32] | None = None

    # -- contents ----------------------------------------------------------------------------------

    @property
    def spec(self) -> CompressionSpec:
        """What the rows are kept with now."""
        return _FULL if self._segment is None else self._segment.spec

    @property
    def compressed(self) -> bool:
        """Whether rows are searched by codes."""
        return self._segment is not None

    @property
    def estimated_recall(self) -> float:
        """Recall@10 as it was estimated when the effort was set."""
        return 1.0 if self._segment is None else self._segment.recall or 0.0

    @property
    def live(self) -> NDArray[np.bool_]:
        """By slot, whether its row lives; slots that are not told of do not."""
        return self._live

    @property
    def unit(self) -> bool:
        """Whether all raw vectors are known to have a length of one, and are scored as they are."""
        return self._unit

    @unit.setter
    def unit(self, unit: bool) -> None:
        was, self._unit = self._scored, unit
        if was != self._scored:
            slots, rows = self._buffer.take()
            self._buffer.add(slots, metrics.prepare(rows, self._scored))

    @property
    def _scored(self) -> Metric:
        """How rows are scored for prepared queries."""
        return metrics.scored_as(self._metric, unit=self._unit)

    @property
    def bytes_used(self) -> int:
        """Bytes in memory: codes, recent rows, tombstones, and a slab that is in memory."""
        codes = 0 if self._segment is None else self._segment.codes.bytes_used
        slab: int = getattr(self.slab, "bytes_used", 0)
        return codes + self._buffer.bytes_used + self._live.nbytes + slab

    def add(self, slots: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Take in new rows: slots (n,) above all known ones, raw vectors (n, dim)."""
        if len(slots):
            self._mark_live(slots)
            self._buffer.add(slots, metrics.prepare(vectors, self._scored))

    def forget(self, slots: NDArray[np.int64]) -> None:
        """Drop rows that live: from the buffer at once, from the segment by a tombstone."""
        if not len(slots):
            return
        self._live[slots] = False
        self._live_bitmap = None
        self.live_count -= len(slots)
        if self._segment is not None:
            recent = slots[slots >= self._segment.end]
            self._tombstones += len(slots) - len(recent)
            slots = recent
        if len(slots):
            self._buffer.remove(slots)

    def living(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of some slots whose rows live."""
        known = slots[slots < len(self._live)]
        return known[self._live[known]]

    def raw(
        self,
        slots: NDArray[np.int64],
        fresh: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        """Return raw vectors (n, dim); `fresh` reads those that are not in the slab yet."""
        vectors = np.zeros((len(slots), self.dim), dtype=np.float32)
        stored = slots < self.slab.end
        vectors[stored] = self.slab.read(slots[stored])
        if not stored.all():
            vectors[~stored] = fresh(slots[~stored])
        return vectors

    # -- compression -------------------------------------------------------------------------------

    def seal(self, *, flush: bool = False) -> None:
        """Compress buffered rows that are in the slab, once they are enough to pay."""
        if self._is_exact or self._segment is None or not len(self._buffer):
            return
        if len(self._buffer) >= _SEAL_ROWS or flush:
            slots, rows = self._buffer.take()
            stored = slots < self.slab.end
            self._segment.add(slots[stored], rows[stored])
            self._buffer.add(slots[~stored], rows[~stored])

    @property
    def is_due(self) -> bool:
        """Whether the segment needs work: there is none yet, rows became more, or many are dead.

        So a codec follows the rows as they drift, and dead rows are let go.
        """
        if self._is_exact:
            return False
        segment = self._segment
        if segment is None:
            least = self.asked.compress_from
            return self.live_count >= least and self._live[: self.slab.end].sum() >= least
        return (
            segment.recall is None
            or self.live_count >= _RETUNE_GROWTH * segment.rows_when_made
            or self._many_dead
        )

    @property
    def _many_dead(self) -> bool:
        segment = self._segment
        return segment is not None and self._tombstones > _MOST_DEAD * segment.codes.rows

    @property
    def _is_outworn(self) -> bool:
        """Whether the codes are to be made anew whatever recall they have."""
        segment = self._segment
        trained = 0 if segment is None else segment.trained_rows
        grown = trained < TRAIN_ROWS // _GROWTH and self.live_count >= _TRAIN_GROWTH * trained
        stored = int(self._live[: self.slab.end].sum())
        return grown or self._many_dead or is_outgrown(self.asked, segment, stored)

    @property
    def effort(self) -> Effort | None:
        """How hard searches try; None while all rows are compared with."""
        return None if self._segment is None else self._segment.effort

    @effort.setter
    def effort(self, effort: Effort) -> None:
        if self._segment is not None:
            self._segment.effort = effort

    @property
    def most_probes(self) -> int:
        """The most probes that mean anything."""
        return 1 if self._segment is None else self._segment.codes.most_probes

    @property
    def segment(self) -> Segment | None:
        """The codes there are."""
        return self._segment

    def plan(self) -> Plan:
        """Return what making the segment anew takes; see `Plan`."""
        slots = np.flatnonzero(self._live[: self.slab.end])
        return Plan(self.asked, self.slab, slots, self._segment, self.questions)

    def retune(self, exam: Exam) -> bool:
        """Set the effort anew, unless that is not enough any more and the codec has to be made new.

        Args:
            exam: What `Plan.exam` gave.

        Returns:
            Whether the segment serves as it is.
        """
        segment = self._segment
        if segment is None or (segment.recall is not None and self._is_outworn):
            return False
        tried = replace(segment)
        kept = calibrate.set_effort(tried, exam, self.asked.recall)
        limit = max(_LEAST_LIMIT, _GROWTH * segment.effort.oversample)
        if segment.recall is not None and (not kept or tried.effort.oversample > limit):
            return False
        segment.effort, segment.recall = tried.effort, tried.recall
        segment.rows_when_made = self.live_count
        return True

    def adopt(self, segment: Segment | None) -> None:
        """Put a segment that was made by a plan in the place of the present one.

        Rows that were sealed while it was made are encoded, rows that died are tombstones.
        """
        slots, rows = self._buffer.take()
        sealed = 0 if self._segment is None else self._segment.end
        self._segment, self._tombstones = segment, 0
        if segment is None:
            stored = np.flatnonzero(self._live[: self.slab.end])
            self._buffer.add(stored, self._prepared(stored))
            kept = slots >= self.slab.end
        else:
            self._encode(segment, np.flatnonzero(self._live[segment.end : sealed]) + segment.end)
            self._tombstones = segment.codes.rows - int(self._live[: segment.end].sum())
            kept = slots >= segment.end
        self._buffer.add(slots[kept], rows[kept])

    def compact(self) -> None:
        """Make the segment anew from the live rows of the slab."""
        self.adopt(self.plan().run())

    def keep_up(self) -> None:
        """Do what is due, at once."""
        plan = self.plan()
        exam = plan.exam()
        if not self.retune(exam):
            self.adopt(plan.run(exam))

    def restore(
        self,
        live: NDArray[np.int64],
        fresh_slots: NDArray[np.int64],
        fresh_vectors: NDArray[np.float32],
    ) -> None:
        """Take in the stored rows: those the segment lacks are encoded or buffered."""
        self._mark_live(live)
        segment = self._segment
        if segment is not None:
            self._encode(segment, live[(live >= segment.end) & (live < self.slab.end)])
            self._tombstones = segment.codes.rows - int(self._live[: segment.end].sum())
        else:
            self.compact()
        late = fresh_slots >= self.slab.end
        self._buffer.add(fresh_slots[late], metrics.prepare(fresh_vectors[late], self._scored))

    def load(self, file: Path, is_known: Callable[[str], bool]) -> None:
        """Read the stored segment; a missing or damaged one is made anew when it is due."""
        if not self._is_exact:
            asked = self.asked
            self._segment = Segment.load(
                file, asked.spec, self.dim, asked.metric, asked.recall, is_known
            )

    def save(self, file: Path, rows_of: str) -> None:
        """Store the segment, if there is one."""
        if self._segment is None:
            file.unlink(missing_ok=True)
        else:
            self._segment.save(file, rows_of, self.asked.recall)

    @property
    def _is_exact(self) -> bool:
        return self.asked.spec is not None and self.asked.spec.exact

    def _encode(self, segment: Segment, slots: NDArray[np.int64]) -> None:
        for part in blocks(slots):
            segment.add(part, self._prepared(part))

    # -- search ------------------------------------------------------------------------------------

    def candidates(self, k: int) -> int:
        """Return how many candidates a search for k rows rescores per query."""
        return k if self._segment is None else k * self._segment.effort.oversample

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: RowSet | None,
        *,
        exact: bool = False,
    ) -> list[Found]:
        """Return per query the exact scores and slots of its nearest rows.

        Args:
            queries: Raw queries, shape (m, dim).
            k: Rows per query.
            allowed: Slots that may be found; None for all.
            exact: Compare with every vector.
        """
        prepared = metrics.prepare_queries(queries, self._metric)
        few = allowed is not None and len(allowed) <= max(_EXACT_ROWS, self.candidates(k))
        if exact or few or self._segment is None:
            return self._exact(prepared, k, allowed)
        found = self._compressed(self._segment, prepared, k, allowed)
        wanted = min(k, self.live_count if allowed is None else len(allowed))
        for at, (_, slots) in enumerate(found):
            # To a query of zeros all codes are alike, and a graph may have no way to a row.
            if len(slots) < wanted:
                (found[at],) = self._exact(prepared[at : at + 1], k, allowed)
        return found

    def best_among(
        self, queries: NDArray[np.float32], k: int, slots: NDArray[np.int64]
    ) -> list[Found]:
        """Return per query the exact scores and slots of the nearest of some rows.

        Args:
            queries: See `search`.
            k: Rows per query.
            slots: Of the rows, ascending; those that are gone are passed over.
        """
        prepared = metrics.prepare_queries(queries, self._metric)
        slots = self.living(slots)
        late = slots[np.searchsorted(slots, self.slab.end) :]
        best: list[Found] = [([], []) for _ in queries]
        if len(late):
            places = np.flatnonzero(self._buffer.slots >= late[0])
            places = places[np.isin(self._buffer.slots[places], late)]
            self._scan(prepared, self._buffer.slots[places], self._buffer.rows[places], k, best)
        for at, query in enumerate(prepared):
            stored = rescored(self.slab, query, slots[: len(slots) - len(late)], k, self._scored)
            scores, kept = np.array(stored[0], np.float32), np.array(stored[1], np.int64)
            best[at] = metrics.merge(best[at], scores, kept, k)
        return best

    def recall(self, queries: NDArray[np.float32], k: int) -> float:
        """Return recall@k of raw queries (m, dim) against exact search."""
        return self._recall(metrics.prepare_queries(queries, self._metric), k)

    def recall_on_rows(self, queries: int, k: int) -> float:
        """Return recall@k of vectors made from the rows as stand-ins for questions."""
        slots = np.flatnonzero(self._live[: self.slab.end])
        if not len(slots):
            return 1.0
        return self._recall(calibrate.stand_ins(self.slab, slots, queries, self._metric), k)

    def _recall(self, prepared: NDArray[np.float32], k: int) -> float:
        if self._segment is None:
            return 1.0
        found = self._compressed(self._segment, prepared, k, None)
        return _overlap(found, self._exact(prepared, k, None))

    def _compressed(
        self, segment: Segment, queries: NDArray[np.float32], k: int, allowed: RowSet | None
    ) -> list[Found]:
        count = k * segment.effort.oversample
        if allowed is not None:
            probes = segment.codes.most_probes if segment.spec.structure == "ivf" else None
            found = segment.candidates(queries, count, allowed.bitmap, probes)
        else:
            found = self._living_candidates(segment, queries, count)
        best = self._recent(queries, k, allowed)
        for at, query in enumerate(queries):
            stored = rescored(self.slab, query, found[at], k, self._scored)
            if best[at][1]:
                scores, slots = np.array(stored[0], np.float32), np.array(stored[1], np.int64)
                stored = metrics.merge(best[at], scores, slots, k)
            best[at] = stored
        return best

    def _living_candidates(
        self, segment: Segment, queries: NDArray[np.float32], count: int
    ) -> NDArray[np.int64]:
        """Return candidates without dead ones: asking for more is faster than a bitmap.

        Where the dead lie close together, more are not enough, and the bitmap is taken after all.
        """
        if not self._tombstones:
            return segment.candidates(queries, count)
        rows = segment.codes.rows
        more = min(rows, int(count / max(1 - self._tombstones / rows, 0.1)) + 1)
        found = segment.candidates(queries, more)
        found[(found < 0) | ~self._live[found]] = -1
        if more < rows and ((found >= 0).sum(axis=1) < min(count, rows - self._tombstones)).any():
            if self._live_bitmap is None:
                self._live_bitmap = np.packbits(self._live, bitorder="little")
            return segment.candidates(queries, count, self._live_bitmap)
        return found

    def _exact(self, queries: NDArray[np.float32], k: int, allowed: RowSet | None) -> list[Found]:
        best = self._recent(queries, k, allowed)
        end = 0 if self._segment is None else self._segment.end
        slots = np.flatnonzero(self._live[:end]) if allowed is None else allowed.slots
        if allowed is not None:
            slots = slots[: np.searchsorted(slots, end)]
        for part in blocks(slots):
            rows = self.slab.read(part)
            if len(queries) == 1:
                scores, kept = metrics.nearest_raw(queries[0], rows, k, self._scored)
                best[0] = metrics.merge(best[0], scores, part[kept], k)
            else:
                self._scan(queries, part, metrics.prepare(rows, self._scored), k, best)
        return best

    def _recent(self, queries: NDArray[np.float32], k: int, allowed: RowSet | None) -> list[Found]:
        best: list[Found] = [([], []) for _ in queries]
        if not len(self._buffer):
            return best
        slots, rows = self._buffer.slots, self._buffer.rows
        if allowed is not None:
            keep = allowed.contains(slots)
            slots, rows = slots[keep], rows[keep]
        self._scan(queries, slots, rows, k, best)
        return best

    def _scan(
        self,
        queries: NDArray[np.float32],
        slots: NDArray[np.int64],
        rows: NDArray[np.float32],
        k: int,
        best: list[Found],
    ) -> None:
        """Compare queries with rows and keep the best so far."""
        if not len(slots):
            return
        rough = metrics.rough_scores(queries, rows, self._metric)
        for at, query in enumerate(queries):
            scores, kept = metrics.nearest(query, rows, rough[at], k, self._metric)
            best[at] = metrics.merge(best[at], scores, slots[kept], k)

    def _prepared(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        return metrics.prepare(self.slab.read(slots), self._scored)

    def _mark_live(self, slots: NDArray[np.int64]) -> None:
        if not len(slots):
            return
        end = int(slots[-1]) + 1
        if end > len(self._live):
            grown = np.zeros(max(end, 2 * len(self._live)), dtype=bool)
            grown[: len(self._live)] = self._live
            self._live = grown
        self._live[slots] = True
        self._live_bitmap = None
        self.live_count += len(slots)


def _overlap(found: list[Found], truth: list[Found]) -> float:
    shares = [
        len(set(got).intersection(right)) / len(right)
        for (_, got), (_, right) in zip(found, truth, strict=True)
        if right
    ]
    return float(np.mean(shares)) if shares else 1.0
