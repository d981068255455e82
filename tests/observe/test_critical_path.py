"""The critical path, and the replay of requests along it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragaccel.errors import ConfigurationError
from ragaccel.observe.calls import Call
from ragaccel.observe.critical_path import critical_path, own_time_ns
from ragaccel.observe.replay import replayed_ns, shortened
from tests.observe.calls import MS, call, profile

NAMES = st.sampled_from(["embed", "search", "rerank", "generate"])


@st.composite
def calls(draw, began=0, length=1_000, depth=3, name="query"):
    """A stage with others inside, beside each other, and after its end."""
    ended = began + length
    inside = []
    for _ in range(draw(st.integers(0, 3)) if depth and length else 0):
        first = draw(st.integers(began, ended))
        long = draw(st.integers(0, length))
        inside.append(draw(calls(first, long, depth - 1, draw(NAMES))))
    return Call(name, began, ended, None, {}, None, tuple(inside))


@st.composite
def sequences(draw, began=0, depth=2, name="query"):
    """A stage with stages inside that follow each other, with pauses."""
    at, inside = began, []
    for _ in range(draw(st.integers(0, 4)) if depth else 0):
        at += draw(st.integers(0, 50))
        inside.append(draw(sequences(at, depth - 1, draw(NAMES))))
        at = inside[-1].ended_ns
    return Call(name, began, at + draw(st.integers(0, 50)), None, {}, None, tuple(inside))


@given(calls())
def test_the_path_covers_the_request_without_gap_or_overlap(root):
    """Each step begins where the one before it ended, from the first moment to the last."""
    steps = critical_path(root)
    edges = [root.began_ns, *(one.ended_ns for one in steps)]
    assert [one.began_ns for one in steps] == edges[:-1]
    assert edges[-1] == root.ended_ns
    assert all(one.began_ns < one.ended_ns for one in steps)
    assert all(one.stack[0] is root for one in steps)
    assert all(
        one.stack[-1].began_ns <= one.began_ns and one.ended_ns <= one.stack[-1].ended_ns
        for one in steps
    )


@given(calls())
def test_shares_sum_to_one(root):
    """However many stages ran beside each other."""
    assert sum(own_time_ns(root).values()) == root.duration_ns
    shares = [one.share for one in profile([root]).stages.values()]
    assert sum(shares) == pytest.approx(1)


@given(sequences())
def test_stages_in_sequence_are_on_the_path_with_all_their_time(root):
    """The path through a sequence is the sum of its parts."""
    spent = dict.fromkeys((id(one) for one in root.walk()), 0)
    for step in critical_path(root):
        for one in step.stack:
            spent[id(one)] += step.ended_ns - step.began_ns
    assert spent == {id(one): one.duration_ns for one in root.walk()}


def test_of_parallel_stages_the_last_one_to_end_counts():
    """What ran beside it, or went on after the request, held nobody up."""
    root = call(
        "query", 0, 100,
        call("embed", 5, 20), call("search", 20, 60), call("bm25", 20, 90),
        call("refresh", 80, 200),
    )  # fmt: skip
    own = {name: spent // MS for name, spent in own_time_ns(root).items()}
    assert own == {"query": 15, "embed": 15, "bm25": 70}


def test_the_bottleneck_is_not_the_largest_sum():
    """Five searches side by side take the most time, and only one of them counts."""
    searches = [call("search", 10, 60) for _ in range(5)]
    found = profile([call("query", 0, 200, *searches, call("generate", 60, 200))])
    assert found.bottleneck == "generate"
    assert found.stages["search"].share == pytest.approx(0.25)
    assert found.stages["generate"].share == pytest.approx(0.70)


def test_the_tail_has_a_bottleneck_of_its_own():
    """What most requests wait for is not what the slow ones wait for, nor all together."""
    usual = call("query", 0, 50, call("generate", 0, 40))
    slow = call("query", 0, 500, call("rerank", 0, 460), call("generate", 460, 500))
    found = profile([*[usual] * 90, *[slow] * 10])
    assert found.stages["rerank"].share > found.stages["generate"].share
    assert (found.bottleneck, found.tail_bottleneck) == ("generate", "rerank")


@given(calls())
def test_a_replay_that_changes_nothing_gives_what_was(root):
    """The model of what waits for what agrees with the record."""
    assert replayed_ns(root, lambda _: None) == root.duration_ns
    assert replayed_ns(root, shortened("query", 1.0)) == root.duration_ns


@given(calls(), NAMES, st.floats(0, 1))
def test_a_quicker_stage_delays_nobody(root, stage, factor):
    """A request gets shorter by no more than the time its changed stages took."""
    replayed = replayed_ns(root, shortened(stage, factor))
    taken = sum(one.duration_ns for one in root.walk() if one.name == stage)
    assert root.duration_ns - taken - 1e-6 <= replayed <= root.duration_ns + 1e-6


def test_what_runs_beside_sets_the_limit():
    """A search that is quicker than the one beside it saves no more."""
    root = call(
        "query", 0, 100, call("search", 0, 80), call("bm25", 0, 60), call("rerank", 80, 100)
    )
    assert replayed_ns(root, shortened("search", 0.9)) == 92 * MS
    assert replayed_ns(root, shortened("search", 0.1)) == 80 * MS
    last = call("query", 0, 80, call("search", 0, 80), call("bm25", 0, 60))
    assert replayed_ns(last, shortened("search", 0.1)) == 60 * MS


def test_what_if_a_stage_took_half_the_time():
    """The new percentiles come with an interval, the same at each call."""
    random = np.random.default_rng(1)
    took = random.integers(50, 150, 100)
    found = profile([call("query", 0, one + 10, call("generate", 0, one)) for one in took])
    replay = found.what_if("generate", factor=0.5)
    assert replay.before == found.latency
    assert replay.after.p95 == pytest.approx((np.percentile(took, 95) / 2 + 10) / 1e3)
    assert replay.low.p95 <= replay.after.p95 <= replay.high.p95
    assert replay.low.p50 < replay.high.p50
    assert replay == found.what_if("generate", factor=0.5)
    assert found.what_if("generate", factor=1).after.p95 == pytest.approx(found.latency.p95)


def test_what_if_a_cache_answered_a_share():
    """A hit takes as long as hits take, and calls that were hits already stay."""
    miss = call(
        "query", 0, 102, call("cache.lookup", 0, 2, cache_hit=False), call("generate", 2, 102)
    )
    hit = call("query", 0, 2, call("cache.lookup", 0, 2, cache_hit=True))
    found = profile([*[miss] * 60, *[hit] * 40])
    replay = found.what_if("generate", hit_rate=0.5)
    assert replay.before.mean == pytest.approx(0.062)
    assert replay.after.mean == pytest.approx((30 * 102 + 30 * 4 + 40 * 2) / 100 / 1e3, rel=0.02)
    assert found.what_if("generate", hit_rate=1).after.p99 == pytest.approx(0.004)
    served = profile([call("query", 0, 10, call("generate", 0, 10, cache_hit=True))] * 5)
    assert served.what_if("generate", hit_rate=1).after == served.latency


def test_what_if_says_what_it_cannot_do():
    """An unknown stage, and numbers that cannot be."""
    found = profile([call("query", 0, 10, call("embed", 0, 5))])
    with pytest.raises(ConfigurationError, match=r"'generate'.*embed, query"):
        found.what_if("generate", factor=0.5)
    for wrong in ({}, {"factor": 0.5, "hit_rate": 0.5}):
        with pytest.raises(ConfigurationError, match="either"):
            found.what_if("embed", **wrong)
    for wrong in ({"factor": -1}, {"factor": float("nan")}, {"hit_rate": 2}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            found.what_if("embed", **wrong)
