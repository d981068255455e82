"""Adaptive compression: what is measured, what is chosen, and what is said when nothing fits."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.errors import ConfigurationError
from ragaccel.vectors import choose
from tests.vectors.data import clustered, names, nearest, places, recall

CANDIDATES = [CompressionSpec("pq"), CompressionSpec("pq2"), CompressionSpec("int8")]


@pytest.fixture(scope="module")
def rows():
    return clustered(3_000, dim=32, seed=3)


def test_the_choice_keeps_the_recall_it_was_asked_for(rows):
    """What is chosen was measured to keep it, and a collection keeps it on other queries."""
    choice = choose(rows, recall=0.95, candidates=CANDIDATES, progress=False)
    chosen = next(trial for trial in choice.trials if trial.spec == choice.spec)
    assert chosen.keeps
    assert chosen.recall >= 0.95
    assert len(choice.trials) == len(CANDIDATES)
    queries = clustered(100, dim=32, seed=4)
    with VectorCollection.open(compression=choice.spec, recall=0.95) as collection:
        collection.upsert(names(len(rows)), rows)
        collection.flush()
        found = [places(hits) for hits in collection.search(queries, 10)]
        assert recall(found, nearest("cosine", queries, rows, 10)) >= 0.95


def test_the_memory_is_kept_to(rows):
    """With little room a small codec is chosen, with much the fastest."""
    little = choose(
        rows, recall=0.9, memory_mb=0.1, candidates=CANDIDATES, progress=False
    )  # 33 bytes a row
    assert little.bytes_limit == pytest.approx(0.1e6 / len(rows))
    size = {trial.spec: trial.bytes_per_vector for trial in little.trials}
    assert size[little.spec] <= little.bytes_limit


@pytest.mark.parametrize(
    ("limits", "told"),
    [({"memory_mb": 0.001}, "bytes per vector"), ({"latency_ms": 1e-9}, "ms")],
)
def test_what_cannot_be_had_is_said_with_what_can(rows, limits, told):
    """Limits and recall that contradict each other are an error with both numbers."""
    with pytest.raises(ConfigurationError, match=told) as raised:
        choose(rows, recall=0.9, candidates=CANDIDATES, progress=False, **limits)
    assert "at a recall of" in str(raised.value)


def test_too_few_vectors_are_an_error():
    """There is nothing to measure on."""
    with pytest.raises(ConfigurationError, match="at least 256"):
        choose(np.ones((10, 4), np.float32))


def test_real_queries_are_measured_with(rows):
    """Given ones are used instead of stand-ins: rows themselves are the easiest questions."""
    hard = choose(rows, recall=0.9, candidates=CANDIDATES[:1], progress=False)
    easy = choose(rows, recall=0.9, candidates=CANDIDATES[:1], queries=rows[:400], progress=False)
    assert easy.trials[0].effort.oversample <= hard.trials[0].effort.oversample


def test_the_table_shows_every_candidate(rows):
    """The decision can be followed."""
    choice = choose(rows, recall=0.9, candidates=CANDIDATES, progress=False)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(choice)
    text = console.export_text()
    for spec in CANDIDATES:
        assert spec.codec in text
    assert "0.9" in text


@pytest.mark.parametrize("structure", ["flat", "ivf", "hnsw"])
def test_structures_answer_alike(rows, structure):
    """Every structure finds what exact search finds, also after deletes, with exact scores."""
    queries = clustered(50, dim=32, seed=5)
    with VectorCollection.open(
        compression=CompressionSpec("int8", structure=structure), recall=0.99
    ) as collection:
        collection.upsert(names(len(rows)), rows)
        collection.flush()
        collection.delete(names(len(rows))[::7])
        found = collection.search(queries, 10)
        right = collection.search(queries, 10, exact=True)
        assert recall([places(h) for h in found], [places(h) for h in right]) >= 0.97
        scores = {hit.id: hit.score for hit in right[0]}
        assert all(
            scores[hit.id] == pytest.approx(hit.score, abs=1e-6)
            for hit in found[0]
            if hit.id in scores
        )
        assert all(len(hits) == 10 for hits in found)


def test_calibrating_with_real_questions_is_kept(tmp_path, rows):
    """Questions are stored with the collection, and asked again when codes are made anew."""
    with VectorCollection.open(tmp_path / "c", compression="pq", recall=0.9) as collection:
        collection.upsert(names(len(rows)), rows)
        careful = collection._store.index.candidates(10)
        assert collection.calibrate(rows[:300]) >= 0.9
        eased = collection._store.index.candidates(10)
        assert eased <= careful
        collection.compact()
        assert collection._store.index.candidates(10) <= careful
    with VectorCollection.open(tmp_path / "c", compression="pq", recall=0.9) as collection:
        assert len(collection._store.index.questions) == 300
    with VectorCollection.open() as empty, pytest.raises(ConfigurationError, match="empty"):
        empty.calibrate(np.ones((3, 4), np.float32))


@pytest.mark.parametrize("structure", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("floor", [0.8, 0.97])
def test_the_estimated_recall_is_that_of_searches(structure, floor):
    """Of the same questions: whatever is measured together or with more candidates."""
    rows, queries = clustered(6_000, dim=32, seed=1), clustered(300, dim=32, seed=2)
    spec = CompressionSpec("int4" if structure == "hnsw" else "pq", structure)
    with VectorCollection.open(compression=spec, recall=floor) as collection:
        collection.upsert(names(6_000), rows)
        collection.flush()
        estimated = collection.calibrate(queries)
        found, exact = (collection.search(queries, exact=one) for one in (False, True))
        shares = [
            len({hit.id for hit in one} & {hit.id for hit in right}) / 10
            for one, right in zip(found, exact, strict=True)
        ]
        assert floor <= np.mean(shares)
        assert estimated == pytest.approx(np.mean(shares), abs=0.005)
