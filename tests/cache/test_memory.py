"""The memory level: bounded by bytes, the worthiest kept, never shared by reference."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragaccel.cache import MISSING, MemoryLevel, MultiLevelCache
from ragaccel.errors import ConfigurationError
from tests.cache.helpers import here, key, stored

NAMES = range(12)


@given(
    max_bytes=st.integers(1, 5_000),
    puts=st.lists(
        st.lists(
            st.tuples(st.sampled_from(NAMES), st.integers(0, 6_000), st.booleans()), max_size=4
        )
    ),
)
@example(max_bytes=1100, puts=[[(1, 0, True), (0, 0, True), (1, 1, True)]])
@settings(deadline=None)
def test_the_byte_bound_always_holds(max_bytes, puts):
    """Whatever is put, replaced or expired, the level never counts more bytes than it may."""
    level = MemoryLevel(max_bytes)
    for batch in puts:
        level.put_many([stored(n, bytes(size), 60 if lives else -1) for n, size, lives in batch])
        assert 0 <= level.bytes_used <= max_bytes
        here(level, *NAMES)
        assert 0 <= level.bytes_used <= max_bytes
        assert (level.bytes_used == 0) == (len(level) == 0)
    level.delete_many([key(name) for name in NAMES])
    assert (level.bytes_used, len(level)) == (0, 0)


@pytest.mark.parametrize("size", [10, 1_000, 5_000])
def test_the_bytes_counted_are_the_bytes_taken(size):
    """The bound covers keys and bookkeeping: tracemalloc sees hardly more than the level counts."""
    level = MemoryLevel()
    cache = MultiLevelCache([level])
    tracemalloc.start()
    try:
        for number in range(10_000):
            cache.set(number, bytes(size))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(level) == 10_000
    assert taken <= level.bytes_used * 1.1


@given(
    st.lists(st.tuples(st.sampled_from(["get", "put", "delete"]), st.sampled_from(NAMES))),
    st.integers(1, 6),
)
@settings(deadline=None)
def test_what_is_found_is_what_was_put_last(steps, room):
    """Whatever is evicted, a key never has an older blob, nor one after it was deleted."""
    one = MemoryLevel()
    one.put_many([stored("size")])
    level = MemoryLevel(room * one.bytes_used)
    last: dict[int, bytes] = {}
    for number, (step, name) in enumerate(steps):
        blob = b"%4d" % number
        if step == "put":
            level.put_many([stored(name, blob)])
            last[name] = blob
            assert level.get_many((key(name),)) == {key(name): blob}
        elif step == "get":
            assert level.get_many((key(name),)).get(key(name), last.get(name)) == last.get(name)
        else:
            level.delete_many((key(name),))
            last.pop(name, None)
            assert not here(level, name)


def test_one_off_requests_do_not_drive_out_what_is_asked_for():
    """A scan passes through: nearly all of what was asked for often is still there after it."""
    one = MemoryLevel()
    one.put_many([stored("size")])
    level = MemoryLevel(100 * one.bytes_used)
    hot = range(50)
    level.put_many([stored(name) for name in hot])
    for _ in range(5):
        here(level, *hot)
    for number in range(5_000):
        level.put_many([stored(("scan", number))])
    assert len(here(level, *hot)) >= 45


def test_an_entry_larger_than_the_level_is_passed_over():
    """An entry that could never fit drives nothing out, and its key has no old entry either."""
    level = MemoryLevel(2_000)
    level.put_many([stored("small"), stored("grows")])
    level.put_many([stored("grows", bytes(4_000))])
    assert here(level, "small", "grows") == ["small"]


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_bound_without_room_is_refused(max_bytes):
    """A size bound that could hold nothing is a mistake that is said at once."""
    with pytest.raises(ConfigurationError, match="max_bytes"):
        MemoryLevel(max_bytes)


def test_a_value_handed_out_cannot_be_poisoned(face):
    """Changing what a look-up gave, or what was stored, changes nothing for the next look-up."""
    cache = MultiLevelCache([MemoryLevel()])
    given_ = {"texts": ["one", "two"], "vector": np.arange(3.0)}
    face.set(cache, "key", given_)
    given_["texts"].append("poison")
    given_["vector"][0] = 99
    for _ in range(3):
        got = face.get(cache, "key")
        assert got["texts"] == ["one", "two"]
        assert got["vector"].tolist() == [0, 1, 2]
        got["texts"].clear()
        got["vector"][:] = 99
        got.clear()


def test_a_computed_value_cannot_be_poisoned(face):
    """The caller whose computation filled the cache may change its value as it likes."""
    cache = MultiLevelCache([MemoryLevel()])
    first = face.get_or_compute(cache, "key", lambda: ["one"])
    first.append("poison")
    second = face.get_or_compute(cache, "key", lambda: ["another"])
    second.append("poison")
    assert face.get(cache, "key") == ["one"]


def test_a_closed_level_forgets():
    """Closing frees the memory."""
    level = MemoryLevel()
    cache = MultiLevelCache([level])
    cache.set("key", "value")
    cache.close()
    assert level.bytes_used == 0
    assert MultiLevelCache([level]).get("key") is MISSING
