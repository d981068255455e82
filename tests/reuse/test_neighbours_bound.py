"""What is proven of rows outside of lists, what is trusted, and what labels make of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragaccel.reuse.neighbours_bound import expected, need, proven
from ragaccel.reuse.neighbours_trust import START, Trust, recall
from ragaccel.reuse.verified_bound import most_likely_at_most


def unit(rows):
    """Return rows of unit length in float32, as a collection has them."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@st.composite
def lists(draw):
    """Draw rows outside of all lists, a question, neighbours, and the floors of their lists."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, count = draw(st.sampled_from((2, 3, 8, 32))), draw(st.integers(2, 60))
    rows = chance.normal(size=(count, dim))
    if draw(st.booleans()):
        rows = np.round(rows)  # many equal rows, and equal scores
    rows = unit(rows + 1e-3)
    query = unit(chance.normal(size=dim))
    spread = draw(st.sampled_from((0.0, 1e-4, 0.01, 0.1, 1.0)))
    near = unit(query + spread * chance.normal(size=(draw(st.integers(1, 8)), dim)))
    kept = draw(st.integers(1, count - 1))
    scores = near @ rows.T
    order = np.argsort(-scores, axis=1)
    floors = np.take_along_axis(scores, order[:, kept - 1 : kept], axis=1)[:, 0]
    outside = np.setdiff1d(np.arange(count), order[:, :kept])
    return rows[outside], query, near, floors


@given(lists())
def test_no_row_outside_of_the_lists_is_above_what_is_proven(drawn):
    """Whatever the neighbours and their floors, the bound holds, ties and rounding included."""
    outside, query, near, floors = drawn
    bound = proven(query.astype(float), near.astype(float), floors.astype(float))
    assert (outside @ query <= bound).all()


@given(lists())
def test_several_neighbours_never_prove_less_than_one(drawn):
    """The bound of several is at most that of each alone, which is the one on angles."""
    _, query, near, floors = drawn
    query, near, floors = query.astype(float), near.astype(float), floors.astype(float)
    alone = []
    for one, floor in zip(near, floors, strict=True):
        bound = proven(query, one[None], np.array([floor]))
        between = math.acos(np.clip(query @ one, -1, 1))
        most = math.acos(np.clip(floor, -1, 1)) - between
        angle = math.cos(max(most, 0.0))
        assert bound == pytest.approx(angle, abs=1e-3)
        alone.append(bound)
    assert proven(query, near, floors) <= min(alone) + 1e-3  # angles of float32 vectors


def test_neighbours_on_both_sides_prove_what_none_does_alone():
    """Between two neighbours the bound of both is lower than that of either."""
    near = np.array([[math.cos(a), math.sin(a), 0.0] for a in (-0.4, 0.4)])
    query, floors = np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5])
    both = proven(query, near, floors)
    alone = proven(query, near[:1], floors[:1])
    assert both < alone - 0.1
    assert both == pytest.approx(0.5 / math.cos(0.4), abs=1e-3)


def test_a_list_of_all_rows_leaves_nothing_outside():
    """Where a list holds every row there is, no other can score anything."""
    near, floors = np.eye(2), np.array([0.3, -math.inf])
    assert proven(np.array([1.0, 0.0]), near, floors) == -math.inf
    assert expected(0.5, np.array([0.6, 0.8]), floors) == -math.inf
    assert need(0.1, np.array([0.6, 0.8]), floors) == 10


@given(lists(), st.floats(-1, 1), st.floats(0, 1))
def test_a_need_is_met_where_the_score_is_as_expected(drawn, score, trusted):
    """Both say the same: the need is at least what is trusted, the score what is expected."""
    _, query, near, floors = drawn
    cosines, floors = np.clip((near @ query).astype(float), -1, 1), floors.astype(float)
    line = expected(trusted, cosines, floors)
    if abs(score - line) > 1e-9:
        assert (need(score, cosines, floors) >= trusted) == (score >= line)


def test_a_need_is_what_the_missed_row_would_have_to_have():
    """Along the direction from the neighbour to the question, a row must lie so far out."""
    neighbour, query = np.array([1.0, 0.0]), np.array([0.8, 0.6])
    missed = np.array([0.3, 0.7])
    needed = need(float(missed @ query), np.array([neighbour @ query]), np.array([0.3]))
    assert needed == pytest.approx(0.7)


# -- labels ----------------------------------------------------------------------------------------


def told(trust, labels, *, audit=False):
    """Tell labels of (need, wrong)."""
    for needed, wrong in labels:
        trust.add(needed, wrong=wrong, audit=audit)


def stream(count, wrong_below, seed=0):
    """Return labels with needs from 0 to 1, wrong exactly below a need."""
    needs = np.random.default_rng(seed).random(count)
    return [(float(one), bool(one < wrong_below)) for one in needs]


def test_trust_begins_at_a_half_and_falls_to_what_labels_prove():
    """Where nothing above a third is wrong, about a third is served from, never less."""
    trust = Trust(0.01, 0.05, 0.05)
    assert trust.need == START
    told(trust, stream(4000, 0.3))
    assert 0.28 < trust.need < 0.4


def test_labels_refute_the_beginning():
    """Where what the beginning would serve is wrong, nothing is served until labels prove more."""
    trust = Trust(0.01, 0.05, 0.05)
    told(trust, [(0.6, True)] * 3)
    assert trust.need == math.inf
    told(trust, [(0.9, False)] * 3000)
    assert trust.need == pytest.approx(0.9)


def test_audits_that_turn_wrong_stop_it_at_once():
    """After thousands of right labels a few wrong audits in a row are enough."""
    trust = Trust(0.01, 0.05, 0.05)
    told(trust, stream(4000, 0.3))
    before = trust.need
    told(trust, [(0.8, True)] * 4, audit=True)
    assert before < 0.5 < trust.need


def test_a_bulk_load_begins_anew():
    """More than a thousand changes at once: what was learned is no more known to hold."""
    trust = Trust(0.01, 0.05, 0.05)
    trust.follow(10)
    told(trust, stream(4000, 0.3))
    learned = trust.need
    trust.follow(500)
    assert trust.need == learned
    trust.follow(5000)
    assert trust.need == START


@pytest.mark.parametrize("seed", range(5))
def test_no_more_than_allowed_is_served_wrong(seed):
    """Needs that are wrong more often the lower they are: the share stays below the error."""
    chance, trust, served = np.random.default_rng(seed), Trust(0.05, 0.05, 0.05), []
    for _ in range(6000):
        needed = float(chance.random())
        wrong = bool(chance.random() < 0.5 * (1 - needed) ** 4)
        is_served = needed >= trust.need
        if is_served:
            served.append(wrong)
        if chance.random() < trust.share:
            trust.add(needed, wrong=wrong, audit=is_served)
    assert len(served) > 3000
    assert np.mean(served) <= 0.05


def test_recall_counts_equal_scores_as_right():
    """A row that scores as the last of the real ones is as right as it."""
    assert recall([0.9, 0.8, 0.7], [0.9, 0.8, 0.7]) == 1
    assert recall([0.9, 0.7, 0.7], [0.9, 0.8, 0.7]) == 1
    assert recall([0.9, 0.6, 0.5], [0.9, 0.8, 0.7]) == pytest.approx(1 / 3)
    assert recall([], []) == 1


def test_the_bound_on_a_share_is_clopper_and_pearsons():
    """None wrong of 300 bounds the share by 1% (the rule of three); without trials by one."""
    assert most_likely_at_most(0, 300, 0.05) == pytest.approx(1 - 0.05 ** (1 / 300), abs=1e-5)
    assert most_likely_at_most(3, 100, 0.05) == pytest.approx(0.0757, abs=1e-3)
    assert most_likely_at_most(0, 0, 0.05) == 1
    assert most_likely_at_most(5, 5, 0.05) == 1
