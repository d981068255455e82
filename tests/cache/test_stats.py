"""What a cache says about itself: per namespace and level, as a table, and as metrics."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from rich.console import Console

from ragaccel.cache import (
    MISSING,
    PLAIN,
    DiskLevel,
    Kind,
    MemoryLevel,
    MultiLevelCache,
    Prices,
    Usage,
)
from ragaccel.cache.stats import CacheStats, Counts
from tests.cache.helpers import PATIENCE, script, stored, together, wait_until

MODEL = Kind(
    "model answer",
    PLAIN.pack,
    PLAIN.open,
    tokens=lambda value: (len(value["prompt"].split()), len(value["answer"].split())),
)
ANSWER = {"prompt": "one two three four five", "answer": "six seven"}


def drawn(stats: CacheStats) -> str:
    console = Console(width=250, file=io.StringIO(), color_system=None)
    console.print(stats)
    return console.file.getvalue()


# ---- counts --------------------------------------------------------------------------------------


def test_hits_and_misses_by_level(open_cache, face):
    """A look-up is counted once, where it was served."""
    cache = open_cache()
    face.get_or_compute(cache, "a", lambda: 1)
    for _ in range(3):
        face.get_or_compute(cache, "a", lambda: 2)
    assert face.get(cache, "a") == 1
    assert face.get(cache, "b") is MISSING
    cache.levels[0].clear()
    assert face.get(cache, "a") == 1
    assert cache.get_many(["a", "b", "c"]) == [1, MISSING, MISSING]
    stats = cache.stats()
    assert stats.hits == {"memory": 5, "disk": 1}
    assert (stats.misses, stats.lookups) == (4, 10)
    assert stats.hit_rate == 0.6
    assert (stats.coalesced, stats.stale, stats.invalidated, stats.damaged) == (0, 0, 0, 0)


def test_counts_of_each_namespace(open_cache, face):
    """Calls that name another namespace are counted there; the sums are those of all."""
    cache = open_cache(namespace="one")

    def ask(namespace: str | None, times: int) -> None:
        for _ in range(times):
            cache.get("a", namespace=namespace)

    cache.set("a", 1)
    cache.set("a", 2, namespace="two")
    ask(None, 3)
    ask("two", 4)
    ask("three", 5)
    stats = cache.stats()
    assert {name: (counts.hits, counts.misses) for name, counts in stats.namespaces.items()} == {
        "one": ({"memory": 3}, 0),
        "two": ({"memory": 4}, 0),
        "three": ({}, 5),
    }
    assert (stats.hits, stats.misses) == ({"memory": 7}, 5)


def test_what_is_not_served_is_told_apart(open_cache):
    """Struck and damaged entries have counters of their own, beside the miss."""
    cache = open_cache()
    cache.set("struck", 1, tags=["t"])
    cache.invalidate(["t"])
    cache.get_many(["struck"])
    key = cache._key("damaged")
    for level in cache.levels:
        level.put_many([stored("x", b"garbage")._replace(key=key)])
    cache.get_many(["damaged"])
    stats = cache.stats()
    assert stats.misses == 2
    assert stats.invalidated >= 1
    assert stats.damaged >= 1


@pytest.mark.parametrize("by", ["get", "get_or_compute"])
def test_an_entry_that_was_struck_is_counted_once_by_level(open_cache, by):
    """One look-up finds it in memory and on the disk."""
    cache = open_cache()
    cache.set("a", 1, tags=["t"])
    cache.invalidate(["t"])
    if by == "get":
        cache.get("a")
    else:
        cache.get_or_compute("a", lambda: 2)
    assert cache.stats().invalidated == 2


def test_get_of_what_is_due_is_one_miss(open_cache, clock, face):
    """It is not served, so it is no hit."""
    cache = open_cache(ttl=10, stale_while_revalidate=100)
    cache.set("a", 1)
    clock.pass_(11)
    assert face.get(cache, "a") is MISSING
    assert (cache.stats().hits, cache.stats().misses) == ({}, 1)


def test_a_value_of_another_process_is_counted_once(open_cache, tmp_path):
    """One look-up, served by the computation of another process."""
    code = """
import sys, time
from ragaccel.cache import MultiLevelCache
def slow():
    print("computing", flush=True)
    time.sleep(0.7)
    return "theirs"
