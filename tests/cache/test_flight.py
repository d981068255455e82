"""Single flight: of all who miss a key together one computes, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from ragaccel.cache import MISSING, MemoryLevel, MultiLevelCache, multilevel
from ragaccel.cache.flight import Flights
from tests.cache.helpers import PATIENCE, Compute, script, together, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def cache():
    return MultiLevelCache([MemoryLevel()])


class Joined:
    """How many calls have missed and are about to lead or to follow; a leader can wait for them."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        join, lock = Flights.join, threading.Lock()

        def counted(flights: Flights, *arguments: Any) -> Any:
            flight = join(flights, *arguments)
            with lock:
                self.count += 1
            return flight

        monkeypatch.setattr(Flights, "join", counted)

    def wait(self, count: int) -> None:
        wait_until(lambda: self.count >= count)

    async def awaited(self, count: int) -> None:
        end = time.monotonic() + PATIENCE
        while self.count < count:
            assert time.monotonic() < end
            await asyncio.sleep(0.001)


@pytest.fixture
def joined(monkeypatch):
    return Joined(monkeypatch)


class Shared:
    """A computation that ends only when so many calls have met; each call gets a new number."""

    def __init__(self, joined: Joined, meet: int, outcome: Callable[[int], Any] = str) -> None:
        self.joined, self.meet, self.outcome = joined, meet, outcome
        self.calls = 0
        self._numbers = itertools.count(1)

    def __call__(self) -> Any:
        self.calls += 1
        self.joined.wait(self.meet)
        return self.outcome(next(self._numbers))

    async def awaited(self) -> Any:
        self.calls += 1
        await self.joined.awaited(self.meet)
        return self.outcome(next(self._numbers))


def fail(number: int) -> Any:
    raise LookupError(f"failure {number}")


# ---- one computation -----------------------------------------------------------------------------


def test_threads_share_one_computation(cache, joined):
    """Of sixteen threads that miss a key together one computes, and all get its value."""
    compute = Shared(joined, 16)
    got = together(16, lambda _: cache.get_or_compute("key", compute))
    assert got == ["1"] * 16
    assert compute.calls == 1
    assert cache.stats().coalesced == 15
    assert cache.get_or_compute("key", Compute()) == "1"


async def test_tasks_share_one_computation(cache, joined):
    """Of a hundred tasks that miss a key together one computes, and all get its value."""
    compute = Shared(joined, 100)
    calls = [cache.aget_or_compute("key", compute.awaited) for _ in range(100)]
    assert await asyncio.gather(*calls) == ["1"] * 100
    assert compute.calls == 1
    assert cache.stats().coalesced == 99


async def test_threads_and_tasks_share_one_computation(cache, joined):
    """Sync calls in threads and async calls in tasks wait for each other."""
    compute = Shared(joined, 16)
    with ThreadPoolExecutor(8) as pool:
        threads = [
            asyncio.wrap_future(pool.submit(cache.get_or_compute, "key", compute)) for _ in range(8)
        ]
        tasks = [cache.aget_or_compute("key", compute.awaited) for _ in range(8)]
        assert await asyncio.gather(*tasks, *threads) == ["1"] * 16
    assert compute.calls == 1


def test_event_loops_share_one_computation(cache, joined):
    """Tasks of two loops in two threads wait for each other."""
    compute = Shared(joined, 8)

    async def four() -> list[str]:
        return await asyncio.gather(
            *(cache.aget_or_compute("key", compute.awaited) for _ in range(4))
        )

    assert together(2, lambda _: asyncio.run(four())) == [["1"] * 4] * 2
    assert compute.calls == 1


def test_different_keys_do_not_wait(cache, joined):
    """Computations of different keys run side by side."""
    compute = Shared(joined, 4)
    got = together(4, lambda number: cache.get_or_compute(number, compute))
    assert sorted(got) == ["1", "2", "3", "4"]


def test_shared_values_are_each_callers_own(cache, joined):
    """A follower may change what it got; nobody else sees it."""
    compute = Shared(joined, 4, lambda number: [number])
    got = together(4, lambda _: cache.get_or_compute("key", compute))
    got[0].append("poison")
    assert got[1:] == [[1], [1], [1]]
    assert cache.get("key") == [1]


# ---- errors --------------------------------------------------------------------------------------


def outcome_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - the error is what is looked at
        return f"{type(error).__name__}: {error}"


async def aoutcome_of(call: Any) -> Any:
    try:
        return await call
    except Exception as error:  # noqa: BLE001 - the error is what is looked at
        return f"{type(error).__name__}: {error}"


