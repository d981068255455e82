"""What a monitor sees of stages, caches, collections and the process, by a clock of ours."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ragaccel import (
    DiskLevel,
    MemoryLevel,
    MicroBatcher,
    MultiLevelCache,
    VectorCollection,
    telemetry,
)
from ragaccel.errors import ConfigurationError, MissingExtraError
from ragaccel.observe import Change, Monitor, Threshold
from ragaccel.observe.windows import RELATIVE_ERROR, Sketch
from ragaccel.telemetry.stage import past_stage

MS = 1_000_000


class Clock:
    """Goes when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    """Return a function that makes a running monitor without a thread."""
    made = []

    def start(**options):
        monitor = Monitor(interval=None, clock=clock, **options).start()
        made.append(monitor)
        return monitor

    yield start
    for monitor in made:
        monitor.close()


def stages(name, *milliseconds):
    for one in milliseconds:
        past_stage(name, 0, int(one * MS))


def broken(name):
    with pytest.raises(RuntimeError), telemetry.stage(name):
        raise RuntimeError


def seen(monitor):
    return monitor.report().last


def test_what_stages_do(watch, clock):
    """How many a second, how long they take and how many fail."""
    monitor = watch()
    stages("query", *range(1, 100))
    broken("query")
    stages("embed", 3)
    clock.pass_(50)
    found = seen(monitor)
    query = found.stages["query"]
    assert list(found.stages) == ["embed", "query"]
    assert (query.count, query.throughput, query.error_rate) == (100, 2.0, 0.01)
    assert query.latency_p50 == pytest.approx(0.05, rel=0.05)
    assert query.latency_p95 == pytest.approx(0.095, rel=0.05)
    assert query.latency_p99 == pytest.approx(0.099, rel=0.05)
    assert (query.hit_rate, query.batch_mean) == (None, None)
    assert (found.pid, found.seconds, found.stages["embed"].count) == (os.getpid(), 50, 1)


def test_a_stage_inside_one_of_its_own_name_is_no_other(watch):
    """A retriever's query that is part of an engine's is not counted beside it."""
    monitor = watch()
    with telemetry.stage("query"), telemetry.stage("query"), telemetry.stage("embed"):
        stages("query", 1)
    found = seen(monitor).stages
    assert {name: one.count for name, one in found.items()} == {"query": 2, "embed": 1}


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=300), st.floats(0, 1), st.data())
def test_quantiles_are_as_right_as_promised(durations, share, data):
    """Within 2% of the duration that has this rank, also after a merge of two halves."""
    cut = data.draw(st.integers(0, len(durations)))
    whole, other = Sketch(), Sketch()
    for one in durations[:cut]:
        whole.add(one)
    for one in durations[cut:]:
        other.add(one)
    whole.merge(other)
    true = max(1, int(np.quantile(durations, share, method="lower"))) / 1e9
    assert whole.count == len(durations)
    assert whole.quantile(share) == pytest.approx(true, rel=RELATIVE_ERROR * 1.001)


def test_what_is_older_than_the_window_is_forgotten(watch, clock):
    """The window moves on by twelfths of it."""
    monitor = watch(window=60)
    stages("query", 10)
    clock.pass_(30)
    stages("query", 20)
    clock.pass_(29)
    assert seen(monitor).stages["query"].count == 2
    clock.pass_(1)
    last = seen(monitor)
    assert last.stages["query"].count == 1
    assert 55 <= last.seconds <= 60
    clock.pass_(60)
    assert seen(monitor).stages == {}


def test_memory_does_not_grow(watch, clock):
    """Neither with time nor with names that somebody makes up."""
    monitor = watch()
    for number in range(500):
        stages(f"made-up-{number}", 1)
    assert len(seen(monitor).stages) <= 101
    assert sum(one.count for one in seen(monitor).stages.values()) == 500
    for _ in range(2000):
        clock.pass_(7)
        stages("query", 1)
    assert len(monitor._windows._slots) <= 26


@pytest.mark.slow
def test_the_history_is_an_hour_long(watch, clock):
    """Of looks in the usual interval."""
    monitor = watch()
    for _ in range(800):
        clock.pass_(5)
        monitor.tick()
    history = monitor.report().history
    assert history[-1].at - history[0].at == pytest.approx(3600, abs=10)


