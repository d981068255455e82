"""Items flow through stages side by side, never more than there is room for, and all of it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel import MicroBatcher, telemetry
from ragaccel.batching import StreamStage, stream
from ragaccel.errors import BatchError, ConfigurationError
from tests.support.leftovers import nothing_left, run_virtually, settled

user = contextvars.ContextVar("user", default="nobody")


@pytest.fixture(autouse=True)
def _ended(caplog, monkeypatch):
    with nothing_left(caplog, monkeypatch):
        yield


async def double(item):
    await asyncio.sleep(0)
    return 2 * item


def add_one(item):
    return item + 1


async def slowly(item):
    await asyncio.sleep(1)
    return item


async def collected(found, into=None):
    into = [] if into is None else into
    async for one in found:
        into.append(one)
    return into


class Numbers:
    """A source that tells how far it was read, and whether it was closed."""

    read, is_closed = 0, False

    def __call__(self, count):
        try:
            for number in range(count):
                self.read += 1
                yield number
        finally:
            self.is_closed = True

    async def later(self, count):
        try:
            for number in range(count):
                self.read += 1
                yield number
        finally:
            self.is_closed = True


@pytest.fixture
def numbers():
    return Numbers()


@pytest.fixture(params=["blocking", "asynchronous"])
def source(request, numbers):
    """A source of so many numbers, read in a thread or on the loop."""
    return numbers if request.param == "blocking" else numbers.later


@pytest.mark.parametrize("ordered", [True, False])
async def test_thousands_of_items(source, numbers, ordered):
    """Go through blocking and awaiting stages; none is lost, none comes twice."""
    stages = [double, StreamStage(add_one, concurrency=4), StreamStage(double, concurrency=16)]
    found = await collected(stream(source(2000), stages, ordered=ordered))
    assert (found if ordered else sorted(found)) == [4 * number + 2 for number in range(2000)]
    assert numbers.is_closed


async def test_no_items_and_no_stages(source):
    """An empty source gives nothing; without stages the items come as they are."""
    assert await collected(stream(source(0), [double])) == []
    assert await collected(stream([], [double])) == []
    assert await collected(stream(source(5), [])) == [0, 1, 2, 3, 4]


async def test_none_is_a_result():
    """As any other, also for the stages that follow."""

    async def nothing(item):
        pass

    assert await collected(stream([1, 2], [nothing, str])) == ["None", "None"]
    assert await collected(stream([None], [lambda item: item])) == [None]


async def test_stages_work_side_by_side():
    """The second works on an item while the first works on the next, and the consumer on one."""
    first, second = asyncio.Event(), asyncio.Event()

    async def begin(item):
        if item == 1:
            first.set()
            await second.wait()
        return item

    async def end(item):
        if item == 0:
            await first.wait()
            second.set()
        return item

    assert await asyncio.wait_for(collected(stream([0, 1], [begin, end])), 10) == [0, 1]


async def test_a_slow_consumer_stops_a_fast_source(source, numbers):
    """No more items than the limit are between them, in stages and queues together."""
    stages = [StreamStage(double, 2), StreamStage(add_one, 2)]
    taken = 0
    async for _ in stream(source(300), stages, limit=5):
        taken += 1
        if taken % 20 == 0:
            await asyncio.sleep(0.01)
        assert numbers.read <= taken + 5
    assert taken == 300


def test_the_limit_is_twice_what_the_stages_work_on(numbers):
    """Unless it is given."""

    async def main():
        stages = [StreamStage(slowly, 2), StreamStage(slowly, batch=3)]
        head = asyncio.ensure_future(anext(stream(numbers.later(300), stages)))
        await asyncio.sleep(0.5)
        assert numbers.read == 10
        await head

    run_virtually(main())


def test_a_slow_head_holds_back_no_more_than_the_limit(numbers):
    """What is ready before its turn counts, too."""

    async def first_is_slow(item):
        await asyncio.sleep(1000 if item == 0 else 1)
        return item

    async def main():
        found = stream(numbers.later(100), [StreamStage(first_is_slow, 4)], limit=10)
        head = asyncio.ensure_future(anext(found))
        await asyncio.sleep(900)
        assert numbers.read == 10
        assert [await head, *await collected(found)] == list(range(100))

    run_virtually(main())


def fail_odd(item):
    if item % 2:
        raise ValueError(f"{item} is odd")
    return item


@pytest.mark.parametrize("stage", [fail_odd, StreamStage(fail_odd, 8)])
async def test_a_stage_that_raises(stage):
    """Its error comes when the item's turn comes, and ends the stream."""
    taken, passed = [], []
    found = stream([0, 2, 4, 5, 6, 7], [double, lambda item: item // 2, stage, passed.append])
    with pytest.raises(ValueError, match="5 is odd"):
        await collected(found, taken)
    assert taken == [None] * 3
    assert 5 not in passed


async def test_errors_can_be_collected():
    """Items that failed are left out, and told with their place and error."""
    failed = []
    found = await collected(stream(range(6), [fail_odd, double], on_error=failed.append))
    assert found == [0, 4, 8]
    assert [(one.position, one.item, str(one.error)) for one in failed] == [
        (1, 1, "1 is odd"), (3, 3, "3 is odd"), (5, 5, "5 is odd"),
    ]  # fmt: skip


async def test_a_collector_that_raises():
    """Ends the stream with its error."""

    def full(failure):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        await collected(stream(range(6), [fail_odd], on_error=full))


@pytest.mark.parametrize("stage", [None, "thread"])
async def test_a_stage_that_is_cancelled_from_inside(stage):
    """Is an error of that item alone."""

    def cancelled(item):
        if item == 1:
            raise asyncio.CancelledError
        return item

    async def later(item):
        return cancelled(item)

    failed = []
    stage = cancelled if stage else later
    assert await collected(stream(range(3), [stage], on_error=failed.append)) == [0, 2]
    assert "cancelled from inside" in str(failed[0].error)


async def test_a_source_that_raises_in_the_middle():
    """Its error comes after the results of what it gave before."""

    def blocking():
        yield from range(3)
        raise OSError("the file is gone")

    async def later():
        for item in blocking():
            yield item

    class Broken:
        def __iter__(self):
            raise OSError("the file is gone")

    for source, expected in ((blocking(), [0, 2, 4]), (later(), [0, 2, 4]), (Broken(), [])):
        taken = []
        with pytest.raises(OSError, match="the file is gone"):
            await collected(stream(source, [double]), taken)
        assert taken == expected


async def test_a_source_that_blocks_does_not_hold_up_the_loop():
    """It waits for what only the loop can give it."""
    given = threading.Event()

    def blocking():
        yield 1
        assert given.wait(10)
        yield 2

    found = []
    async for item in stream(blocking(), [double]):
        found.append(item)
        given.set()
    assert found == [2, 4]


async def test_a_source_that_hangs_does_not_hold_up_who_leaves_off():
    """Its thread ends when the source lets go of it, and closes it."""
    hangs, go, ended = threading.Event(), threading.Event(), threading.Event()

    def hanging():
        try:
            yield 1
            hangs.set()
            go.wait(60)
            yield 2
        finally:
            ended.set()

    async with contextlib.aclosing(stream(hanging(), [double])) as found:
        assert await anext(found) == 2
        await asyncio.to_thread(hangs.wait, 10)
    assert not ended.is_set()
    go.set()
    assert await asyncio.to_thread(ended.wait, 10)


def test_who_leaves_off_cancels_what_is_under_way(numbers):
    """Each call once, in every stage, and each may clean up."""
    begun, cleaned_up = set(), set()

    async def work(item):
        if item[1] == 0:
            return item
        begun.add(item)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            cleaned_up.add(item)
            raise

    async def name(item):
        return ("a" if item < 2 else "b", item)

    async def main():
        source = numbers.later(100)
        stages = [name, StreamStage(work, 2), StreamStage(work, 2)]
        async with contextlib.aclosing(stream(source, stages)) as found:
            assert await anext(found) == ("a", 0)
            await asyncio.sleep(1)
        assert begun == cleaned_up == {("a", 1), ("b", 2)}
        assert numbers.is_closed

    run_virtually(main())


@pytest.mark.parametrize("fails", [True, False])
async def test_a_thread_that_ends_after_its_consumer_left_off(fails):
    """Is waited for, and whatever comes of it disturbs nobody."""
    go, ended = threading.Event(), []

    def work(item):
        if item == 1:
            go.wait(10)
            ended.append(item)
            if fails:
                raise ValueError(item)
        return item

    found = stream([0, 1, 2], [work, double])
    assert await anext(found) == 0
    closing = asyncio.create_task(found.aclose())
    await asyncio.sleep(0.01)
    assert not closing.done()
    go.set()
    await closing
    assert ended == [1]


def test_a_consumer_that_raises_ends_the_stream(numbers):
    """Soon after, without being asked to."""

    async def divide():
        async for number in stream(numbers.later(100), [slowly]):
            1 / number

    async def main():
        with pytest.raises(ZeroDivisionError):
            await divide()
        await settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert numbers.is_closed

    run_virtually(main())


def test_cancelled_from_outside(numbers):
    """In asyncio's way and in anyio's: nothing is left when the consumer has ended."""

    async def consume():
        async for _ in stream(numbers.later(100), [slowly, slowly]):
            pass

    async def main():
        task = asyncio.create_task(consume())
        await asyncio.sleep(3.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with anyio.move_on_after(3.5) as scope:
            await consume()
        assert scope.cancelled_caught
        await settled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtually(main())


def test_the_loop_may_end_right_after(numbers):
    """Who leaves off in the last line of a program leaves no complaint behind."""

    async def main():
        async for _ in stream(numbers(100), [double, add_one]):
            return

    asyncio.run(main())


def test_a_stream_that_nobody_takes_from(numbers):
    """Does nothing at all."""

    async def main():
        stream(numbers(100), [double])
        await settled()

    run_virtually(main())
    assert numbers.read == 0


@pytest.mark.parametrize("drain", [True, False])
def test_what_is_under_way_can_be_finished(numbers, drain):
    """When the consumer leaves off: the source is read no farther, the rest comes to its end."""
    written, failed = [], []

    async def write(item):
        await asyncio.sleep(1)
        if item == 3:
            raise ValueError(item)
        written.append(item)
        return item

    async def main():
        stages = [StreamStage(slowly, 2), write]
        found = stream(numbers.later(100), stages, drain=drain, on_error=failed.append)
        async with contextlib.aclosing(found):
            assert await anext(found) == 0

    run_virtually(main())
    assert numbers.is_closed
    assert 1 < numbers.read <= 1 + 6
    if drain:
        assert written == [item for item in range(numbers.read) if item != 3]
        assert [one.item for one in failed] == [3]
    else:
        assert written == [0]


def recorded():
    """Return a stage that keeps the batches that it was given, and the list of them."""
    batches = []

    async def stage(items):
        batches.append(items)
        await asyncio.sleep(1)
        return [2 * item for item in items]

    return stage, batches


def test_a_batch_is_what_waits():
    """Not more than asked for, and a lone item waits for no others."""
    stage, batches = recorded()

    async def source():
        for item in range(8):
            yield item
        await asyncio.sleep(60)
        yield 8

    async def main():
        found, times = [], []
        async for item in stream(source(), [StreamStage(stage, batch=3)], limit=20):
            found.append(item)
            times.append(asyncio.get_running_loop().time())
        return found, times

    found, times = run_virtually(main())
    assert found == [2 * item for item in range(9)]
    assert batches[-1] == [8]
    assert times[-1] == pytest.approx(61)
    assert [item for batch in batches for item in batch] == list(range(9))
    assert max(map(len, batches)) == 3
    assert len(batches) <= 5


@pytest.mark.parametrize("given", [None, 7, [], [1, 2, 3, 4]], ids=str)
async def test_a_batch_with_another_number_of_results(given):
    """Is an error that says so, and nobody is given another's result."""
    with pytest.raises(BatchError, match="'lazy' was given 1 items"):
        await collected(stream([1], [StreamStage(lambda items: given, batch=3, name="lazy")]))


async def test_an_error_of_a_batch_is_that_of_each_of_its_items():
    """A `MicroBatcher` as a stage finds out the bad one."""

    async def embed(items):
        if 3 in items:
            raise ValueError("3 is bad")
        return items

    for stage, bad in (
        (StreamStage(embed, batch=8), {3}),
        (StreamStage(MicroBatcher(acall=embed, workers=1).get, 8), {3}),
    ):
        failed = []
        found = await collected(stream(range(6), [stage], on_error=failed.append))
        items = {one.item for one in failed}
        assert items >= bad
        assert sorted([*items, *found]) == list(range(6))
    assert items == {3}


async def test_context_variables_reach_every_call():
    """Those of the caller of `stream` do, and what one call sets no other sees."""

    async def later(item):
        return seen(item)

    def seen(item):
        before = user.get()
        user.set(f"user {item}")
        return before

    user.set("caller")
    found = stream(range(20), [StreamStage(later, 2)]), stream(range(20), [StreamStage(seen, 2)])
    user.set("consumer")
    for one in found:
        assert set(await collected(one)) == {"caller"}


async def test_each_call_is_a_stage_of_telemetry():
    """One for an item or batch, part of the caller's, with what the call itself begins in it."""
    heard = []
    listener = SimpleNamespace(started=lambda stage: None, ended=heard.append)

    def parse(item):
        with telemetry.stage("preprocess"):
            return fail_odd(item)

    async def embed(items):
        return items

    telemetry.listen(listener)
    try:
        with telemetry.stage("ingest") as whole:
            stages = [parse, StreamStage(embed, batch=8), StreamStage(add_one, name="")]
            await collected(stream(range(4), stages, on_error=lambda _: None))
    finally:
        telemetry.unlisten(listener)
    parsed = [one for one in heard if one.name == "parse"]
    embedded = [one for one in heard if one.name == "embed"]
    assert [one.error for one in parsed] == [None, "ValueError", None, "ValueError"]
    assert sum(one.attributes["ragaccel.items.count"] for one in embedded) == 2
    assert {one.parent for one in parsed + embedded} == {whole}
    assert [one.parent for one in heard if one.name == "preprocess"] == parsed
    assert {one.name for one in heard} == {"parse", "preprocess", "embed", "ingest"}


async def test_a_blocking_function_that_gives_a_coroutine():
    """Is awaited on the loop."""
    assert await collected(stream([1], [lambda item: double(item + 0)])) == [2]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: stream("text", []), "iterable"), (lambda: stream(None, []), "iterable"),
        (lambda: stream([], [7]), "a stage is a function"),
        (lambda: stream([], [], limit=0), "limit must be"),
        (lambda: StreamStage(str, 0), "concurrency must be"),
        (lambda: StreamStage(str, batch=0), "batch must be"),
    ],
)  # fmt: skip
def test_bad_arguments(make, said):
    """Are refused at once, not when the first result is asked for."""
    with pytest.raises(ConfigurationError, match=said):
        make()


