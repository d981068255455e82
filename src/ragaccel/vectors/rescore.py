"""Rescoring: candidates by their codes get exact scores from the raw vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faiss as _typed_faiss
import numpy as np

from ragaccel.vectors.metric import at_least, nearest_raw, prepare, scores

faiss: Any = _typed_faiss  # its stubs describe the C++ signatures, not the Python ones

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragaccel.vectors.slab import Slab
    from ragaccel.vectors.spec import Metric


def rescored(
    slab: Slab,
    query: NDArray[np.float32],
    candidates: NDArray[np.int64],
    k: int,
    metric: Metric,
    *,
    unit: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the exact scores and slots of at least the k nearest candidates, in any order.

    Args:
        slab: The raw vectors.
        query: Prepared, shape (dim,).
        candidates: Slots, shape (n,); -1 stands for none.
        k: How many are wanted.
        metric: How they are scored.
        unit: Whether all raw vectors have a length of one.
    """
    slots = np.sort(candidates)  # reads go through the file in one direction
    slots = slots[np.searchsorted(slots, 0) :]
    if metric == "l2" or not (unit or metric == "ip"):
        found, kept = nearest_raw(query, slab.read(slots), k, metric)
        return found, slots[kept]
    slots = slots[at_least(query, _products(slab.mapped, query, slots), k, metric)]
    return scores(query[None, :], prepare(slab.read(slots), metric), metric)[0], slots


def _products(
    rows: NDArray[np.float32], query: NDArray[np.float32], slots: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return inner products with some of the rows, reading them where they lie."""
    found = np.empty(len(slots), dtype=np.float32)
    if len(slots):
        pointers = map(faiss.swig_ptr, (found, np.ascontiguousarray(query), rows, slots))
        faiss.fvec_inner_products_by_idx(*pointers, rows.shape[1], 1, len(slots))
    return found
