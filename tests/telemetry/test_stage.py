"""Stages as listeners hear of them: without a tracer, sampled or not."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry import trace
from opentelemetry.metrics import _internal

from ragaccel import MicroBatcher, telemetry
from ragaccel.telemetry.stage import past_stage


class Heard:
    """Keeps what it hears."""

    def __init__(self):
        self.started_names, self.stages = [], []

    def started(self, stage):
        self.started_names.append(stage.name)

    def ended(self, stage):
        self.stages.append(stage)

    def tree(self):
        return [(one.name, None if one.parent is None else one.parent.name) for one in self.stages]


@pytest.fixture
def unobserved(monkeypatch):
    """Nobody but what a test sets up looks at stages; providers stay for a whole process."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(_internal, "_METER_PROVIDER", None)


@pytest.fixture
def heard():
    listener = Heard()
    telemetry.listen(listener)
    yield listener
    telemetry.unlisten(listener)


def test_stages_nest(heard):
    """Each tells which it is part of, what it was told, and how long it took."""
    with telemetry.stage("query", {"asked": 1}) as query:
        with telemetry.stage("embed"):
            pass
        past_stage("generate", 1_000, 4_000)
        query.set({"found": 2})
    assert heard.started_names == ["query", "embed", "generate"]
    assert heard.tree() == [("embed", "query"), ("generate", "query"), ("query", None)]
    assert query.attributes.items() >= {"asked": 1, "found": 2}.items()
    embed, generate, _ = heard.stages
    assert (generate.start_ns, generate.duration_ns) == (1_000, 3_000)
    assert 0 < embed.duration_ns < query.duration_ns
    assert query.start_ns <= embed.start_ns


def test_an_error_is_told_by_its_name_only(heard):
    """A cancellation is none."""
    with pytest.raises(ValueError, match="secret"), telemetry.stage("query"):
        raise ValueError("secret")
    with pytest.raises(asyncio.CancelledError), telemetry.stage("query"):
        raise asyncio.CancelledError
    assert [one.error for one in heard.stages] == ["ValueError", None]
    assert "secret" not in str([one.attributes for one in heard.stages])


def test_tasks_and_threads_keep_their_parents(heard):
    """Stages that run side by side are not each other's."""

    async def inner(name):
        with telemetry.stage(name):
            await asyncio.sleep(0.01)
            with telemetry.stage(f"{name}-part"):
                await asyncio.to_thread(lambda: telemetry.stage(f"{name}-thread").__enter__())

    async def request():
        with telemetry.stage("query"):
            await asyncio.gather(inner("embed"), inner("rerank"))

    asyncio.run(request())
    assert set(heard.tree()) == {
        ("embed-part", "embed"), ("rerank-part", "rerank"),
        ("embed", "query"), ("rerank", "query"), ("query", None),
    }  # fmt: skip


def test_a_listener_that_fails_disturbs_nobody(heard, caplog):
    """Its fault is logged; the request and the other listeners go on."""

    class Failing:
        def started(self, stage):
            raise RuntimeError("broken")

        ended = started

    failing = Failing()
    telemetry.listen(failing)
    try:
        with caplog.at_level(logging.ERROR, "ragaccel"), telemetry.stage("query"):
            pass
    finally:
        telemetry.unlisten(failing)
    assert heard.tree() == [("query", None)]
    assert "What listens to stages failed" in caplog.text


def test_requests_hear_how_long_they_waited_for_their_batch(heard):
    """A batch is part of no request, and each of its requests knows its size."""
    batcher = MicroBatcher(list, workers=1)

    def request(item):
        with telemetry.stage("embed"):
            return batcher(item)

    with ThreadPoolExecutor(4) as pool:
        contexts = [contextvars.copy_context() for _ in range(4)]
        found = [
            one.result(10)
            for one in [pool.submit(ctx.run, request, at) for at, ctx in enumerate(contexts)]
        ]
    assert found == list(range(4))
    batches = [one for one in heard.stages if one.name == "batch"]
    requests = [one for one in heard.stages if one.name == "embed"]
    assert {one.parent for one in batches} == {None}
    assert sum(len(one.serves) for one in batches) == 4
    assert sum(one.attributes["ragaccel.items.count"] for one in batches) == 4
    assert {one.attributes["ragaccel.batch.size"] for one in requests} <= {1, 2, 3}
    assert all(one.attributes["ragaccel.batch.wait"] >= 0 for one in requests)


def test_nobody_hears_after_it_was_taken_away():
    """A stage is the shared no-op again."""
    listener = Heard()
    telemetry.listen(listener)
    telemetry.unlisten(listener)
    with telemetry.stage("query"):
        pass
    assert listener.stages == []


@pytest.mark.usefixtures("unobserved")
def test_a_listener_may_need_some_stages_only():
    """Then the others are not made for it, but another listener hears of them all the same."""
    needs_some, needs_all = Heard(), Heard()
    telemetry.listen(needs_some, ["query"])
    with telemetry.stage("query"):
        assert telemetry.stage("embed") is telemetry.OFF
    telemetry.listen(needs_all)
    with telemetry.stage("embed"):
        pass
    telemetry.unlisten(needs_all)
    assert telemetry.stage("embed") is telemetry.OFF
    telemetry.unlisten(needs_some)
    assert telemetry.stage("query") is telemetry.OFF
    assert needs_some.started_names[0] == "query"
    assert needs_all.started_names == ["embed"]


class _Brief:
    """Hears of stages, and needs no more than their name and error."""

    def __init__(self):
        self.heard = []

    def started(self, stage):
        self.heard.append((stage.name, stage.attributes["ragaccel.component"]))

    def ended(self, stage):
        self.heard.append((stage.name, stage.error))


@pytest.mark.usefixtures("unobserved")
def test_who_needs_little_costs_little():
    """A stage takes in nothing that nobody needs, until somebody does."""
    brief, other = _Brief(), _Brief()
    told = {"ragaccel.component": "Engine"}
    telemetry.listen(brief, ["query"], brief=True)
    try:
        with contextlib.suppress(LookupError), telemetry.stage("query", told) as opened:
            assert opened is telemetry.OFF
            telemetry.listen(other)
            raise LookupError
        assert brief.heard == [("query", "Engine"), ("query", "LookupError")]
        assert other.heard == []
        with telemetry.stage("query", told) as opened:
            assert opened is not telemetry.OFF
        telemetry.unlisten(other)
        streamed = telemetry.stage("query", told).begin()
        with streamed.turn():
            pass
        streamed.end()
    finally:
        telemetry.unlisten(brief)
        telemetry.unlisten(other)
    assert brief.heard[2:] == 2 * [("query", "Engine"), ("query", None)]
    assert other.heard == [("query", "Engine"), ("query", None)]
