"""What waits together becomes one call, and nobody waits or fails for another's sake."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel import MicroBatcher, telemetry
from ragaccel.batching.halves import outcomes
from ragaccel.errors import BatchError, ConfigurationError


class Recorded:
    """A call that doubles numbers, slowly, and keeps its batches."""

    def __init__(self, seconds=0.005):
        self.batches, self.seconds = [], seconds
        self.under_way = self.most = 0
        self._lock = threading.Lock()

    def begin(self, items):
        with self._lock:
            self.batches.append(list(items))
            self.under_way += 1
            self.most = max(self.most, self.under_way)

    def end(self, items):
        with self._lock:
            self.under_way -= 1
        for item in items:
            if item < 0:
                raise ValueError(f"{item} is negative")
        return [2 * item for item in items]

    def __call__(self, items):
        self.begin(items)
        time.sleep(self.seconds)
        return self.end(items)

    async def later(self, items):
        self.begin(items)
        await asyncio.sleep(self.seconds)
        return self.end(items)


@pytest.fixture
def call():
    return Recorded()


@pytest.fixture(params=["threads", "loop", "loop over threads"])
def ask(request, call):
    """Ask for several items at once, whoever waits; returns results and errors."""

    def at_once(items, **options):
        if request.param == "threads":
            batcher = MicroBatcher(call, **options)

            def one(item):
                try:
                    return batcher(item)
                except ValueError as error:
                    return error

            with ThreadPoolExecutor(max(1, len(items))) as pool:
                return list(pool.map(one, items))
        acall = call.later if request.param == "loop" else None
        batcher = MicroBatcher(call, acall=acall, **options)

        async def gather():
            return await asyncio.gather(*map(batcher.get, items), return_exceptions=True)

        return asyncio.run(gather())

    return at_once


def test_everybody_gets_the_own_result(ask, call):
    """In few calls, none of them too large, and never more at a time than there are workers."""
    assert ask(list(range(100)), max_size=16, workers=2) == [2 * item for item in range(100)]
    assert len(call.batches) < 50
    assert max(map(len, call.batches)) <= 16
    assert call.most <= 2
    assert sorted(item for batch in call.batches for item in batch) == list(range(100))


def test_a_lone_caller_waits_for_nobody(ask, call):
    """The call is made at once, with the one item."""
    assert ask([3]) == [6]
    assert call.batches == [[3]]


async def test_a_call_is_never_made_for_nothing(call):
    """Whom another thread took along has nothing left to ask."""
    assert await outcomes(call.later, []) == []
    assert call.batches == []


def test_equal_items_are_sent_once_in_a_call(ask, call):
    """All who asked get the result."""
    assert ask([7] * 40, workers=1, max_size=64) == [14] * 40
    assert all(batch == [7] for batch in call.batches)
    assert len(call.batches) < 20


def test_a_bad_item_fails_alone(ask):
    """Its caller gets the error, the others their results."""
    found = ask([1, 2, -3, 4, 5, 6, -7, 8], workers=1)
    assert [str(one) for one in found] == [
        "2", "4", "-3 is negative", "8", "10", "12", "-7 is negative", "16",
    ]  # fmt: skip


def test_an_outage_is_not_asked_for_again_item_by_item(call):
    """A connection that fails is no item's fault."""

    class ConnectTimeoutError(Exception):
        pass

    def away(items):
        call.begin(items)
        raise ConnectTimeoutError

    async def gather():
        batcher = MicroBatcher(away, workers=1)
        return await asyncio.gather(*map(batcher.get, range(8)), return_exceptions=True)

    assert all(isinstance(one, ConnectTimeoutError) for one in asyncio.run(gather()))
    assert len(call.batches) == 1


@pytest.mark.parametrize("results", [[], [1], [1, 2, 3]], ids=len)
def test_another_number_of_results_is_an_error(results):
    """Nobody is given another's result."""

    async def gather():
        batcher = MicroBatcher(lambda items: results, workers=1)
        return await asyncio.gather(*map(batcher.get, "ab"), return_exceptions=True)

    found = asyncio.run(gather())
    assert all(isinstance(one, BatchError) for one in found)
    assert "2 items" in str(found[0])