def ask(cache, keys):
    for key in keys:
        cache.get_or_compute(key, lambda: "found")


@pytest.mark.parametrize("is_given", [True, False])
def test_hit_rates_per_level(watch, clock, tmp_path, is_given):
    """From the cache itself, or else from the stages of look-ups."""
    levels = [MemoryLevel(), DiskLevel(tmp_path / "cache.sqlite")]
    with MultiLevelCache(levels) as cache:
        ask(cache, "abcd")
        monitor = watch(cache=cache if is_given else None)
        ask(cache, "abc")
        levels[0].clear()
        ask(cache, "abxyz")
        clock.pass_(10)
        found = seen(monitor)
        assert (found.lookups, found.hits) == (8, {"disk": 2, "memory": 3})
        assert found.hit_rate == 5 / 8
        assert found.hit_rates == {"disk": 2 / 8, "memory": 3 / 8}
        assert found.stages["cache.lookup"].hit_rate == 5 / 8
        clock.pass_(61)
        assert (seen(monitor).lookups, seen(monitor).hit_rate) == (0, None)


def test_look_ups_of_many_keys_are_told_by_the_cache(watch, clock):
    """They have no stages; those that were before the monitor are not counted."""
    with MultiLevelCache([MemoryLevel()]) as cache:
        cache.set("a", "found")
        cache.get("a")
        monitor = watch(cache=cache)
        cache.get("a")
        cache.get("b")
        assert (seen(monitor).lookups, seen(monitor).hit_rate) == (2, 0.5)


def test_batches_tell_how_many_they_serve(watch):
    """The mean over all of them."""
    monitor = watch()
    batcher = MicroBatcher(list, workers=1)
    for number in range(3):
        with telemetry.stage("embed"):
            batcher(number)
    assert seen(monitor).stages["batch"].batch_mean == 1.0
    assert seen(monitor).stages["embed"].batch_mean is None


def test_the_process_and_its_limits(watch, clock):
    """Memory and processor time as of psutil; busy cores by the monitor's clock."""
    monitor = watch()
    monitor.tick()
    clock.pass_(2)
    end = sum(os.times()[:2]) + 0.2
    while sum(os.times()[:2]) < end:
        pass
    report = monitor.report()
    used, before = report.last.resources, report.history[0].resources
    assert used.cpu == pytest.approx((used.cpu_seconds - before.cpu_seconds) / 2)
    assert used.cpu >= 0.09
    assert 0 < used.rss_bytes < used.memory_limit_bytes <= psutil.virtual_memory().total
    assert 0 < used.memory_used_bytes <= used.memory_limit_bytes
    assert 0 < used.cpu_limit <= psutil.cpu_count()
    assert used.threads >= 1
    assert used.open_files >= 1


def test_collections_tell_their_sizes(watch, tmp_path, caplog):
    """By the folder's name; one that was closed is left out, and told of once."""
    with VectorCollection.open(tmp_path / "corpus", dim=4) as collection:
        collection.upsert(["a", "b"], np.eye(4, dtype=np.float32)[:2])
        monitor = watch(collections=[collection])
        (found,) = seen(monitor).collections
        assert (found.name, found.rows) == ("corpus", 2)
        assert found.bytes_in_memory > 0
        assert found.bytes_on_disk > 0
    monitor.tick()
    monitor.tick()
    assert seen(monitor).collections == ()
    assert caplog.text.count("VectorCollection cannot be looked at") == 1


def test_a_rule_fires_and_clears_by_windows(watch, clock):
    """Judged once when a window ends, however often the monitor looks."""
    told = []
    monitor = watch(
        window=60, rules=[Threshold("latency_p95", above=0.8, for_=2)], on_alert=told.append
    )
    started = seen(monitor).at

    def windows(*milliseconds):
        for one in milliseconds:
            stages("query", *[one] * 20)
            for _ in range(12):
                clock.pass_(5)
                monitor.tick()

    windows(900)
    assert told == []
    windows(900)
    assert [(one.state, round(one.since - started)) for one in told] == [("firing", 120)]
    assert told[0].value == pytest.approx(0.9, rel=0.03)
    assert seen(monitor).alerts == (told[0],)
    windows(900, 10)
    assert len(told) == 1
    windows(10)
    assert [one.state for one in told] == ["firing", "resolved"]
    assert seen(monitor).alerts == ()


