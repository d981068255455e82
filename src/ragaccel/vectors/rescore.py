"""Rescoring: candidates by their codes get exact scores from the raw vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragaccel.vectors import metric as metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragaccel.vectors.metric import Found
    from ragaccel.vectors.slab import Rows
    from ragaccel.vectors.spec import Metric


def rescored(
    slab: Rows, query: NDArray[np.float32], candidates: NDArray[np.int64], k: int, metric: Metric
) -> Found:
    """Return the exact scores and slots of the k nearest candidates, nearest first.

    Args:
        slab: The raw vectors.
        query: Prepared, shape (dim,).
        candidates: Slots, shape (n,); -1 stands for none.
        k: How many are wanted.
        metric: How they are scored; "ip" also stands for the cosine of vectors of unit length.
    """
    slots = np.sort(candidates)  # reads go through the file in one direction
    if len(slots) and slots[0] < 0:
        slots = slots[np.searchsorted(slots, 0) :]
    slab.ask_for(slots)
    if metric != "cosine":
        return metrics.best(query, slab.mapped, slots, k, metric)
    scores, kept = metrics.nearest_raw(query, slab.read(slots), k, metric)
    return metrics.merge(([], []), scores, slots[kept], k)