MultiLevelCache.open(sys.argv[1]).get_or_compute("a", slow)
"""
    cache = open_cache()
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cache")], stdout=subprocess.PIPE
    )
    other.stdout.readline()
    assert cache.get_or_compute("a", lambda: "mine") == "theirs"
    other.communicate()
    assert cache.stats().lookups == 1


def test_coalesced_look_ups(open_cache):
    """Those that got another call's result."""
    cache, started = open_cache(), threading.Event()

    def slow() -> int:
        started.set()
        time.sleep(0.3)
        return 1

    together(10, lambda _: cache.get_or_compute("a", slow))
    stats = cache.stats()
    assert (stats.lookups, stats.misses) == (10, 1)
    assert stats.coalesced + stats.hits.get("memory", 0) == 9
    assert stats.coalesced > 0


def test_threads_lose_no_count(open_cache):
    """Every look-up of every thread is in the sums."""
    cache = open_cache()
    cache.set("a", 1)
    together(8, lambda _: [cache.get("a") for _ in range(500)])
    assert cache.stats().hits == {"memory": 4_000}


def test_bypasses_and_faults(open_cache, face):
    """What cannot be stored, and what a level could not do."""
    cache = open_cache()
    value = object()
    assert face.get_or_compute(cache, "a", lambda: value) is value
    assert cache.stats().bypasses == {"value": 1}
    cache.bypass("component")
    assert cache.stats().bypasses == {"value": 1, "component": 1}
    shutil.rmtree(cache.levels[1].path.parent)
    cache.levels[1].path.parent.write_bytes(b"in the way")
    face.get_or_compute(cache, "b", lambda: 1)
    assert cache.stats().errors["disk"] > 0
    cache.levels[1].path.parent.unlink()


# ---- what was saved ------------------------------------------------------------------------------


def test_saved_seconds_are_those_of_the_computations(open_cache, face):
    """A hit of any level saves what the computation took; a miss saves nothing."""
    cache = open_cache()

    def slow() -> int:
        time.sleep(0.2)
        return 1

    face.get_or_compute(cache, "a", slow)
    assert cache.stats().saved_seconds == 0
    face.get_or_compute(cache, "a", slow)
    once = cache.stats().saved_seconds
    assert 0.2 <= once < 5
    cache.levels[0].clear()
    face.get_or_compute(cache, "a", slow)
    assert cache.stats().saved_seconds == pytest.approx(2 * once)
    other = open_cache()
    other.get("a")
    assert other.stats().saved_seconds == pytest.approx(once)
    other.set("b", 1)
    other.get("b")
    assert other.stats().saved_seconds == pytest.approx(once)


def test_saved_tokens_and_what_they_cost(open_cache, face):
    """A kind tells its tokens; they are kept with the entry, also for other processes."""
    cache = open_cache(namespace="one")
    for _ in range(4):
        face.get_or_compute(cache, "a", lambda: ANSWER, kind=MODEL)
    stats = cache.stats()
    assert (stats.saved_tokens_read, stats.saved_tokens_written) == (15, 6)
    assert stats.saved_money(Prices(read=2.0, written=10.0)) == pytest.approx(90 / 1e6)
    assert stats.namespaces["one"].saved_money(Prices(1e6, 0)) == pytest.approx(15)
    other = open_cache(namespace="one")
    assert face.get_or_compute(other, "a", dict, kind=MODEL) == ANSWER
    assert other.stats().saved_tokens_read == 5
    assert CacheStats().saved_money(Prices(1, 1)) == 0


def test_more_tokens_than_the_frame_can_tell(open_cache):
    """They are bounded, and the answer is kept."""
    many = Kind("many", PLAIN.pack, PLAIN.open, tokens=lambda _: (2**40, 2**32))
    cache = open_cache()
    for _ in range(2):
        assert cache.get_or_compute("a", lambda: 1, kind=many) == 1
    stats = cache.stats()
    assert stats.saved_tokens_read == stats.saved_tokens_written == 2**32 - 1


def test_refreshes_are_counted(open_cache, clock):
    """Done and failed ones."""
    cache = open_cache(ttl=10, stale_while_revalidate=1_000)
    cache.set("a", 1)
    clock.pass_(11)

    def fail() -> int:
        raise ValueError

    cache.get_or_compute("a", fail)
    wait_until(lambda: cache.stats().refresh_errors == 1)
    cache.get_or_compute("a", lambda: 2)
    wait_until(lambda: cache.stats().refreshed == 1)
    assert cache.stats().misses == 0


# ---- what the levels hold ------------------------------------------------------------------------


