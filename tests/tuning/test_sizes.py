"""The size of caches without a trial: what it hits, and what it leaves to others."""

from __future__ import annotations

import time
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel import AutoTuner, Goal, Knob, MultiLevelCache
from ragaccel.cache import MemoryLevel
from ragaccel.tuning.sizes import best_sizes, own_rate

MIB = 2**20
QUERIES = [f"query {at % 150}" for at in range(450)]
SIZED = Goal.at_most("memory_mb", 30)


class Holder:
    """Holds ten megabytes beside the cache, or as many as its knob says."""

    def __init__(self):
        self.held = 10
        self.knob = Knob(
            "held", (2, 10), lambda: self.held, self.hold, rebuild=True,
            bytes_at=lambda value: value * 10**6,
        )  # fmt: skip

    def hold(self, value):
        self.held = value

    def stats(self):
        return type("Stats", (), {"bytes_in_memory": self.held * 10**6})

    def tunables(self):
        return (self.knob,)


def filled(level, entries, entry_bytes):
    cache = MultiLevelCache([level])
    for at in range(entries):
        cache.set(at, "x" * entry_bytes)
    return cache


def tuned(cache, *goals):
    return AutoTuner(
        [cache, Holder()], [Goal.minimize("memory_mb"), *goals], ask=lambda query: [query],
        progress=False,
    ).run(QUERIES)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=300), st.integers(1, 40))
def test_the_hit_rate_is_that_of_a_real_level(keys, entries):
    """A level of that size that is asked for the same keys hits as often, to the last one."""
    entry, hits = 1550, 0
    level = MemoryLevel(entries * entry)
    for key in keys:
        digest = blake2b(repr(key).encode(), digest_size=16).digest()
        if level.get_many([digest]):
            hits += 1
        else:
            level.put_many([(digest, b"x" * 1000, time.time() + 60, 0.0, b"")])
    rate = own_rate(keys, entries * entry, entry)
    assert rate * len(keys) == pytest.approx(hits)


def test_a_level_that_is_too_large_makes_room():
    """What others take is taken off the memory there may be, and the level counts as full."""
    level = MemoryLevel(256 * MIB)
    report = tuned(filled(level, 100, 100_000), SIZED)
    assert level.max_bytes == report.settings["cache.memory_bytes"] == 16 * MIB
    memory = {row.settings["held"]: row.metrics["memory_mb"].value for row in report.rows}
    assert memory == pytest.approx({2: 2 + 16.777, 10: 10 + 16.777}, abs=0.001)


def test_what_a_knob_can_save_is_room_for_a_level():
    """With the least that others can take, a larger level fits, and what does not is not tried."""
    level = MemoryLevel(MIB)
    report = tuned(filled(level, 20, 100_000), Goal.at_most("memory_mb", 20))
    assert level.max_bytes == 16 * MIB
    assert [row.settings["held"] for row in report.rows if row.is_kept] == [2]


def test_two_caches_share_the_room():
    """What the first one gets, the second one has no more."""
    levels = [MemoryLevel(MIB), MemoryLevel(MIB)]
    caches = [filled(one, 10, 90_000) for one in levels]
    first, second = best_sizes(caches, QUERIES, 20.0)
    assert (first.size, second.size) == (16 * MIB, MIB)


def test_a_lifetime_is_said_to_be_left_alone():
    """It is no knob of a search, and the report tells why."""
    cache = MultiLevelCache([MemoryLevel(4 * MIB)], ttl=60)
    report = tuned(cache)
    assert cache.ttl == 60
    assert "cache.ttl" not in report.settings
    assert any(note.startswith("cache.ttl: left alone") for note in report.notes)