class Scripted:
    """A stage whose calls take what a script says, and fail where it says so."""

    def __init__(self, number, script):
        self.number, self.script = number, script
        self.under_way = self.most = 0

    async def __call__(self, item):
        delay, fails = self.script[item]
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(delay)
        finally:
            self.under_way -= 1
        if fails:
            raise ValueError((self.number, item))
        return item


_SCRIPTS = st.integers(0, 25).flatmap(
    lambda count: st.lists(
        st.lists(
            st.tuples(st.sampled_from([0, 0.5, 1, 7]), st.sampled_from([False] * 9 + [True])),
            min_size=count, max_size=count,
        ),
        max_size=3,
    ).map(lambda scripts: (count, scripts))
)  # fmt: skip


@given(
    scripts=_SCRIPTS,
    concurrency=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    ordered=st.booleans(),
    limit=st.none() | st.integers(1, 12),
    pause=st.sampled_from([0, 0.3, 3]),
)
@settings(deadline=None, max_examples=200)
def test_whatever_the_calls_take(scripts, concurrency, ordered, limit, pause):
    """Each item comes out once or fails once, in order, within the bounds."""
    count, scripts = scripts
    stages = [Scripted(number, script) for number, script in enumerate(scripts)]
    numbers, failed = Numbers(), []
    bound = limit or 2 * sum(concurrency[: len(stages)]) or 1

    async def main():
        found = []
        parts = [StreamStage(*one) for one in zip(stages, concurrency, strict=False)]
        async for item in stream(
            numbers.later(count), parts, ordered=ordered, limit=limit, on_error=failed.append
        ):
            found.append(item)
            assert numbers.read <= len(found) + len(failed) + bound
            await asyncio.sleep(pause)
        return found

    found = run_virtually(main())
    bad = {item for item in range(count) if any(script[item][1] for script in scripts)}
    assert sorted(found) == [item for item in range(count) if item not in bad]
    assert not ordered or found == sorted(found)
    assert sorted(one.item for one in failed) == sorted(bad)
    assert all(stage.most <= most for stage, most in zip(stages, concurrency, strict=False))


