"""The compression of a collection as a knob: codes are made beside searches, and kept."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

from ragaccel import AutoTuner, CompressionSpec, Goal, Knob, VectorCollection
from ragaccel.tuning import tunables
from ragaccel.tuning.canary import Terms
from ragaccel.tuning.guard import Guard
from ragaccel.tuning.replay import Knobs
from ragaccel.vectors.engines import faiss_engine

DIM, ROWS = 32, 4200
IDS = [str(at) for at in range(ROWS)]
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((ROWS, DIM)).astype("f4")
QUERIES = RANDOM.standard_normal((80, DIM)).astype("f4")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    with VectorCollection.open(folder, dim=DIM) as made:
        made.upsert(IDS, VECTORS)
    return folder


@pytest.fixture
def collection(stored, tmp_path):
    shutil.copytree(stored, tmp_path / "store")
    with VectorCollection.open(tmp_path / "store") as opened:
        yield opened


def knob_of(collection):
    return next(one for one in tunables(collection) if one.name == "compression")


def others(knob):
    return [one for one in knob.values if one != knob.get()]


def found(collection, query, k=3):
    return [hit.id for hit in collection.search(query, k)[0]]


@pytest.mark.parametrize(
    "spec",
    [
        *(CompressionSpec(one) for one in ("pq", "pq2", "pq6", "int8", "int4", "float16")),
        *(CompressionSpec(one) for one in ("rabitq1", "rabitq4", "bfloat16")),
        CompressionSpec("pq", "ivf"), CompressionSpec("int8", "hnsw"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dim", [30, 32])
def test_bytes_are_told_without_making_codes(spec, dim):
    """For each codec and structure they are those of codes that were made."""
    rows = VECTORS[:1500, :dim]
    codes = faiss_engine.train(spec, "ip", rows, len(rows))
    codes.add(np.arange(len(rows)), rows)
    assert faiss_engine.bytes_of(spec, dim, len(rows)) == codes.bytes_used


def test_other_codes_are_searched_with(collection):
    """Each compression finds a row by its own vector, takes what was told, and can be left."""
    knob = knob_of(collection)
    was, before = knob.get(), collection.stats().bytes_in_memory
    assert len(knob.values) > 3
    for value in [*others(knob), was]:
        knob.set(value)
        assert collection.stats().compression.codec == value == knob.get()
        more = knob.bytes_at(value) - knob.bytes_at(was)
        assert collection.stats().bytes_in_memory - before == more
        assert found(collection, VECTORS[7], 1) == ["7"]


def test_codes_are_made_once(collection):
    """Who turns back and forth gets the same codes."""
    knob = knob_of(collection)
    was, other = knob.get(), others(knob)[0]
    first = collection._store.index.segment.codes
    knob.set(other)
    second = collection._store.index.segment.codes
    knob.set(was)
    assert collection._store.index.segment.codes is first
    knob.set(other)
    assert collection._store.index.segment.codes is second


def test_rows_that_came_and_went_meanwhile_are_known_to_all_codes(collection):
    """What was written and deleted while others were searched with is found, and is not."""
    knob = knob_of(collection)
    was, other = knob.get(), others(knob)[0]
    knob.set(other)
    new = np.random.default_rng(1).standard_normal((1300, DIM)).astype("f4")
    collection.upsert([f"new {at}" for at in range(len(new))], new)
    collection.flush()
    collection.delete(["7", "new 3"])
    for value in (was, other, was):
        knob.set(value)
        assert found(collection, new[5], 1) == ["new 5"]
        assert "7" not in found(collection, VECTORS[7])
        assert "new 3" not in found(collection, new[3])
        assert collection.stats().rows == ROWS + len(new) - 2


def test_searches_go_on_while_codes_are_made(collection):
    """No search fails or misses its own row while the knob is turned beside it."""
    knob, stop, wrong = knob_of(collection), threading.Event(), []

    def search():
        at = 0
        while not stop.is_set():
            at = (at + 1) % ROWS
            if found(collection, VECTORS[at], 1) != [str(at)]:
                wrong.append(at)

    thread = threading.Thread(target=search)
    thread.start()
    for value in others(knob):
        knob.set(value)
    stop.set()
    thread.join()
    assert not wrong


def test_what_it_was_turned_to_is_kept(collection, tmp_path):
    """It is there when the collection is opened again, also when others were stored before."""
    knob = knob_of(collection)
    was, other = knob.get(), others(knob)[0]
    for value in (other, was):
        knob.set(value)
        collection.flush()
    collection.close()
    with VectorCollection.open(tmp_path / "store") as opened:
        assert knob_of(opened).get() == was


def test_a_compression_that_the_user_chose_is_no_knob():
    """Nor is it one of a collection that is only read."""
    with VectorCollection.open(dim=DIM, compression="int8") as made:
        made.upsert(IDS, VECTORS)
        assert [one.name for one in made.tunables()] == ["search.oversample"]


def test_a_follower_has_no_compression_to_turn(collection, tmp_path):
    """The codes are the writer's."""
    collection.flush()
    with VectorCollection.open(tmp_path / "store", read_only=True) as follower:
        assert [one.name for one in follower.tunables()] == ["search.oversample"]