def test_a_window_is_whole_when_it_is_judged(watch, clock):
    """A look that comes late judges what was until the end of the window, and nothing after."""
    told = []
    rule = Threshold("throughput", above=0.5, for_=1)
    monitor = watch(window=60, rules=[rule], on_alert=told.append)
    clock.pass_(59)
    stages("query", *[1] * 60)
    clock.pass_(4)
    stages("query", *[1] * 600)
    monitor.tick()
    assert [one.value for one in told] == [1.0]


def test_a_window_without_requests_changes_nothing(watch, clock):
    """No latency is neither good nor bad, but no throughput is too little."""
    told = []
    rules = [
        Threshold("latency_p95", above=0.8, for_=2, clear_after=1),
        Threshold("throughput", below=0.1, for_=1),
    ]
    monitor = watch(window=60, rules=rules, on_alert=told.append)
    for count in (10, 0, 0, 10):
        stages("query", *[900] * count)
        clock.pass_(60)
        monitor.tick()
    assert [(one.rule.metric, one.state) for one in told] == [
        ("throughput", "firing"), ("latency_p95", "firing"),
    ]  # fmt: skip


def test_a_change_of_the_hit_rate_is_noticed(watch, clock):
    """By the windows before it."""
    told = []
    with MultiLevelCache([MemoryLevel()]) as cache:
        cache.set("a", "found")
        rule = Change("hit_rate", by=0.2, least=5, for_=1)
        monitor = watch(cache=cache, window=60, rules=[rule], on_alert=told.append)
        for hits in (9, 8, 9, 10, 9, 9, 2):
            for number in range(10):
                cache.get("a" if number < hits else "none")
            clock.pass_(60)
            monitor.tick()
    assert [(one.state, one.value) for one in told] == [("firing", 0.2)]


@pytest.mark.parametrize(
    "metric", ["latency_p50", "latency_p99", "rss_bytes", "memory_share", "cpu", "error_rate"]
)
def test_every_metric_can_be_watched(watch, clock, metric):
    """Those of stages as well as those of the process."""
    told = []
    rule = Threshold(metric, above=0, for_=1)
    monitor = watch(window=60, rules=[rule], on_alert=told.append)
    broken("query")
    monitor.tick()
    end = sum(os.times()[:2]) + 0.02
    while sum(os.times()[:2]) < end:
        pass
    clock.pass_(60)
    monitor.tick()
    assert [one.rule.metric for one in told] == [metric]


def test_a_callback_that_fails_disturbs_nobody(watch, clock, caplog):
    """The others are told, and the monitor goes on."""
    told = []

    def failing(alert):
        raise RuntimeError("broken")

    rule = Threshold("throughput", below=1, for_=1)
    monitor = watch(window=60, rules=[rule], on_alert=[failing, told.append])
    clock.pass_(60)
    monitor.tick()
    assert len(told) == 1
    assert "A callback for alerts failed" in caplog.text


def test_a_callback_may_ask_the_monitor(watch, clock):
    """And may end it."""
    told = []

    def ask_and_end(alert):
        told.append(monitor.report().last.alerts)
        monitor.close()

    monitor = watch(
        window=60, rules=[Threshold("throughput", below=1, for_=1)], on_alert=ask_and_end
    )
    clock.pass_(60)
    monitor.tick()
    assert [len(one) for one in told] == [1]


def test_a_thread_looks_by_itself_and_ends_with_the_monitor():
    """A rule fires without anybody's asking."""
    fired = threading.Event()
    rule = Threshold("throughput", below=1e9, for_=1)
    with Monitor(window=0.1, interval=0.02, rules=[rule], on_alert=lambda _: fired.set()):
        assert fired.wait(30)
        assert "ragaccel-monitor" in [one.name for one in threading.enumerate()]
    assert "ragaccel-monitor" not in [one.name for one in threading.enumerate()]


def test_a_monitor_that_was_closed_still_reports(watch, clock):
    """What it saw until then, and nothing of what came later."""
    monitor = watch()
    stages("query", 10)
    clock.pass_(10)
    monitor.close()
    clock.pass_(1000)
    stages("query", 10)
    monitor.tick()
    report = monitor.report()
    assert (report.last.stages["query"].count, report.last.seconds) == (1, 10)
    assert len(report.history) == 1
    monitor.start()
    assert seen(monitor).stages == {}


