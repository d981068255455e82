"""Many queries through one pipeline: each has its outcome, and nothing goes on afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import itertools
import sys
import threading
from types import SimpleNamespace

import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode

from ragaccel import accelerate, telemetry
from ragaccel.batching import agather, gather
from ragaccel.errors import ConfigurationError
from tests.support.leftovers import nothing_left, run_virtually, settled

FACES = ("threads", "loop", "loop over threads")
user = contextvars.ContextVar("user", default="nobody")


@pytest.fixture(autouse=True)
def _ended(caplog, monkeypatch):
    with nothing_left(caplog, monkeypatch):
        yield


@pytest.fixture(params=FACES)
def outcomes(request):
    """Return the outcomes of queries, whoever asks them of a function."""

    def asked(queries, call, **options):
        if request.param == "threads":
            return list(gather(queries, call, **options))

        async def acall(query):
            return call(query)

        async def main():
            pipeline = acall if request.param == "loop" else call
            return [one async for one in agather(queries, pipeline, **options)]

        return asyncio.run(main())

    return asked


def third_fails(query):
    if query % 3 == 2:
        raise ValueError(f"{query} is bad")
    return 2 * query


def test_each_query_has_its_result_or_its_error(outcomes):
    """In their order; one that fails ends no other."""
    found = outcomes(range(30), third_fails, concurrency=4)
    assert [one.position for one in found] == [one.item for one in found] == list(range(30))
    for one in found:
        if one.position % 3 == 2:
            assert one.value is None
            with pytest.raises(ValueError, match=f"{one.item} is bad"):
                one.unwrap()
        else:
            assert one.unwrap() == 2 * one.item
            assert one.error is None


@pytest.mark.parametrize("ordered", [True, False])
def test_thousands_of_queries(outcomes, ordered):
    """None is lost, none comes twice; they may come from a generator."""
    found = outcomes((number for number in range(3000)), str, ordered=ordered, concurrency=32)
    assert sorted(one.position for one in found) == list(range(3000))
    assert all(one.value == str(one.item) for one in found)


def test_no_queries(outcomes):
    """Give no outcomes."""
    assert outcomes([], str) == outcomes(iter(()), str) == []


def test_as_many_are_under_way_as_asked_for():
    """Four wait for one another, and a fifth never joins them."""
    together, under_way, most = threading.Barrier(4), [], []

    def call(query):
        under_way.append(query)
        most.append(len(under_way))
        together.wait(10)
        under_way.remove(query)
        return query

    assert [one.unwrap() for one in gather(range(16), call, concurrency=4)] == list(range(16))
    assert max(most) == 4


async def test_as_many_threads_as_asked_for():
    """More than event loops allow for by themselves."""
    together = threading.Barrier(50)
    found = [one async for one in agather(range(50), lambda _: together.wait(10), concurrency=50)]
    assert sorted(one.unwrap() for one in found) == list(range(50))


def test_as_they_come():
    """Without an order who is ready first comes first."""
    last_is_done = threading.Event()

    def call(query):
        if query == 0:
            assert last_is_done.wait(10)
        return query

    found = []
    for one in gather(range(8), call, ordered=False):
        found.append(one.unwrap())
        if len(found) == 7:
            last_is_done.set()
    assert found[-1] == 0
    assert sorted(found) == list(range(8))


@pytest.fixture
def numbers():
    """A source that tells how far it was read, and whether it was closed."""

    class Numbers:
        read, is_closed = 0, False

        def __call__(self, count):
            try:
                for self.read in range(1, count + 1):
                    yield self.read
            finally:
                self.is_closed = True

    return Numbers()


def test_queries_are_read_as_outcomes_are_taken(numbers):
    """At most twice the concurrency ahead; whoever leaves off early closes the generator."""
    queries = numbers(10_000)
    for at, _ in enumerate(gather(queries, str, concurrency=4)):
        assert numbers.read <= at + 8
        if at == 20:
            break
    assert numbers.is_closed


@pytest.mark.parametrize("is_async", [True, False])
async def test_queries_are_read_as_outcomes_are_taken_on_a_loop(numbers, is_async):
    """As far ahead, and no farther while the consumer awaits something else."""

    async def text(query):
        return str(query)

    taken = 0
    pipeline = text if is_async else str
    async with contextlib.aclosing(agather(numbers(10_000), pipeline, concurrency=4)) as found:
        async for _ in found:
            taken += 1
            await asyncio.sleep(0.001)
            assert numbers.read <= taken + 8
            if taken == 20:
                break
    assert numbers.is_closed


def test_queries_of_an_asynchronous_source():
    """They are asked while the source waits for more, and it is closed in the end."""
    answered, closed = asyncio.Event(), []

    async def queries():
        try:
            yield "first"
            await answered.wait()
            yield "second"
        finally:
            closed.append(True)

    async def main():
        async def echo(query):
            return query

        found = []
        async for one in agather(queries(), echo):
            found.append(one.unwrap())
            answered.set()
        return found

    assert asyncio.run(main()) == ["first", "second"]
    assert closed


def test_a_source_that_breaks(outcomes):
    """Its error comes after the outcomes of what it gave before."""

    def queries():
        yield from range(5)
        raise OSError("the file is gone")

    found = []

    def call(query):
        found.append(query)
        return query

    with pytest.raises(OSError, match="the file is gone"):
        outcomes(queries(), call)
    assert sorted(found) == list(range(5))


def test_who_leaves_off_begins_no_more_queries():
    """Those that wait are dropped; by an error, too."""
    asked, go = [], threading.Event()

    def call(query):
        asked.append(query)
        if query:
            go.wait(10)
        return query

    found = gather(range(100), call, concurrency=3)
    assert next(found).item == 0
    threading.Timer(0.05, go.set).start()
    with pytest.raises(LookupError):
        found.throw(LookupError)
    assert len(asked) <= 4


@pytest.fixture
def slow():
    """A call that answers the first query and has much to clean up in the others."""

    class Slow:
        def __init__(self):
            self.begun, self.cleaned_up = [], []

        async def __call__(self, query):
            if query == 0:
                return
            self.begun.append(query)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
                self.cleaned_up.append(query)
                raise

    return Slow()


def test_who_leaves_off_cancels_what_is_under_way(slow):
    """Each call is cancelled once, and is left the time to clean up."""

    async def main():
        async with contextlib.aclosing(agather(range(100), slow, concurrency=4)) as found:
            async for _ in found:
                break
        assert sorted(slow.cleaned_up) == slow.begun != []

    run_virtually(main())


def test_who_leaves_off_without_aclosing(slow):
    """The event loop cancels soon after what is under way."""

    async def main():
        async for _ in agather(range(100), slow, concurrency=4):
            break
        await asyncio.sleep(2)
        assert sorted(slow.cleaned_up) == slow.begun != []

    run_virtually(main())


def test_who_is_cancelled_cancels_what_is_under_way(slow):
    """And has waited for it."""

    async def consume():
        async for _ in agather(range(100), slow, concurrency=4):
            pass

    async def main():
        task = asyncio.create_task(consume())
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(slow.cleaned_up) == slow.begun == [1, 2, 3, 4]

    run_virtually(main())


def test_the_loop_may_end_right_after():
    """Who leaves off in the last line of a program leaves no complaint behind."""

    async def call(query):
        await asyncio.sleep(0.001 * query)

    async def main():
        async for _ in agather(iter(range(100)), call):
            return

    asyncio.run(main())


async def test_cancelled_in_threads():
    """Who waits for a cancelled consumer has waited for its threads."""
    begun, go, ended = threading.Event(), threading.Event(), []

    def call(query):
        begun.set()
        go.wait(10)
        ended.append(query)

    async def consume():
        async for _ in agather([1], call):
            pass

    task = asyncio.create_task(consume())
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1]


def test_a_pause_in_a_thread_ends_with_the_consumer():
    """Whoever leaves off need not wait for the next turn of a slow pace."""
    for _ in gather(range(10), str, rate=0.01):
        break

    async def main():
        async with contextlib.aclosing(agather(range(10), str, rate=0.01)) as found:
            async for _ in found:
                break

    asyncio.run(main())


async def test_no_pause_begins_in_a_thread_after_the_consumer_was_cancelled():
    """A call that fails then is not asked again after an hour."""
    begun, go = threading.Event(), threading.Event()

    def call(query):
        begun.set()
        go.wait(10)
        raise TimeoutError

    async def consume():
        async for _ in agather([1], call, retry=tenacity.Retrying(wait=tenacity.wait_fixed(3600))):
            pass

    task = asyncio.create_task(consume())
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.01)
    go.set()
    ended, _ = await asyncio.wait((task,), timeout=10)
    assert ended


def test_a_call_that_is_cancelled_from_inside(outcomes):
    """Is an error of that query alone."""

    def call(query):
        if query == 1:
            raise asyncio.CancelledError
        if query == 2:
            raise StopIteration
        return query

    found = outcomes(range(4), call)
    assert [one.value for one in found] == [0, None, None, 3]
    assert "cancelled from inside" in str(found[1].error)
    assert found[2].error is not None


def test_the_end_of_the_program_is_no_error_of_a_query():
    """`sys.exit` in a thread ends the caller."""
    with pytest.raises(SystemExit):
        list(gather(range(3), sys.exit))


def test_context_variables_reach_every_call(outcomes):
    """Those of the caller do, and what one call sets no other sees."""

    def call(query):
        seen = user.get()
        user.set(f"user {query}")
        return seen

    token = user.set("caller")
    try:
        found = outcomes(range(20), call, concurrency=2)
        later = gather(range(20), call)
        user.set("consumer")
        found += later
    finally:
        user.reset(token)
    assert {one.unwrap() for one in found} == {"caller"}


def test_stages_of_a_query_are_part_of_the_callers(outcomes):
    """And `gather` adds none of its own."""
    heard = []
    listener = SimpleNamespace(started=lambda stage: None, ended=heard.append)

    def call(query):
        with telemetry.stage("query"):
            return query

    telemetry.listen(listener)
    try:
        with telemetry.stage("ingest") as whole:
            outcomes(range(5), call)
    finally:
        telemetry.unlisten(listener)
    assert [one.name for one in heard] == ["query"] * 5 + ["ingest"]
    assert all(one.parent is whole for one in heard[:5])


def at_times(queries, call, **options):
    """Return the outcomes and the virtual times at which each attempt began."""
    times = []

    async def timed(query):
        times.append((query, asyncio.get_running_loop().time()))
        return call(query)

    async def main():
        return [one async for one in agather(queries, timed, **options)]

    return run_virtually(main()), times


def test_a_rate_spaces_the_queries_evenly():
    """No burst at the beginning, and none after a pause of the source."""

    async def queries():
        for number in range(3):
            yield number
        await asyncio.sleep(10)
        yield 3
        yield 4

    _, times = at_times(queries(), str, rate=4)
    assert [time for _, time in times] == pytest.approx([0, 0.25, 0.5, 10, 10.25])


def test_further_attempts_keep_to_the_rate():
    """They are requests like any other."""
    _, times = at_times(range(3), failing(TimeoutError, 2), rate=1, retry=5)
    gaps = [later - earlier for (_, earlier), (_, later) in itertools.pairwise(times)]
    assert len(times) == 9
    assert min(gaps) > 0.99


def failing(error, times):
    """Return a call that raises so many times for each query before it answers."""
    left = {}

    def call(query):
        left[query] = left.get(query, times) - 1
        if left[query] >= 0:
            raise error
        return query

    return call


class RateLimitError(Exception):
    """As OpenAI's client raises it."""

    def __init__(self, headers=None, status_code=429):
        super().__init__()
        self.response = SimpleNamespace(status_code=status_code, headers=headers or {})


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (TimeoutError, 3), (ConnectionResetError, 3), (RateLimitError, 3),
        (RateLimitError(status_code=503), 3), (RateLimitError(status_code=401), 1),
        (ValueError, 1), (PermissionError, 1),
    ],
)  # fmt: skip
def test_what_may_pass_is_asked_again(error, asked):
    """A wrong argument or key is not, whatever the class of the error is called."""
    found, times = at_times(["q"], failing(error, 2), retry=2)
    assert len(times) == asked
    assert (found[0].error is None) == (asked == 3)


