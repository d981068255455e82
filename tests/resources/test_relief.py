"""What can be asked to give memory up does, goes on working, and grows again after."""

from __future__ import annotations

import asyncio
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel import DiskLevel, MemoryLevel, MicroBatcher, MultiLevelCache
from ragaccel.cache import MISSING
from ragaccel.resources import Lazy, Relief
from tests.cache.helpers import here, stored, wait_until

MB = 1 << 20


def filled_cache():
    cache = MultiLevelCache.open()
    cache.set("key", bytes(1000))
    return cache


def loaded():
    lazy = Lazy(list)
    with lazy:
        return lazy


@pytest.mark.parametrize(
    "make",
    [filled_cache, MemoryLevel, loaded, lambda: MicroBatcher(list)],
    ids=["cache", "level", "lazy", "batcher"],
)
def test_it_may_be_asked_in_any_order_and_number(make):
    """It answers with bytes, and nothing is refused."""
    one = make()
    one.restore()
    for needed in (0, 1, MB, 1 << 40):
        given_up = [one.relieve(needed) for _ in range(2)]
        assert all(size >= 0 for size in given_up)
        assert given_up[1] == 0
    one.restore()
    one.restore()


def test_caches_are_the_cheapest_and_batches_the_dearest_to_relieve():
    """What says nothing is taken for a cache."""
    assert not hasattr(MultiLevelCache, "relief")
    assert not hasattr(MemoryLevel, "relief")
    assert Relief.CACHE < Lazy.relief < MicroBatcher.relief


@given(
    max_bytes=st.integers(20_000, 5 * MB),
    sizes=st.lists(st.integers(0, 100_000), max_size=60),
    needed=st.lists(st.integers(0, 5 * MB), min_size=1, max_size=4),
)
@settings(deadline=None)
def test_a_level_gives_what_is_needed_and_does_not_take_it_again(max_bytes, sizes, needed):
    """Until it is restored, however much is put; half of it and a mebibyte may stay."""
    level = MemoryLevel(max_bytes)
    level.put_many([stored(number, bytes(size)) for number, size in enumerate(sizes)])
    for wanted in needed:
        before = level.bytes_used
        freed = level.relieve(wanted)
        assert freed == before - level.bytes_used
        bound = max(before - wanted, before // 2, min(MB, max_bytes))
        assert bound - 102_000 <= level.bytes_used <= bound or not freed
        level.put_many([stored(("more", number), bytes(size)) for number, size in enumerate(sizes)])
        assert level.bytes_used <= bound
    level.clear()
    level.put_many([stored(number, bytes(1000)) for number in range(max_bytes // 1000)])
    assert level.bytes_used <= bound
    level.restore()
    level.put_many([stored(number, bytes(1000)) for number in range(max_bytes // 1000)])
    assert max_bytes - 4_000 <= level.bytes_used <= max_bytes


def test_the_newest_entry_goes_too_if_it_is_too_large():
    """Nothing is kept past the bound for being new."""
    level = MemoryLevel(8 * MB)
    level.put_many([stored("large", bytes(5 * MB))])
    assert level.relieve(MB) > 5 * MB
    assert (level.bytes_used, len(level)) == (0, 0)


def test_the_memory_of_the_entries_is_really_free():
    """What a level says that it gave up is what Python's allocator got back."""
    level = MemoryLevel(64 * MB)
    tracemalloc.start()
    try:
        for number in range(10_000):
            level.put_many([stored(number, bytes(1_000))])
        before, _ = tracemalloc.get_traced_memory()
        freed = level.relieve(5 * MB)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert freed >= 5 * MB
    assert before - after > 0.7 * freed


def test_what_is_asked_for_often_stays():
    """The least worthy go first, and no more than half at a time."""
    level = MemoryLevel(8 * MB)
    level.put_many([stored(number, bytes(1_000)) for number in range(4_000)])
    hot = range(0, 4_000, 40)
    for _ in range(5):
        here(level, *hot)
    full = level.bytes_used
    level.relieve(8 * MB)
    assert full // 2 - 2_000 < level.bytes_used <= full // 2
    for _ in range(2):
        level.relieve(8 * MB)
    assert len(level) < 1_000
    assert len(here(level, *hot)) == 100


def test_a_cache_gives_up_memory_and_keeps_its_file(tmp_path):
    """What went from memory is found on the disk."""
    memory = MemoryLevel(8 * MB)
    with MultiLevelCache([memory, DiskLevel(tmp_path / "cache.sqlite")]) as cache:
        cache.set_many([(number, bytes(10_000)) for number in range(400)])
        full = memory.bytes_used
        assert cache.relieve(MB) >= MB
        assert memory.bytes_used <= full - MB
        assert MISSING not in cache.get_many(range(400))
        assert memory.bytes_used <= full - MB
        cache.restore()
        cache.get_many(range(400))
        assert memory.bytes_used > full - MB


def batches(batcher, call, who, count=32):
    """Return the sizes of the batches after a first one, behind which all others wait."""
    call.sizes.clear()
    call.may_end.clear()

    async def ask():
        tasks = [asyncio.create_task(batcher.get(-1))]
        await asyncio.to_thread(wait_until, lambda: bool(call.sizes))
        tasks += [asyncio.create_task(batcher.get(item)) for item in range(count)]
        await asyncio.sleep(0)
        call.may_end.set()
        await asyncio.gather(*tasks)

    if who == "loop":
        asyncio.run(ask())
    else:
        with ThreadPoolExecutor(count + 1) as pool:
            pool.submit(batcher, -1)
            wait_until(lambda: bool(call.sizes))
            asked = [pool.submit(batcher, item) for item in range(count)]
            wait_until(lambda: len(batcher._line) == count)
            call.may_end.set()
            [one.result(10) for one in asked]
    return call.sizes[1:]


class Gated:
    """A call whose first batch waits until it may end."""

    def __init__(self):
        self.sizes, self.may_end = [], threading.Event()

    def __call__(self, items):
        self.sizes.append(len(items))
        assert self.may_end.wait(10)
        return items


@pytest.mark.parametrize("made", ["itself", "over"])
@pytest.mark.parametrize("who", ["threads", "loop"])
def test_batches_get_smaller_and_large_again(who, made):
    """Also those of the batchers that were made after its pattern."""
    call = Gated()
    pattern = batcher = MicroBatcher(call, max_size=16, workers=1)
    if made == "over":
        batcher = pattern.over(call, batcher._acall, lambda item: item)
    assert batches(batcher, call, who) == [16, 16]
    pattern.relieve(MB)
    assert batches(batcher, call, who) == [8] * 4
    for _ in range(10):
        pattern.relieve(MB)
    assert batches(batcher, call, who, 5) == [1] * 5
    pattern.restore()
    assert batches(batcher, call, who) == [16, 16]


def test_after_a_fork_the_child_is_as_usual():
    """The guard that would restore it is the parent's."""
    level, batcher = MemoryLevel(8 * MB), MicroBatcher(list, max_size=8)
    level.relieve(MB)
    batcher.relieve(MB)
    child = os.fork()
    if not child:
        level.put_many([stored(number, bytes(10_000)) for number in range(400)])
        os._exit(not (level.bytes_used > 3 * MB and batcher._limits.shrink.by == 1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert batcher._limits.shrink.by == 2