async def test_the_leaders_error_reaches_all_followers(cache, joined):
    """Threads and tasks that waited for a failed computation get its error."""
    compute = Shared(joined, 12, fail)
    with ThreadPoolExecutor(6) as pool:
        threads = [
            asyncio.wrap_future(
                pool.submit(outcome_of, lambda: cache.get_or_compute("key", compute))
            )
            for _ in range(6)
        ]
        tasks = [aoutcome_of(cache.aget_or_compute("key", compute.awaited)) for _ in range(6)]
        got = await asyncio.gather(*tasks, *threads)
    assert got == ["LookupError: failure 1"] * 12
    assert compute.calls == 1


def test_errors_are_not_cached(cache, face):
    """The call after a failed one computes again."""
    compute = Compute()

    def fails() -> Any:
        raise LookupError

    for _ in range(2):
        with pytest.raises(LookupError):
            face.get_or_compute(cache, "key", fails)
    assert face.get_or_compute(cache, "key", compute) == "value"
    assert compute.calls == 1


def test_a_stop_iteration_is_an_error_like_another(cache, joined, face):
    """A computation that raises `StopIteration` fails, for its followers too, and blocks nobody."""

    def stops() -> Any:
        raise StopIteration("not a result")

    with pytest.raises((StopIteration, RuntimeError)):
        face.get_or_compute(cache, "key", stops)
    compute = Shared(joined, 5, lambda _: next(iter(())))
    got = together(4, lambda _: outcome_of(lambda: cache.get_or_compute("key", compute)))
    assert {message.partition(":")[0] for message in got} <= {"StopIteration", "RuntimeError"}
    assert face.get_or_compute(cache, "key", Compute()) == "value"


def test_an_error_caused_by_a_stop_iteration_stays_itself(cache, face):
    """A `RuntimeError` of the computation is not taken for the one that a coroutine makes."""

    def exhausted() -> Any:
        yield next(iter(()))

    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        face.get_or_compute(cache, "key", lambda: list(exhausted()))


class Interrupt(BaseException):
    """Ends a thread, as `KeyboardInterrupt` does."""


def test_followers_go_on_when_the_leader_is_interrupted(cache, joined):
    """Of the followers of a leader that was killed one computes, and the others get its value."""
    first = threading.Event()

    def compute() -> str:
        if not first.is_set():
            first.set()
            joined.wait(6)
            raise Interrupt
        return "value"

    def call(_: int) -> str:
        try:
            return cache.get_or_compute("key", compute)
        except Interrupt:
            return "interrupted"

    assert sorted(together(6, call)) == ["interrupted"] + ["value"] * 5
    assert cache.get("key") == "value"


# ---- cancellation --------------------------------------------------------------------------------


async def test_a_follower_takes_over_from_a_cancelled_leader(cache, joined):
    """When the computing task is cancelled, one of the others computes for all that are left."""
    calls = []

    async def compute() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return f"value {len(calls)}"

    tasks = [asyncio.create_task(cache.aget_or_compute("key", compute)) for _ in range(5)]
    await joined.awaited(5)
    tasks[0].cancel()
    assert await asyncio.gather(*tasks[1:]) == ["value 2"] * 4
    assert tasks[0].cancelled()
    assert len(calls) == 2


async def test_a_thread_takes_over_from_a_cancelled_task(cache, joined):
    """Followers in threads hear of the cancellation of a leader that is a task."""
    compute = Compute()

    async def never() -> str:
        return await asyncio.Event().wait()

    leader = asyncio.create_task(cache.aget_or_compute("key", never))
    await joined.awaited(1)
    with ThreadPoolExecutor(4) as pool:
        threads = [
            asyncio.wrap_future(pool.submit(cache.get_or_compute, "key", compute)) for _ in range(4)
        ]
        await joined.awaited(5)
        leader.cancel()
        assert await asyncio.gather(*threads) == ["value"] * 4
    assert compute.calls == 1


async def test_a_cancelled_follower_hurts_nobody(cache, joined):
    """The leader and the other followers go on as if the follower had never asked."""
    proceed = asyncio.Event()
    calls = []

    async def compute() -> str:
        calls.append(1)
        await proceed.wait()
        return "value"

    tasks = [asyncio.create_task(cache.aget_or_compute("key", compute)) for _ in range(4)]
    await joined.awaited(4)
    tasks[2].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[2]
    proceed.set()
    assert await asyncio.gather(tasks[0], tasks[1], tasks[3]) == ["value"] * 3
    assert len(calls) == 1


