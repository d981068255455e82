"""The index of a collection: which rows live, the fresh buffer, the segment, and the search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from ragaccel.vectors import metric as metrics
from ragaccel.vectors.buffer import Buffer
from ragaccel.vectors.segment import Segment
from ragaccel.vectors.spec import AUTO, COMPRESS_FROM_ROWS, CompressionSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from ragaccel.vectors.slab import Slab
    from ragaccel.vectors.spec import Metric

    Found = tuple[list[float], list[int]]

#: A filter that leaves no more rows than this is answered by comparing with all of them.
_EXACT_FILTER_ROWS: Final = 20_000
_BLOCK_ROWS: Final = 32_768
_SEAL_ROWS: Final = 1024
_MIN_TRAIN_ROWS: Final = 1024
_LADDER: Final = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_CALIBRATION_QUERIES: Final = 256
_K: Final = 10
_Z: Final = 1.645  # one-sided 95%
_GROWTH: Final = 2
_NOISE: Final = 1.5
_SEED: Final = 20_261_123


class Index:
    """Finds slots by vector; knows no documents. Callers hold the collection's lock."""

    def __init__(
        self, dim: int, metric: Metric, spec: CompressionSpec | None, recall: float, slab: Slab
    ) -> None:
        self.dim = dim
        self.slab = slab
        self._metric: Metric = metric
        self._asked = spec
        self._floor = recall
        self._live = np.zeros(0, dtype=bool)
        self._buffer = Buffer(dim)
        self._segment: Segment | None = None
        self._tombstones = 0
        self.live_count = 0

    # -- contents ----------------------------------------------------------------------------------

    @property
    def spec(self) -> CompressionSpec:
        """What the rows are kept with now."""
        return CompressionSpec("float32") if self._segment is None else self._segment.spec

    @property
    def estimated_recall(self) -> float:
        """Recall@10 as it was estimated when the oversampling was set."""
        return 1.0 if self._segment is None else self._segment.recall

    @property
    def live(self) -> NDArray[np.bool_]:
        """By slot, whether its row lives; slots that are not told of do not."""
        return self._live

    @property
    def bytes_used(self) -> int:
        """Bytes in memory: codes, recent rows, tombstones, and a slab that is in memory."""
        codes = 0 if self._segment is None else self._segment.bytes_used
        slab: int = getattr(self.slab, "bytes_used", 0)
        return codes + self._buffer.bytes_used + self._live.nbytes + slab

    def add(self, slots: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Take in new rows: slots (n,) above all known ones, raw vectors (n, dim)."""
        if len(slots):
            self._mark_live(slots)
            self._buffer.add(slots, metrics.prepare(vectors, self._metric))

    def forget(self, slots: NDArray[np.int64]) -> None:
        """Drop rows: from the buffer at once, from the segment by a tombstone."""
        slots = slots[slots < len(self._live)]
        slots = slots[self._live[slots]]
        if not len(slots):
            return
        self._live[slots] = False
        self.live_count -= len(slots)
        if self._segment is not None:
            self._tombstones += int((slots < self._segment.end).sum())
        self._buffer.remove(slots)

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
        spec = self._asked or AUTO
        if spec.exact or not len(self._buffer):
            return
        if self._segment is None:
            if len(self._buffer) < self._compress_from:
                return
            self._segment = Segment.train(spec, self._metric, self._buffer.rows)
        elif len(self._buffer) < _SEAL_ROWS and not flush:
            return
        slots, rows = self._buffer.take()
        stored = slots < self.slab.end
        self._segment.add(slots[stored], rows[stored])
        self._buffer.add(slots[~stored], rows[~stored])
        if self._segment.trained_rows * _GROWTH <= self.live_count or not self._segment.recall:
            self._calibrate(self._segment)

    def compact(self) -> None:
        """Encode all live rows of the slab anew, with a codec trained on them."""
        spec = self._asked or AUTO
        slots = np.flatnonzero(self._live[: self.slab.end])
        self._segment, self._tombstones = None, 0
        late_slots, late_rows = self._buffer.take()
        late = late_slots >= self.slab.end
        if spec.exact or len(slots) < self._compress_from:
            self._buffer.add(slots, self._prepared(slots))
        else:
            sample = slots[:: max(1, len(slots) // _BLOCK_ROWS)]
            self._segment = Segment.train(spec, self._metric, self._prepared(sample))
            self._encode(self._segment, slots)
            self._calibrate(self._segment)
        self._buffer.add(late_slots[late], late_rows[late])

    def restore(
        self,
        live: NDArray[np.int64],
        fresh_slots: NDArray[np.int64],
        fresh_vectors: NDArray[np.float32],
    ) -> None:
        """Take in the stored rows: those the segment lacks are encoded or buffered."""
        self._mark_live(live)
        if self._segment is not None:
            missing = live[(live >= self._segment.end) & (live < self.slab.end)]
            self._encode(self._segment, missing)
            inside = int((live < self._segment.end).sum())
            self._tombstones = self._segment.rows - inside
            if not self._segment.recall and inside:
                self._calibrate(self._segment)
        else:
            stored = live[live < self.slab.end]
            self._buffer.add(stored, self._prepared(stored))
            self.seal()
        late = fresh_slots >= self.slab.end
        self._buffer.add(fresh_slots[late], metrics.prepare(fresh_vectors[late], self._metric))

    def load(self, file: Path, is_known: Callable[[str], bool]) -> None:
        """Read the stored segment; a missing or damaged one is rebuilt by `restore`."""
        spec = self._asked or AUTO
        if not spec.exact:
            self._segment = Segment.load(file, spec, self.dim, self._metric, self._floor, is_known)

    def save(self, file: Path, rows_of: str) -> None:
        """Store the segment, if there is one."""
        if self._segment is None:
            file.unlink(missing_ok=True)
        else:
            self._segment.save(file, rows_of, self._floor)

    @property
    def _compress_from(self) -> int:
        return COMPRESS_FROM_ROWS if self._asked is None else _MIN_TRAIN_ROWS

    def _encode(self, segment: Segment, slots: NDArray[np.int64]) -> None:
        for start in range(0, len(slots), _BLOCK_ROWS):
            part = slots[start : start + _BLOCK_ROWS]
            segment.add(part, self._prepared(part))

    def _calibrate(self, segment: Segment) -> None:
        """Set the least oversampling whose recall is at the floor, with 95% certainty."""
        segment.trained_rows = max(segment.trained_rows, self.live_count)
        queries = self._pseudo_queries(_CALIBRATION_QUERIES)
        truth = self._exact(queries, _K, None)
        asked = segment.spec.oversample
        for rung in _LADDER if asked is None else (asked,):
            segment.oversample = rung
            segment.recall = _overlap(self._compressed(queries, _K, None), truth)
            variance = segment.recall * (1 - segment.recall) / (len(queries) * _K)
            if segment.recall - _Z * float(np.sqrt(variance)) >= self._floor:
                return

    # -- search ------------------------------------------------------------------------------------

    def candidates(self, k: int) -> int:
        """Return how many candidates a search for k rows rescores per query."""
        return k * self._segment.oversample if self._segment is not None else k

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.int64] | None,
        *,
        exact: bool = False,
    ) -> list[Found]:
        """Return per query the exact scores and slots of its nearest rows.

        Args:
            queries: Raw queries, shape (m, dim).
            k: Rows per query.
            allowed: Slots that may be found, ascending; None for all.
            exact: Compare with every vector.
        """
        prepared = metrics.prepare(queries, self._metric)
        few = allowed is not None and len(allowed) <= _EXACT_FILTER_ROWS
        if exact or few:
            return self._exact(prepared, k, allowed)
        return self._compressed(prepared, k, allowed)

    def recall(self, queries: NDArray[np.float32], k: int) -> float:
        """Return recall@k of raw queries (m, dim) against exact search."""
        prepared = metrics.prepare(queries, self._metric)
        return _overlap(self._compressed(prepared, k, None), self._exact(prepared, k, None))

    def recall_on_rows(self, queries: int, k: int) -> float:
        """Return recall@k of vectors made from the rows as stand-ins for questions."""
        prepared = self._pseudo_queries(queries)
        return _overlap(self._compressed(prepared, k, None), self._exact(prepared, k, None))

    def _compressed(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None
    ) -> list[Found]:
        if self._segment is None:
            return self._exact(queries, k, allowed)
        mask = None
        if allowed is not None:
            mask = np.zeros(self._segment.end, dtype=bool)
            mask[allowed[allowed < self._segment.end]] = True
        elif self._tombstones:
            mask = self._live[: self._segment.end]
        count = k * self._segment.oversample
        found = self._segment.candidates(queries, count, mask)
        best = self._recent(queries, k, allowed)
        for at, query in enumerate(queries):
            slots = np.sort(found[at][found[at] >= 0])
            scores = metrics.scores(query[None, :], self._prepared(slots), self._metric)[0]
            best[at] = _merge(best[at], scores, slots, k)
        return best

    def _exact(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None
    ) -> list[Found]:
        best = self._recent(queries, k, allowed)
        end = 0 if self._segment is None else self._segment.end
        slots = np.flatnonzero(self._live[:end]) if allowed is None else allowed[allowed < end]
        for start in range(0, len(slots), _BLOCK_ROWS):
            part = slots[start : start + _BLOCK_ROWS]
            self._scan(queries, part, self._prepared(part), k, best)
        return best

    def _recent(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None
    ) -> list[Found]:
        slots, rows = self._buffer.slots, self._buffer.rows
        if allowed is not None:
            keep = np.isin(slots, allowed, assume_unique=True)
            slots, rows = slots[keep], rows[keep]
        best: list[Found] = [([], []) for _ in queries]
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
            best[at] = _merge(best[at], scores, slots[kept], k)

    def _prepared(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        return metrics.prepare(self.slab.read(slots), self._metric)

    def _pseudo_queries(self, count: int) -> NDArray[np.float32]:
        """Return prepared vectors as far from the rows as real questions are.

        Rows themselves are found too easily. A row with noise of 1.5 times its length has a cosine
        of .55 to its nearest row; on the four real sets of questions that this was chosen on, the
        recall of such vectors was that of the questions or lower, at every oversampling.
        """
        slots = np.flatnonzero(self._live[: self.slab.end])
        generator = np.random.default_rng(_SEED)
        chosen = generator.choice(slots, min(count, len(slots)), replace=False)
        rows = self.slab.read(np.sort(chosen))
        noise = generator.standard_normal(rows.shape, dtype=np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        noise *= _NOISE * lengths / np.linalg.norm(noise, axis=1, keepdims=True)
        return metrics.prepare(rows + noise, self._metric)

    def _mark_live(self, slots: NDArray[np.int64]) -> None:
        if not len(slots):
            return
        end = int(slots[-1]) + 1
        if end > len(self._live):
            grown = np.zeros(max(end, 2 * len(self._live)), dtype=bool)
            grown[: len(self._live)] = self._live
            self._live = grown
        self._live[slots] = True
        self.live_count += len(slots)


def _merge(found: Found, scores: NDArray[np.float32], slots: NDArray[np.int64], k: int) -> Found:
    """Return the k highest scores with their slots; of equal scores the lower slot first."""
    scores = np.concatenate((np.array(found[0], np.float32), scores))
    slots = np.concatenate((np.array(found[1], np.int64), slots))
    order = np.lexsort((slots, -scores))[:k]
    return scores[order].tolist(), slots[order].tolist()


def _overlap(found: list[Found], truth: list[Found]) -> float:
    shares = [
        len(set(got).intersection(right)) / len(right)
        for (_, got), (_, right) in zip(found, truth, strict=True)
        if right
    ]
    return float(np.mean(shares)) if shares else 1.0