def test_attempts_end():
    """The outcome is the error of the last."""
    found, times = at_times(range(3), failing(TimeoutError, 100), retry=2)
    assert len(times) == 9
    assert all(isinstance(one.error, TimeoutError) for one in found)


def test_after_a_rate_limit_everybody_waits():
    """As long as the server asks for, and then at the same pace."""
    limited = failing(RateLimitError({"retry-after": "7"}), 1)
    found, times = at_times(
        range(5), lambda query: limited(query) if query == 1 else query, retry=1, rate=1
    )
    assert [one.unwrap() for one in found] == list(range(5))
    assert sorted(query for query, _ in times) == [0, 1, 1, 2, 3, 4]
    assert [time for _, time in times] == pytest.approx([0, 1, 8, 9, 10, 11])


def test_after_another_error_nobody_else_waits():
    """It may be that of one query."""
    passing = failing(RateLimitError({"retry-after": "7"}, 503), 1)
    _, times = at_times(range(3), lambda query: passing(query) if query == 1 else query,
                        retry=1, rate=1)  # fmt: skip
    assert [time for _, time in times] == pytest.approx([0, 1, 2, 8])


def test_a_retryer_of_tenacity(outcomes):
    """Says by itself what is asked again, and when."""
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(4),
        retry=tenacity.retry_if_exception_type(KeyError),
        reraise=True,
    )
    found = outcomes(range(10), failing(KeyError, 3), retry=retrying)
    assert [one.unwrap() for one in found] == list(range(10))
    found = outcomes(range(10), failing(KeyError, 4), retry=retrying)
    assert all(isinstance(one.error, KeyError) for one in found)