@given(
    scripts=_SCRIPTS,
    taken=st.integers(0, 30),
    drain=st.booleans(),
    pause=st.sampled_from([0, 0.3, 3]),
)
@settings(deadline=None, max_examples=200)
def test_leaving_off_anywhere(scripts, taken, drain, pause):
    """Leaves no call and no task, and the source closed if it was begun."""
    count, scripts = scripts
    stages = [Scripted(number, script) for number, script in enumerate(scripts)]
    numbers = Numbers()

    async def main():
        parts = [StreamStage(stage, 3) for stage in stages]
        found = stream(numbers.later(count), parts, drain=drain, on_error=lambda _: None)
        for _ in range(taken):
            await anext(found, None)
            await asyncio.sleep(pause)
        await found.aclose()
        assert not any(stage.under_way for stage in stages)
        assert numbers.is_closed or not numbers.read

    run_virtually(main())


@given(
    calls=st.lists(
        st.tuples(st.sampled_from([0, 0.0001, 0.001]), st.sampled_from([False, False, True])),
        max_size=30,
    ),
    taken=st.integers(0, 40),
    ordered=st.booleans(),
)
@settings(deadline=None, max_examples=30)
def test_leaving_off_anywhere_in_threads(calls, taken, ordered):
    """A blocking source and blocking stages end as well, and none is left behind."""
    under_way, numbers, failed = [], Numbers(), []

    def work(item):
        under_way.append(item)
        time.sleep(calls[item][0])
        under_way.remove(item)
        if calls[item][1]:
            raise ValueError(item)
        return item

    async def main():
        stages = [StreamStage(work, 3), StreamStage(work, 3)]
        found = stream(numbers(len(calls)), stages, ordered=ordered, on_error=failed.append)
        results = []
        async with contextlib.aclosing(found):
            async for item in found:
                results.append(item)
                if len(results) > taken:
                    break
        assert not under_way
        assert numbers.is_closed
        return results

    results = asyncio.run(main())
    good = [item for item, (_, fails) in enumerate(calls) if not fails]
    assert len(results) == min(len(good), taken + 1)
    assert not ordered or results == good[: taken + 1]
