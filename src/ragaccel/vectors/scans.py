"""Searches that look at every row and are asked for at the same time: one matrix product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ragaccel.batching import MicroBatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ragaccel.vectors.index import Index
    from ragaccel.vectors.search import Answers, Search

#: Numbers that a search reads, from which on it takes much longer than being joined does.
_WORTH_JOINING: Final = 1_000_000


class Scan(NamedTuple):
    """One search, and how it is made."""

    search: Search
    look: Callable[[Search], Answers]


def joined_scans() -> MicroBatcher[Scan, Answers]:
    """Return what makes one search of those that are asked for meanwhile.

    One at a time: a matrix product takes all cores itself, and two halves cost more than a whole.
    """
    return MicroBatcher(_look_together, workers=1)


def is_scan(search: Search, index: Index | None) -> bool:
    """Tell whether a search looks at so many rows that it is worth joining with others."""
    if index is None or len(search.queries) != 1 or search.where is not None:
        return False
    if search.among is not None:
        return False
    looks_at_all = search.exact or not index.compressed
    return looks_at_all and index.live_count * index.dim >= _WORTH_JOINING


def _look_together(scans: Sequence[Scan]) -> list[Answers]:
    if len(scans) == 1:
        return [scans[0].look(scans[0].search)]
    alike: dict[Search, list[int]] = {}
    for at, scan in enumerate(scans):
        alike.setdefault(scan.search._replace(queries=None), []).append(at)  # type: ignore[arg-type]
    answers: dict[int, Answers] = {}
    for search, places in alike.items():
        queries = np.concatenate([scans[at].search.queries for at in places])
        whole = scans[places[0]].look(search._replace(queries=queries))
        for at, found in zip(places, whole.found, strict=True):
            answers[at] = whole._replace(found=[found])
    return [answers[at] for at in range(len(scans))]
