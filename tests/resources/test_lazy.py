"""What is expensive to load is loaded once, is there while it is used, and goes when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import gc
import os
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from ragaccel.errors import ConfigurationError
from ragaccel.resources import Lazy, lazy
from tests.cache.helpers import together, wait_until


class Model:
    """Something that must not be used once it is unloaded."""

    def __init__(self):
        self.is_open = True


class Source:
    """Loads models and unloads them, fails when it is told to, and counts."""

    def __init__(self, seconds=0.0):
        self.seconds, self.error = seconds, None
        self.loads = self.unloads = 0
        self.open = 0

    def load(self):
        self.loads += 1
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.open += 1
        assert self.open == 1, "two at a time"
        return Model()

    def unload(self, model):
        assert model.is_open
        time.sleep(self.seconds / 2)
        model.is_open = False
        self.open -= 1
        self.unloads += 1


def lazy_threads():
    return [thread for thread in threading.enumerate() if thread.name == "ragaccel-lazy"]


def test_it_is_loaded_at_the_first_use_and_once_for_all_threads():
    """All get the same value."""
    source = Source(0.05)
    model = Lazy(source.load)
    assert not model.is_loaded
    assert source.loads == 0

    def use(_):
        with model as value:
            return value

    assert len({id(value) for value in together(16, use)}) == 1
    assert model.is_loaded
    assert source.loads == 1


async def test_it_is_loaded_once_for_threads_and_tasks_without_blocking_the_loop():
    """While a model is loaded the loop goes on, and who is cancelled disturbs nobody."""
    may_load, turns = threading.Event(), 0
    source = Source()

    def load():
        assert may_load.wait(30)
        return source.load()

    model = Lazy(load)

    def use():
        with model as value:
            return value

    async def use_async():
        async with model as value:
            return value

    first = asyncio.create_task(use_async())  # it makes it load
    await asyncio.sleep(0)
    rest = [asyncio.create_task(use_async()) for _ in range(4)]
    rest += [asyncio.create_task(asyncio.to_thread(use)) for _ in range(2)]
    for _ in range(20):
        await asyncio.sleep(0.001)
        turns += 1
    first.cancel()
    rest.pop(0).cancel()
    await asyncio.sleep(0.01)
    may_load.set()
    assert len(set(await asyncio.gather(*rest))) == 1
    assert turns == 20
    assert source.loads == 1
    assert model.unload(), "a cancelled caller still has its lease"


async def test_threads_that_wait_do_not_keep_it_from_being_loaded():
    """Were it loaded by the pool that they fill, all would wait for ever."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))
    may_ask = threading.Event()
    model = Lazy(Model)

    def use():
        assert may_ask.wait(30)
        with model as value:
            return value

    waiting = [asyncio.create_task(asyncio.to_thread(use)) for _ in range(2)]
    await asyncio.sleep(0.01)
    async with model as value:
        may_ask.set()
        assert await asyncio.wait_for(asyncio.gather(*waiting), 30) == [value, value]


@pytest.mark.parametrize(
    "error", [ValueError("no model"), StopIteration(), SystemExit(1)], ids=repr
)
async def test_a_failure_is_for_those_who_waited_and_the_next_tries_again(error):
    """Whatever is raised, nobody waits for ever."""
    source = Source(0.05)
    source.error = error
    model = Lazy(source.load)

    kinds = (ValueError, RuntimeError, StopIteration, SystemExit)

    def use(_=None):
        try:
            with model as value:
                return value
        except kinds as raised:
            return raised

    async def use_async():
        try:
            async with model as value:
                return value
        except kinds as raised:
            return raised

    raised = await asyncio.wait_for(
        asyncio.gather(use_async(), use_async(), asyncio.to_thread(together, 4, use)), 30
    )
    raised = [*raised[:2], *raised[2]]
    # Python itself turns a StopIteration that leaves a coroutine into a RuntimeError.
    assert all(error in {one, one.__cause__} for one in raised), raised
    assert source.loads < len(raised)
    assert not model.is_loaded
    assert not model.unload()
    source.error = None
    assert isinstance(use(), Model)