async def test_all_callers_cancelled_leave_the_key_usable(cache, joined):
    """When nobody is left the next call computes at once."""

    async def never() -> str:
        return await asyncio.Event().wait()

    tasks = [asyncio.create_task(cache.aget_or_compute("key", never)) for _ in range(3)]
    await joined.awaited(3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await cache.aget_or_compute("key", Compute().awaited) == "value"


def test_a_loop_that_ends_amid_a_computation_leaves_the_key_usable(cache, joined):
    """A thread that follows a task whose loop is shut down computes for itself."""
    compute = Compute()

    async def lead_and_leave() -> None:
        leader = asyncio.create_task(
            cache.aget_or_compute("key", lambda: asyncio.Event().wait())  # type: ignore[arg-type]
        )
        await joined.awaited(2)
        assert not leader.done()

    with ThreadPoolExecutor(2) as pool:
        loop = pool.submit(asyncio.run, lead_and_leave())
        joined.wait(1)
        follower = pool.submit(cache.get_or_compute, "key", compute)
        loop.result(PATIENCE)
        assert follower.result(PATIENCE) == "value"
    assert compute.calls == 1


# ---- what cannot be shared -----------------------------------------------------------------------


def test_a_value_that_cannot_be_shared_is_computed_by_each(cache, joined):
    """Followers never get the leader's own object; they compute theirs, side by side."""
    compute = Shared(joined, 6, lambda number: (number,))
    got = together(6, lambda _: cache.get_or_compute("key", compute))
    assert sorted(got) == [(number,) for number in range(1, 7)]
    assert compute.calls == 6
    assert cache.get("key") is MISSING


# ---- waiting that could never end ----------------------------------------------------------------


async def test_a_sync_call_on_the_leaders_own_loop_does_not_wait(cache, joined):
    """A coroutine's sync call computes for itself while a task of its own loop leads."""
    proceed = asyncio.Event()

    async def slow() -> str:
        await proceed.wait()
        return "leader"

    leader = asyncio.create_task(cache.aget_or_compute("key", slow))
    await joined.awaited(1)
    started = time.monotonic()
    assert cache.get_or_compute("key", lambda: "own") == "own"
    assert time.monotonic() - started < 20  # a wait for the leader would take 60 s
    proceed.set()
    assert await leader == "leader"


class Slow(MemoryLevel):
    """A level whose async answers wait for an event."""

    name = "slow"

    def __init__(self) -> None:
        super().__init__()
        self.answer = asyncio.Event()

    async def aget_many(self, keys):
        await self.answer.wait()
        return self.get_many(keys)


async def test_a_sync_call_on_the_leaders_own_loop_is_served(joined):
    """While a task of its own loop still looks a value up, a sync call finds it by itself."""
    slow, compute = Slow(), Compute("computed")
    MultiLevelCache([slow]).set("key", "stored")
    cache = MultiLevelCache([MemoryLevel(), slow])
    leader = asyncio.create_task(cache.aget_or_compute("key", compute.awaited))
    for _ in range(10):
        await asyncio.sleep(0)
    assert cache.get_or_compute("key", compute) == "stored"
    slow.answer.set()
    assert await leader == "stored"
    assert compute.calls == 0


async def test_a_sync_call_in_a_coroutine_follows_another_thread(cache, joined):
    """A leader that is elsewhere is waited for, inside a running loop too."""
    compute = Shared(joined, 2)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get_or_compute, "key", compute)
        await joined.awaited(1)
        assert cache.get_or_compute("key", Compute("own")) == "1"
        assert leader.result(PATIENCE) == "1"


def test_a_computation_that_asks_for_its_own_key_ends(cache, face):
    """A nested call for the key that is being computed computes and does not wait for itself."""

    def outer() -> str:
        return "outer of " + cache.get_or_compute("key", lambda: "inner")

    assert face.get_or_compute(cache, "key", outer) == "outer of inner"
    assert face.get(cache, "key") == "outer of inner"


async def test_an_async_computation_that_asks_for_its_own_key_ends(cache):
    """The same with everything awaited, at two levels of nesting."""

    async def innermost() -> str:
        return "innermost"

    async def inner() -> str:
        return "inner of " + await cache.aget_or_compute("key", innermost)

    async def outer() -> str:
        return "outer of " + await cache.aget_or_compute("key", inner)

    call = cache.aget_or_compute("key", outer)
    assert await asyncio.wait_for(call, PATIENCE) == "outer of inner of innermost"


