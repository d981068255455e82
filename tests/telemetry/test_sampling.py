"""Stages of requests that are not sampled, and of processes whose telemetry does nothing."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from llama_index.core.llms import MockLLM
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.metrics import NoOpMeterProvider, _internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ragaccel import MicroBatcher, MultiLevelCache, accelerate, telemetry


@pytest.fixture
def provide(monkeypatch):
    """Sets providers up for one test."""

    def provide(tracers=None, meters=None):
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
        monkeypatch.setattr(_internal, "_METER_PROVIDER", meters)

    provide()
    return provide


class Names(sampling.Sampler):
    """Samples by the name of a span alone, as no sampler that asks for the parent does."""

    def __init__(self, *dropped):
        self.dropped = dropped

    def should_sample(self, parent_context, trace_id, name, *args, **kwargs):
        made = (
            sampling.Decision.DROP if name in self.dropped else sampling.Decision.RECORD_AND_SAMPLE
        )
        return sampling.SamplingResult(made)

    def get_description(self):
        return "names"


@pytest.fixture
def spans(provide):
    """What is recorded where requests by the name of "query" are not."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(Names("query"))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provide(provider)
    return lambda: [span.name for span in exporter.get_finished_spans()]


def stage(name="embed"):
    """The stage that code finds which is asked to do a part of a request."""
    with telemetry.stage(name) as opened:
        return opened


def current():
    return trace.get_current_span().get_span_context()


# -- a request that is not sampled -----------------------------------------------------------------


def test_nothing_inside_it_is_told(spans):
    """What is inside is the no-op itself, however deep, and whoever asks hears so."""
    with telemetry.stage("query", {"asked": 1}) as query:
        query.set({"found": 2})
        assert query is stage() is telemetry.OFF
        assert telemetry.here() is None
        assert not telemetry.recording()
    assert telemetry.recording()
    assert spans() == []


def test_what_comes_after_it_is_sampled_anew(spans):
    """Also after one that failed; a stage beside it is recorded."""
    with pytest.raises(ValueError, match="bad"), telemetry.stage("query"):
        raise ValueError("bad")
    stage("rerank")
    assert spans() == ["rerank"]


def test_others_spans_below_it_are_not_sampled_either(provide):
    """They, and services that are called, find a parent that is not."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampling.ParentBased(Names("query")))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provide(provider)
    sent = {}
    with telemetry.stage("query"):
        propagate.inject(sent)
        with trace.get_tracer("theirs").start_as_current_span("client") as span:
            assert span.get_span_context().trace_id == current().trace_id
            stage()
    assert int(sent["traceparent"][-2:], 16) & trace.TraceFlags.SAMPLED == 0
    assert exporter.get_finished_spans() == ()


def test_a_span_that_is_recorded_inside_it_counts(spans):
    """Who samples it all the same sees its stages, and only there."""
    with telemetry.stage("query"):
        stage("before")
        with trace.get_tracer("theirs").start_as_current_span("client"):
            stage()
        stage("after")
    assert spans() == ["embed", "client"]


def test_what_is_added_to_the_context_changes_nothing(spans):
    """Baggage, for one."""
    with telemetry.stage("query"):
        token = context.attach(baggage.set_baggage("tenant", "a"))
        assert stage() is telemetry.OFF
        context.detach(token)
        assert stage() is telemetry.OFF
    assert spans() == []


def test_threads_and_tasks_are_part_of_it(spans):
    """A thread that knows nothing of it begins a trace of its own."""

    async def request():
        with telemetry.stage("query"):
            with ThreadPoolExecutor(1) as pool:
                copied = pool.submit(contextvars.copy_context().run, stage).result()
                given = pool.submit(attached, context.get_current()).result()
                bare = pool.submit(stage, "rerank").result()
            beside = await asyncio.gather(asyncio.to_thread(stage), task())
        return copied, given, *beside, bare

    def attached(of):
        token = context.attach(of)
        try:
            return stage()
        finally:
            context.detach(token)

    async def task():
        await asyncio.sleep(0)
        return stage()

    *inside, bare = asyncio.run(request())
    assert inside == [telemetry.OFF] * 4
    assert bare is not telemetry.OFF
    assert spans() == ["rerank"]


def test_requests_side_by_side_are_each_sampled(spans):
    """One that is recorded and one that is not do not meet."""

    async def request(name):
        with telemetry.stage(name):
            await asyncio.sleep(0.01)
            with telemetry.stage(f"{name}-part"):
                await asyncio.sleep(0.01)

    async def all_of_them():
        await asyncio.gather(*map(request, ["query", "rerank", "query"]))

    asyncio.run(all_of_them())
    assert spans() == ["rerank-part", "rerank"]


@pytest.mark.parametrize("is_read", [True, False])
def test_a_stream_is_part_of_nothing_else(provide, is_read):
    """It is current only while it is asked for the next chunk, whether or not it is read out."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(Names("generate"))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provide(provider)
    with MultiLevelCache.open() as cache:
        stream = accelerate(MockLLM(max_tokens=3), cache=cache).stream_complete("one two three")
        assert not current().is_valid
        next(stream)
        stage()
        if is_read:
            assert list(stream)
        del stream
        gc.collect()
    assert [span.name for span in exporter.get_finished_spans()] == ["embed"]


def test_a_batch_is_linked_to_the_requests_that_are_sampled(spans):
    """One that is not sampled is served all the same."""
    batcher = MicroBatcher(list, workers=1)

    def request(name, item):
        with telemetry.stage(name):
            return batcher(item)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(request, ["query", "rerank"], [1, 2])) == [1, 2]
    assert sorted(spans()) == ["batch", "rerank"]


def test_a_listener_hears_of_it(spans):
    """Also one that comes in the middle of a request, which then begins there for it."""

    class Heard(list):
        def started(self, stage):
            self.append((stage.name, stage.parent))

        def ended(self, stage):
            pass

    heard = Heard()
    with telemetry.stage("query"):
        telemetry.listen(heard)
        try:
            stage()
            with telemetry.stage("query") as inner:
                stage()
        finally:
            telemetry.unlisten(heard)
        assert stage() is telemetry.OFF
    assert heard == [("embed", None), ("query", None), ("embed", inner)]
    assert spans() == []


# -- telemetry that does nothing -------------------------------------------------------------------


def disabled(monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    return TracerProvider(), MeterProvider()


def no_op(monkeypatch):
    return trace.NoOpTracerProvider(), NoOpMeterProvider()


def nothing(monkeypatch):
    return None, None


@pytest.mark.parametrize("made", [disabled, no_op, nothing])
def test_providers_that_do_nothing_cost_nothing(provide, monkeypatch, made):
    """Disabled or a no-op: as if there was none, until there is another."""
    tracers, meters = made(monkeypatch)
    provide(tracers, meters)
    for _ in range(2):
        assert telemetry.stage("query") is telemetry.OFF
        assert not telemetry.recording()
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    provide(TracerProvider(), meters)
    assert stage("query") is not telemetry.OFF
    provide(tracers, MeterProvider())
    assert stage("query") is not telemetry.OFF
    provide(tracers, meters)
    assert stage("query") is telemetry.OFF


def test_the_no_op_is_a_context_manager():
    """For `with`, also of exceptions, and for whoever calls its methods."""
    with telemetry.OFF as opened:
        assert opened is telemetry.OFF
    with pytest.raises(ValueError, match="bad"), telemetry.OFF:
        raise ValueError("bad")
    with ExitStack() as stack:
        assert stack.enter_context(telemetry.OFF) is telemetry.OFF