def test_a_retryer_that_awaits():
    """Queries under way at the same time do not take each other's decisions."""

    async def pause(state):
        await asyncio.sleep(state.args[0])

    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(3), before_sleep=pause, after=pause
    )
    found, times = at_times(range(8), failing(KeyError, 2), retry=retrying)
    assert [one.unwrap() for one in found] == list(range(8))
    assert len(times) == 24


class Retriever(BaseRetriever):
    """A LlamaIndex retriever that has no asynchronous form."""

    def _retrieve(self, query_bundle):
        self.thread = threading.current_thread()
        return [NodeWithScore(node=TextNode(text=query_bundle.query_str.upper()), score=1)]


class Engine(CustomQueryEngine):
    """A LlamaIndex query engine with both forms."""

    def custom_query(self, query_str):
        return f"{query_str}, blocking"

    async def acustom_query(self, query_str):
        return f"{query_str}, awaiting"


@pytest.mark.parametrize("wrap", [lambda one: one, accelerate], ids=["plain", "accelerated"])
async def test_llamaindex(wrap):
    """The asynchronous form is taken on a loop, unless it is one that only holds up the loop."""
    retriever = wrap(Retriever())
    found = [one async for one in agather(["a", "b"], retriever)]
    assert [one.unwrap()[0].text for one in found] == ["A", "B"]
    assert retriever.thread is not threading.main_thread()
    assert [one.unwrap()[0].text for one in gather(["c"], retriever)] == ["C"]


