"""The search finds the best settings that keep the bounds, and says when there are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel import Goal
from ragaccel.errors import ConfigurationError
from ragaccel.tuning.distances import hit_rate, stack_distances
from ragaccel.tuning.search import Search
from ragaccel.tuning.study import Space, Study

SPACE = Space(("codec", "probes", "batch"), (4, 5, 3), (False, True, False))
BEST = Goal.minimize("latency_mean")
QUERIES = 300


class World:
    """Settings whose truth is known: recall and time grow with probes, codecs differ."""

    def __init__(self, noise=0.1, seed=0):
        self._random, self._noise = np.random.default_rng(seed), noise
        self.asked = 0
        self.settings = set()

    def known(self, setting):
        return {"bytes": (400.0, 100.0, 50.0, 25.0)[setting[0]]}

    @staticmethod
    def recall(setting):
        codec, probes, _ = setting
        return min(1.0, (1.0, 0.98, 0.93, 0.8)[codec] * (1 - 0.3 * 0.4**probes))

    @staticmethod
    def seconds(setting):
        codec, probes, batch = setting
        return (4.0, 2.0, 1.5, 1.2)[codec] * (1 + probes) * (1.0, 0.8, 1.1)[batch]

    def measure(self, setting, queries):
        self.asked += len(queries)
        self.settings.add(setting)
        spread = self._random.lognormal(sigma=self._noise, size=len(queries))
        shared = self._random.lognormal(sigma=self._noise / 3)
        right = np.random.default_rng(7).random(QUERIES)[queries]
        return {
            "seconds": self.seconds(setting) * spread * shared,
            "recall@10": np.where(right < self.recall(setting), 1.0, 0.9)
            if self.recall(setting) > 0.9
            else np.where(right < self.recall(setting), 1.0, 0.0),
        }


def search(world, bounds, *, space=SPACE, budget=36 * QUERIES, study=None, seed=0):
    study = study or Study(space, seed=seed)
    return Search(
        space, world, BEST, bounds, queries=QUERIES, budget=budget, study=study, seed=seed
    ).run()


@pytest.mark.parametrize("seed", range(5))
def test_the_best_setting_within_bounds_is_found(seed):
    """What is found is within 5% of the best of all settings, for a part of the queries."""
    world = World(seed=seed)
    bounds = [Goal.at_least("recall@10", 0.9), Goal.at_most("bytes", 100)]
    found = search(world, bounds, seed=seed)
    kept = [
        one
        for one in SPACE
        if world.known(one)["bytes"] <= 100
        and world.measure(one, np.arange(QUERIES))["recall@10"].mean() >= 0.93
    ]
    least = min(world.seconds(one) for one in kept)
    assert found.ranked
    assert world.seconds(found.ranked[0].setting) <= 1.05 * least
    assert found.spent <= 0.6 * len(SPACE) * QUERIES


def test_what_takes_too_much_memory_is_never_measured():
    """Memory is arithmetic: no query is spent on settings that cannot fit."""
    found = search(World(), [Goal.at_most("bytes", 60)])
    assert {one.setting[0] for one in found.measured} <= {2, 3}
    assert found.left_out == 2 * 15


def test_an_impossible_goal_ranks_nobody_and_names_the_nearest():
    """A recall that nobody reaches gives no winner, but who came closest."""
    bounds = [Goal.at_least("recall@10", 0.99), Goal.at_most("bytes", 30)]
    found = search(World(), bounds)
    assert found.ranked == []
    assert found.nearest(bounds).setting[0] == 3


class Ladder:
    """Codecs with ever more probes, without noise: of each query a share of rows is found."""

    def __init__(self, recalls, seconds):
        self.recalls, self._seconds, self.measured = recalls, seconds, set()

    def known(self, _):
        return {}

    def measure(self, setting, queries):
        self.measured.add(setting)
        codec, probes = setting
        return {
            "seconds": np.full(len(queries), self._seconds[codec] * (1 + probes)),
            "recall@10": np.where(queries % 10 < 10 * self.recalls[codec][probes], 1.0, 0.0),
        }


def climb(ladder, **options):
    space = Space(("codec", "probes"), (len(ladder.recalls), 9), (False, True))
    bounds = [Goal.at_least("recall@10", 0.6)]
    return Search(
        space, ladder, BEST, bounds, queries=QUERIES, budget=10**6, study=Study(space), **options
    ).run()


def test_what_finds_too_little_takes_those_with_fewer_probes_with_it():
    """They are never measured; those with more are, and the first that finds enough is best."""
    ladder = Ladder([[0.1] * 7 + [1.0] * 2], [1.0])
    assert climb(ladder).ranked[0].setting == (0, 7)
    assert not {(0, probes) for probes in range(4)} & ladder.measured


def test_what_finds_enough_takes_those_with_more_probes_with_it():
    """They find as much, and are slower."""
    ladder = Ladder([[0.1] + [1.0] * 8], [1.0])
    assert climb(ladder).ranked[0].setting == (0, 1)
    assert not {(0, probes) for probes in range(5, 9)} & ladder.measured


def test_what_is_far_too_slow_takes_those_with_more_probes_with_it():
    """Also where it is not sure that it finds enough."""
    ladder = Ladder([[1.0] * 9, [0.7] * 9], [1.0, 50.0])
    assert climb(ladder, incumbent=(0, 0)).ranked[0].setting == (0, 0)
    assert not {(1, probes) for probes in range(5, 9)} & ladder.measured


def test_the_budget_is_kept():
    """No more queries are asked than were allowed."""
    world = World()
    found = search(world, [], budget=500)
    assert world.asked == found.spent <= 500


def test_a_space_too_large_to_list_is_searched_by_proposals():
    """Optuna proposes where all settings would be too many."""
    space = Space(("a", "b", "c", "d"), (40, 40, 40, 40), (False,) * 4)

    class Bowl:
        def known(self, setting):
            return {}

        def measure(self, setting, queries):
            far = sum((at - 20) ** 2 for at in setting)
            return {"seconds": np.full(len(queries), 1.0 + far)}

    found = search(Bowl(), [], space=space, budget=4000)
    random = np.random.default_rng(0).integers(0, 40, (len(found.measured), 4))
    assert found.ranked[0].value(BEST) < 1 + ((random - 20) ** 2).sum(axis=1).min()


def test_a_stored_study_is_gone_on_with(tmp_path):
    """A second run asks only what the first one has not."""
    file = tmp_path / "study.log"
    bounds = [Goal.at_least("recall@10", 0.9)]
    first, second = World(), World()
    search(first, bounds, study=Study(SPACE, storage=file))
    found = search(second, bounds, study=Study(SPACE, storage=file))
    assert found.ranked
    assert len(second.settings) < 0.5 * len(first.settings)


@pytest.mark.parametrize("name", ["study.db", "study.log"])
def test_what_was_measured_is_stored(tmp_path, name):
    """In SQLite or a journal: dropped settings too, and for no other problem."""
    bound, file = Goal.at_least("recall@10", 0.9), tmp_path / name
    samples = {"seconds": np.array([0.5, 1.5]), "recall@10": np.array([1.0, 0.9])}
    study = Study(SPACE, storage=file, problem="this")
    study.add((0, 1, 2), [4, 7], samples, 1.0, {bound: -0.05}, is_dropped=False)
    study.add((3, 0, 1), [5, 6], samples, 1.0, {bound: 0.2}, is_dropped=True)
    stored = list(Study(SPACE, storage=file, problem="this").stored())
    assert [(setting, queries) for setting, queries, _ in stored] == [
        ((0, 1, 2), [4, 7]), ((3, 0, 1), [5, 6]),
    ]  # fmt: skip
    for _, _, found in stored:
        np.testing.assert_equal(found, samples)
    assert not list(Study(SPACE, storage=file, problem="another").stored())


def test_a_file_that_cannot_be_a_study_is_refused(tmp_path):
    """It says which file, and why."""
    (tmp_path / "study.db").write_text("no database")
    with pytest.raises(ConfigurationError, match=r"cannot be stored in .*study\.db"):
        Study(SPACE, storage=tmp_path / "study.db")
    (tmp_path / "study.log").write_text('{"half a li\nno journal\n')
    with pytest.raises(ConfigurationError, match=r"study\.log' cannot be read.*move the file"):
        Study(SPACE, storage=tmp_path / "study.log")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 8), max_size=60), st.integers(1, 9))
def test_stack_distances_tell_the_hits_of_lru(keys, entries):
    """For any traffic and size, the pass gives just the hits that an LRU cache has."""
    held, hits = [], 0
    for key in keys:
        if key in held:
            hits += 1
            held.remove(key)
        held = [*held, key][-entries:]
    rate = hit_rate(stack_distances(keys), entries)
    assert round(rate * len(keys)) == hits
