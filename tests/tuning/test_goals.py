"""Goals are constraints and one thing to be best, also in a file."""

from __future__ import annotations

import numpy as np
import pytest

from ragaccel import AutoTuner, Goal, Knob
from ragaccel.errors import ConfigurationError
from ragaccel.observe.targets import read_targets
from ragaccel.tuning import read_goals
from ragaccel.tuning.certain import SURE, gain, interval
from ragaccel.tuning.goals import checked


def test_goals_are_read_from_the_file_of_bench(tmp_path):
    """One file serves `ragaccel bench` and `ragaccel tune`."""
    file = tmp_path / "goals.toml"
    file.write_text(
        '[query]\np95 = "250ms"\n[process]\nmemory = "2MB"\n'
        '[tune]\nminimize = "latency_p95"\nat_least = {"recall@10" = 0.98}\n'
    )
    assert read_goals(file) == [
        Goal.at_most("latency_p95", 0.25),
        Goal.at_most("memory_mb", 2.0),
        Goal.minimize("latency_p95"),
        Goal.at_least("recall@10", 0.98),
    ]
    assert [one.figure for one in read_targets(file)] == ["query.p95", "process.memory"]


def test_a_goal_of_bench_alone_is_refused(tmp_path):
    """A stage's time is nothing that a tuner measures; it says so."""
    file = tmp_path / "goals.toml"
    file.write_text('[stages.embed]\np95 = "20ms"\n')
    with pytest.raises(ConfigurationError, match=r"stages\.embed\.p95"):
        read_goals(file)


@pytest.mark.parametrize("given", [Goal.minimize("latency_p95"), "latency_p95", ["latency_p95"]])
def test_goals_are_a_list_of_goals(given):
    """One that is not in a list, or a name, is answered with what to write."""
    with pytest.raises(ConfigurationError, match=r"goals are a list such as \[Goal\.minimize"):
        AutoTuner([], given)


@pytest.mark.parametrize("metric", ["recall@10", "error_rate", "hit_rate"])
def test_percent_is_no_share(metric):
    """An error rate of at most 5 would never be missed, and a recall of 98 never be reached."""
    with pytest.raises(ConfigurationError, match=r"between 0 and 1, such as 0\.98, got 5"):
        Goal.at_most(metric, 5)
    assert Goal.at_most(metric, 1).bound == 1


def test_only_one_goal_can_be_best():
    """Two things to minimize would need weights, and there are none."""
    with pytest.raises(ConfigurationError, match="only one goal"):
        checked([Goal.minimize("latency_p95"), Goal.maximize("throughput")])
    assert checked([]) == (Goal.minimize("latency_p95"), [])


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal.minimize("latency_p50"), 2.5),
        (Goal.minimize("latency_p95"), 3.85),
        (Goal.minimize("latency_p99"), 3.97),
        (Goal.minimize("latency_mean"), 2.5),
        (Goal.maximize("throughput"), 0.4),
        (Goal.at_most("cost_per_1000", 1), 2500.0),
        (Goal.at_least("quality", 1), 2.5),
    ],
)
def test_metrics_of_requests(goal, expected):
    """Each metric is computed from the values of requests."""
    assert float(goal.of(np.array([1.0, 2.0, 3.0, 4.0]))) == pytest.approx(expected)


def test_the_interval_of_recall_holds_what_it_says():
    """Of many samples, the true recall is under the lower bound in a hundredth, not in a tenth."""
    goal, random = Goal.at_least("recall@10", 0.9), np.random.default_rng(0)
    truth = 0.98
    below = 0
    for _ in range(1000):
        lost = (
            random.random(200) < 0.1
        )  # misses come together: a tenth of the queries loses a fifth
        values = 1 - lost * 0.2
        below += interval(goal, values, SURE).low > truth
    assert below <= 25


def test_a_perfect_sample_is_not_certain():
    """No miss among few queries says little."""
    found = interval(Goal.at_least("recall@10", 0.98), np.ones(20), SURE)
    assert found.value == 1
    assert found.low < 0.9


def test_gain_is_paired():
    """What disturbs both alike does not hide a difference."""
    shared = np.random.default_rng(0).lognormal(sigma=1.0, size=(5, 40))
    found = gain(Goal.minimize("latency_mean"), [(0.9 * one, one) for one in shared])
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)


def test_what_disturbs_whole_rounds_makes_no_gain():
    """Of two equal settings one is found surely better in a twentieth, however many requests."""
    random, goal = np.random.default_rng(0), Goal.minimize("latency_mean")
    sure = 0
    for _ in range(400):
        slow = random.lognormal(sigma=0.2, size=(5, 2, 1)) * np.ones((5, 2, 500))
        sure += gain(goal, [(one, other) for one, other in slow]).low > 0
    assert sure <= 40


def test_knobs_need_values_that_differ():
    """A knob with nothing to turn to, or a value twice, is refused."""
    for values in ([], [1, 1], "abc"):
        with pytest.raises(ConfigurationError):
            Knob("top_k", values, lambda: 1, lambda _: None)