@pytest.mark.parametrize("results", [[], [1, 2]], ids=len)
def test_another_number_of_results_is_an_error_for_a_lone_thread_too(results):
    """It is told, and the batcher serves the next one."""
    batcher = MicroBatcher(lambda items: results if items == ["a"] else items, workers=1)
    with pytest.raises(BatchError, match=f"1 items gave {len(results)}"):
        batcher("a")
    assert batcher("b") == "b"


@pytest.mark.parametrize("items", [["a"], ["a", "b", "c"]], ids=len)
def test_an_error_among_the_results_is_raised(items):
    """For its item, whether or not it is alone in the call."""
    batcher = MicroBatcher(lambda asked: [ValueError(one) for one in asked], workers=1)

    def one(item):
        with pytest.raises(ValueError, match=item):
            batcher(item)

    with ThreadPoolExecutor(len(items)) as pool:
        list(pool.map(one, items))


async def test_a_stop_iteration_is_an_error_like_any_other():
    """Asyncio cannot carry it out of a thread: nobody waits for ever, and it comes as the cause."""
    batcher = MicroBatcher(lambda _: next(iter(())))
    with pytest.raises(RuntimeError, match="StopIteration") as raised:
        await asyncio.wait_for(batcher.get("a"), 10)
    assert isinstance(raised.value.__cause__, StopIteration)


async def test_who_is_cancelled_disturbs_nobody(call):
    """Neither before the call nor during it, and is left out of calls that are still to be made."""
    batcher = MicroBatcher(call, acall=call.later, workers=1, max_size=2)
    tasks = [asyncio.create_task(batcher.get(item)) for item in range(8)]
    await asyncio.sleep(0.001)
    tasks[0].cancel()
    tasks[5].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [one for at, one in enumerate(found) if at not in (0, 5)]
    assert kept == [2, 4, 6, 8, 12, 14]
    assert 5 not in [item for batch in call.batches for item in batch]


async def test_a_call_that_is_cancelled_leaves_nobody_waiting():
    """Those who waited for it are cancelled, too; later ones are served."""
    gate = asyncio.Event()

    async def acall(items):
        if not gate.is_set():
            gate.set()
            raise asyncio.CancelledError
        return items

    batcher = MicroBatcher(list, acall=acall, workers=1)
    found = await asyncio.gather(batcher.get(1), batcher.get(2), return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in found)
    assert await asyncio.wait_for(batcher.get(3), 5) == 3


def test_several_loops_and_threads_share_one(call):
    """One after another, and at the same time."""
    batcher = MicroBatcher(call, acall=call.later)

    def on_a_loop(start):
        async def gather():
            return await asyncio.gather(*map(batcher.get, range(start, start + 20)))

        return asyncio.run(gather())

    with ThreadPoolExecutor(8) as pool:
        loops = [pool.submit(on_a_loop, 20 * at) for at in range(4)]
        threads = [pool.submit(batcher, at) for at in range(20)]
        assert [one.result(20) for one in threads] == [2 * at for at in range(20)]
        for at, one in enumerate(loops):
            assert one.result(20) == [2 * item for item in range(20 * at, 20 * at + 20)]
    assert on_a_loop(3)[0] == 6


async def test_a_thread_asks_while_a_loop_is_blocked(call):
    """As LlamaIndex does: it bridges from sync to async in a new thread while the loop waits."""
    batcher = MicroBatcher(call, acall=call.later, workers=1)
    assert await batcher.get(1) == 2

    def bridge():
        return asyncio.run(batcher.get(2))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(bridge).result(5) == 4  # the loop of this test is blocked meanwhile
    assert await batcher.get(3) == 6