@pytest.mark.parametrize("how", ["unload", "relieve"])
def test_what_is_in_use_is_not_unloaded(how):
    """Leases may be within each other; the last one counts."""
    source = Source()
    model = Lazy(source.load, source.unload, clock=lambda: 0.0)
    ask = model.unload if how == "unload" else lambda: model.relieve(1)
    with model as value:
        ask()
        with model as same:
            assert same is value
        ask()
        assert value.is_open
    assert model.is_loaded
    ask()
    assert not value.is_open
    assert not model.is_loaded
    with model as other:
        assert other is not value
        assert other.is_open
    assert source.loads == 2


def test_under_pressure_it_stays_for_as_long_as_loading_took():
    """A model that is used all the time is not loaded all the time."""
    now = 0.0

    def load():
        nonlocal now
        now += 10
        return Model()

    model = Lazy(load, clock=lambda: now)
    with model:
        now += 100
    now += 9.9
    assert model.relieve(1) == 0
    assert model.is_loaded
    now += 0.2
    assert model.relieve(1) == 0
    assert not model.is_loaded


def test_it_is_unloaded_when_it_was_idle():
    """Not while it is used; its thread ends with that, and the next use loads it again."""
    source = Source()
    model = Lazy(source.load, source.unload, idle=0.02)
    with model as value:
        time.sleep(0.1)
        assert value.is_open
    wait_until(lambda: not model.is_loaded)
    wait_until(lambda: not lazy_threads())
    assert source.unloads == 1
    with model as other:
        assert other.is_open
    wait_until(lambda: source.unloads == 2)


def test_without_idle_no_thread_is_left():
    """Nothing looks at what is to stay."""
    model = Lazy(Model)
    with model:
        wait_until(lambda: not lazy_threads())
    assert model.is_loaded


@pytest.mark.parametrize("end", ["unload", "forget"])
def test_the_thread_ends_with_the_value_or_its_holder(end):
    """However long the idle time is."""
    model = Lazy(Model, idle=3600)
    with model as value:
        gone = weakref.ref(value)
        del value
    wait_until(lambda: len(lazy_threads()) == 1)
    if end == "unload":
        model.unload()
    else:
        del model
    wait_until(lambda: not lazy_threads())
    assert gone() is None


def test_a_value_that_refers_to_itself_is_freed():
    """The collector may not come by for long, above all a tamed one."""

    def load():
        value = Model()
        value.itself = value
        return value

    model = Lazy(load)
    with model as value:
        gone = weakref.ref(value)
        del value
    gc.disable()
    try:
        assert model.unload()
        assert gone() is None
    finally:
        gc.enable()


def test_values_of_every_kind():
    """None and those that cannot be referred to weakly are values, too."""
    for value in (None, 5, [1, 2]):
        model = Lazy(lambda value=value: value)
        with model as held:
            assert held == value
        assert model.is_loaded
        assert model.unload()
        assert not model.is_loaded


def test_unloading_that_fails_is_logged(caplog):
    """The value is let go, and the next is loaded."""

    def fail(_):
        raise OSError("the file is gone")

    model = Lazy(Model, fail)
    with model as first:
        pass
    assert model.unload()
    with model as second:
        assert second is not first
    [record] = caplog.records
    assert record.name == "ragaccel.resources"
    assert "OSError" in record.getMessage()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forks amid threads