def test_the_smallest_codes_that_are_right_are_found(collection):
    """Memory is arithmetic, and what takes too much is never made or measured."""
    knob = knob_of(collection)
    was = "float16"
    knob.set(was)
    here = collection.stats().bytes_in_memory
    most = (here + knob.bytes_at("int8") - knob.bytes_at(was)) / 1e6
    goals = [Goal.minimize("memory_mb"), Goal.at_most("memory_mb", most)]
    goals.append(Goal.at_least("recall@10", 0.9))
    measured = []
    report = AutoTuner(
        collection,
        goals,
        progress=False, on_trial=measured.append,
    ).run(np.repeat(QUERIES, 2, axis=0))  # fmt: skip
    smallest = min(knob.values, key=knob.bytes_at)
    assert report.is_applied
    assert report.settings["compression"] == knob_of(collection).get() == smallest
    tried = {row.settings["compression"] for row in measured if row.queries > 0}
    assert tried - {was} == {
        one for one in knob.values if knob.bytes_at(one) <= knob.bytes_at("int8")
    }
    assert "left out by arithmetic" in report.notes[-1]


def test_what_was_is_put_back_with_its_effort(collection):
    """The same codes are searched as hard as before, whatever was tried with them and others."""
    before = collection._store.index.segment.codes, collection._store.index.effort
    knobs = Knobs(tunables(collection))
    effort, compression = knobs.incumbent
    last = len(knobs.knobs[0].values) - 1
    for setting in ((0, compression), (last, compression - 1), (0, compression - 1)):
        knobs.turn(setting)
        assert tuple(knob.values[at] for knob, at in zip(knobs.knobs, setting, strict=True)) == (
            collection._store.index.effort.oversample, collection.stats().compression.codec,
        )  # fmt: skip
    knobs.put_back()
    assert effort > 0
    assert (collection._store.index.segment.codes, collection._store.index.effort) == before


def test_a_guard_changes_over_to_other_codes_and_back(collection):
    """Canaries are searched with the others, and all is as it was when the guard is detached."""
    knob = knob_of(collection)
    was, other = knob.get(), others(knob)[0]
    seen = set()
    with Guard.attach(
        collection, [(knob, other)], terms=Terms(shares=(0.5,), warm_up=999)
    ) as guard:
        for at in range(140):
            with guard.request():
                assert found(collection, VECTORS[at], 1) == [str(at)]
                seen.add(knob.get())
    assert seen == {was, other}
    assert knob.get() == was


def test_memory_of_a_rebuild_that_tells_no_bytes_is_seen_by_turning():
    """And others are as they were meanwhile."""
    held = {"rebuild": 1, "other": 1}

    class Holder:
        def stats(self):
            return type("Stats", (), {"bytes_in_memory": 10**6 * held["rebuild"] * held["other"]})

        def tunables(self):
            return [
                Knob(
                    name,
                    [1, 2],
                    lambda n=name: held[n],
                    lambda to, n=name: held.update({n: to}),
                    rebuild=name == "rebuild",
                )
                for name in held
            ]

    holder = Holder()
    report = AutoTuner(
        holder, [Goal.minimize("memory_mb")], ask=lambda query: [query], progress=False
    ).run([str(at) for at in range(40)])
    assert {row.metrics["memory_mb"].value for row in report.rows} == {1.0, 2.0}