async def test_llamaindex_engines():
    """A query engine is asked by `query`, on a loop by `aquery`."""
    assert [str(one.unwrap()) for one in gather(["a", "b"], Engine())] == [
        "a, blocking", "b, blocking",
    ]  # fmt: skip
    assert [str(one.unwrap()) async for one in agather(["a"], Engine())] == ["a, awaiting"]


async def test_langchain():
    """A chain is asked by `invoke`, on a loop by `ainvoke`."""

    async def later(query):
        return f"{query} later"

    chain = RunnableLambda(str.upper, afunc=later)
    assert [one.unwrap() for one in gather(["a", "b"], chain)] == ["A", "B"]
    assert [one.unwrap() async for one in agather(["a"], chain)] == ["a later"]


async def test_a_function_that_gives_a_coroutine():
    """Is awaited on the loop, attempts and all; `gather` says what to write."""
    fail_once = failing(TimeoutError, 1)

    async def call(query):
        assert threading.current_thread() is threading.main_thread()
        return fail_once(query)

    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
    found = [one async for one in agather([1, 2], lambda query: call(query + 0), retry=retrying)]
    assert [one.unwrap() for one in found] == [1, 2]
    (one,) = gather([1], lambda query: call(query + 0))
    with pytest.raises(ConfigurationError, match="agather"):
        one.unwrap()


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("abc", str), {}, "iterable"), ((7, str), {}, "iterable"),
        (([], 7), {}, "int cannot be asked"), (([], str), {"concurrency": 0}, "concurrency"),
        (([], str), {"rate": 0}, "rate"), (([], str), {"retry": -1}, "retry"),
        (([], str), {"retry": "often"}, "retry"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, options, said):
    """Are refused at once, not when the first outcome is asked for."""
    for face in (gather, agather):
        with pytest.raises(ConfigurationError, match=said):
            face(*arguments, **options)


