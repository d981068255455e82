"""The demo's traffic has the repetition it claims, and its writes come as described."""

from collections import Counter

import pytest

from ragaccel.cli.demo.traffic import (
    Ask,
    Write,
    repeat_ceiling,
    traffic,
    web_draws,
    zipf_draws,
)


def test_zipf_draws_follow_the_law():
    """The most popular question comes about k times as often as the k-th."""
    counts = [count for _, count in Counter(zipf_draws(1_000, 50_000, seed=7)).most_common()]
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)
    assert counts[0] / counts[49] == pytest.approx(50, rel=0.3)


def test_exponent_zero_draws_evenly():
    """Without an exponent no question is popular."""
    counts = Counter(zipf_draws(10, 10_000, exponent=0, seed=7))
    assert max(counts.values()) < 1.2 * min(counts.values())


@pytest.mark.parametrize("draw", [zipf_draws, web_draws])
def test_seed_decides_the_draws(draw):
    """The same seed gives the same draws, another seed others."""
    assert draw(500, 400, seed=1) == draw(500, 400, seed=1)
    assert draw(500, 400, seed=1) != draw(500, 400, seed=2)


def test_web_draws_have_the_share_of_repeats():
    """The share of exact repeats is the one asked for, down to a whole draw."""
    draws = web_draws(1_190, 1_400, seed=3)
    assert len(draws) == 1_400
    assert repeat_ceiling(draws) == pytest.approx(int(1_400 * 0.157) / 1_400)


def test_web_draws_name_the_largest_number():
    """The largest number of draws works and one more is refused by name."""
    assert set(web_draws(1_190, 1_411, seed=3)) <= set(range(1_190))
    with pytest.raises(ValueError, match="at most 1411 draws"):
        web_draws(1_190, 1_412, seed=3)


def test_repeat_ceiling_is_what_an_endless_cache_hits():
    """The ceiling equals the hit rate of a cache that forgets nothing."""
    draws = zipf_draws(100, 300, seed=5)
    hits = sum(draw in draws[:place] for place, draw in enumerate(draws))
    assert repeat_ceiling(draws) == pytest.approx(hits / len(draws))


def test_traffic_keeps_the_requests_in_order():
    """Writes come between requests and change nothing about them."""
    draws = zipf_draws(100, 1_000, seed=5)
    events = traffic(draws, seed=5)
    assert [event.question for event in events if isinstance(event, Ask)] == draws
    assert sum(isinstance(event, Write) for event in events) == 10


def test_writes_take_turns():
    """Distractors are taken in turn; a passage is added for the next request, then retracted."""
    events = traffic(zipf_draws(100, 1_000, seed=5), seed=5)
    writes = [event for event in events if isinstance(event, Write)]
    assert [write.kind for write in writes[:4]] == ["replace", "delete", "add", "retract"]
    assert [writes[place].target for place in (0, 1, 4, 5)] == [0, 1, 2, 3]
    assert events[events.index(writes[2]) + 1] == Ask(writes[2].target)
    assert writes[3].target == writes[2].target
