"""Asking recorded queries again: as fast as they are answered, or when they came."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ragaccel import AutoTuner, Goal, Knob
from ragaccel.errors import ConfigurationError
from ragaccel.tuning import Asked, Traffic
from ragaccel.tuning.replay import Knobs, Replay

QUERIES = 12
EVERY = np.arange(QUERIES)


class Served:
    """Takes some milliseconds for a query, and remembers when it was asked."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.begun = []
        self.knob = Knob("seconds", [seconds], lambda: seconds, lambda _: None)

    def __call__(self, _):
        self.begun.append(time.perf_counter())
        time.sleep(self.seconds)
        return []


def replay(served, arrivals, concurrency=1):
    return Replay(
        served, [str(at) for at in EVERY], Knobs([served.knob]), [], metrics={}, truth=None,
        depths=(), sizes={}, known={}, arrivals=arrivals, concurrency=lambda: concurrency,
    )  # fmt: skip


def seconds(served, arrivals, queries=EVERY, concurrency=1):
    return replay(served, arrivals, concurrency).measure((0,), queries)["seconds"]


def test_no_query_is_asked_before_it_came():
    """They are asked at least as far apart as they came, in the order in which they are given."""
    served = Served()
    arrivals = 0.004 * EVERY**1.5
    gaps = np.diff(arrivals, prepend=0.0)
    for order in (EVERY, EVERY[::-1]):
        seconds(served, arrivals, order)
        warmed_up, *begun = served.begun[-QUERIES - 1 :]
        assert (np.array(begun) - warmed_up >= np.cumsum(gaps[order])).all()


def test_who_comes_while_others_are_served_waits():
    """Latency counts from the arrival: where all come at once, the last one waits for all."""
    at_once = np.zeros(QUERIES)
    found = seconds(Served(0.01), at_once)
    assert (np.diff(found) >= 0.01).all()
    assert found[-1] >= QUERIES * 0.01
    assert seconds(Served(0.01), None)[-1] < found[-1] / 2


def test_several_are_served_at_a_time():
    """With a thread for each, nobody waits for another one."""
    at_once = np.zeros(QUERIES)
    alone = seconds(Served(0.02), at_once)
    together = seconds(Served(0.02), at_once, concurrency=QUERIES)
    assert together.max() < alone.max() / 2


class Turned:
    """A pipeline whose value decides how long it takes."""

    value = 8

    def __call__(self, query):
        time.sleep(0.0002 * self.value)
        return [query]


def traffic(gap):
    return Traffic(Asked(gap * at, str(at), b"") for at in range(40))


def tuner(*goals, **options):
    pipeline = Turned()
    knob = Knob(
        "value", (1, 8), lambda: pipeline.value, lambda value: setattr(pipeline, "value", value)
    )
    return AutoTuner([pipeline], goals, knobs=[knob], progress=False, **options)


def test_a_pipeline_is_tuned_at_the_recorded_pace():
    """What cannot keep up with the traffic, as it came, is found to be slower by far."""
    report = tuner().run(traffic(0.001), pace="recorded")
    assert report.settings == {"value": 1}
    assert report.gain.value > 0.7


@pytest.mark.parametrize(("concurrency", "least"), [(1, 0.5), (4, 1.0)])
def test_throughput_counts_what_is_answered_at_the_same_time(concurrency, least):
    """It is as many requests as are under way in the time of one (Little's law), or nearly."""
    goals = [Goal.maximize("throughput"), Goal.at_most("latency_mean", 10)]
    queries, served = [str(at) for at in range(40)], Served(0.01)
    search = AutoTuner(
        [served], goals, knobs=[Knob("value", [1, 2], lambda: 1, lambda _: None)], ask=served,
        concurrency=concurrency, progress=False,
    )  # fmt: skip
    for row in search.run(queries).rows:
        under_way = row.metrics["throughput"].value * row.metrics["latency_mean"].value
        assert least < under_way <= concurrency


def test_how_many_are_asked_at_a_time_is_a_knob():
    """Where waiting is most of the time, more at a time make the most throughput."""
    pipeline = Served(0.005)
    search = AutoTuner(
        [pipeline], [Goal.maximize("throughput")], ask=pipeline, concurrency=(1, 8), progress=False
    )
    report = search.run([str(at) for at in range(40)])
    assert report.was == {"concurrency": 1}
    assert report.settings == {"concurrency": 8}


@pytest.mark.parametrize("concurrency", [0, (), (4, 0), (2, 2), "4"])
def test_a_concurrency_that_makes_no_sense_is_refused(concurrency):
    """It is a whole number of at least one, or several that differ."""
    with pytest.raises(ConfigurationError, match="concurrency"):
        tuner(concurrency=concurrency).run(traffic(0.001))


def test_a_pace_that_nobody_recorded_is_refused():
    """Queries without times, all at once, or a throughput that the traffic decides."""
    with pytest.raises(ConfigurationError, match="recorded"):
        tuner().run([str(at) for at in range(40)], pace="recorded")
    with pytest.raises(ConfigurationError, match="recorded"):
        tuner().run(traffic(0.0), pace="recorded")
    with pytest.raises(ConfigurationError, match="throughput"):
        tuner(Goal.maximize("throughput")).run(traffic(0.001), pace="recorded")
    with pytest.raises(ConfigurationError, match="'slow'"):
        tuner().run(traffic(0.001), pace="slow")
