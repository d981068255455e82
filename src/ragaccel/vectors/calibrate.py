"""How hard a search has to try to keep a recall, measured on the collection's own vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ragaccel.vectors.engines import SCATTERED, Effort
from ragaccel.vectors.metric import nearest, prepare, prepare_queries, rough_scores
from ragaccel.vectors.slab import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from ragaccel.vectors.segment import Segment
    from ragaccel.vectors.slab import Rows
    from ragaccel.vectors.spec import Metric

#: Results per query that recall is measured with.
K: Final = 10
#: Queries that an effort is set with.
QUERIES: Final = 256
_OVERSAMPLE: Final = (
    4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 64, 96, 128, 192, 256,
)  # fmt: skip
#: Oversampling past which stand-ins tell little of what questions need.
_ENOUGH: Final = 48
_ROW_ITEM_BYTES: Final = 4
#: How many times the probes that stand-ins need questions need.
_PROBES_OF_QUESTIONS: Final = {"ivf": 8, "hnsw": 2}
_Z: Final = 1.645  # one-sided 95%
_NOISE: Final = 1.5
_SEED: Final = 20_261_123


def stand_ins(
    rows: Rows, slots: NDArray[np.int64], count: int, metric: Metric
) -> NDArray[np.float32]:
    """Return prepared vectors as far from the rows as real questions are.

    Rows themselves are found too easily. A row with noise of 1.5 times its length has a cosine of
    .55 to its nearest row; on the four real sets of questions that this was chosen on, the recall
    of such vectors was that of the questions or lower, at every oversampling.

    Args:
        rows: The raw vectors by slot.
        slots: Those that live, int64 of shape (n,).
        count: How many to make.
        metric: How they are scored.
    """
    generator = np.random.default_rng(_SEED)
    chosen = generator.choice(slots, min(count, len(slots)), replace=False)
    vectors = rows.read(np.sort(chosen))
    noise = generator.standard_normal(vectors.shape, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    noise *= _NOISE * lengths / np.linalg.norm(noise, axis=1, keepdims=True)
    return prepare(vectors + noise, metric)


def truth(
    rows: Rows, slots: NDArray[np.int64], queries: NDArray[np.float32], metric: Metric
) -> NDArray[np.int64]:
    """Return the slots of the `K` nearest rows of prepared queries, by comparing with all.

    Returns:
        int64 of shape (m, K), in any order; -1 where there are fewer rows.
    """
    best = np.full((len(queries), K), -np.inf, dtype=np.float32)
    found = np.full((len(queries), K), -1, dtype=np.int64)
    for part in blocks(slots):
        vectors = prepare(rows.read(part), metric)
        for start in range(0, len(queries), QUERIES):
            some = queries[start : start + QUERIES]
            for at, rough in enumerate(rough_scores(some, vectors, metric), start):
                scores, kept = nearest(queries[at], vectors, rough, K, metric)
                scores = np.concatenate((best[at], scores))
                both = np.concatenate((found[at], part[kept]))
                order = np.lexsort((both, -scores))[:K]
                best[at], found[at] = scores[order], both[order]
    return found


class Exam(NamedTuple):
    """Questions with their right answers, to measure searches with.

    Attributes:
        queries: Prepared, shape (m, dim).
        right: The slots of the `K` nearest rows of each, int64 of shape (m, K); see `truth`.
        real: Whether they are real questions and no stand-ins.
    """

    queries: NDArray[np.float32]
    right: NDArray[np.int64]
    real: bool = False


def exam_on(
    rows: Rows,
    slots: NDArray[np.int64],
    queries: NDArray[np.float32] | None,
    metric: Metric,
    count: int = QUERIES,
) -> Exam:
    """Return queries with their right answers.

    Args:
        rows: The raw vectors by slot.
        slots: Those that live, int64 of shape (n,).
        queries: Real ones, raw, shape (m, dim); None for stand-ins.
        metric: How they are scored.
        count: How many stand-ins to make.
    """
    if queries is None:
        asked = stand_ins(rows, slots, count, metric)
    else:
        asked = prepare_queries(queries, metric)
    return Exam(asked, truth(rows, slots, asked, metric), real=queries is not None)


def set_effort(segment: Segment, exam: Exam, floor: float) -> bool:
    """Give a segment the cheapest effort whose recall is at a floor with 95% certainty.

    Where none is, it gets the most. Stand-ins lie nearer to the rows' own lists than questions
    do: with them, eight times the probes are taken, which was enough on a million rows, and twice
    as many in a graph.

    Args:
        segment: A filled one.
        exam: What to measure with.
        floor: Recall@10, 0 to 1.

    Returns:
        Whether the floor is kept.
    """
    asked, codes = segment.spec.oversample, segment.codes
    ladder = np.array(_OVERSAMPLE if asked is None else (asked,))
    times = _PROBES_OF_QUESTIONS.get(segment.spec.structure, 1)
    rescoring = SCATTERED * K * ladder * segment.dim * _ROW_ITEM_BYTES
    least = np.inf
    for probes in _probes(segment):
        taken = probes if exam.real else min(times * probes, codes.most_probes)
        if codes.bytes_read(taken) > least:
            break
        rungs = ladder
        if segment.spec.structure == "hnsw":  # more candidates than probes would be more probes
            rungs = ladder[: max(1, np.searchsorted(ladder, probes / K, side="right"))]
        found = segment.candidates(exam.queries, K * int(rungs[-1]), None, probes)
        recalls, bounds = _recalls(found, exam.right, rungs)
        enough = bounds >= floor
        if probes < codes.most_probes and not exam.real:
            enough &= rungs <= _ENOUGH
        rung = int(enough.argmax()) if enough.any() else len(rungs) - 1
        cost = codes.bytes_read(taken) + rescoring[rung] if enough.any() else np.inf
        if cost < least or np.isinf(least):
            segment.effort = Effort(int(rungs[rung]), taken)
            segment.recall = float(recalls[rung])
            least = cost
    return bool(np.isfinite(least))


def verify(segment: Segment, exam: Exam) -> tuple[float, float]:
    """Return the recall@10 of a segment with its effort, and what it is at least, 95% certain.

    Args:
        segment: A filled one.
        exam: What to measure with.
    """
    oversample = segment.effort.oversample
    found = segment.candidates(exam.queries, K * oversample)
    recalls, bounds = _recalls(found, exam.right, np.array([oversample]))
    return float(recalls[0]), float(bounds[0])


def _recalls(
    found: NDArray[np.int64], right: NDArray[np.int64], ladder: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the recall@10 at each oversampling, and what it is at least, with 95% certainty.

    The misses of a query come together, all the more where its rows lie in lists that were not
    probed, so it is queries that are counted, not answers.

    Args:
        found: Candidates, best first, shape (m, n).
        right: See `truth`.
        ladder: Oversampling, shape (l,).
    """
    answered = np.flatnonzero((right >= 0).any(axis=1))
    if not len(answered):
        return np.ones(len(ladder)), np.ones(len(ladder))
    kept = np.empty((len(answered), len(ladder)))
    for at, query in enumerate(answered):
        answers = right[query][right[query] >= 0]
        depths = np.flatnonzero(np.isin(found[query], answers))
        kept[at] = np.searchsorted(depths, K * ladder) / len(answers)
    recalls = kept.mean(axis=0)
    error = kept.std(axis=0) / np.sqrt(max(1, len(answered) - 1))
    return recalls, recalls - _Z * error


def _probes(segment: Segment) -> Iterator[int]:
    """Yield ever more probes, up to all."""
    most = segment.codes.most_probes
    if segment.spec.structure == "hnsw":
        yield from (probes for probes in (40, 64, 96, 128, 256, 512, 1024) if probes < most)
        yield min(most, K * _OVERSAMPLE[-1])
        return
    probes = 1
    while probes < most:
        yield probes
        probes += max(1, probes // 2)
    yield most
