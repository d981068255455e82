"""A goal of recall on live requests: some answers are compared with exact search, beside them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ragaccel import CompressionSpec, Goal, VectorCollection
from ragaccel.tuning.canary import Canary, Terms
from ragaccel.tuning.guard import Guard

DIM, ROWS = 32, 1100
RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.standard_normal((ROWS, DIM)).astype("f4")
QUERIES = RANDOM.standard_normal((400, DIM)).astype("f4")
GOAL = Goal.at_least("recall@10", 0.9)
TERMS = Terms(shares=(0.5,), slack=1000.0, one_in=1)


@pytest.fixture
def collection():
    with VectorCollection.open(dim=DIM, compression=CompressionSpec("pq")) as made:
        made.upsert([str(at) for at in range(ROWS)], VECTORS)
        yield made


def attached(collection, oversample, terms=TERMS):
    knob = collection.tunables()[0]
    return Guard.attach(collection, [(knob, oversample)], [GOAL], terms=terms)


def ask(guard, collection, most=3000):
    for at in range(most):
        if guard.trial.state != "trying":
            break
        with guard.request():
            collection.search(QUERIES[at % len(QUERIES)])
    return guard.trial


def test_a_setting_that_finds_too_little_is_taken_back(collection):
    """However fast it is: the requests themselves tell nothing of it."""
    collection.tunables()[0].set(48)
    with attached(collection, 1) as guard:
        assert guard.unwatched == []
        trial = ask(guard, collection)
    assert trial.state == "rolled back"
    assert trial.reason == "its recall is under 0.9"
    assert collection.tunables()[0].get() == 48


def test_a_setting_that_finds_enough_is_applied(collection):
    """It is faster, and compared with exact search until it is sure to find enough."""
    collection.tunables()[0].set(48)
    with attached(collection, 24) as guard:
        assert ask(guard, collection, most=50_000).state == "applied"
    assert collection.tunables()[0].get() == 24


def test_answers_of_other_requests_are_not_compared(collection):
    """Only those of canaries are, and none once the trial is over."""
    compared = []
    collection.tunables()[0].set(1)
    with attached(collection, 2, Terms(shares=(0.5,), warm_up=10**6, one_in=1)) as guard:
        hear = collection._hears_answers
        collection.hear_answers(
            lambda recall: (compared.append(guard._is_in_canary()), hear(recall))
        )
        ask(guard, collection, 100)
        assert not any(compared)
        collection.search(QUERIES[0])
        assert len(compared) == 101
    assert collection._hears_answers is None


def test_the_recall_of_an_answer(collection):
    """It is the share of the right rows; exact searches are not told of."""
    told = []
    collection.hear_answers(told.append)
    knob = collection.tunables()[0]
    knob.set(1)
    found = collection.search(QUERIES[:20])
    collection.search(QUERIES, exact=True)
    right = collection.search(QUERIES[:20], exact=True)
    (recall,) = told
    both = zip(found, right, strict=True)
    hits = sum(len({x.id for x in a} & {x.id for x in b}) for a, b in both)
    assert 0.2 < hits / 200 < 1
    assert recall() == pytest.approx(hits / 200)


def test_rows_that_changed_since_are_no_fault(collection):
    """An answer of before a write is not compared with what is there after it."""
    told = []
    collection.hear_answers(told.append)
    collection.search(QUERIES[0])
    collection.delete([hit.id for hit in collection.search(QUERIES[0])[0]])
    assert told[0]() is None


def test_no_request_waits_for_a_comparison(collection):
    """It happens in another thread."""
    threads = set()
    with attached(collection, 48) as guard:
        told = guard._shadow._tell
        guard._shadow._tell = lambda found: (threads.add(threading.current_thread()), told(found))
        ask(guard, collection, 200)
    assert threads
    assert threading.current_thread() not in threads


def test_what_nobody_compared_does_not_come_through():
    """Without answers that were compared, no canary is sure to be right, however fast it is."""
    canary = Canary(Terms(shares=(0.5,)), recall=0.9)
    for _ in range(1000):
        canary.hear_control(1.0)
        canary.hear_canary(0.5)
    assert canary.step == 0
    for _ in range(100):
        canary.hear_recall(0.96)
    assert canary.is_through


def heard(recalls, goal):
    canary = Canary(Terms(), recall=goal)
    for one in recalls:
        canary.hear_recall(one)
        if canary.is_bad:
            break
    return canary


@pytest.mark.parametrize("goal", [0.9, 0.98, 1.0])
def test_what_keeps_the_goal_is_hardly_ever_taken_back(goal):
    """Of runs just at the goal, no more than one in a hundred; far below it, all and soon."""
    random = np.random.default_rng(0)
    missed = max(1 - goal, 0.004)
    kept = [heard(1 - random.binomial(10, missed, 300) / 10, goal) for _ in range(100)]
    assert sum(one.is_bad for one in kept) <= 1
    worse = [heard(1 - random.binomial(10, missed + 0.3, 300) / 10, goal) for _ in range(20)]
    assert all(one.is_bad for one in worse)
