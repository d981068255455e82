"""Evidence: false alarms are as rare as promised, however often one looks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragaccel.tuning.evidence import Evidence, are_sure

SHARES = st.sampled_from([0.01, 0.05, 0.25, 0.45, 0.55, 0.92])


@given(SHARES, st.integers(1, 8))
def test_it_is_a_fair_game(share, rounds):
    """Over all that can happen, weighted by its chance, the capital is 1; it is never below 0."""
    expected = 0.0
    for outcome in itertools.product((False, True), repeat=rounds):
        evidence = Evidence(1e-12)
        for happened in outcome:
            evidence.hear(happened, share)
        assert evidence.value >= 0
        chance = np.prod([share if happened else 1 - share for happened in outcome])
        expected += chance * evidence.value
    assert expected == pytest.approx(1)


@given(SHARES, st.lists(st.booleans(), max_size=200))
def test_it_is_sure_once_the_line_was_crossed(share, cases):
    """And stays so, whatever comes afterwards."""
    evidence, was_crossed = Evidence(0.05), False
    for happened in cases:
        told = evidence.hear(happened, share)
        was_crossed = was_crossed or evidence.value >= 20 * (1 - 1e-9)
        assert told == evidence.is_sure == was_crossed
    assert evidence.heard == len(cases)


@pytest.mark.parametrize("share", [0.05, 0.55])
def test_false_alarms_are_rare(share):
    """Of 300 streams that keep the share, looked at 500 times each, 5% alarm, give or take."""
    random = np.random.default_rng(0)
    alarms = 0
    for stream in random.random((300, 500)) < share:
        evidence = Evidence(0.05)
        alarms += any(evidence.hear(bool(happened), share) for happened in stream)
    chance = 3 * (300 * 0.05 * 0.95) ** 0.5
    assert 0 < alarms <= 0.05 * 300 + chance


@pytest.mark.parametrize(
    ("share", "real", "within"), [(0.05, 0.5, 20), (0.05, 0.2, 150), (0.55, 0.9, 60)]
)
def test_what_is_wrong_is_found(share, real, within):
    """The more wrong it is, the sooner, in 9 of 10 streams."""
    random = np.random.default_rng(1)
    found = 0
    for stream in random.random((200, within)) < real:
        evidence = Evidence(0.01)
        found += any(evidence.hear(bool(happened), share) for happened in stream)
    assert found >= 180


def test_evidence_taken_together_gives_false_alarms_as_rarely():
    """Of streams that keep three shares at once, one piece after another, 5% alarm at most."""
    random, shares = np.random.default_rng(2), (0.01, 0.05, 0.2)
    alarms = 0
    for stream in random.random((300, 300)):
        several = [Evidence(0.05) for _ in shares]
        for drawn in stream:
            for evidence, share in zip(several, shares, strict=True):
                evidence.hear(bool(drawn < share), share)
            if are_sure(several):
                alarms += 1
                break
    assert 0 < alarms <= 0.05 * 300 + 3 * (300 * 0.05 * 0.95) ** 0.5


def test_one_piece_that_is_very_sure_makes_all_sure():
    """What shows in a single one is not lost among the others."""
    several = [Evidence(0.05) for _ in range(3)]
    for _ in range(40):
        several[0].hear(True, 0.2)
    assert are_sure(several)
    assert not are_sure(several[1:])
