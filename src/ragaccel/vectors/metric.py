"""Scores: higher is nearer, for every metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragaccel.errors import DimensionMismatchError, InvalidVectorError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ragaccel.vectors.spec import Metric

_MATRIX = 2
_ROUNDING = 1e-4


def check_vectors(vectors: ArrayLike, dim: int | None) -> NDArray[np.float32]:
    """Return vectors as a float32 array of shape (n, dim); one vector becomes one row.

    Raises:
        InvalidVectorError: Not numbers, not one or two axes, no dimensions, NaN or infinity.
        DimensionMismatchError: `dim` is given and the vectors have another one.
    """
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
            array = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidVectorError(
            f"vectors must be numbers in rows of equal length: {error}"
        ) from error
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


def prepare(vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Return the vectors as they are scored: of unit length for cosine; zero stays zero."""
    if metric != "cosine":
        return vectors
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    norms[norms == 0] = 1
    prepared: NDArray[np.float32] = vectors / norms
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
    return _scores(queries, rows, np.einsum("md,nd->mn", queries, rows), metric)


def rough_scores(
    queries: NDArray[np.float32], rows: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:
    """Return what `scores` does, faster and right but for the last bits."""
    return _scores(queries, rows, queries @ rows.T, metric)


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
    if len(rough) > k:
        least = np.partition(rough, len(rough) - k)[len(rough) - k]
        kept = np.flatnonzero(rough >= least - _ROUNDING * (1 + abs(least)))
    else:
        kept = np.arange(len(rough))
    return scores(query[None, :], rows[kept], metric)[0], kept


def _scores(
    queries: NDArray[np.float32],
    rows: NDArray[np.float32],
    products: NDArray[np.float32],
    metric: Metric,
) -> NDArray[np.float32]:
    if metric == "l2":
        lengths = np.einsum("ij,ij->i", rows, rows)
        own = np.einsum("ij,ij->i", queries, queries)
        products = -np.maximum(own[:, None] + lengths[None, :] - 2 * products, 0)
    return products
