"""The hit rate of every cache size from one pass over the traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from numpy.typing import NDArray


def stack_distances(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """Return for each request how many other keys came since its own last did; -1 for the first.

    An LRU cache of n entries hits those below n, whatever n is.

    Source: Mattson et al., "Evaluation techniques for storage hierarchies", 1970; with the tree of
    Bennett and Kruskal, 1975.
    """
    asked = list(keys)
    count = len(asked)
    tree = np.zeros(count + 1, np.int64)  # Fenwick: 1 where a key came last
    last: dict[Hashable, int] = {}
    distances = np.full(count, -1, np.int64)

    def add(at: int, by: int) -> None:
        at += 1
        while at <= count:
            tree[at] += by
            at += at & -at

    def before(at: int) -> int:
        total = 0
        while at:
            total += int(tree[at])
            at -= at & -at
        return total

    for at, key in enumerate(asked):
        if key in last:
            distances[at] = before(at) - before(last[key] + 1)
            add(last[key], -1)
        add(at, 1)
        last[key] = at
    return distances


def hit_rate(distances: NDArray[np.int64], entries: int) -> float:
    """Return the hit rate of a cache of so many entries."""
    return float(((distances >= 0) & (distances < entries)).mean()) if len(distances) else 0.0