def test_without_a_monitor_stages_cost_nothing(watch):
    """Nothing is left behind when the last one ends."""
    monitor = watch()
    assert telemetry.stage("query") is not telemetry.OFF
    monitor.close()
    assert telemetry.stage("query") is telemetry.OFF


def test_a_stage_that_ends_while_another_is_counted(watch):
    """As the collector may end a dropped stream's at any moment: in the same thread."""

    class Level:
        def __str__(self):
            stages("generate", 1)
            return "memory"

    monitor = watch()
    told = {"ragaccel.cache.hit": True, "ragaccel.cache.level": Level()}
    past_stage("cache.lookup", 0, MS, told)
    assert {name: one.count for name, one in seen(monitor).stages.items()} == {
        "cache.lookup": 1, "generate": 1,
    }  # fmt: skip


def test_threads_lose_no_stage(watch):
    """All are counted, whoever looks meanwhile."""
    monitor = watch()
    threads = [threading.Thread(target=stages, args=("query", *[1] * 2000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        monitor.tick()
    assert seen(monitor).stages["query"].count == 8000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_inherits_a_monitor_that_hears_nothing(watch):
    """It does not hang, whatever other threads were doing, and the parent's goes on."""
    monitor = watch()
    stop = threading.Event()

    def work():
        while not stop.is_set():
            stages("embed", 1)
            monitor.tick()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    stages("query", 1)
                    monitor.tick()
                    is_deaf = telemetry.stage("query") is telemetry.OFF
                    code = not (is_deaf and monitor.report().last.stages == {})
                    monitor.close()
                finally:
                    os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 10
    assert set(seen(monitor).stages) == {"embed"}


@pytest.fixture
def report(watch, clock):
    """Some minutes of an application."""
    told = []
    with MultiLevelCache([MemoryLevel()]) as cache, VectorCollection.open(dim=4) as collection:
        collection.upsert(["a"], np.eye(4, dtype=np.float32)[:1])
        monitor = watch(
            cache=cache,
            collections=[collection],
            rules=[Threshold("latency_p95", above=0.01, for_=1)],
            on_alert=told.append,
        )
        for number in range(24):
            stages("query", 10, 20 + number)
            ask(cache, ["a", number])
            clock.pass_(5)
            monitor.tick()
        assert len(told) == 1
        return monitor.report()


def test_a_report_as_json_and_as_a_table(report):
    """Stages, cache, process, collections and what fires."""
    found = json.loads(json.dumps(report.to_dict()))
    assert found["last"]["stages"]["query"]["count"] == 2 * len(found["history"][:11])
    assert found["last"]["alerts"][0]["rule"]["metric"] == "latency_p95"
    assert len(found["history"]) == 24
    console = Console(width=120)
    with console.capture() as captured:
        console.print(report)
    text = captured.get()
    for told in (
        "query", "p95", "hit rate 5", "memory: ", "cores", "memory: 1 rows",
        "firing for 60 s: latency_p95 of query is 0.029 s, above 0.01 s",
    ):  # fmt: skip
        assert told in text


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_report_is_drawn(report, tmp_path, ending):
    """Four plots, in the format that the file's name asks for."""
    pytest.importorskip("matplotlib")
    path = tmp_path / f"report.{ending}"
    report.plot(path)
    head = path.read_bytes()[:200]
    assert head.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_what_cannot_be_drawn_is_said(report, tmp_path, monkeypatch):
    """No such stage, no such format, or no matplotlib."""
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigurationError, match=r"there were cache\.lookup, query"):
        report.plot(tmp_path / "report.png", stage="rerank")
    with pytest.raises(ConfigurationError, match="cannot be drawn"):
        report.plot(tmp_path / "report.docx")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"ragaccel\[demo\]"):
        report.plot(tmp_path / "report.png")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"window": 0}, "window"),
        ({"window": float("nan")}, "window"),
        ({"interval": 0}, "interval"),
        ({"interval": 61}, "interval"),
    ],
)
def test_what_makes_no_sense_is_refused(options, name):
    """The message names it."""
    with pytest.raises(ConfigurationError, match=name):
        Monitor(**options)