def test_levels_tell_what_they_hold(open_cache):
    """Entries and bytes, of memory and disk."""
    cache = open_cache()
    assert cache.stats().levels["memory"] == Usage(0, 0, 0)
    cache.set_many([(number, "x" * 1_000) for number in range(10)])
    for name in ("memory", "disk"):
        usage = cache.stats().levels[name]
        assert usage.entries == 10
        assert usage.bytes > 0
        assert usage.evictions == 0
    assert cache.stats().levels["memory"].bytes > 10_000
    cache.delete(*range(4))
    assert [usage.entries for usage in cache.stats().levels.values()] == [6, 6]
    cache.clear()
    assert [usage.entries for usage in cache.stats().levels.values()] == [0, 0]


def test_evictions_are_counted(tmp_path):
    """Every entry is still there or was evicted."""
    memory, disk = MemoryLevel(100_000), DiskLevel(tmp_path / "cache.sqlite", 50_000)
    with MultiLevelCache([memory, disk]) as cache:
        for number in range(300):
            cache.set(number, bytes(1_000))
        for usage in cache.stats().levels.values():
            assert usage.evictions > 0
            assert usage.entries + usage.evictions == 300


def test_what_had_expired_was_not_evicted(tmp_path):
    """Evictions are entries that went for the size bound."""
    level = DiskLevel(tmp_path / "cache.sqlite", 50_000)
    level.put_many([stored(number, bytes(1_000), seconds=0.01) for number in range(30)])
    time.sleep(0.05)
    level.put_many([stored(("new", number), bytes(1_000)) for number in range(30)])
    assert level.usage()[:3] == (30, level.usage().bytes, 0)
    level.close()


def test_a_level_that_cannot_tell_says_so(tmp_path):
    """The numbers of the others are still there."""
    with MultiLevelCache.open(tmp_path / "cache") as cache:
        cache.set("a", 1)
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_bytes(b"in the way")
        stats = cache.stats()
        assert stats.levels["disk"] == Usage(-1, -1, -1)
        assert stats.levels["memory"].entries == 1
        assert "memory: 0 hits, 1 entries" in drawn(stats)
        lines = [line.strip() for line in drawn(stats).splitlines()]
        assert "disk: 0 hits" in lines


def test_statistics_of_a_closed_cache_open_nothing(tmp_path):
    """Counts can still be read; files that were deleted are not made again."""
    cache = MultiLevelCache.open(tmp_path / "cache")
    cache.set("a", 1)
    cache.get("a")
    cache.close()
    shutil.rmtree(tmp_path / "cache")
    assert cache.stats().hits == {"memory": 1}
    cache.figures()
    assert not (tmp_path / "cache").exists()


# ---- the table -----------------------------------------------------------------------------------


def test_the_table_shows_namespaces_and_levels(open_cache):
    """A row for each namespace and one for all; the levels below."""
    cache = open_cache(namespace="tenant one")
    for name in ("tenant one", "tenant two"):
        cache.set("a", 1, namespace=name)
        cache.get("a", namespace=name)
        cache.get("missing", namespace=name)
    cache.bypass("component")
    text = drawn(cache.stats())
    for part in ("tenant one", "tenant two", "all", "50.0%", "hits", "misses"):
        assert part in text
    assert "memory: 2 hits, 2 entries" in text
    assert "disk: 0 hits, 2 entries" in text
    assert "bypassed: component 1" in text


def test_tables_of_little(open_cache):
    """Nothing yet, one namespace, and levels that say nothing."""
    assert "all" in drawn(CacheStats())
    cache = open_cache()
    assert "look-ups" in drawn(cache.stats())
    cache.get("a")
    assert "default" in drawn(cache.stats())
    assert "\nall" not in drawn(cache.stats())
    text = drawn(CacheStats(namespaces={"a": Counts(hits={"far": 3})}, hits={"far": 3}))
    assert "100.0%" in text


def test_what_a_level_cannot_tell_is_left_out_of_the_table():
    """A server knows how many entries it has, and not what they take."""
    text = drawn(CacheStats(levels={"far": Usage(5, -1, -1)}))
    assert "5 entries" in text
    assert "-" not in text.split("far:")[1]


@pytest.mark.parametrize("name", ["[/closing]", "[bold]tenant", "a[red]b"])
def test_names_are_shown_as_they_are(open_cache, name):
    """Whatever a tenant is called."""
    cache = open_cache(namespace=name)
    cache.get("a")
    assert name in drawn(cache.stats())


# ---- metrics -------------------------------------------------------------------------------------

