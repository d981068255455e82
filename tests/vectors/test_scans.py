"""Searches that look at every row, made together: each gets what it would get alone."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ragaccel import VectorCollection, telemetry
from ragaccel.errors import CollectionClosedError
from ragaccel.vectors import watch
from tests.vectors.data import clustered, names

ROWS, DIM = 16_000, 64  # enough numbers that searches are joined
TABLE = clustered(ROWS, seed=1, dim=DIM)
QUERIES = clustered(24, seed=2, dim=DIM)


@pytest.fixture(scope="module")
def collection():
    made = VectorCollection.open(dim=DIM, compression="float32")
    made.upsert(names(ROWS), TABLE, texts=[f"text {row}" for row in range(ROWS)])
    yield made
    made.close()


class Batches:
    """Keeps how many searches each joint one served."""

    def __init__(self):
        self.sizes = []

    def started(self, stage):
        pass

    def ended(self, stage):
        if stage.name == "batch":
            self.sizes.append(len(stage.serves))


@pytest.fixture
def batches():
    listener = Batches()
    telemetry.listen(listener)
    yield listener.sizes
    telemetry.unlisten(listener)


def told(hits):
    return [(hit.id, hit.text, pytest.approx(hit.score, abs=1e-5)) for hit in hits]


def test_threads_get_what_they_would_get_alone(collection, batches):
    """With k, scores and texts of their own, in fewer searches than there are threads."""
    asked = [(query, 1 + at % 3) for at, query in enumerate(QUERIES)]
    alone = [collection.search(query, k, exact=True)[0] for query, k in asked]
    batches.clear()
    barrier = threading.Barrier(len(asked))

    def one(query, k):
        barrier.wait(10)
        return collection.search(query, k, exact=True)[0]

    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(one, *zip(*asked, strict=True)))
    for mine, other in zip(alone, found, strict=True):
        assert [(hit.id, hit.text, hit.score) for hit in other] == told(mine)
    assert sum(batches) == len(asked)
    assert len(batches) < len(asked)


async def test_tasks_get_what_they_would_get_alone(collection, batches):
    """Each is told the rows it saw, as if it had searched by itself."""
    alone = [collection.search(query, 5)[0] for query in QUERIES]
    batches.clear()

    async def one(query):
        with watch() as traces:
            hits = await collection.asearch(query, 5)
        return hits, traces

    found = await asyncio.gather(*map(one, QUERIES))
    for query, mine, (hits, traces) in zip(QUERIES, alone, found, strict=True):
        assert [(hit.id, hit.text, hit.score) for hit in hits] == told(mine)
        (trace,) = traces
        assert np.array_equal(trace.query, query)
        assert (trace.seq, trace.mark) == collection.position
        assert len(trace.slots) == 5
    assert len(batches) < len(QUERIES)


def test_a_write_is_seen_by_every_search_after_it(collection):
    """Also by those that are joined."""
    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            vector = clustered(1, seed=100 + turn, dim=DIM)[0]
            collection.upsert([f"new {turn}"], [vector])
            found = list(pool.map(lambda _, v=vector: collection.search(v, 1)[0], range(8)))
            assert {hits[0].id for hits in found} == {f"new {turn}"}
    collection.delete([f"new {turn}" for turn in range(20)])


def test_after_closing_nobody_waits():
    """Each gets the error."""
    made = VectorCollection.open(dim=DIM, compression="float32")
    made.upsert(names(ROWS), TABLE)
    made.close()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(made.search, query) for query in QUERIES]
        assert {type(one.exception(10)) for one in asked} == {CollectionClosedError}
