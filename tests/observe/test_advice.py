"""Advice: told with numbers where the evidence is there, and not told where it is thin."""

from __future__ import annotations

import pytest

from ragaccel.observe import Profile
from tests.observe.calls import call, profile, shifted

HIT = 0.0005  # seconds that a hit is taken for where none was heard


def llm(took=300):
    return call(
        "query", 0, took + 200, call("retrieve", 0, 150, call("embed", 0, 140)),
        call("generate", 200, took + 200),
    )  # fmt: skip


def about(found, stage):
    return [one for one in found.advice if one.stage == stage]


def test_repeated_queries_call_for_a_cache():
    """The gain is that of the requests that were asked before, replayed without the stage."""
    asked = [f"q{nth}" if nth % 4 else "again" for nth in range(40)]
    found = profile([llm() for _ in asked], asked=asked)
    first, second = found.advice
    assert (first.stage, first.gain_of) == ("generate", "mean")
    saved = (0.3 - HIT) * 9 / 40
    assert first.gain == pytest.approx(saved / 0.5)
    assert first.expected.mean == pytest.approx(0.5 - saved)
    assert str(first).startswith(
        "22% of the queries had been asked before, and generate is 60% of the critical path"
    )
    assert "13% less of the mean, p50 500.0 ms, p95 500.0 ms" in str(first)
    assert first.check in str(first)
    assert second.stage == "retrieve"
    assert "wrap the retriever" in second.finding


def test_nothing_is_told_of_what_a_cache_answers_already():
    """A repeat whose calls were hits has nothing to gain."""
    hit = call("query", 0, 100, call("generate", 0, 90, cache_hit=True))
    found = profile([llm(), *[hit] * 30], asked=["again"] * 31)
    assert not about(found, "generate")


@pytest.mark.parametrize(
    ("count", "asked"),
    [(19, ["again"] * 19), (40, [f"q{nth}" for nth in range(40)]), (40, None)],
    ids=["few", "no repeats", "not known"],
)
def test_thin_evidence_is_no_advice(count, asked):
    """Fewer than 20 requests, no query twice, or queries that nobody told."""
    cached = call("query", 0, 1000, call("generate", 0, 990))
    assert profile([cached] * count, asked=asked).advice == ()


def test_a_small_gain_is_no_advice():
    """Below 5% the advice is not worth its reading."""
    quick = call("query", 0, 1000, call("generate", 0, 40))
    assert profile([quick] * 40, asked=["again"] * 40).advice == ()


def test_a_pipeline_that_shows_no_stage_can_still_repeat_itself():
    """The whole request is then what a cache could answer, unless it has one already."""
    found = profile([call("query", 0, 100)] * 40, asked=["a", "b"] * 20)
    (advice,) = found.advice
    assert advice.stage == "query"
    assert advice.gain == pytest.approx(1 - HIT / 0.1)
    hit = call("query", 0, 100, call("cache.lookup", 0, 1, cache_hit=True))
    assert profile([hit] * 40, asked=["a", "b"] * 20).advice == ()


def embeddings(took, at_once, **attributes):
    """Twenty requests that embed a text each by themselves, then forty, so many at a time."""
    alone = profile([call("query", 0, 20, call("embed", 0, 10))] * 20)
    busy = call("query", 0, took + 10, call("embed", 0, took, **attributes))
    groups = profile([shifted(busy, 50_000)] * 40, at=(took + 10) // at_once)
    return Profile.of([*alone.requests, *groups.requests])


def test_texts_embedded_at_the_same_time_call_for_batches():
    """The gain is what a call takes longer beside others than alone."""
    found = embeddings(80, 6)
    (advice,) = about(found, "embed")
    assert "batch=True" in advice.finding
    assert "80.0 ms, and 10.0 ms where it is least disturbed" in advice.finding
    assert advice.expected.p95 == pytest.approx(0.020)


@pytest.mark.parametrize(
    ("took", "at_once", "attributes"),
    [(80, 1, {}), (10, 6, {}), (80, 6, {"batch_size": 6})],
    ids=["one at a time", "as quick as alone", "in batches"],
)
def test_no_batches_are_called_for_where_they_gain_nothing(took, at_once, attributes):
    """Calls in sequence, calls that do not disturb each other, and batches that are there."""
    assert not about(embeddings(took, at_once, **attributes), "embed")


@pytest.mark.parametrize(("candidates", "told"), [(100, True), (10, False)])
def test_a_reranker_with_many_candidates_could_have_fewer(candidates, told):
    """Half of a hundred, and no fewer than ten."""
    root = call("query", 0, 100, call("rerank", 0, 80, items_count=candidates))
    advices = about(profile([root] * 20), "rerank")
    assert bool(advices) is told
    for one in advices:
        assert "100 candidates" in one.finding
        assert one.expected.p50 == pytest.approx(0.060)


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"index_codec": "float32", "index_rows": 50_000}, True),
        ({"index_codec": "float32", "index_rows": 500}, False),
        ({"index_codec": "rabitq4", "index_rows": 50_000}, False),
    ],
)
def test_a_large_search_over_plain_vectors_could_be_compressed(search, told):
    """A small one, and one that is compressed already, could not."""
    root = call("query", 0, 100, call("retrieve", 0, 90, call("search", 10, 90, **search)))
    advices = profile([root] * 20).advice
    assert [one.stage for one in advices] == ["search"] * told
    assert all(one.expected.p50 == pytest.approx(0.060) for one in advices)


def test_a_store_that_tells_no_search_is_known_by_the_time_of_retrieve():
    """What retrieve takes besides embed is the store's."""
    root = call("query", 0, 100, call("retrieve", 0, 100, call("embed", 0, 20)))
    (advice,) = profile([root] * 20).advice
    assert "CompressedVectorStore" in advice.finding
    assert advice.expected.p50 == pytest.approx(0.060)


def test_a_cold_first_request_calls_for_warming_up():
    """Many times as long as all others, it is not one of them."""
    usual = call("query", 0, 10)
    assert profile([usual] * 21).advice == ()
    (advice,) = profile([call("query", 0, 900), *[usual] * 20]).advice
    assert "900.0 ms, 90 times the p50" in advice.finding
    assert advice.gain_of == "first request"
    assert advice.expected.p99 == pytest.approx(0.010)
