"""Maximal marginal relevance: results that are near the query and unlike each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ragaccel.vectors.metric import prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray


def select(
    query: NDArray[np.float32], rows: NDArray[np.float32], k: int, relevance: float
) -> list[tuple[int, float]]:
    """Choose rows one by one by `relevance * nearness - (1 - relevance) * redundancy`.

    Args:
        query: Shape (dim,).
        rows: Candidates, shape (n, dim).
        k: How many to choose.
        relevance: 1 is plain search, 0 only avoids likeness.

    Returns:
        Positions in `rows` with the value each was chosen for, in the order of choice.

    Source: Carbonell and Goldstein, The Use of MMR, 1998; nearness is cosine.
    """
    if not len(rows) or k < 1:
        return []
    unit = prepare(rows, "cosine")
    nearness = unit @ prepare(query[None, :], "cosine")[0]
    redundancy = np.zeros(len(rows), dtype=np.float32)
    left = np.ones(len(rows), dtype=bool)
    chosen: list[tuple[int, float]] = []
    while len(chosen) < min(k, len(rows)):
        value = relevance * nearness - (1 - relevance) * redundancy
        value[~left] = -np.inf
        best = int(np.argmax(value))
        chosen.append((best, float(value[best])))
        left[best] = False
        likeness = unit @ unit[best]
        redundancy = likeness if len(chosen) == 1 else np.maximum(redundancy, likeness)
    return chosen
