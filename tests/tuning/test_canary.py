"""A canary judged beside its controls, by drawn latencies."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ragaccel.errors import ConfigurationError
from ragaccel.tuning.canary import Canary, Limit, Terms

QUICK = Terms(shares=(0.05,))


def drawn(seed, canary, change=lambda seconds, random: seconds, load=lambda at: 1.0, most=2000):
    """Draw requests until the canary is through, or bad, or has had `most`."""
    random = np.random.default_rng(seed)
    at = 0
    while not canary.is_bad and not canary.is_through and canary.canaries < most:
        at += 1
        seconds = random.lognormal(0, 0.6) * load(at)
        if random.random() < canary.share:
            canary.hear_canary(change(seconds, random))
        else:
            canary.hear_control(seconds)
    return canary


def test_one_that_triples_latency_is_bad_at_once():
    """Within 20 requests in nearly all runs, and within 40 in all."""
    taken = [drawn(one, Canary(QUICK), lambda s, _: 3 * s).canaries for one in range(40)]
    assert np.median(taken) <= 12
    assert np.percentile(taken, 90) <= 20
    assert max(taken) <= 40


def test_one_that_is_slow_in_the_tail_only_is_bad():
    """One request in ten takes ten times as long: the median hides it."""
    runs = [
        drawn(one, Canary(QUICK), lambda s, random: s * (10 if random.random() < 0.1 else 1))
        for one in range(20)
    ]
    assert all(one.is_bad for one in runs)
    assert np.percentile([one.canaries for one in runs], 90) <= 400


@pytest.mark.parametrize("swing", [0.0, 0.3])
def test_one_that_changes_nothing_is_not_taken_back(swing):
    """Also while the load changes for all."""
    runs = [
        drawn(one, Canary(QUICK), load=lambda at: 1 + swing * math.sin(at / 300), most=1000)
        for one in range(8)
    ]
    assert not any(one.is_bad for one in runs)


def test_one_that_is_slower_by_less_than_the_slack_comes_through():
    """However surely it is: a guarded request's own microseconds are no reason."""
    canary = Canary(QUICK)
    for _ in range(2000):
        canary.hear_control(1.0)
        canary.hear_canary(1.05)
        if canary.is_bad or canary.is_through:
            break
    assert canary.is_through


def test_a_better_one_comes_through_to_all():
    """Share after share; nothing is tried before the usual latency is known."""
    canary = Canary(Terms(shares=(0.25, 0.5)))
    assert canary.share == 0
    for _ in range(100):
        canary.hear_control(1.0)
    assert canary.share == 0.25
    drawn(0, canary, lambda s, _: 0.6 * s)
    assert canary.is_through
    assert canary.share == 1
    assert canary.step == 2


def test_one_that_fails_is_bad_after_three_failures():
    """A failure counts as the slowest request of all, also later."""
    canary = Canary(QUICK)
    for _ in range(200):
        canary.hear_control(1.0)
    for _ in range(2):
        canary.hear_canary(math.inf)
    assert not canary.is_bad
    canary.hear_canary(math.inf)
    assert "3 of its first 3 requests failed" in canary.fault


def test_failures_of_all_are_not_its_own():
    """Where the others fail as well, it is not taken back for that."""
    canary = Canary(QUICK)
    random = np.random.default_rng(0)
    for at in range(4000):
        seconds = math.inf if random.random() < 0.2 else 1 + random.random()
        (canary.hear_canary if at > 200 and at % 20 == 0 else canary.hear_control)(seconds)
    assert not canary.is_bad


@pytest.mark.parametrize(("others", "is_bad"), [(1.0, True), (5.0, False)])
def test_a_limit_that_it_breaks_is_told(others, is_bad):
    """Unless the others break it, too."""
    canary = Canary(Terms(shares=(0.05,), slack=50.0), [Limit("latency_p95", 4.0, 0.05)])
    for at in range(400):
        canary.hear_control(others if at % 10 == 0 else 1.0)
        if at >= 200 and not canary.is_bad:
            canary.hear_canary(5.0 if at % 2 else 0.5)
    assert canary.is_bad == is_bad
    assert canary.fault in {None, "it breaks latency_p95 <= 4"}


def test_regret_is_bounded():
    """Differences to the requests beside it add up, and cancel out."""
    canary = Canary(Terms(shares=(0.05,), slack=1e9, regret=10.0))
    for at in range(1000):
        canary.hear_control(1.0)
        if at >= 100:
            canary.hear_canary(1.9 if at % 2 else 0.9)
        if canary.is_bad:
            break
    assert "longer, all in all" in canary.fault
    assert canary.regret == pytest.approx(10, abs=1)


def test_a_warm_up_does_not_count():
    """Caches may be cold at first; failures count all the same."""
    canary = Canary(Terms(shares=(0.05,), warm_up=50))
    for _ in range(100):
        canary.hear_control(1.0)
    for _ in range(50):
        canary.hear_canary(100.0)
    assert not canary.is_bad
    for _ in range(50):
        canary.hear_canary(100.0)
    assert canary.is_bad


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        ({"shares": ()}, "shares"), ({"shares": (0.5, 0.1)}, "grow"),
        ({"shares": (1.0,)}, "shares"),
        ({"alpha": 0}, "alpha"), ({"doubt": 1}, "doubt"), ({"slack": 0.9}, "slack"),
        ({"regret": 0}, "regret"), ({"warm_up": -1}, "warm_up"),
    ],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(terms, match):
    """They say which, and what may be."""
    with pytest.raises(ConfigurationError, match=match):
        Terms(**terms)
