"""Rescoring: candidates by their codes get exact scores from the raw vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragaccel.vectors.metric import nearest_raw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragaccel.vectors.slab import Slab
    from ragaccel.vectors.spec import Metric


def rescored(
    slab: Slab, query: NDArray[np.float32], candidates: NDArray[np.int64], k: int, metric: Metric
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the exact scores and slots of at least the k nearest candidates, in any order.

    Args:
        slab: The raw vectors.
        query: Prepared, shape (dim,).
        candidates: Slots, shape (n,); -1 stands for none.
        k: How many are wanted.
        metric: How they are scored.
    """
    slots = np.sort(candidates)  # reads go through the file in one direction
    slots = slots[np.searchsorted(slots, 0) :]
    scores, kept = nearest_raw(query, slab.read(slots), k, metric)
    return scores, slots[kept]
