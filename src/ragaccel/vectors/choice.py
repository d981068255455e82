"""Adaptive compression: candidates are measured on the user's own vectors, and one is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.errors import ConfigurationError
from ragaccel.vectors import calibrate
from ragaccel.vectors.metric import check_vectors, prepare
from ragaccel.vectors.slab import MemorySlab
from ragaccel.vectors.spec import CompressionSpec
from ragaccel.vectors.trials import Bench, Trial, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray
    from rich.table import Table

    from ragaccel.vectors.segment import Segment
    from ragaccel.vectors.slab import Rows
    from ragaccel.vectors.spec import Metric

_TRIAL_ROWS: Final = 50_000
_LISTS_FROM_ROWS: Final = 200_000
_SHARE: Final = 24
_FEW_BYTES: Final = 9  # a row number, and what is rounded up
_LEAST_ROWS: Final = 256
_QUICK: Final = ("pq", "pq2", "int8", "float16")
_ALL: Final = ("pq6", "pq", "pq2", "rabitq2", "rabitq4", "int4", "int8", "float16")


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
    workers: int = 1,
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
        workers: How many candidates to build at a time; they are timed one after another.
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
    bench = _bench(rows, metric, recall, queries)
    trials = [trial for trial, _ in _shown(bench, specs, workers, progress=progress)]
    limit = _bytes_limit(rows.shape[1], len(rows), memory_mb)
    best = _best(trials, recall, limit, latency_ms, strict=bool(memory_mb or latency_ms))
    return Choice(best.spec, len(rows), recall, limit, latency_ms, tuple(trials))


def choose_spec(
    slab: Rows,
    sample: NDArray[np.int64],
    rows: int,
    metric: Metric,
    recall: float,
    memory: int | None,
    queries: NDArray[np.float32] | None,
) -> CompressionSpec:
    """Return what a collection compresses with: of a short ladder, the first that fits.

    Args:
        slab: Raw vectors.
        sample: The slots of some that stand for all, int64 of shape (n,).
        rows: How many rows there are.
        metric: How they are scored.
        recall: The recall@10 to keep.
        memory: Bytes that the codes may take; None for 1/24 of float32.
        queries: Real query vectors, shape (m, dim); inverted lists are for those who have some.
    """
    exam = calibrate.exam_on(slab, sample, queries, metric, 2 * calibrate.QUERIES)
    bench = Bench(slab, sample, rows, metric, recall, exam)
    dim = exam.queries.shape[1]
    limit = _bytes_limit(dim, rows, None if memory is None else memory / 1e6)
    trials = []
    for trial, _ in run(bench, _ladder(_QUICK, 0 if queries is None else rows)):
        trials.append(trial)
        if trial.keeps and trial.bytes_per_vector <= limit:
            break
    return _best(trials, recall, limit, None, strict=False).spec


def usual(rows: int) -> list[CompressionSpec]:
    """Return compressions that are worth trying for so many rows, the smallest first."""
    return _ladder(_QUICK, rows)


def build_best(
    bench: Bench,
    specs: Sequence[CompressionSpec],
    *,
    memory_mb: float | None,
    latency_ms: float | None,
    workers: int,
    progress: bool,
) -> tuple[Choice, Segment]:
    """Build candidates side by side, and return the decision with the codes of the chosen one.

    Of what was built, only the best so far is kept.

    Raises:
        ConfigurationError: No candidate keeps to the limits; see `choose`.
    """
    rows, dim = bench.count, bench.exam.queries.shape[1]
    limit = _bytes_limit(dim, rows, memory_mb)
    trials: list[Trial] = []
    kept: Segment | None = None
    for trial, segment in _shown(bench, specs, workers, progress=progress):
        trials.append(trial)
        if _best(trials, bench.recall, limit, latency_ms, strict=False) is trial:
            kept = segment
    best = _best(trials, bench.recall, limit, latency_ms, strict=bool(memory_mb or latency_ms))
    assert kept is not None  # noqa: S101 - the first candidate is the best of one
    return Choice(best.spec, rows, bench.recall, limit, latency_ms, tuple(trials)), kept


def _bench(
    rows: NDArray[np.float32], metric: Metric, recall: float, queries: ArrayLike | None
) -> Bench:
    """Return a bench on a sample of rows (n, dim)."""
    step = -(-len(rows) // _TRIAL_ROWS)
    prepared = prepare(np.ascontiguousarray(rows[::step]), metric)
    slots = np.arange(len(prepared), dtype=np.int64)
    slab = MemorySlab(rows.shape[1])
    slab.append(slots, prepared, len(prepared))
    slab.extend(len(prepared))
    asked = None if queries is None else check_vectors(queries, rows.shape[1])
    exam = calibrate.exam_on(slab, slots, asked, metric, 2 * calibrate.QUERIES)
    return Bench(slab, slots, len(rows), metric, recall, exam, unit=metric == "cosine")


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
) -> Trial:
    """Return the fastest candidate within the limits; without one, the smallest that is right."""
    right = [one for one in trials if one.keeps]
    fits = [
        one
        for one in right
        if one.bytes_per_vector <= limit and (latency is None or one.latency_ms <= latency)
    ]
    if fits:
        return min(fits, key=lambda one: one.latency_ms)
    nearest = max(trials, key=lambda one: one.recall)
    if strict:
        raise ConfigurationError(
            f"no candidate keeps recall {recall} within {limit:.0f} bytes per vector"
            + ("" if latency is None else f" and {latency} ms")
            + f"; {_told(right, nearest)}. Allow more, or ask for a lower recall."
        )
    return min(right, key=lambda one: one.bytes_per_vector) if right else nearest


def _told(right: Sequence[Trial], nearest: Trial) -> str:
    one = min(right, key=lambda one: one.bytes_per_vector) if right else nearest
    return (
        f"{one.spec.codec} ({one.spec.structure}) takes {one.bytes_per_vector:.0f} bytes and "
        f"{one.latency_ms:.2f} ms at a recall of {one.recall:.4f} (at least {one.recall_bound:.4f})"
    )


def _shown(
    bench: Bench, specs: Sequence[CompressionSpec], workers: int, *, progress: bool
) -> Iterable[tuple[Trial, Segment]]:
    trials = run(bench, specs, workers)
    if not progress:
        return trials
    from rich.progress import track

    return track(trials, "building and measuring codecs", len(specs))