def test_what_is_asynchronous_only():
    """Is refused by `gather`, which says what to write."""

    async def call(query):
        return query

    class Asynchronous:
        async def ainvoke(self, query):
            return query

    for pipeline in (call, Asynchronous()):
        with pytest.raises(ConfigurationError, match="agather"):
            gather([], pipeline)


def test_progress(outcomes, monkeypatch):
    """A bar counts the outcomes, on a terminal."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    outcomes(range(7), str, progress=True)
    assert "queries" in terminal.getvalue()
    assert "7/7" in terminal.getvalue()


@given(
    calls=st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=40),
    concurrency=st.integers(1, 8),
    ordered=st.booleans(),
    pauses=st.floats(0, 5),
)
@settings(deadline=None)
def test_whatever_the_calls_take(calls, concurrency, ordered, pauses):
    """Every query has its own outcome, in order or as it came, and never too many run."""
    under_way, most, came = set(), [0], []

    async def call(query):
        delay, fails = calls[query]
        under_way.add(query)
        most.append(len(under_way))
        await asyncio.sleep(delay)
        under_way.remove(query)
        came.append(query)
        if fails:
            raise ValueError(query)
        return query

    async def main():
        found = []
        async for one in agather(range(len(calls)), call, concurrency=concurrency, ordered=ordered):
            found.append(one)
            await asyncio.sleep(pauses)
        return found

    found = run_virtually(main())
    assert [one.item for one in found] == (sorted(came) if ordered else came)
    assert all(
        one.error.args == (one.item,) if calls[one.item][1] else one.value == one.item
        for one in found
    )
    assert len(found) == len(calls)
    assert max(most) <= concurrency


@given(st.integers(0, 30), st.integers(0, 30), st.floats(0, 3))
@settings(deadline=None)
def test_leaving_off_anywhere(taken, count, pause):
    """Leaves no call under way."""
    under_way = set()

    async def call(query):
        under_way.add(query)
        try:
            await asyncio.sleep(query % 3)
        finally:
            under_way.remove(query)

    async def main():
        found = agather(range(count), call, concurrency=4)
        for _ in range(taken):
            await asyncio.sleep(pause)
            await anext(found, None)
        await found.aclose()
        assert not under_way
        await settled()

    run_virtually(main())
