"""Metrics through the real SDK: what is read at an export, and what stages leave behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from ragaccel import MicroBatcher, MultiLevelCache, VectorCollection
from ragaccel.cache import DiskLevel, MemoryLevel, RedisLevel
from tests.support.otlp_metrics import GrpcMetricReceiver, HttpMetricReceiver

_ROOT = Path(__file__).parents[2]
_PATIENCE = 30.0

# A process of its own for each test: OpenTelemetry has one meter provider per process.
_METERED = """
import gc
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from ragaccel import MicroBatcher, MultiLevelCache, VectorCollection, telemetry
from ragaccel.cache import MemoryLevel
from ragaccel.telemetry import Figure
from ragaccel.telemetry.metrics import METRICS, _sources

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))


class Thing:
    def __init__(self, name="ragaccel.cache.bypasses", value=1, **labels):
        self.told, self.reads = [Figure(name, value, labels)], 0
        telemetry.measure(self)

    def figures(self):
        self.reads += 1
        return self.told


def read(name=""):
    found, data = {}, reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    if metric.name.startswith(name):
                        found[metric.name, tuple(sorted(point.attributes.items()))] = point
    return found


def values(name):
    return {labels: point.value for (_, labels), point in read(name).items()}
"""


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def _metered(script: str) -> str:
    return _run(_METERED + textwrap.dedent(script))


# ---- the table -----------------------------------------------------------------------------------


def test_the_table_says_what_is_exported(tmp_path):
    """A process in which all happens has every metric, with its labels, unit and description."""
    _run(
        _METERED
        + """
import random, sys
from pathlib import Path
from tests.support.load import Application

application = Application(Path(sys.argv[1]))
for _ in range(30):
    application.work()
found = {}
for resource in reader.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        found |= {metric.name: metric for metric in scope.metrics}
assert found.keys() == METRICS.keys(), found.keys() ^ METRICS.keys()
for name, metric in found.items():
    table = METRICS[name]
    labels = {label for point in metric.data.data_points for label in point.attributes}
    assert labels == set(table.labels), (name, labels)
    assert (metric.unit, metric.description) == (table.unit, table.description)
    if table.kind == "histogram":
        assert metric.data.data_points[0].explicit_bounds == tuple(table.bounds)
    else:
        assert getattr(metric.data, "is_monotonic", None) == {
            "counter": True, "amount": False, "gauge": None
        }[table.kind]
""",
        str(tmp_path),
    )


# ---- stages --------------------------------------------------------------------------------------

_REQUESTS = """
import sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.exporter.otlp.proto.{0}.metric_exporter import OTLPMetricExporter
from ragaccel import MicroBatcher, telemetry

provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(sys.argv[1]{1}))])
metrics.set_meter_provider(provider)
trace.set_tracer_provider(TracerProvider())
batcher = MicroBatcher(list)
with telemetry.stage("query") as query:
    batcher("a")
    with telemetry.stage("embed") as embed:
        pass
    stream = telemetry.stage("generate").begin()
stream.end()  # it is not current any more
for stage in (query, embed, stream):
    context = stage.span.get_span_context()
    print(stage.name, format(context.trace_id, "032x"), format(context.span_id, "016x"))