def test_a_thread_that_is_interrupted_leaves_its_work_to_others():
    """What it was calling for is asked for again by one of those who wait."""
    first = threading.Event()

    def call(items):
        if not first.is_set():
            first.set()
            time.sleep(0.05)
            raise KeyboardInterrupt
        return list(items)

    batcher = MicroBatcher(call, workers=1)
    with ThreadPoolExecutor(6) as pool:
        leader = pool.submit(batcher, 0)
        first.wait(5)
        others = [pool.submit(batcher, item) for item in range(1, 6)]
        assert isinstance(leader.exception(10), KeyboardInterrupt)
        assert [one.result(10) for one in others] == [1, 2, 3, 4, 5]
        assert pool.submit(batcher, 9).result(10) == 9


@given(
    seed=st.integers(0, 10_000),
    callers=st.integers(1, 24),
    workers=st.integers(1, 4),
    max_size=st.integers(1, 8),
)
@settings(max_examples=40, deadline=None)
def test_whatever_fails_is_cancelled_or_late_nobody_waits_for_ever(
    seed, callers, workers, max_size
):
    """Each caller gets the own result or the own error, from threads and from a loop."""
    draw = random.Random(seed)
    delays = [draw.random() * 0.004 for _ in range(200)]

    def call(items):
        time.sleep(delays[len(items)])
        if any(item % 7 == 6 for item in items):
            raise ValueError("a seventh")
        return [item + 1 for item in items]

    batcher = MicroBatcher(call, workers=workers, max_size=max_size)
    items = [draw.randrange(50) for _ in range(callers)]

    def one(item):
        time.sleep(draw.random() * 0.003)
        try:
            return batcher(item)
        except ValueError:
            return "a seventh"

    async def many():
        tasks = [asyncio.create_task(batcher.get(item)) for item in items]
        for task in draw.sample(tasks, len(tasks) // 4):
            await asyncio.sleep(draw.random() * 0.002)
            task.cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    with ThreadPoolExecutor(callers + 1) as pool:
        loop = pool.submit(asyncio.run, many())
        threads = [pool.submit(one, item) for item in items]
        found = [thread.result(20) for thread in threads]
        later = loop.result(20)
    assert found == ["a seventh" if item % 7 == 6 else item + 1 for item in items]
    for item, got in zip(items, later, strict=True):
        if isinstance(got, asyncio.CancelledError):
            continue
        assert isinstance(got, ValueError) if item % 7 == 6 else got == item + 1


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forks amid threads
def test_after_a_fork_the_child_waits_for_nobody(call):
    """The parent's callers are the parent's."""
    slow = Recorded(0.3)
    batcher = MicroBatcher(slow, workers=1)
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(batcher, item) for item in (1, 2)]
        time.sleep(0.05)
        child = os.fork()
        if not child:
            os._exit(batcher(5) - 10)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert [one.result(10) for one in busy] == [2, 4]


@pytest.mark.parametrize("options", [{"max_size": 0}, {"workers": 0}, {"max_size": 1.5}], ids=str)
def test_options_that_cannot_work_are_refused(options):
    """It is said which."""
    with pytest.raises(ConfigurationError, match="at least 1"):
        MicroBatcher(list, **options)


@pytest.mark.parametrize("who", ["threads", "loop"])
def test_a_batch_is_linked_to_those_it_serves_and_a_child_of_none(span_exporter, call, who):
    """One request is not charged with the time of all."""
    batcher = MicroBatcher(call, workers=1)

    def one(item):
        with telemetry.stage("query"):
            return batcher(item)

    async def alone(item):
        with telemetry.stage("query"):
            return await batcher.get(item)

    async def gather():
        return await asyncio.gather(*map(alone, range(6)))

    span_exporter.clear()
    if who == "loop":
        asyncio.run(gather())
    else:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(one, range(6)))
    spans = span_exporter.get_finished_spans()
    queries = {span.context.span_id for span in spans if span.name == "query"}
    batches = [span for span in spans if span.name == "batch"]
    assert len(queries) == 6
    assert all(span.parent is None for span in batches)
    assert sorted(link.context.span_id for span in batches for link in span.links) == sorted(
        queries
    )
    assert sum(span.attributes["ragaccel.items.count"] for span in batches) == 6
