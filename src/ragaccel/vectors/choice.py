"""Adaptive compression: candidates are measured on the user's own vectors, and one is chosen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.errors import ConfigurationError
from ragaccel.vectors import calibrate
from ragaccel.vectors.engines import Effort
from ragaccel.vectors.metric import check_vectors, prepare
from ragaccel.vectors.rescore import rescored
from ragaccel.vectors.segment import Segment
from ragaccel.vectors.slab import MemorySlab
from ragaccel.vectors.spec import CompressionSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray
    from rich.table import Table

    from ragaccel.vectors.spec import Metric

_TRIAL_ROWS: Final = 50_000
_TRAIN_ROWS: Final = 20_000
_LISTS_FROM_ROWS: Final = 200_000
_TIMED: Final = 50
_SHARE: Final = 24
_FEW_BYTES: Final = 9  # a row number, and what is rounded up
_LEAST_ROWS: Final = 256
_QUICK: Final = ("pq", "pq2", "int8", "float16")
_ALL: Final = ("pq6", "pq", "pq2", "rabitq2", "rabitq4", "int4", "int8", "float16")


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
class Choice:
    """A decision, and the measurements that it was made from; `rich.print` draws it.

    Attributes:
        spec: What was chosen.
        rows: How many rows it is for.
        recall: The recall@10 that was asked.
        bytes_limit: Bytes per vector that were allowed.
        latency_limit_ms: Latency that was allowed; None for any.
        trials: All candidates that were measured.
    """

    spec: CompressionSpec
    rows: int
    recall: float
    bytes_limit: float
    latency_limit_ms: float | None
    trials: tuple[Trial, ...]

    def __rich__(self) -> Table:
        from ragaccel.vectors.table import drawn

        return drawn(self)


def choose(
    vectors: ArrayLike,
    *,
    recall: float = 0.99,
    memory_mb: float | None = None,
    latency_ms: float | None = None,
    queries: ArrayLike | None = None,
    metric: Metric = "cosine",
    candidates: Iterable[CompressionSpec] | None = None,
    progress: bool = True,
) -> Choice:
    """Measure candidates on a sample of vectors and choose the fastest that keeps to the limits.

    Every candidate is rescored with exact scores, with as many candidates per result as keep the
    recall with 95% certainty in each half of the queries.

    Args:
        vectors: The user's vectors, shape (n, dim), or a fair sample of them.
        recall: The recall@10 against exact search to keep, 0 to 1.
        memory_mb: The most that the codes of all rows may take; 1/24 of float32 by default.
        latency_ms: The longest that a query may take at the median; None for any.
        queries: Real query vectors, shape (m, dim); stand-ins made of rows by default.
        metric: How vectors are scored.
        candidates: What to measure; a ladder of all codecs by default, inverted lists from 200,000
            rows on.
        progress: Whether to show a progress bar on the terminal.

    Raises:
        ConfigurationError: Too few vectors, or no candidate keeps to the limits: the message says
            which came nearest. Without limits the best one is chosen.
    """
    rows = check_vectors(vectors, None)
    if len(rows) < _LEAST_ROWS:
        raise ConfigurationError(
            f"choosing needs at least {_LEAST_ROWS} vectors, got {len(rows)}; a collection that "
            "small is searched exactly."
        )
    specs = list(_ladder(_ALL, len(rows)) if candidates is None else candidates)
    bench = _Bench(rows, len(rows), metric, recall, queries)
    trials = [bench.trial(spec) for spec in _shown(specs, progress=progress)]
    limit = _bytes_limit(rows.shape[1], len(rows), memory_mb)
    spec = _best(trials, recall, limit, latency_ms, strict=bool(memory_mb or latency_ms))
    return Choice(spec, len(rows), recall, limit, latency_ms, tuple(trials))


def choose_spec(
    sample: NDArray[np.float32], rows: int, metric: Metric, recall: float, memory: int | None
) -> CompressionSpec:
    """Return what a collection compresses with: of a short ladder, the first that fits.

    Args:
        sample: Prepared rows, shape (n, dim).
        rows: How many rows there are.
        metric: How they are scored.
        recall: The recall@10 to keep.
        memory: Bytes that the codes may take; None for 1/24 of float32.
    """
    bench = _Bench(sample, rows, metric, recall, None)
    limit = _bytes_limit(sample.shape[1], rows, None if memory is None else memory / 1e6)
    trials = []
    for spec in _ladder(_QUICK, rows):
        trials.append(bench.trial(spec))
        if trials[-1].keeps and trials[-1].bytes_per_vector <= limit:
            break
    return _best(trials, recall, limit, None, strict=False)


class _Bench:
    """Rows, queries and their right answers, which candidates are measured with."""

    def __init__(
        self,
        rows: NDArray[np.float32],
        count: int,
        metric: Metric,
        recall: float,
        queries: ArrayLike | None,
    ) -> None:
        step = -(-len(rows) // _TRIAL_ROWS)
        self._rows = prepare(np.ascontiguousarray(rows[::step]), metric)
        self._count, self._metric, self._recall = count, metric, recall
        self._slots = np.arange(len(self._rows), dtype=np.int64)
        self._slab = MemorySlab(rows.shape[1])
        self._slab.append(self._slots, self._rows, len(self._rows))
        self._slab.extend(len(self._rows))
        if queries is None:
            asked = calibrate.stand_ins(self._slab, self._slots, 2 * calibrate.QUERIES, metric)
        else:
            asked = prepare(check_vectors(queries, rows.shape[1]), metric)
        right = calibrate.truth(self._slab, self._slots, asked, metric)
        self._exam = calibrate.Exam(asked, right, real=queries is not None)

    def trial(self, spec: CompressionSpec) -> Trial:
        started = time.perf_counter()
        segment = Segment.train(spec, self._metric, self._rows[:_TRAIN_ROWS], len(self._rows))
        segment.add(self._slots, self._rows)
        seconds = time.perf_counter() - started
        kept, efforts = True, []
        for half in (slice(0, None, 2), slice(1, None, 2)):
            exam = calibrate.Exam(self._exam.queries[half], self._exam.right[half], self._exam.real)
            kept &= calibrate.set_effort(segment, exam, self._recall)
            efforts.append(segment.effort)
        segment.effort = Effort(*map(max, zip(*efforts, strict=True)))
        found, bound = calibrate.verify(segment, self._exam)
        size = segment.codes.bytes_used / len(self._rows)
        scale = self._count / len(self._rows)
        latency = self._latency(segment) * (scale if spec.structure == "flat" else scale**0.5)
        return Trial(spec, size, segment.effort, kept, found, bound, latency, seconds)

    def _latency(self, segment: Segment) -> float:
        """Return the milliseconds of a query."""
        times = []
        for query in self._exam.queries[:_TIMED]:
            started = time.perf_counter()
            found = segment.candidates(query[None, :], calibrate.K * segment.effort.oversample)
            rescored(self._slab, query, found[0], calibrate.K, self._metric)
            times.append(time.perf_counter() - started)
        return float(np.median(times)) * 1e3


def _ladder(codecs: Sequence[Any], rows: int) -> list[CompressionSpec]:
    """Return candidates, the smallest first."""
    specs = [CompressionSpec(codec) for codec in codecs]
    if rows >= _LISTS_FROM_ROWS:
        specs.insert(1 + codecs.index("pq"), CompressionSpec("pq", "ivf"))
    return specs


def _bytes_limit(dim: int, rows: int, memory_mb: float | None) -> float:
    if memory_mb is not None:
        return memory_mb * 1e6 / rows
    return max(4 * dim / _SHARE, dim / 8 + _FEW_BYTES)


def _best(
    trials: Sequence[Trial], recall: float, limit: float, latency: float | None, *, strict: bool
) -> CompressionSpec:
    """Return the fastest candidate within the limits; without one, the smallest that is right."""
    right = [one for one in trials if one.keeps]
    fits = [
        one
        for one in right
        if one.bytes_per_vector <= limit and (latency is None or one.latency_ms <= latency)
    ]
    if fits:
        return min(fits, key=lambda one: one.latency_ms).spec
    nearest = max(trials, key=lambda one: one.recall)
    if strict:
        raise ConfigurationError(
            f"no candidate keeps recall {recall} within {limit:.0f} bytes per vector"
            + ("" if latency is None else f" and {latency} ms")
            + f"; {_told(right, nearest)}. Allow more, or ask for a lower recall."
        )
    return min(right, key=lambda one: one.bytes_per_vector).spec if right else nearest.spec


def _told(right: Sequence[Trial], nearest: Trial) -> str:
    one = min(right, key=lambda one: one.bytes_per_vector) if right else nearest
    return (
        f"{one.spec.codec} ({one.spec.structure}) takes {one.bytes_per_vector:.0f} bytes and "
        f"{one.latency_ms:.2f} ms at a recall of {one.recall:.4f} (at least {one.recall_bound:.4f})"
    )


def _shown(specs: list[CompressionSpec], *, progress: bool) -> Iterable[CompressionSpec]:
    if not progress:
        return specs
    from rich.progress import track

    tracked: Callable[..., Iterable[CompressionSpec]] = track
    return tracked(specs, description="measuring codecs")