provider.shutdown()
"""


@pytest.mark.parametrize(
    ("receiver", "protocol", "more"),
    [(GrpcMetricReceiver, "grpc", ", insecure=True"), (HttpMetricReceiver, "http", "")],
)
def test_latencies_lead_to_traces(receiver, protocol, more):
    """A collector hears which request took so long, and which waited for its batch."""
    with receiver() as server:
        target = server.endpoint + ("/v1/metrics" if protocol == "http" else "")
        done = subprocess.run(
            [sys.executable, "-c", _REQUESTS.format(protocol, more), target],
            cwd=_ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        durations = server.points("ragaccel.stage.duration")
        waits = server.points("ragaccel.batch.wait")
    told = {name: (trace, span) for name, trace, span in map(str.split, done.stdout.splitlines())}
    found = {
        one.labels["ragaccel.stage"]: [(trace, span) for _, trace, span in one.exemplars]
        for one in durations
    }
    assert {one.unit for one in durations} == {"s"}
    assert {name: [told[name]] for name in told} == {name: found[name] for name in told}
    assert found["batch"][0][0] != told["query"][0]  # a trace of its own
    assert [(trace, span) for _, trace, span in waits[0].exemplars] == [told["query"]]
    assert [one.count for one in (*durations, *waits)] == [1] * 5


def test_errors_are_told_apart_by_their_type():
    """Of what was asked and of what went wrong nothing else is told."""
    _metered(
        """
        for error in (ValueError, ValueError, KeyError, None):
            try:
                with telemetry.stage("embed"):
                    if error is not None:
                        raise error("secret")
            except error or ():
                pass
        found = {labels: point.count for (_, labels), point in read("ragaccel.stage").items()}
        stage = ("ragaccel.stage", "embed")
        assert found == {
            (stage,): 1,
            (("error.type", "ValueError"), stage): 2,
            (("error.type", "KeyError"), stage): 1,
        }, found
        """
    )


def test_a_stage_inside_one_of_its_own_name_is_no_other():
    """A retriever's query that is part of an engine's is not counted beside it."""
    _metered(
        """
        with telemetry.stage("query"), telemetry.stage("query"), telemetry.stage("embed"):
            pass
        found = {dict(labels)["ragaccel.stage"]: point.count
                 for (_, labels), point in read("ragaccel.stage").items()}
        assert found == {"query": 1, "embed": 1}, found
        """
    )


def test_batches_tell_their_size():
    """What waits while the worker is busy is one call."""
    _metered(
        """
        import asyncio
        batcher = MicroBatcher(list, workers=1)
        async def ask():
            await asyncio.gather(*map(batcher.get, range(7)))
        asyncio.run(ask())
        found = read("ragaccel.batch")
        size, wait = found["ragaccel.batch.size", ()], found["ragaccel.batch.wait", ()]
        assert (size.sum, size.count) == (7, 1)
        assert wait.count == 7
        """
    )


# ---- what is read --------------------------------------------------------------------------------


def _figures(measured):
    return {
        (one.name, *(one.attributes[label] for label in sorted(one.attributes))): one.value
        for one in measured.figures()
    }


def test_lookups_add_up(tmp_path):
    """Hits by level, misses and coalesced ones are together all look-ups."""
    with MultiLevelCache.open(tmp_path, namespace="shop") as cache:
        for name in ("a", "b", "a", "c"):
            cache.get_or_compute(name, lambda: 1)
        cache.levels[0].clear()
        cache.get("a")
        found, stats = _figures(cache), cache.stats()
    lookups = {key[1:]: found[key] for key in found if key[0] == "ragaccel.cache.lookups"}
    assert lookups == {
        ("memory", "shop", "hit"): 1, ("disk", "shop", "hit"): 1,
        ("none", "shop", "miss"): 3, ("none", "shop", "coalesced"): 0,
    }  # fmt: skip
    assert sum(lookups.values()) == stats.lookups
    hits = sum(number for (*_, result), number in lookups.items() if result == "hit")
    assert hits / sum(lookups.values()) == stats.hit_rate


def test_breakers_tell_their_state(tmp_path):
    """One of a level whose server is not there opens; memory has none."""
    redis = RedisLevel("redis://127.0.0.1:1", retry_after=60)
    levels = [MemoryLevel(), DiskLevel(tmp_path / "cache.sqlite"), redis]
    with MultiLevelCache(levels) as cache:
        before = _breakers(cache)
        cache.get("a")
        after = _breakers(cache)
    closed = {"closed": 1, "open": 0, "half-open": 0}
    assert before == {"disk": closed, "redis": closed}
    assert after == {"disk": closed, "redis": {"closed": 0, "open": 1, "half-open": 0}}
    assert _breakers(cache) == {}


def _breakers(cache):
    found = {}
    for (name, *labels), value in _figures(cache).items():
        if name == "ragaccel.cache.breakers":
            state, level = labels
            found.setdefault(level, {})[state] = value
    return found


def test_the_queue_is_as_deep_as_many_wait():
    """Threads and tasks that wait for a worker are counted, those that are served are not."""
    served, release = threading.Event(), threading.Event()

    def call(items):
        served.set()
        assert release.wait(_PATIENCE)
        return list(items)

    batcher = MicroBatcher(call, workers=1)

    async def ask():
        first = asyncio.create_task(batcher.get(0))
        assert await asyncio.to_thread(served.wait, _PATIENCE)
        rest = [asyncio.create_task(batcher.get(at)) for at in range(1, 5)]
        await asyncio.sleep(0)
        deep = _depth(batcher)
        release.set()
        await asyncio.gather(first, *rest)
        return deep

    assert _depth(batcher) == 0
    assert asyncio.run(ask()) == 4
    assert _depth(batcher) == 0
    served.clear()
    release.clear()
    threads = [threading.Thread(target=batcher, args=(at,)) for at in range(3)]
    threads[0].start()
    assert served.wait(_PATIENCE)
    for thread in threads[1:]:
        thread.start()
    while _depth(batcher) < 2:
        assert threads[0].is_alive()
    release.set()
    for thread in threads:
        thread.join(_PATIENCE)
    assert _depth(batcher) == 0


def _depth(batcher):
    (figure,) = batcher.figures()
    return figure.value


def test_collections_tell_what_they_hold(tmp_path):
    """Vectors, memory and recall as in the statistics, under the folder's name."""
    rows = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    with VectorCollection.open(tmp_path / "documents", compression="int8") as collection:
        assert not collection.figures()
        collection.upsert([str(at) for at in range(500)], rows)
        collection.delete(["7"])
        found, stats = _figures(collection), collection.stats()
    assert found == {
        ("ragaccel.index.vectors", "documents"): 499,
        ("ragaccel.index.memory", "documents"): stats.bytes_in_memory,
        ("ragaccel.index.recall", "documents"): stats.recall,
    }
    assert not collection.figures()


