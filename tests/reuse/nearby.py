"""Collections and questions near to each other, for the tests of neighbour reuse."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ragaccel import VectorCollection
from ragaccel.reuse import NeighbourReuse
from ragaccel.vectors import watch

if TYPE_CHECKING:
    from collections.abc import Iterator

DIM = 16
K = 4


def unit(rows):
    """Return rows of unit length."""
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def topics(count: int, seed: int = 0, dim: int = DIM):
    """Return random directions."""
    return unit(np.random.default_rng(seed).normal(size=(count, dim)))


def near(topic, seed: int, spread: float = 0.05):
    """Return a question near to a topic."""
    return unit(topic + spread * np.random.default_rng(seed).normal(size=len(topic)))


@contextmanager
def filled(rows, **options: Any) -> Iterator[VectorCollection]:
    """Open a collection of rows in memory, with numbers for ids, and which are even."""
    with VectorCollection.open(**{"compression": "float32", "dim": rows.shape[1], **options}) as it:
        write(it, rows)
        yield it


def write(collection: VectorCollection, rows, first: int = 0) -> None:
    """Write rows under the numbers from `first` on."""
    numbers = range(first, first + len(rows))
    collection.upsert(
        [str(at) for at in numbers], rows, metadata=[{"even": at % 2 == 0} for at in numbers]
    )


def reuse(mode: str = "certified", **options: Any) -> NeighbourReuse:
    """Make one that never stands aside and audits at once."""
    asked = {"rows": 40, "min_gain": None, "background": False, "seed": 1, **options}
    return NeighbourReuse(mode, **asked)


def ask(one: NeighbourReuse, collection, query, k: int = K, part: bytes = b"", **how: Any):
    """Return the ids and scores of a search that is put to neighbours first."""
    with watch(2, one.within(part, "tenant")) as traces:
        hits = collection.search(query, k, **how)[0]
    assert len(traces) == 1
    assert all(score >= traces[0].floor for score in traces[0].scores)
    return [(hit.id, hit.score) for hit in hits]


def found(collection, query, k: int = K, **how: Any):
    """Return the ids and scores of a search."""
    return [(hit.id, hit.score) for hit in collection.search(query, k, **how)[0]]


def served(one: NeighbourReuse) -> int:
    """Return how many searches were not made."""
    stats = one.stats()
    return stats.certified + stats.calibrated