async def test_an_async_computation_may_ask_through_a_task_or_thread(cache):
    """Tasks and worker threads that carry the context of the computation do not wait for it."""

    async def outer() -> str:
        task = asyncio.create_task(cache.aget_or_compute("key", Compute("task").awaited))
        thread = asyncio.to_thread(cache.get_or_compute, "key", lambda: "thread")
        return " ".join(await asyncio.gather(task, thread))

    call = cache.aget_or_compute("key", outer)
    assert await asyncio.wait_for(call, PATIENCE) == "task thread"


def test_a_sync_computation_may_ask_through_a_thread(cache):
    """A thread that was started in a copy of the computation's context does not wait for it."""

    def outer() -> str:
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            inner = pool.submit(context.run, cache.get_or_compute, "key", lambda: "inner")
            return "outer of " + inner.result(PATIENCE)

    assert cache.get_or_compute("key", outer) == "outer of inner"


def test_a_sync_computation_may_run_a_loop_that_asks(cache):
    """A computation that starts an event loop for a nested async call does not wait for itself."""

    def outer() -> str:
        return "outer of " + asyncio.run(cache.aget_or_compute("key", Compute("inner").awaited))

    assert cache.get_or_compute("key", outer) == "outer of inner"


def test_a_leader_that_never_ends_is_given_up(joined, monkeypatch):
    """After the longest wait a follower computes for itself."""
    monkeypatch.setattr(multilevel, "_FLIGHT_TIMEOUT", 0.05)
    cache = MultiLevelCache([MemoryLevel()])
    end = threading.Event()

    def hangs() -> str:
        end.wait(PATIENCE)
        return "late"

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get_or_compute, "key", hangs)
        joined.wait(1)
        assert cache.get_or_compute("key", lambda: "own") == "own"
        assert asyncio.run(cache.aget_or_compute("key", Compute("async").awaited)) == "async"
        end.set()
        assert leader.result(PATIENCE) == "late"


# ---- whose computation it is ---------------------------------------------------------------------


def test_a_cache_within_the_computation_of_another_one_works(face):
    """Two caches that are asked for the same key, one inside the other, both store it."""
    outer, inner = MultiLevelCache([MemoryLevel()]), MultiLevelCache([MemoryLevel()])
    compute = Compute()
    for _ in range(2):
        outer.clear()
        got = face.get_or_compute(outer, "key", lambda: inner.get_or_compute("key", compute))
        assert got == "value"
    assert compute.calls == 1
    assert inner.get("key") == "value"


async def test_what_a_computation_started_uses_the_cache_afterwards(cache):
    """A task that outlives the computation that started it is served like everybody else."""
    proceed = asyncio.Event()
    compute = Compute("computed again")
    tasks = []

    async def background() -> list[str]:
        await proceed.wait()
        return [await cache.aget_or_compute("key", compute.awaited) for _ in range(3)]

    async def starts_something() -> str:
        tasks.append(asyncio.create_task(background()))
        return "value"

    await cache.aget_or_compute("key", starts_something)
    proceed.set()
    assert await tasks[0] == ["value"] * 3
    assert compute.calls == 0


def test_a_forked_child_does_not_wait_for_the_parents_statistics():
    """A child forked while another thread counts a hit goes on counting by itself."""
    printed = script(
        """
        import os, signal, threading, time
        from ragaccel.cache import MemoryLevel, MultiLevelCache
        cache = MultiLevelCache([MemoryLevel()])
        held = threading.Event()

        def count():
            with cache._store.recorder._lock:
                held.set()
                time.sleep(0.5)

        counting = threading.Thread(target=count)
        counting.start()
        held.wait()
        child = os.fork()
        if not child:
            signal.alarm(10)
            os._exit(0 if cache.get_or_compute("key", lambda: "child") == "child" else 1)
        print("at once" if os.waitpid(child, 0)[1] == 0 else "never")
        counting.join()
        """
    )
    assert printed == "at once\n"


def test_a_forked_child_does_not_wait_for_the_parents_computation():
    """A child forked while another thread computes is no follower of a leader it does not have."""
    printed = script(
        """
        import os, signal, threading
        from ragaccel.cache import MemoryLevel, MultiLevelCache
        cache = MultiLevelCache([MemoryLevel()])
        started, end = threading.Event(), threading.Event()

        def slow():
            started.set()
            end.wait()
            return "parent"

        leader = threading.Thread(target=cache.get_or_compute, args=("key", slow))
        leader.start()
        started.wait()
        child = os.fork()
        if not child:
            signal.alarm(20)  # a wait for the leader would take 60 s
            os._exit(0 if cache.get_or_compute("key", lambda: "child") == "child" else 1)
        print("at once" if os.waitpid(child, 0)[1] == 0 else "never")
        end.set()
        leader.join()
        """
    )
    assert printed == "at once\n"