def test_reading_a_collection_waits_for_nobody():
    """An export does not stand still while rows are written or codes are made."""
    with VectorCollection.open(dim=2) as collection:
        collection.upsert(["a"], [[1, 0]])
        found = []
        with collection._lock.write():
            reading = threading.Thread(target=lambda: found.append(_figures(collection)))
            reading.start()
            reading.join(_PATIENCE)
        assert found[0]["ragaccel.index.vectors", "memory"] == 1


# ---- many, and what has ended --------------------------------------------------------------------


def test_what_comes_and_goes_leaves_nothing_behind():
    """A thousand caches, collections and batchers are as many series as one of each."""
    _metered(
        """
        def use():
            cache = MultiLevelCache([MemoryLevel()])
            cache.get("a")
            collection = VectorCollection.open(dim=2)
            collection.upsert(["a"], [[1, 0]])
            collection.close()
            MicroBatcher(list)(1)

        use()
        gc.collect()
        series, before = read().keys(), len(_sources)
        for number in range(1000):
            use()
            if not number % 100:
                gc.collect()
        gc.collect()
        last = MicroBatcher()  # whoever comes clears up, were there no reader
        assert len(_sources) == before + 1 == 1, len(_sources)
        del last
        gc.collect()
        assert read().keys() == series, read().keys() ^ series
        lookups = values("ragaccel.cache.lookups")
        assert sum(lookups.values()) == 1001, lookups
        """
    )


def test_series_are_bounded():
    """However many tenants come: the first have their own series, the rest are one sum."""
    _metered(
        """
        cache = MultiLevelCache([MemoryLevel()])
        for round in range(3):
            for tenant in range(400 * round, 400 * (round + 1)):
                cache.get("a", namespace=f"tenant {tenant}")
            found = values("ragaccel.cache.lookups")
            assert sum(found.values()) == 400 * (round + 1)
            assert len(found) <= 501, len(found)
        assert found[("otel.metric.overflow", "true"),] > 600
        assert all(value in (0, 1) for labels, value in found.items() if len(labels) > 1)
        """
    )


def test_gauges_tell_the_lowest():
    """Two collections of one name have one recall, and it is no sum."""
    _metered(
        """
        things = [
            Thing("ragaccel.index.recall", value, **{"ragaccel.index.name": "documents"})
            for value in (0.99, 0.95, 0.97)
        ]
        name = "ragaccel.index.recall"
        assert list(values(name).values()) == [0.95]
        del things[1]
        gc.collect()
        assert list(values(name).values()) == [0.97]
        """
    )


def test_an_export_reads_once():
    """Not once for each metric; and one that fails spoils nothing of the others."""
    told = _metered(
        """
        class Broken(Thing):
            def figures(self):
                yield Figure("ragaccel.cache.bypasses", 5, {"ragaccel.cache.reason": "key"})
                if self.told is None:
                    raise RuntimeError("out of order")

        good, broken = Thing(**{"ragaccel.cache.reason": "key"}), Broken()
        for number in range(1, 4):
            assert list(values("ragaccel.cache.bypasses").values()) == [6]
            assert good.reads == number
            broken.told = None
        """
    )
    assert told.count("RuntimeError: out of order") == 2


def test_counters_never_fall():
    """Whatever is made, counts, is read and is let go, in whatever order."""
    _metered(
        """
        from hypothesis import given, settings, strategies as st

        total = 0

        @settings(max_examples=60, deadline=None, database=None)
        @given(st.lists(st.sampled_from(["make", "count", "drop", "read"]), max_size=40))
        def check(steps):
            global total
            alive = []
            for step in steps:
                if step == "make":
                    alive.append(Counting())
                elif step == "count" and alive:
                    alive[-1].count[0] += 1
                    total += 1
                elif step == "drop" and alive:
                    del alive[0]
                elif step == "read":
                    assert sum(values("ragaccel.cache.faults").values()) == total

        class Counting:
            def __init__(self):
                self.count = count = [0]
                telemetry.measure(self, lambda: told(count))

            def figures(self):
                return told(self.count)

        def told(count):
            return [Figure("ragaccel.cache.faults", count[0], {"ragaccel.cache.level": "memory"})]

        check()
        """
    )


def test_a_child_process_goes_on():
    """A fork in the middle of an export leaves no lock behind that is never released."""
    _metered(
        """
        import os, threading
        entered, leave = threading.Event(), threading.Event()

        class Slow(Thing):
            def figures(self):
                entered.set()
                leave.wait(30)
                return self.told

        slow = Slow()
        reading = threading.Thread(target=read)
        reading.start()
        assert entered.wait(30)
        child = os.fork()
        if not child:
            from ragaccel.telemetry.metrics import METRICS, _reader
            leave.set()
            os._exit(len(_reader("ragaccel.cache.bypasses")(None)))
        leave.set()
        reading.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        """
    )