@pytest.mark.parametrize("at", ["loading", "loaded", "in use", "idle"])
def test_after_a_fork_the_child_loads_for_itself(at):
    """It waits for no thread of the parent, and unloads nothing of it."""
    source = Source(0.2 if at == "loading" else 0.0)
    model = Lazy(source.load, source.unload, idle=0.05 if at == "idle" else None)
    with contextlib.ExitStack() as stack:
        if at == "loading":
            stack.enter_context(ThreadPoolExecutor(1)).submit(model.__enter__)
            wait_until(lambda: source.loads == 1)
        else:
            with model:
                pass
        held = stack.enter_context(model) if at == "in use" else None
        child = os.fork()
        if not child:
            source.open = 0
            with model as value:
                is_own = value is not held and value.is_open
            os._exit(not (is_own and source.loads == 2 and (held is None or held.is_open)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("idle", [-1, float("inf"), float("nan")])
def test_an_idle_time_that_cannot_be_is_refused(idle):
    """It is said what to write."""
    with pytest.raises(ConfigurationError, match="idle"):
        Lazy(Model, idle=idle)


def test_the_examples_work_with_both_frameworks():
    """What the docstring shows is so."""
    assert doctest.testmod(lazy).failed == 0


class Leases(RuleBasedStateMachine):
    """Any number of leases, in any order, with failures, unloads and pressure between."""

    @initialize()
    def begin(self):
        self.now = 0.0
        self.source = Source()
        self.lazy = Lazy(self.source.load, self.source.unload, clock=lambda: self.now)
        self.held = []
        self.failures = 0

    @rule()
    def lease(self):
        if self.source.error is None or self.lazy.is_loaded:
            self.held.append(self.lazy.__enter__())
        else:
            with pytest.raises(ValueError, match="told to"):
                self.lazy.__enter__()
            self.failures += 1

    @rule()
    def lease_async(self):
        async def enter():
            return await self.lazy.__aenter__()

        if self.source.error is None or self.lazy.is_loaded:
            self.held.append(asyncio.run(enter()))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.lazy.__exit__(None, None, None)

    @rule(fails=st.booleans())
    def break_or_mend(self, fails):
        self.source.error = ValueError("told to") if fails else None

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds):
        self.now += seconds

    @rule(how=st.sampled_from(["unload", "relieve", "restore"]))
    def unload(self, how):
        was_loaded = self.lazy.is_loaded
        if how == "unload":
            assert self.lazy.unload() == (was_loaded and not self.held)
        elif how == "relieve":
            self.lazy.relieve(1)
        else:
            self.lazy.restore()
        assert self.lazy.is_loaded == (was_loaded and (bool(self.held) or how == "restore"))

    @invariant()
    def what_is_held_is_one_open_value(self):
        if not hasattr(self, "held"):
            return
        assert all(model.is_open for model in self.held)
        assert len({id(model) for model in self.held}) <= 1
        assert not self.held or self.lazy.is_loaded
        assert self.source.open == self.lazy.is_loaded
        assert self.source.loads - self.failures == self.source.unloads + self.lazy.is_loaded


Leases.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLeases = Leases.TestCase


@given(st.integers(0, 1 << 32))
@settings(max_examples=8, deadline=None)
def test_threads_and_tasks_never_see_a_value_that_is_unloaded(seed):
    """With random failures, cancellations, unloads and idle times, all come to an end."""
    source, draw = Source(0.001), random.Random(seed)
    load = source.load

    def fail_at_times():
        source.error = ValueError("at times") if draw.random() < 0.3 else None
        return load()

    model = Lazy(fail_at_times, source.unload, idle=0.002)
    seeds = [draw.random() for _ in range(12)]

    def use(number):
        own, seen = random.Random(seeds[number]), 0
        for _ in range(15):
            with contextlib.suppress(ValueError), model as value:
                time.sleep(own.random() * 0.002)
                assert value.is_open
                seen += 1
            if own.random() < 0.3:
                model.unload()
            model.relieve(1)
        return seen

    async def many():
        async def one(own):
            with contextlib.suppress(ValueError):
                async with model as value:
                    await asyncio.sleep(own.random() * 0.002)
                    assert value.is_open

        own = random.Random(seeds[-1])
        tasks = [asyncio.create_task(one(own)) for _ in range(40)]
        for task in own.sample(tasks, 10):
            await asyncio.sleep(own.random() * 0.002)
            task.cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        return [one for one in done if isinstance(one, AssertionError)]

    with ThreadPoolExecutor(1) as pool:
        loop = pool.submit(asyncio.run, many())
        seen = together(8, use)
        assert not loop.result(60)
    assert sum(seen) > 0
    wait_until(lambda: not lazy_threads())
    assert not model.is_loaded
    assert source.open == 0
