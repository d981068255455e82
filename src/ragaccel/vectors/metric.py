"""Scores: higher is nearer, for every metric."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import faiss as _typed_faiss
import numpy as np

from ragaccel.errors import DimensionMismatchError, InvalidVectorError

faiss: Any = _typed_faiss  # its stubs describe the C++ signatures, not the Python ones

if TYPE_CHECKING:
    from typing import TypeGuard

    from numpy.typing import ArrayLike, NDArray

    from ragaccel.vectors.spec import Metric

#: Scores and the places of their rows, highest first.
Found = tuple[list[float], list[int]]
_MATRIX = 2
_ROWS_AT_ONCE = 1024
_SAFE = (1e-30, 1e30)  # lengths that float32 divides by without loss
_ROUNDING = 1e-4
_TIES = 6  # rows past the k-th that are looked at, should they score like it
_UNIT = 2e-6  # of squared lengths


def check_vectors(vectors: ArrayLike, dim: int | None) -> NDArray[np.float32]:
    """Return vectors as a float32 array of shape (n, dim); one vector becomes one row.

    Raises:
        InvalidVectorError: Not numbers, not one or two axes, no dimensions, NaN or infinity.
        DimensionMismatchError: `dim` is given and the vectors have another one.
    """
    if _is_plain(vectors, dim):
        return vectors[None, :]
    try:
        given = np.asarray(vectors)
    except ValueError as error:
        raise InvalidVectorError(
            f"vectors must be rows of equal length, shape (n, dim): {error}"
        ) from error
    if given.dtype.kind == "O":
        with contextlib.suppress(TypeError, ValueError):
            given = given.astype(np.float32)  # None becomes NaN, and is refused below
    if given.dtype.kind not in "fiub" or given.ndim == 0:
        raise InvalidVectorError(
            f"vectors must be numbers of shape (n, dim), got {type(vectors).__name__}: "
            f"{str(vectors)[:80]!r}."
        )
    if given.dtype != np.float32:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
            given = given.astype(np.float32)
    array = np.ascontiguousarray(given)
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != _MATRIX or (array.size == 0 and array.shape[0] > 0):
        raise InvalidVectorError(f"vectors must have shape (n, dim), got {array.shape}.")
    if dim is not None and array.shape[0] > 0 and array.shape[1] != dim:
        raise DimensionMismatchError(
            f"the collection holds vectors of {dim} dimensions, got {array.shape[1]}; "
            "use the embedding model that the collection was made with."
        )
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        raise InvalidVectorError(
            f"vector {row} has NaN or infinite components; see what the embedding model was given."
        )
    return array


def _is_plain(vectors: ArrayLike, dim: int | None) -> TypeGuard[NDArray[np.float32]]:
    """Tell at little cost whether it is a vector as it should be; what is unusual needs a look."""
    return (
        isinstance(vectors, np.ndarray)
        and vectors.dtype == np.float32
        and vectors.shape == (dim,)
        and vectors.flags.c_contiguous
        and bool(np.isfinite(vectors).all())
    )


def are_unit(vectors: NDArray[np.float32]) -> bool:
    """Tell whether vectors (n, dim) have a length of one, as nearly as float32 can tell."""
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return bool(np.abs(squares - 1).max(initial=0) < _UNIT)


def scored_as(metric: Metric, *, unit: bool) -> Metric:
    """Return how raw rows are scored for prepared queries; of unit length, as they are."""
    return "ip" if unit and metric == "cosine" else metric


def prepare(vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Return the vectors as they are scored: of unit length for cosine; zero stays zero."""
    if metric != "cosine":
        return vectors
    if len(vectors) <= _ROWS_AT_ONCE:
        return _of_unit_length(vectors)
    prepared = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        end = start + _ROWS_AT_ONCE
        prepared[start:end] = _of_unit_length(vectors[start:end])
    return prepared


