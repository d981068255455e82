"""The threshold that labels allow, the alarm, and what two questions must have in common."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel.reuse.verified_bound import NEVER, Alarm, chance_of_at_least, chance_of_at_most
from ragaccel.reuse.verified_bound import threshold as found_threshold
from ragaccel.reuse.verified_gate import gate
from ragaccel.reuse.verified_index import EXTENDED, Index
from ragaccel.reuse.verified_labels import Label
from ragaccel.reuse.verified_strength import Strength

KEPT = "how many people live in the city"
LABELS = st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=200)


@settings(deadline=None)
@given(LABELS, st.sampled_from((0.05, 0.2, 0.5)))
def test_fewer_than_delta_of_the_labels_above_a_threshold_are_wrong(labels, delta):
    """What is proven holds on the labels it is proven by, with room."""
    scores = np.array([score for score, _ in labels], float)
    wrong = np.array([is_wrong for _, is_wrong in labels], bool)
    lowest = found_threshold(scores, wrong, delta, 0.05)
    above = wrong[scores >= lowest]
    if lowest < NEVER:
        assert above.mean() < delta
        assert chance_of_at_most(int(above.sum()), len(above), delta) <= 0.05


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from((0.01, 0.2, 0.5)))
def test_the_chances_are_those_of_the_binomial_distribution(mistakes, trials, share):
    """Both tails agree with the sum of the terms, where they are not cut off at one."""
    terms = [
        math.comb(trials, at) * share**at * (1 - share) ** (trials - at) for at in range(trials + 1)
    ]
    if mistakes < trials * share:
        assert chance_of_at_most(mistakes, trials, share) == pytest.approx(
            sum(terms[: mistakes + 1])
        )
    if trials * share < mistakes <= trials:
        assert chance_of_at_least(mistakes, trials, share) == pytest.approx(
            sum(terms[mistakes:]), abs=1e-9
        )


def test_a_threshold_is_too_low_in_no_more_streams_than_the_doubt():
    """Though hundreds of thresholds are tried, data that is wrong too often passes seldom."""
    random = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        scores, wrong = random.random(3_000), random.random(3_000) < 0.02
        passed += found_threshold(scores, wrong, 0.02, 0.05) < NEVER
    assert passed <= 400 * 0.05


def test_a_threshold_is_found_where_right_answers_score_higher():
    """Of scores that tell right from wrong most of the right ones are above it."""
    random = np.random.default_rng(0)
    scores = random.random(4_000)
    wrong = random.random(4_000) > scores * 4  # nothing is wrong from a quarter on
    lowest = found_threshold(scores, wrong, 0.01, 0.05)
    assert 0.1 < lowest < 0.3


def test_an_alarm_sounds_soon_when_a_third_is_wrong_and_not_while_the_bound_holds():
    """The cumulative sum hears a broken bound within some audits."""
    random = np.random.default_rng(0)
    alarm = Alarm(0.02)
    assert not any(alarm.hear(wrong=bool(one)) for one in random.random(3_000) < 0.01)
    broken = Alarm(0.02)
    heard = [broken.hear(wrong=bool(one)) for one in random.random(100) < 1 / 3]
    assert True in heard
    assert heard.index(True) < 30


def test_a_broken_bound_outweighs_however_many_labels_of_before():
    """After thousands of right answers a dozen wrong audits are enough to reuse no more."""
    strength = Strength(0.02, 0.05, 20_000)
    for _ in range(5_000):
        strength.add("", Label(0.9, wrong=False, audit=False))
    assert strength.threshold("") == 0.9
    heard = [strength.add("", Label(0.9, wrong=bool(at % 2), audit=True)) for at in range(12)]
    assert True in heard
    assert strength.threshold("") == NEVER


def test_a_new_namespace_begins_with_the_threshold_of_all_and_loses_it_when_it_is_refuted():
    """The pool is the prior; labels of the namespace's own have the last word."""
    strength = Strength(0.2, 0.05, 1_000)
    for _ in range(100):
        strength.add("old", Label(0.9, wrong=False, audit=False))
    assert strength.threshold("new") == 0.9
    for _ in range(3):
        strength.add("new", Label(0.95, wrong=True, audit=True))
    assert strength.threshold("new") == NEVER
    assert strength.threshold("old") == 0.9


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("weather on day 3", "weather on day 4"),
        ("book a table for two", "book a table for three"),
        ("is it safe", "is it not safe"),
        ("do I need a visa", "don't I need a visa"),
        ("ist das erlaubt", "ist das nicht erlaubt"),
        ("这个可以退货吗", "这个不可以退货吗"),
        ("who is the mayor of Paris", "who is the mayor of London"),
        ("flights from Rome to Oslo", "flights from Oslo to Rome"),
        ("does a dog chase a cat", "does a cat chase a dog"),
        ("who was ranked above the king", "who was ranked below the king"),
        (
            "what are longer growth spells associated with",
            "what are shorter growth spells associated with",
        ),
        ("price of 1,000 shares", "price of 10,000 shares"),
    ],
)
def test_questions_that_vectors_hardly_tell_apart_are_kept_apart(one, other):
    """Numbers, negations, names and the order of words agree, and no word replaces another."""
    assert not gate(one).lets(gate(other))
    assert not gate(other).lets(gate(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("what is the weather in Paris?", "tell me how the weather is in Paris"),
        ("Book a table for two.", "please book a table for 2"),
        ("I cannot log in", "log in does not work"),
        ("SHOES", "shoes"),
        ("where is it", "so where I mean where is it"),
        ("how do I pay", "how can one pay"),
        ("wie hoch ist die Miete", "Wie hoch ist denn die Miete?"),
        ("", "what"),
    ],
)
def test_other_wordings_of_a_question_are_let_through(one, other):
    """The gates leave it to the vectors where nothing speaks against it."""
    assert gate(one).lets(gate(other))


def test_a_question_extends_another_if_its_words_are_in_it_in_their_order():
    """Words may be added anywhere; none may be missing, moved, or alone be the whole question."""
    kept = gate(KEPT)
    assert gate("how many cats I mean how many people live in the city").extends(kept)
    assert gate("how many people live there sorry in the city").extends(kept)
    assert not gate("how many people live").extends(kept)
    assert not gate("in the city live how many people I wonder").extends(kept)
    assert not gate("how many people live in the city").extends(kept)
    assert not gate("how do I pay by card").extends(gate("how do I pay")), "too few words"


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ("what I mean how many people live in the city", EXTENDED),
        ("tell us how many live in that city", 0),
    ],
)
def test_a_question_that_extends_a_kept_one_scores_higher(asked, more):
    """It counts beside the cosine, which is the same here."""
    index = Index(10)
    index.put(b"all", b"kept", np.array([1, 0], np.float32), gate(KEPT), None)
    near = index.nearest(b"all", np.array([0.8, 0.6], np.float32), gate(asked), b"own")
    assert near.similarity == pytest.approx(0.8)
    assert near.score - near.similarity == pytest.approx(more)
