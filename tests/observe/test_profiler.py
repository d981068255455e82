"""The profiler hears stages as they happen, and reports on them."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from opentelemetry.sdk.trace import TracerProvider
from rich.console import Console

from ragaccel import MicroBatcher, telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.observe import Profile, Profiler
from ragaccel.telemetry.stage import past_stage
from tests.observe.calls import call, profile


def pipeline(query):
    """A query with a look-up and, for those that are not kept, a search."""
    with telemetry.stage("cache.lookup") as lookup:
        is_hit = query == "kept"
        lookup.set({"ragaccel.cache.hit": is_hit})
        if is_hit:
            lookup.set({"ragaccel.cache.level": "memory"})
    if not is_hit:
        with telemetry.stage("retrieve"), telemetry.stage("search"):
            return [query]
    return []


def is_listened_to():
    return telemetry.stage("query") is not telemetry.OFF


def shown(drawn):
    console = Console(file=io.StringIO(), width=200)
    console.print(drawn)
    return console.file.getvalue()


def counts(found):
    return {name: one.count for name, one in found.stages.items()}


def test_a_profile_of_queries_counts_their_stages():
    """Each query is a request, whose stages are counted, timed and shared out."""
    found = Profiler().profile(pipeline, ["a", "b", "kept", "c"])
    assert counts(found) == {"query": 4, "cache.lookup": 4, "retrieve": 3, "search": 3}
    assert (len(found.requests), found.errors, found.dropped) == (4, 0, 0)
    assert found.hit_rate == 0.25
    assert found.stages["cache.lookup"].levels == {"memory": 1}
    assert sum(one.share for one in found.stages.values()) == pytest.approx(1)
    for one in found.stages.values():
        assert 0 < one.latency.p50 <= one.latency.p95 <= one.latency.p99
        assert one.cpu_seconds > 0
    assert found.stages["search"].latency.p50 <= found.stages["retrieve"].latency.p50
    assert "Hits of cache.lookup by level: memory 1." in shown(found)
    assert found.throughput > 0
    assert found.overhead_seconds > 0


def test_it_hears_only_while_it_is_open():
    """Before, between and after it nothing is kept, and it goes on where it was."""
    profiler = Profiler()
    pipeline("before")
    with profiler:
        pipeline("a")
        with profiler:
            pipeline("b")
        assert is_listened_to()
    assert not is_listened_to()
    pipeline("between")
    with profiler:
        pipeline("c")
    assert counts(profiler.report())["search"] == 3


def test_it_ends_with_an_error_of_its_block():
    """What it listened with is taken away."""
    with pytest.raises(RuntimeError), Profiler():
        raise RuntimeError
    assert not is_listened_to()


def test_several_hear_at_the_same_time():
    """Each what happens while it is open, without disturbing the other."""
    outer, inner = Profiler(), Profiler(resources=True)
    with outer:
        pipeline("a")
        with inner:
            pipeline("b")
    assert counts(outer.report())["search"] == 2
    assert counts(inner.report())["search"] == 1


def test_a_stage_that_was_under_way_is_not_half_heard():
    """What is inside is a request of its own; what ends after the profiler is left out."""
    listening, profiler = Profiler(), Profiler()
    with listening:
        around = telemetry.stage("query")
        with around, profiler, telemetry.stage("retrieve"):
            pass
        ends_late = telemetry.stage("query").begin()
    with listening:
        ends_late.end()
    assert counts(profiler.report()) == {"retrieve": 1}
    assert counts(listening.report()) == {"query": 1, "retrieve": 1}


def test_a_query_stage_of_the_pipeline_is_the_request():
    """The one that the profiler opens around it is not counted beside it."""

    def own(query):
        with telemetry.stage("query"):
            return pipeline(query)

    found = Profiler().profile(own, ["a", "b"])
    assert counts(found) == {"query": 2, "cache.lookup": 2, "retrieve": 2, "search": 2}
    assert [one.name for one in found.requests[0].call.children] == ["cache.lookup", "retrieve"]


def test_time_outside_of_every_stage_is_the_parents():
    """A pipeline that opens no stage is one request without parts."""
    found = Profiler().profile(lambda _: sum(range(10_000)), range(3))
    assert counts(found) == {"query": 3}
    assert found.bottleneck == found.tail_bottleneck == "query"


@pytest.mark.parametrize("name", ["query", "retrieve", "invoke"])
def test_a_pipeline_may_be_an_object(name):
    """It is asked by the method that it has."""
    asked = []
    made = type("Pipeline", (), {name: lambda _, query: asked.append(query)})()
    assert len(Profiler().profile(made, ["a", "b"]).requests) == 2
    assert asked == ["a", "b"]


async def test_an_asynchronous_pipeline_is_awaited():
    """By callables and methods alike, several at the same time."""
    under_way, most = 0, 0

    async def ask(query):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        with telemetry.stage("generate"):
            await asyncio.sleep(0)
        under_way -= 1
        return query

    made = type("Pipeline", (), {"aretrieve": lambda _, query: ask(query)})()
    found = await Profiler().aprofile(made, range(10), concurrency=4)
    assert counts(found) == {"query": 10, "generate": 10}
    assert most == 4
    assert counts(await Profiler().aprofile(ask, range(2))) == {"query": 2, "generate": 2}
    assert all(len(one.call.children) == 1 for one in found.requests)


def test_threads_ask_at_the_same_time():
    """As many as are asked for, each with requests of its own."""
    barrier = threading.Barrier(3, timeout=10)

    def ask(query):
        with telemetry.stage("generate"):
            barrier.wait()

    found = Profiler().profile(ask, range(6), concurrency=3)
    assert counts(found) == {"query": 6, "generate": 6}
    assert all(len(one.call.children) == 1 for one in found.requests)
    assert not [one for one in threading.enumerate() if "ragaccel-profile" in one.name]


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_query_that_fails_is_counted(concurrency):
    """The others are asked all the same; if all fail, the first error is raised."""

    def ask(query):
        with telemetry.stage("generate"):
            return 1 / query

    found = Profiler().profile(ask, [1, 0, 2, 0], concurrency=concurrency)
    assert (len(found.requests), found.errors) == (4, 2)
    assert found.stages["generate"].errors == 2
    with pytest.raises(ZeroDivisionError):
        Profiler().profile(ask, [0, 0], concurrency=concurrency)
    assert not is_listened_to()


def test_answers_that_are_streams_are_read():
    """A request is over when its answer is."""

    def ask(query):
        with telemetry.stage("generate"):
            yield query

    found = Profiler().profile(ask, ["a"])
    assert counts(found) == {"query": 1, "generate": 1}
    (request,) = found.requests
    assert request.call.ended_ns >= request.call.children[0].ended_ns


async def test_streams_of_asynchronous_pipelines_are_read():
    """Whether they are awaited first or not."""

    async def stream():
        with telemetry.stage("generate"):
            yield 1

    async def ask(_):
        return stream()

    for one in (ask, lambda _: stream()):
        found = await Profiler().aprofile(one, ["a"])
        assert counts(found) == {"query": 1, "generate": 1}


def test_bad_input_is_refused_with_what_to_do():
    """What cannot be asked, and numbers that cannot be."""

    async def answer():
        return 1

    coroutine = answer()
    with pytest.raises(ConfigurationError, match="aprofile"):
        Profiler().profile(lambda _: coroutine, ["a"])
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    with pytest.raises(ConfigurationError, match="query, retrieve, invoke"):
        Profiler().profile(3, ["a"])
    with pytest.raises(ConfigurationError, match="concurrency"):
        Profiler().profile(pipeline, ["a"], concurrency=0)
    with pytest.raises(ConfigurationError, match="max_requests"):
        Profiler(max_requests=0)


def test_memory_is_bounded():
    """What has no room is counted and not kept, with all that is inside."""
    profiler = Profiler(max_requests=3)
    found = profiler.profile(pipeline, range(10), concurrency=2)
    assert (len(found.requests), found.dropped) == (3, 7)
    assert counts(found) == {"query": 3, "cache.lookup": 3, "retrieve": 3, "search": 3}
    with profiler:
        for _ in range(10):
            with telemetry.stage("ingest"):
                pass
    assert profiler.report().stages["ingest"].count == 3
    assert "14 more were heard and not kept" in shown(profiler.report())


def test_memory_is_bounded_for_requests_that_began_together():
    """Those that end when others have taken the room are counted."""
    profiler = Profiler(max_requests=1)
    with profiler:
        for stage in [telemetry.stage("query").begin() for _ in range(3)]:
            stage.end()
    found = profiler.report()
    assert (len(found.requests), found.dropped) == (1, 2)


def test_each_profile_is_of_its_own_run():
    """The report is of all of them."""
    profiler = Profiler()
    assert len(profiler.profile(pipeline, ["a", "b"]).requests) == 2
    assert len(profiler.profile(pipeline, ["a"]).requests) == 1
    assert len(profiler.report().requests) == 3


def test_queries_are_known_only_by_digests_of_one_profiler():
    """Equal ones are seen to be equal, and nothing can be read from them."""
    first, second = (Profiler().profile(pipeline, ["secret", "b", "secret"]) for _ in range(2))
    asked = [one.asked for one in first.requests]
    assert asked[0] == asked[2] != asked[1]
    assert asked[0] != second.requests[0].asked
    everything = repr(first.requests) + json.dumps(first.to_dict()) + first.to_html()
    assert "secret" not in everything


def test_content_and_keys_are_not_kept():
    """Only what a profile reads of the attributes."""
    with Profiler() as profiler, telemetry.stage("query", {"input.value": "secret"}):
        pass
    assert "secret" not in repr(profiler.report().requests)


def test_stages_told_of_afterwards_take_the_time_that_they_took():
    """They lie before the moment at which they were told, and what they used is not known."""
    with Profiler() as profiler, telemetry.stage("query"):
        began = threading.Event()
        began.wait(0.02)
        now = time.time_ns()
        past_stage("embed", now - 11_000_000, now - 1_000_000)
    (request,) = profiler.report().requests
    (embed,) = request.call.children
    assert embed.duration_ns == 10_000_000
    assert embed.ended_ns < request.call.ended_ns
    assert request.call.began_ns <= embed.began_ns <= embed.ended_ns <= request.call.ended_ns
    assert profiler.report().stages["embed"].cpu_seconds is None


def test_a_stage_that_was_told_too_long_begins_with_its_request():
    """The clocks of others are no reason for more than the whole."""
    with Profiler() as profiler, telemetry.stage("query"):
        now = time.time_ns()
        past_stage("embed", now - 60_000_000_000, now)
    (request,) = profiler.report().requests
    assert request.call.children[0].began_ns == request.call.began_ns
    assert profiler.report().stages["embed"].share <= 1


def test_the_mean_batch_is_that_of_batches():
    """Three requests that tell of the same batch are no three batches."""
    sizes = (3, 3, 3, 1)
    found = profile([call("embed", 0, 10, batch_size=one, batch_wait=0.002) for one in sizes])
    assert found.stages["embed"].batch_size == pytest.approx(2)
    assert found.stages["embed"].wait.p50 == pytest.approx(0.002)


def test_batches_are_part_of_no_request():
    """They are counted, and their requests know their size and how long they waited."""
    batcher = MicroBatcher(list, workers=1)

    def request(item):
        with telemetry.stage("query"), telemetry.stage("embed"):
            return batcher(item)

    with Profiler() as profiler, ThreadPoolExecutor(4) as pool:
        for item in range(8):
            pool.submit(contextvars.copy_context().run, request, item)
    found = profiler.report()
    assert len(found.requests) == 8
    assert {one.name for one in found.others} == {"batch"}
    batch, embed = found.stages["batch"], found.stages["embed"]
    assert batch.batch_size == pytest.approx(8 / batch.count)
    assert embed.batch_size == pytest.approx(8 / batch.count)
    assert embed.wait.p95 > 0
    assert batch.share == 0


def test_what_begins_after_a_request_is_no_request():
    """A refresh in the background is counted beside them."""
    with Profiler() as profiler:
        with telemetry.stage("query"):
            later = contextvars.copy_context()
        later.run(pipeline, "refresh")
    found = profiler.report()
    assert len(found.requests) == 1
    assert {one.name for one in found.others} == {"cache.lookup", "retrieve"}


def test_a_stage_that_ends_after_its_request_held_nobody_up():
    """It is part of the request and not of its time."""
    with Profiler() as profiler:
        with telemetry.stage("query"):
            stream = telemetry.stage("generate").begin()
        stream.end()
    found = profiler.report()
    assert counts(found) == {"query": 1, "generate": 1}
    assert found.stages["generate"].share == 0


def test_resources_are_read_where_they_are_asked_for():
    """Memory that a stage takes, bytes that it writes, and the time of its thread."""
    kept = []

    def ask(_):
        with telemetry.stage("grow"):
            kept.append(bytearray(b"x") * 30_000_000)
        with telemetry.stage("work"):
            sum(range(300_000))

    found = Profiler(resources=True).profile(ask, range(3))
    assert found.stages["grow"].rss_bytes > 20_000_000
    assert found.stages["work"].rss_bytes < 10_000_000
    assert found.stages["work"].network_bytes >= 0
    assert found.memory_bytes > 60_000_000
    plain = Profiler().profile(ask, range(3))
    assert plain.stages["grow"].rss_bytes is None
    assert plain.stages["work"].cpu_seconds > 0


def test_processor_time_of_another_thread_is_the_process():
    """A stage that ends elsewhere took what the whole process took."""

    def burn():
        sum(range(1_000_000))
        stage.end()

    with Profiler() as profiler:
        stage = telemetry.stage("generate").begin()
        worker = threading.Thread(target=burn)
        worker.start()
        worker.join()
    assert profiler.report().stages["generate"].cpu_seconds > 0.001


def test_traced_requests_can_be_opened_in_a_viewer(monkeypatch):
    """The trace ids of the p50 and the p99 request are those of their spans."""
    from opentelemetry import trace

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    found = Profiler().profile(pipeline, ["a", "b", "c"])
    ids = [one.trace_id for one in found.requests]
    assert len(set(ids)) == 3
    assert all(len(one) == 32 and int(one, 16) for one in ids)
    assert found.p50_request.trace_id in shown(found)
    assert found.to_dict()["p99_request"]["trace_id"] in ids


def test_nothing_heard_is_an_empty_profile():
    """It can be shown, written and compared like any other."""
    empty = Profiler().report()
    assert (empty.requests, empty.stages, empty.bottleneck) == ((), {}, None)
    assert empty == Profile.of([], memory_bytes=empty.memory_bytes)
    assert json.loads(json.dumps(empty.to_dict()))["p50_request"] is None
    assert "0 requests" in shown(empty)
    assert "0 requests" in empty.to_html()
    assert shown(empty.compare(empty))


def test_a_profile_is_shown_and_told_in_numbers():
    """The table, the dictionary and the figures for goals agree."""
    root = call("query", 0, 100, call("embed", 0, 20), call("generate", 20, 90, error="Timeout"))
    found = profile([root] * 4)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["latency"]["p95"] == pytest.approx(0.1)
    assert list(told["stages"]) == ["generate", "embed", "query"]
    assert told["stages"]["generate"]["tail_share"] == pytest.approx(0.7)
    assert told["bottleneck"] == "generate"
    assert [
        (one["name"], one["depth"], one["start"], one["seconds"])
        for one in told["p99_request"]["stages"]
    ] == [("query", 0, 0, 0.1), ("embed", 1, 0, 0.02), ("generate", 1, 0.02, 0.07)]
    text = shown(found)
    assert "Bottleneck of typical requests (p25 to p75): generate, 70%" in text
    assert "70.0 ms" in text
    figures = found.figures()
    assert figures["query.p95"] == pytest.approx(0.1)
    assert figures["stages.embed.p50"] == pytest.approx(0.02)
    assert (figures["query.error_rate"], figures["cache.hit_rate"]) == (0, None)


def test_two_profiles_are_compared_stage_by_stage():
    """What is in one only has no other side."""
    before = profile([call("query", 0, 100, call("generate", 0, 80))] * 3)
    after = profile([call("query", 0, 50, call("rerank", 0, 40))] * 3)
    lines = shown(before.compare(after)).splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert "100.0 ms" in rows["query"]
    assert "0.50" in rows["query"]
    assert "80.0%" in rows["generate"]
    assert "40.0 ms" in rows["rerank"]


class Page(HTMLParser):
    """Collects tags, where they lead, and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"href", "src", "data", "action"}]

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_needs_nothing_else_and_escapes_everything(tmp_path):
    """Names are text wherever they stand, and nothing is loaded."""
    evil = "</title><script>alert('x')</script>\"&"
    root = call("query", 0, 100, call(evil, 0, 60, error=evil), call("generate", 60, 100))
    found = profile([root] * 30, asked=["a"] * 30)
    page = found.to_html(tmp_path / "profile.html")
    assert (tmp_path / "profile.html").read_text(encoding="utf-8") == page
    read = Page()
    read.feed(page)
    assert "script" not in read.tags
    assert read.links == []
    assert "url(" not in page
    assert "http" not in page
    assert "@import" not in page
    assert read.tags.count("svg") == 2 + 1 + 3
    text = "".join(read.texts)
    assert evil in text
    assert "p99: 100.0 ms" in text
    assert f"{evil} 60.0%" in text
    assert "wrap the LLM" in text


def test_the_page_shows_what_held_nobody_up():
    """Bars beside the critical path are pale, also where a stage did nothing by itself."""
    inside = call("retrieve", 0, 100, call("embed", 0, 100), call("bm25", 0, 60))
    page = profile([call("query", 0, 100, inside)]).to_html()
    assert page.count('<g class="aside"><title>· · bm25') == 2
    assert page.count('class="aside"') == 2


def test_the_page_of_a_huge_request_is_bounded():
    """A request with thousands of stages draws the first ones."""
    root = call("query", 0, 5_000, *(call("embed", one, one + 1) for one in range(5_000)))
    page = profile([root]).to_html()
    assert "the first 100 of 5001 stages" in page
    assert len(page) < 200_000
