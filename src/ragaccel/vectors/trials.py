"""Trials: candidates are built side by side, and measured one after another."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ragaccel.vectors import calibrate
from ragaccel.vectors.engines import Effort, faiss_engine
from ragaccel.vectors.metric import scored_as
from ragaccel.vectors.rescore import rescored
from ragaccel.vectors.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ragaccel.vectors.calibrate import Exam
    from ragaccel.vectors.slab import Rows
    from ragaccel.vectors.spec import CompressionSpec, Metric

    Built = tuple[Segment, float]

_TIMED: Final = 50


@dataclass(frozen=True)
class Trial:
    """What was measured of one candidate.

    Attributes:
        spec: The candidate.
        bytes_per_vector: Bytes in memory per row: codes, row number, centres and links.
        effort: The least that keeps the recall in both halves of the queries, each set and checked
            by itself.
        keeps: Whether any does.
        recall: Recall@10 with it.
        recall_bound: What the recall is at least, with 95% certainty.
        latency_ms: Median of single queries on one thread, brought to the number of all rows.
        build_seconds: Training and encoding of the sample.
    """

    spec: CompressionSpec
    bytes_per_vector: float
    effort: Effort
    keeps: bool
    recall: float
    recall_bound: float
    latency_ms: float
    build_seconds: float


@dataclass(frozen=True)
class Bench:
    """Rows, queries and their right answers, which candidates are measured with.

    Attributes:
        rows: The raw vectors.
        slots: Those that are meant, int64 of shape (n,).
        count: How many rows there are, where these are a sample.
        metric: How they are scored.
        recall: The recall@10 to keep.
        exam: The queries.
        unit: Whether all raw vectors have a length of one.
    """

    rows: Rows
    slots: NDArray[np.int64]
    count: int
    metric: Metric
    recall: float
    exam: Exam
    unit: bool = False

    def build(self, spec: CompressionSpec) -> Built:
        """Return the codes of a candidate, and how many seconds they took."""
        started = time.perf_counter()
        segment = Segment.build(spec, self.metric, self.rows, self.slots)
        return segment, time.perf_counter() - started

    def measure(self, segment: Segment, seconds: float) -> Trial:
        """Set the effort of a candidate and measure it."""
        kept, efforts = True, []
        for half in (slice(0, None, 2), slice(1, None, 2)):
            exam = calibrate.Exam(self.exam.queries[half], self.exam.right[half], self.exam.real)
            kept &= calibrate.set_effort(segment, exam, self.recall)
            efforts.append(segment.effort)
        segment.effort = Effort(*map(max, zip(*efforts, strict=True)))
        segment.recall, bound = calibrate.verify(segment, self.exam)
        rows = len(self.slots)
        scale = self.count / rows
        latency = self._latency(segment) * (
            scale if segment.spec.structure == "flat" else scale**0.5
        )
        size = segment.codes.bytes_used / rows
        return Trial(
            segment.spec, size, segment.effort, kept, segment.recall, bound, latency, seconds
        )

    def _latency(self, segment: Segment) -> float:
        """Return the milliseconds of a query."""
        scored = scored_as(self.metric, unit=self.unit)
        times = []
        for query in self.exam.queries[:_TIMED]:
            started = time.perf_counter()
            found = segment.candidates(query[None, :], calibrate.K * segment.effort.oversample)
            rescored(self.rows, query, found[0], calibrate.K, scored)
            times.append(time.perf_counter() - started)
        return float(np.median(times)) * 1e3


def run(
    bench: Bench, specs: Sequence[CompressionSpec], workers: int = 1
) -> Iterator[tuple[Trial, Segment]]:
    """Yield what was measured of each candidate, with its codes.

    Args:
        bench: What to measure on.
        specs: The candidates.
        workers: How many are built at a time, and how many are in memory at most; nothing is built
            while one is measured.
    """
    workers = max(1, workers)
    with ThreadPoolExecutor(
        workers, "ragaccel-build", faiss_engine.share_cores, (workers,)
    ) as pool:
        for start in range(0, len(specs), workers):
            built = list(pool.map(bench.build, specs[start : start + workers]))
            while built:
                segment, seconds = built.pop(0)
                yield bench.measure(segment, seconds), segment