METERED = """
import json, sys
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))

from ragaccel.cache import PLAIN, DiskLevel, Kind, MemoryLevel, MultiLevelCache

def read():
    found, data = {}, reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    if not hasattr(point, "value"):
                        continue
                    pairs = [(k.rpartition(".")[2], v) for k, v in point.attributes.items()]
                    labels = ",".join(f"{k}={v}" for k, v in sorted(pairs))
                    monotonic = getattr(metric.data, "is_monotonic", None)
                    found[f"{metric.name} {labels}"] = [point.value, metric.unit, monotonic]
    return found

"""


def metered(code: str, *arguments: object) -> Any:
    return json.loads(script(METERED + code, *arguments))


def test_metrics_say_what_the_statistics_say(tmp_path):
    """Every counter, by namespace and level, through the real SDK."""
    found = metered(
        """
model = Kind("model", PLAIN.pack, PLAIN.open, tokens=lambda value: (5, 2))
cache = MultiLevelCache.open(sys.argv[1], namespace="one")
for _ in range(3):
    cache.get_or_compute("a", lambda: "value", kind=model)
cache.get("missing", namespace="two")
cache.set("t", 1, tags=["t"])
cache.invalidate(["t"])
cache.get_many(["t"])
cache.bypass("component")
print(json.dumps(read()))
""",
        tmp_path / "cache",
    )
    numbers = {name: value for name, (value, *_) in found.items()}
    assert numbers["ragaccel.cache.lookups level=memory,namespace=one,result=hit"] == 2
    assert numbers["ragaccel.cache.lookups level=none,namespace=one,result=miss"] == 2
    assert numbers["ragaccel.cache.lookups level=none,namespace=two,result=miss"] == 1
    assert numbers["ragaccel.cache.lookups level=none,namespace=one,result=coalesced"] == 0
    assert numbers["ragaccel.cache.refused namespace=one,reason=invalidated"] >= 1
    assert numbers["ragaccel.cache.bypasses reason=component"] == 1
    assert numbers["ragaccel.cache.saved_tokens namespace=one,type=input"] == 10
    assert numbers["ragaccel.cache.saved_tokens namespace=one,type=output"] == 4
    assert numbers["ragaccel.cache.saved namespace=one"] >= 0
    assert numbers["ragaccel.cache.entries level=disk"] == 2
    assert numbers["ragaccel.cache.size level=memory"] > 0
    assert numbers["ragaccel.cache.evictions level=disk"] == 0
    assert found["ragaccel.cache.size level=disk"][1:] == ["By", False]
    assert found["ragaccel.cache.saved namespace=one"][1:] == ["s", True]


def test_metrics_of_several_caches_are_summed(tmp_path):
    """Two caches of one namespace are one series, and a level that fails spoils nothing."""
    found = metered(
        """
one = MultiLevelCache([MemoryLevel()])
two = MultiLevelCache([MemoryLevel()])
broken = MemoryLevel()
broken.usage = None
three = MultiLevelCache([broken], namespace="three")
for number, cache in enumerate((one, two, three)):
    cache.set("a", 1)
    for _ in range(10 ** number):
        cache.get("a")
print(json.dumps(read()))
""",
    )
    hits = "ragaccel.cache.lookups level=memory,namespace={},result=hit"
    assert found[hits.format("default")][0] == 11
    assert found[hits.format("three")][0] == 100
    assert found["ragaccel.cache.entries level=memory"][0] == 2


def test_counters_never_fall():
    """A cache that is let go keeps its part of the sums."""
    found = metered(
        """
kept, gone = MultiLevelCache([MemoryLevel()]), MultiLevelCache([MemoryLevel()])
for cache in (kept, gone):
    cache.get("a")
before = read()
del gone, cache
import gc; gc.collect()
print(json.dumps([before, read()]))
"""
    )
    name = "ragaccel.cache.lookups level=none,namespace=default,result=miss"
    assert found[1][name][0] >= found[0][name][0] == 2


def test_refreshes_are_metrics_too():
    """Background work that fails is nowhere else to be seen."""
    cache = MultiLevelCache([MemoryLevel()])
    cache.get("a")
    assert any("refresh" in figure.name for figure in cache.figures())


def test_metrics_of_a_busy_cache(tmp_path):
    """Reading while threads count disturbs neither."""
    with MultiLevelCache.open(tmp_path / "cache") as cache:
        end = threading.Event()

        def work() -> None:
            number = 0
            while not end.is_set():
                number += 1
                cache.get(number % 50, namespace=f"tenant {number % 7}")

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            stats = cache.stats()
            assert stats.misses == sum(counts.misses for counts in stats.namespaces.values())
            cache.figures()
        end.set()
        for thread in threads:
            thread.join(PATIENCE)
