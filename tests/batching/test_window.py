"""Idle workers that wait a while for others, and workers that are not lost."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ragaccel import MicroBatcher
from ragaccel.errors import ConfigurationError

LONG = 60.0


class Counted:
    """Gives items back, and remembers how many came in each call."""

    def __init__(self):
        self.sizes = []

    def __call__(self, items):
        self.sizes.append(len(items))
        return items

    async def later(self, items):
        return self(items)


def test_threads_that_come_within_the_window_are_one_call():
    """The first one waits until the batch is full, and no longer."""
    call = Counted()
    batcher = MicroBatcher(call, window=LONG, max_size=3, workers=2)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(batcher, range(3))) == [0, 1, 2]
    assert call.sizes == [3] or sorted(call.sizes) == [1, 2]  # shared between the workers


def test_one_worker_collects_for_all():
    """With one worker, all that the window brought are one call."""
    call = Counted()
    batcher = MicroBatcher(call, window=LONG, max_size=4, workers=1)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(batcher, range(4))) == [0, 1, 2, 3]
    assert call.sizes == [4]


async def test_tasks_that_come_within_the_window_are_one_call():
    """They need not come in the same turn of the event loop."""
    call = Counted()
    batcher = MicroBatcher(acall=call.later, window=LONG, max_size=3, workers=1)

    async def come(after):
        await asyncio.sleep(after)
        return await batcher.get(after)

    assert await asyncio.gather(come(0), come(0.01), come(0.02)) == [0, 0.01, 0.02]
    assert call.sizes == [3]


async def test_the_window_ends_though_nobody_comes():
    """Whoever is alone has an answer all the same, in threads and on an event loop."""
    call = Counted()
    batcher = MicroBatcher(call, acall=call.later, window=0.01, max_size=8)
    assert await asyncio.to_thread(batcher, 1) == 1
    assert await batcher.get(2) == 2
    assert call.sizes == [1, 1]


async def test_a_timeout_shorter_than_the_window_ends_it():
    """The item is sent while there is time left."""
    call = Counted()
    batcher = MicroBatcher(call, acall=call.later, window=LONG, max_size=8)
    assert await asyncio.to_thread(batcher, 1, timeout=2) == 1
    assert await batcher.get(2, timeout=2) == 2


async def test_what_comes_while_workers_are_busy_has_waited_already():
    """It goes as soon as one of them is free: the window is for idle ones."""
    began, go_on = asyncio.Event(), asyncio.Event()
    sizes = []

    async def call(items):
        sizes.append(len(items))
        began.set()
        await go_on.wait()
        return items

    batcher = MicroBatcher(acall=call, window=LONG, max_size=2, workers=1)
    first = asyncio.gather(batcher.get(1), batcher.get(2))
    await began.wait()
    second = asyncio.ensure_future(batcher.get(3))
    await asyncio.sleep(0)
    go_on.set()
    assert await asyncio.wait_for(first, LONG / 2) == [1, 2]
    assert await asyncio.wait_for(second, LONG / 2) == 3
    assert sizes == [2, 1]


@pytest.mark.parametrize("window", [-1, float("inf"), float("nan")])
def test_a_window_that_makes_no_sense_is_refused(window):
    """It is a number of seconds."""
    with pytest.raises(ConfigurationError, match="window"):
        MicroBatcher(Counted(), window=window)


def test_a_window_is_a_knob():
    """It holds from the next batch on."""
    batcher = MicroBatcher(Counted())
    knob = next(one for one in batcher.tunables() if one.name == "batch.window")
    assert knob.get() == 0
    knob.set(0.003)
    assert knob.get() == 0.003
    assert batcher(1) == 1


def test_no_worker_is_lost_among_threads():
    """After many calls as many are made at a time as before: a thread has one worker at most."""
    meet = None

    def call(items):
        time.sleep(0.0002)
        if meet is not None:
            meet.wait()
        return items

    batcher = MicroBatcher(call, workers=2, max_size=1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(batcher, range(1500))) == list(range(1500))
    finally:
        sys.setswitchinterval(interval)
    meet = threading.Barrier(2, timeout=LONG)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(batcher, range(2))) == [0, 1]
