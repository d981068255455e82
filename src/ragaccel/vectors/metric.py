"""Scores: higher is nearer, for every metric."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from ragaccel.errors import DimensionMismatchError, InvalidVectorError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ragaccel.vectors.spec import Metric

_MATRIX = 2
_SAFE = (1e-30, 1e30)  # lengths that float32 divides by without loss
_ROUNDING = 1e-4
_UNIT = 6e-5  # of squared lengths: what rough scores are off by is within _ROUNDING


def check_vectors(vectors: ArrayLike, dim: int | None) -> NDArray[np.float32]:
    """Return vectors as a float32 array of shape (n, dim); one vector becomes one row.

    Raises:
        InvalidVectorError: Not numbers, not one or two axes, no dimensions, NaN or infinity.
        DimensionMismatchError: `dim` is given and the vectors have another one.
    """
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
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
        array = np.ascontiguousarray(given, dtype=np.float32)
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


def are_unit(vectors: NDArray[np.float32]) -> bool:
    """Tell whether vectors (n, dim) have a length of one, as nearly as rough scores want it."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    return bool(np.abs(squares - 1).max(initial=0) < _UNIT)


def prepare(vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Return the vectors as they are scored: of unit length for cosine; zero stays zero."""
    if metric != "cosine":
        return vectors
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    norms[norms == 0] = 1
    if _SAFE[0] < norms.min(initial=1) and norms.max(initial=1) < _SAFE[1]:
        norms = norms.astype(np.float32)
    prepared: NDArray[np.float32] = (vectors / norms[:, None]).astype(np.float32)
    return prepared


def scores(
    queries: NDArray[np.float32], rows: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:
    """Return scores of prepared rows for prepared queries, the same for equal rows to the last bit.

    Args:
        queries: Shape (m, dim).
        rows: Shape (n, dim).
        metric: "cosine" and "ip" score by the inner product, "l2" by the negated squared distance.

    Returns:
        Shape (m, n); higher is nearer.
    """
    if metric == "l2":
        apart = rows[None, :, :] - queries[:, None, :]
        distances: NDArray[np.float32] = -np.einsum("mnd,mnd->mn", apart, apart)
        return distances
    products: NDArray[np.float32] = np.einsum("md,nd->mn", queries, rows)
    return products


def rough_scores(
    queries: NDArray[np.float32], rows: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:
    """Return what `scores` does, faster and right but for the last bits."""
    products: NDArray[np.float32] = queries @ rows.T
    if metric == "l2":
        lengths = np.einsum("ij,ij->i", rows, rows)
        own = np.einsum("ij,ij->i", queries, queries)
        products = 2 * products - own[:, None] - lengths[None, :]
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
    return scores(query[None, :], rows[kept], metric)[0], kept


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
    return scores(query[None, :], prepare(rows[kept], metric), metric)[0], kept


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
