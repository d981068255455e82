"""Building candidates side by side on a collection's own rows, and what is searched with then."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.errors import CollectionClosedError, ConfigurationError
from tests.vectors.data import clustered, names, nearest, places, recall

PQ, INT8 = CompressionSpec("pq2"), CompressionSpec("int8")


@pytest.fixture(scope="module")
def rows():
    return clustered(3_000, dim=32, seed=3)


@pytest.fixture
def collection(rows):
    with VectorCollection.open(recall=0.95) as one:
        one.upsert(names(len(rows)), rows)
        yield one


@pytest.mark.parametrize("workers", [1, 2, None])
def test_every_structure_is_built_and_the_best_is_searched_with(collection, rows, workers):
    """Each candidate is measured on all rows; the collection keeps its recall with the chosen."""
    choice = collection.build(memory_mb=10, workers=workers, progress=False)
    assert {trial.spec.structure for trial in choice.trials} == {"flat", "ivf", "hnsw"}
    assert choice.rows == len(rows)
    assert collection.stats().compression == choice.spec
    queries = clustered(100, dim=32, seed=4)
    found = [places(hits) for hits in collection.search(queries, 10)]
    assert recall(found, nearest("cosine", queries, rows, 10)) >= 0.95


def test_the_memory_decides(collection):
    """What takes more than is allowed is measured, but not chosen."""
    choice = collection.build(candidates=[INT8, PQ], memory_mb=0.1, progress=False)
    assert choice.spec == PQ
    with pytest.raises(ConfigurationError, match="bytes per vector"):
        collection.build(candidates=[INT8], memory_mb=0.01, progress=False)
    assert collection.stats().compression == PQ


def test_what_was_built_is_there_after_reopening(tmp_path, rows):
    """The chosen codes are stored, and the collection is opened with them."""
    with VectorCollection.open(tmp_path, recall=0.95) as collection:
        collection.upsert(names(len(rows)), rows)
        collection.build(candidates=[INT8], memory_mb=1, progress=False)
    with VectorCollection.open(tmp_path, recall=0.95) as collection:
        assert collection.stats().compression == INT8


def test_a_collection_with_a_codec_of_its_own_keeps_it(rows):
    """What the user has fixed is not chosen for him."""
    with VectorCollection.open(compression="int8") as collection:
        collection.upsert(names(len(rows)), rows)
        with pytest.raises(ConfigurationError, match='compression="auto"'):
            collection.build(progress=False)


def test_few_rows_and_unknown_structures_are_errors(rows):
    """There is nothing to train on; and no structure is passed over silently."""
    with VectorCollection.open() as collection:
        with pytest.raises(ConfigurationError, match="at least 1024 rows"):
            collection.build(progress=False)
        collection.upsert(names(1_000), rows[:1_000])
        with pytest.raises(ConfigurationError, match="got 1000 rows"):
            collection.build(progress=False)
        with pytest.raises(ConfigurationError, match="structure must be one of"):
            collection.build(["tree"], progress=False)


def test_rows_that_come_and_go_while_it_builds_are_found_right(collection, rows):
    """Searches and writes are not held up, and what they did holds with the new codes."""
    fresh = clustered(200, dim=32, seed=9)
    builder = threading.Thread(
        target=collection.build,
        kwargs={"candidates": [PQ, INT8] * 4, "memory_mb": 1, "progress": False},
    )
    builder.start()
    written = 0
    while builder.is_alive() and written < len(fresh):
        collection.upsert([f"fresh-{written}"], fresh[written : written + 1])
        collection.delete([f"row-{written}"])
        assert collection.search(fresh[written], 1)[0][0].id == f"fresh-{written}"
        written += 1
    builder.join()
    assert written
    assert collection.stats().compression in {PQ, INT8}
    for at in range(written):
        assert collection.search(fresh[at], 1)[0][0].id == f"fresh-{at}"
        assert f"row-{at}" not in {hit.id for hit in collection.search(rows[at], 5)[0]}
    assert collection.count() == len(rows)


def test_closing_ends_a_build_with_a_clear_error(rows):
    """A build under way does not outlive the collection."""
    collection = VectorCollection.open(recall=0.95)
    collection.upsert(names(len(rows)), rows)
    raised = []

    def build():
        try:
            collection.build(candidates=[PQ] * 200, progress=False)
        except CollectionClosedError as error:
            raised.append(error)

    builder = threading.Thread(target=build)
    builder.start()
    collection.close()
    builder.join(60)
    assert raised


def test_queries_given_while_codes_are_made_anew_set_their_effort(rows):
    """New codes do not go back to the stand-ins of before."""
    many = np.tile(rows, (8, 1)) + clustered(8 * len(rows), dim=32, seed=5, spread=0.3) * 0.3
    with VectorCollection.open(compression="pq", recall=0.9) as collection:
        collection.upsert(names(len(many)), many)  # codes are made in the background
        collection.calibrate(many[:400])
        collection._upkeep.wait()
        kept = _oversample(collection)
        collection.calibrate(many[:400])
        assert kept == _oversample(collection)


def test_another_recall_for_many_rows_is_set_while_searches_go_on(tmp_path, rows):
    """Opening does not wait; a search tries twice as hard until it is known how hard it must."""
    many = np.tile(rows, (8, 1)) + clustered(8 * len(rows), dim=32, seed=5, spread=0.3) * 0.3
    with VectorCollection.open(tmp_path, compression="pq", recall=0.9) as collection:
        collection.upsert(names(len(many)), many)
        collection.flush()
        before = _oversample(collection)
    with VectorCollection.open(tmp_path, compression="pq", recall=0.99) as collection:
        assert _oversample(collection) >= 2 * before
        assert len(collection.search(many[0])[0]) == 10
        collection.flush()
        assert collection.stats().recall >= 0.99
        assert collection.measure_recall() >= 0.98


def _oversample(collection):
    return collection._store.index.candidates(10)
