"""Searches with a least score, and for rows like other rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel import VectorCollection
from ragaccel.errors import ConfigurationError
from ragaccel.vectors import Field, watch
from tests.vectors.data import METRICS, SLOW, clustered, names, nearest, places


def filled(rows, metric="cosine", **options):
    """Open a collection in memory whose ids tell the places of its rows."""
    collection = VectorCollection.open(metric=metric, **options)
    collection.upsert(
        names(len(rows)), rows, metadata=[{"even": at % 2 == 0} for at in range(len(rows))]
    )
    return collection


@pytest.mark.parametrize("compression", ["float32", "pq2"])
@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=SLOW)
def test_a_least_score_leaves_out_what_scores_less_and_nothing_else(metric, compression, data):
    """The hits are the first ones of the same search without it."""
    rows = clustered(1_200, dim=16, seed=1)
    query = clustered(1, dim=16, seed=data.draw(st.integers(0, 50)))[0]
    with filled(rows, metric, compression=compression) as collection:
        every = collection.search(query, 20)[0]
        floor = every[data.draw(st.integers(0, 19))].score
        found = collection.search(query, 20, min_score=floor)[0]
        assert [hit.id for hit in found] == [hit.id for hit in every if hit.score >= floor]
        above = math.nextafter(every[0].score, math.inf)
        assert collection.search(query, 20, min_score=above) == [[]]
        assert collection.search(query, 20, min_score=-math.inf)[0] == every


@pytest.mark.parametrize("compression", ["float32", "pq"])
def test_without_documents_hits_have_ids_and_scores_alone(compression):
    """They are the same rows, by vector and by id, with and without a filter."""
    rows, queries = clustered(1_200, seed=1), clustered(4, seed=2)
    with filled(rows, compression=compression) as collection:
        for where in (None, Field("even", "eq", True)):
            whole = collection.search(queries, 7, where=where, vectors=True)
            bare = collection.search(queries, 7, where=where, vectors=True, documents=False)
            assert [[(hit.id, hit.score, hit.slot) for hit in one] for one in bare] == [
                [(hit.id, hit.score, hit.slot) for hit in one] for one in whole
            ]
            for hit, other in zip(bare[0], whole[0], strict=True):
                assert (hit.text, hit.metadata, hit.document_id, hit.payload) == (
                    None, {}, None, None,
                )  # fmt: skip
                assert np.array_equal(hit.vector, other.vector)
        by_id = collection.search_by_id(["row-1"], 5, documents=False)
        assert [hit.id for hit in by_id[0]] == [
            hit.id for hit in collection.search_by_id(["row-1"], 5)[0]
        ]


@pytest.mark.parametrize("score", ["high", math.nan, [0.5]])
def test_a_least_score_that_is_no_number_is_an_error(score):
    """It is said what was given."""
    collection = filled(clustered(10, seed=1))
    with pytest.raises(ConfigurationError, match="min_score must be a number"):
        collection.search(clustered(1, seed=2), min_score=score)


def test_a_row_below_the_least_score_cannot_change_a_watched_answer():
    """A cached answer of fewer than k rows stays right until a row reaches the least score."""
    with filled(clustered(10, seed=1)) as collection, watch() as traces:
        collection.search(clustered(1, seed=2), 10, min_score=0.9)
        collection.search(clustered(1, seed=2), 20)
        assert traces[0].floor == 0.9
        assert traces[1].floor == -math.inf


@pytest.mark.parametrize("metric", METRICS)
def test_rows_like_a_row_are_its_nearest_without_itself(metric):
    """An id stands for its vector, and is not among its own hits."""
    rows = clustered(300, dim=16, seed=1)
    rows[7] = rows[3]  # a twin is another row
    asked = [3, 0, 250]
    with filled(rows, metric) as collection:
        found = collection.search_by_id([f"row-{at}" for at in asked], 5)
        for at, hits in zip(asked, found, strict=True):
            right = [one for one in nearest(metric, rows[at], rows, 300)[0] if one != at]
            assert places(hits) == right[:5]


def test_rows_like_unknown_and_repeated_ids():
    """Each id has its answer, in the order given; an unknown one has none."""
    with filled(clustered(50, seed=1)) as collection:
        found = collection.search_by_id(["row-1", "nobody", "row-1"], 3)
        assert found[0] == found[2]
        assert len(found[0]) == 3
        assert found[1] == []
        assert collection.search_by_id([], 3) == []
        assert collection.search_by_id(["nobody"], 3) == [[]]


def test_rows_like_a_row_pass_the_filter_and_have_their_vectors():
    """The options are those of a search."""
    rows = clustered(100, seed=1)
    with filled(rows) as collection:
        hits = collection.search_by_id(
            ["row-1"], 4, where=Field("even", "eq", True), vectors=True, min_score=-1
        )[0]
        assert len(hits) == 4
        assert all(at % 2 == 0 for at in places(hits))
        np.testing.assert_array_equal([hit.vector for hit in hits], rows[places(hits)])
