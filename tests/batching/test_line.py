"""Who goes into a batch, and who waits: sizes, tenants, deadlines, room."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ragaccel import MicroBatcher
from ragaccel.batching.line import Limits, Line, Waiter
from ragaccel.errors import BatchError, BatchTimeoutError, ConfigurationError


def line_of(items, **limits):
    """Let items wait: (tenant, size) each."""
    line = Line(Limits(**{"max_size": 4, "workers": 1, "size": len, **limits}))
    for tenant, size in items:
        line.put(Waiter("x" * size, tenant, None, line._limits.size))
    return line


waiting = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=40)


@given(waiting, st.integers(1, 6), st.integers(1, 3), st.sampled_from([None, 60, 200]))
def test_everybody_is_taken_once_and_whoever_waits_longest_next(items, most, free, budget):
    """Within size and budget, but for one that is too large by itself."""
    line = line_of(items, max_size=most, budget=budget)
    seen = []
    while line:
        oldest = next(iter(line))
        batch = line.take(free)
        assert 1 <= len(batch) <= most
        assert oldest in batch
        if budget is not None and len(batch) > 1:
            assert max(one.size for one in batch) * len(batch) <= budget
        seen += [(one.tenant, len(one.item)) for one in batch]
    assert sorted(seen) == sorted(items)


@given(waiting)
def test_tenants_take_turns(items):
    """Who asks for much does not keep those waiting who ask for little."""
    line = line_of(items, max_size=3, size=None)
    batches = []
    while line:
        batches.append([one.tenant for one in line.take(1)])
    for at, batch in enumerate(batches):
        later = {tenant for others in batches[at + 1 :] for tenant in others}
        missing = later - set(batch)
        if missing:  # then nobody had two turns in this one
            assert len(set(batch)) == len(batch)


def test_items_of_like_size_go_together():
    """Short ones are not filled up to the length of a long one."""
    line = line_of([("a", size) for size in (30, 90, 31, 91, 32, 92, 33, 93)])
    assert [sorted(one.size for one in line.take(1)) for _ in range(2)] == [
        [30, 31, 32, 33],
        [90, 91, 92, 93],
    ]


class Gate:
    """A call that waits until it is opened, and keeps its batches."""

    def __init__(self):
        self.batches, self.open, self.entered = [], threading.Event(), threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.set()
        assert self.open.wait(20)
        return list(items)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.open.set()


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_thread_that_waited_too_long_is_told_and_not_sent(gate):
    """The others go on."""
    with MicroBatcher(gate, workers=1) as batcher, ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher, "first")
        assert gate.entered.wait(10)
        late = pool.submit(batcher, "late", timeout=0.05)
        patient = pool.submit(batcher, "patient")
        assert isinstance(late.exception(10), BatchTimeoutError)
        gate.open.set()
        assert (first.result(10), patient.result(10)) == ("first", "patient")
    assert gate.batches == [["first"], ["patient"]]


async def test_a_task_that_waited_too_long_is_told_and_not_sent(gate):
    """A `TimeoutError`, as other libraries raise."""
    batcher = MicroBatcher(gate, workers=1)
    first = asyncio.create_task(batcher.get("first"))
    await asyncio.to_thread(gate.entered.wait, 10)
    patient = asyncio.create_task(batcher.get("patient"))
    with pytest.raises(TimeoutError):
        await batcher.get("late", timeout=0.05)
    gate.open.set()
    assert await asyncio.gather(first, patient) == ["first", "patient"]
    assert gate.batches == [["first"], ["patient"]]


def test_threads_wait_until_there_is_room(gate):
    """No more wait in line than may; all are served in the end."""
    batcher = MicroBatcher(gate, workers=1, max_size=2, max_waiting=3)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(batcher, item) for item in range(12)]
        assert gate.entered.wait(10)
        until(lambda: len(batcher._line) == 3)
        gate.open.set()
        assert [one.result(10) for one in asked] == list(range(12))
    assert max(map(len, gate.batches)) <= 2


async def test_tasks_wait_until_there_is_room(gate):
    """One that is cancelled while it waits for room takes nobody's place."""
    batcher = MicroBatcher(gate, workers=1, max_size=2, max_waiting=3)
    asked = [asyncio.create_task(batcher.get(item)) for item in range(12)]
    await asyncio.to_thread(gate.entered.wait, 10)
    await asyncio.sleep(0)
    assert sum(map(len, batcher._lanes.values())) <= 3
    with pytest.raises(BatchTimeoutError):
        await batcher.get(99, timeout=0.01)
    asked[-1].cancel()
    gate.open.set()
    found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
    assert found[:-1] == list(range(11))
    assert isinstance(found[-1], asyncio.CancelledError)
    assert 99 not in [item for batch in gate.batches for item in batch]


def test_a_size_that_cannot_be_had_is_its_callers_trouble(gate):
    """Nobody else hears of it, and nobody waits."""
    gate.open.set()
    with MicroBatcher(gate, size=len, workers=1) as batcher, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(batcher, item) for item in ("one", 2, "three", None, "five")]
        errors = [type(one.exception(10)) for one in asked]
    assert errors == [type(None), TypeError, type(None), TypeError, type(None)]


def test_a_closed_batcher_serves_those_who_wait(gate):
    """New ones are refused."""
    batcher = MicroBatcher(gate, workers=1)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(batcher, item) for item in range(3)]
        assert gate.entered.wait(10)
        until(lambda: len(batcher._line) == 2)
        batcher.close()
        with pytest.raises(BatchError, match="closed"):
            batcher(4)
        gate.open.set()
        assert [one.result(10) for one in asked] == [0, 1, 2]


@pytest.mark.parametrize("options", [{"max_waiting": 0}, {"budget": 0}, {"budget": -1.0}], ids=str)
def test_options_that_cannot_work_are_refused(options):
    """It is said which."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        MicroBatcher(list, **options)


@given(
    delays=st.lists(st.floats(0, 0.003), min_size=1, max_size=20),
    timeouts=st.lists(st.sampled_from([None, None, 0.001, 0.01]), min_size=20, max_size=20),
    room=st.sampled_from([None, 1, 3]),
    tenants=st.lists(st.sampled_from("ab"), min_size=20, max_size=20),
)
@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_whatever_is_late_or_cramped_everybody_gets_an_answer(delays, timeouts, room, tenants):
    """The own result, or that it was too late; from threads and from a loop."""

    def call(items):
        time.sleep(0.001)
        return [item + 1 for item in items]

    batcher = MicroBatcher(
        call, workers=2, max_size=3, size=lambda item: item + 1, budget=40, max_waiting=room
    )

    def one(at):
        time.sleep(delays[at])
        try:
            return batcher(at, tenant=tenants[at], timeout=timeouts[at])
        except BatchTimeoutError:
            return "late"

    async def many():
        asked = [
            batcher.get(at, tenant=tenants[at], timeout=timeouts[at]) for at in range(len(delays))
        ]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)

    with ThreadPoolExecutor(len(delays) + 1) as pool:
        loop = pool.submit(asyncio.run, many())
        threads = list(pool.map(one, range(len(delays))))
        found = loop.result(30)
    for at, (thread, task) in enumerate(zip(threads, found, strict=True)):
        late = {"late"} if timeouts[at] is not None else set()
        assert thread in {at + 1} | late
        assert task == at + 1 or (late and isinstance(task, BatchTimeoutError))
    assert len(batcher._line) == 0
    assert not any(map(len, batcher._lanes.values()))