def prepare_queries(queries: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Return queries (m, dim) as they are scored, each the same whatever others are beside it."""
    if metric != "cosine":
        return queries
    prepared = np.empty(queries.shape, dtype=np.float32)
    for at, query in enumerate(queries):
        wide = query.astype(np.float64)
        prepared[at] = wide / (math.sqrt(wide.dot(wide)) or 1.0)
    return prepared


def _of_unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = np.array(vectors, dtype=np.float64, order="C")
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    if len(norms) and _SAFE[0] < norms.min() and norms.max() < _SAFE[1]:
        return np.divide(vectors, norms.astype(np.float32)[:, None])
    norms[norms == 0] = 1
    return (wide / norms[:, None]).astype(np.float32)


def scores(
    query: NDArray[np.float32],
    rows: NDArray[np.float32],
    metric: Metric,
    among: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return scores of prepared rows for a prepared query, the same for equal rows to the last bit.

    Args:
        query: Shape (dim,).
        rows: Shape (n, dim).
        metric: "cosine" and "ip" score by the inner product, "l2" by the negated squared distance.
        among: Positions of the rows that are meant, which are read where they lie; None for all.

    Returns:
        Shape (n,), or as long as `among`; higher is nearer.
    """
    if among is None:
        among, rows = np.arange(len(rows)), np.ascontiguousarray(rows)
    found = np.empty(len(among), dtype=np.float32)
    if not len(among):
        return found
    given = (found, np.ascontiguousarray(query), rows, np.ascontiguousarray(among))
    pointers = map(faiss.swig_ptr, given)
    score = faiss.fvec_L2sqr_by_idx if metric == "l2" else faiss.fvec_inner_products_by_idx
    # It shares out queries among threads: for one it would only wait until all have had a core.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # in this thread
    try:
        score(*pointers, rows.shape[1], 1, len(among))
    finally:
        faiss.omp_set_num_threads(threads)
    return np.negative(found, out=found) if metric == "l2" else found


def best(
    query: NDArray[np.float32],
    rows: NDArray[np.float32],
    among: NDArray[np.int64],
    k: int,
    metric: Metric,
) -> Found:
    """Return the k highest scores and the positions of their rows, highest first.

    Of equal scores the lower position comes first.

    Args:
        query: Prepared, shape (dim,).
        rows: Prepared, shape (n, dim), read where they lie.
        among: Positions of the rows that are meant, shape (m,).
        k: How many are wanted.
        metric: See `scores`.
    """
    more = min(k + _TIES, len(among))
    if not more:
        return [], []
    found, at = np.empty(more, dtype=np.float32), np.empty(more, dtype=np.int64)
    given = (np.ascontiguousarray(query), rows, np.ascontiguousarray(among))
    pointers = map(faiss.swig_ptr, given)
    search = faiss.knn_L2sqr_by_idx if metric == "l2" else faiss.knn_inner_products_by_idx
    sizes = (rows.shape[1], 1, len(rows), len(among), more)
    search(*pointers, *sizes, faiss.swig_ptr(found), faiss.swig_ptr(at), 0)
    values, places = found.tolist(), at.tolist()
    if metric == "l2":
        values = [-value for value in values]
    is_cut = more < len(among) and values[k - 1] == values[-1]  # there may be more of that score
    if is_cut or places[-1] < 0:  # or a score is NaN: the numbers are too large for float32
        every = scores(query, rows, metric, among)
        order = np.lexsort((among, -every))[:k]
        return every[order].tolist(), among[order].tolist()
    if len(set(values)) < more:
        pairs = sorted(zip(values, places, strict=True), key=lambda one: (-one[0], one[1]))
        values, places = [value for value, _ in pairs], [place for _, place in pairs]
    return values[:k], places[:k]


def rough_scores(
    queries: NDArray[np.float32], rows: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:
    """Return what `scores` does, faster and right but for the last bits."""
    products: NDArray[np.float32] = queries @ rows.T
    if metric == "l2":
        products *= 2
        products -= np.einsum("ij,ij->i", queries, queries)[:, None]
        products -= np.einsum("ij,ij->i", rows, rows)
    return products


def nearest(
    query: NDArray[np.float32],
    rows: NDArray[np.float32],
    rough: NDArray[np.float32],
    k: int,
    metric: Metric,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the scores and positions of at least the k nearest rows, in any order.

    Args:
        query: Prepared, shape (dim,).
        rows: Prepared, shape (n, dim).
        rough: Rough scores of the rows, shape (n,).
        k: How many rows are wanted.
        metric: See `scores`.
    """
    kept = at_least(query, rough, k, metric)
    return scores(query, rows[kept], metric), kept


def nearest_raw(
    query: NDArray[np.float32], rows: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what `nearest` does of raw rows, of which only the nearest are prepared."""
    rough = rows @ query
    if metric == "cosine":
        squares = np.einsum("ij,ij->i", rows, rows)
        if not _SAFE[0] < squares.min(initial=1) <= squares.max(initial=1) < _SAFE[1]:
            rows = prepare(rows, metric)
            return nearest(query, rows, rows @ query, k, metric)
        rough /= np.sqrt(squares)
    elif metric == "l2":
        rough = 2 * rough - np.einsum("ij,ij->i", rows, rows) - query @ query
    kept = at_least(query, rough, k, metric)
    return scores(query, prepare(rows[kept], metric), metric), kept


def at_least(
    query: NDArray[np.float32], rough: NDArray[np.float32], k: int, metric: Metric
) -> NDArray[np.int64]:
    """Return the positions of rows among which the k nearest surely are.

    Args:
        query: Prepared, shape (dim,).
        rough: Rough scores of the rows, shape (n,).
        k: How many rows are wanted.
        metric: How they are scored.
    """
    if len(rough) <= k:
        return np.arange(len(rough))
    least = np.partition(rough, len(rough) - k)[len(rough) - k]
    size = abs(least)
    if metric == "l2":  # rough distances are differences of squared lengths, and as exact
        size += float(query @ query)
    return np.flatnonzero(rough >= least - _ROUNDING * (1 + size))


def merge(found: Found, scores: NDArray[np.float32], slots: NDArray[np.int64], k: int) -> Found:
    """Return the k highest scores with their slots; of equal scores the lower slot first."""
    if found[1]:
        scores = np.concatenate((np.array(found[0], np.float32), scores))
        slots = np.concatenate((np.array(found[1], np.int64), slots))
    order = np.lexsort((slots, -scores))[:k]
    return scores[order].tolist(), slots[order].tolist()
