"""The cache as its users see it: levels in order, faults survived, sync and async alike."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import logging
import pickle
import time
from datetime import timedelta

import pytest

from ragaccel.cache import (
    MISSING,
    CacheStats,
    DiskLevel,
    MemoryLevel,
    MultiLevelCache,
    RedisLevel,
    Usage,
)
from ragaccel.cache.levels.breaker import Unavailable
from ragaccel.cache.stats import Counts
from ragaccel.errors import CacheClosedError, ConfigurationError, InvalidationError
from tests.cache.helpers import Compute, logged


class Named(MemoryLevel):
    """A memory level under a name of its own, with its entries compressed or not."""

    def __init__(self, name: str, *, compress: bool = False) -> None:
        super().__init__()
        self.name = name
        self.compress = compress


class Broken:
    """A third party's level that fails at everything."""

    compress = True

    def __init__(self, name: str = "broken", error: type[Exception] = OSError) -> None:
        self.name = name
        self.error = error
        self.calls = 0

    def get_many(self, keys):
        self._fail()

    def put_many(self, entries):
        self._fail()

    def delete_many(self, keys):
        self._fail()

    def scan(self, namespace):
        self._fail()

    def usage(self):
        raise self.error("nobody can tell")

    def clear(self):
        self._fail()

    def close(self):
        pass

    async def aget_many(self, keys):
        self._fail()

    async def aput_many(self, entries):
        self._fail()

    async def adelete_many(self, keys):
        self._fail()

    async def aclear(self):
        self._fail()

    async def aclose(self):
        pass

    def _fail(self):
        self.calls += 1
        raise self.error("the machine is on fire")


@pytest.fixture
def levels():
    return [Named("fast"), Named("middle", compress=True), Named("slow")]


@pytest.fixture
def cache(levels):
    return MultiLevelCache(levels)


# ---- levels --------------------------------------------------------------------------------------


def test_a_value_is_written_to_every_level(cache, levels, face):
    """A stored or computed value is on all levels afterwards."""
    face.set(cache, "set", 1)
    face.get_or_compute(cache, "computed", lambda: 2)
    for level in levels:
        alone = MultiLevelCache([level])
        assert [alone.get("set"), alone.get("computed")] == [1, 2]


@pytest.mark.parametrize("value", [1, "text that repeats " * 1_000])
def test_a_hit_fills_the_faster_levels(levels, face, value):
    """A value found on a slow level is found on the fastest one the next time."""
    MultiLevelCache(levels[2:]).set("key", value)
    cache = MultiLevelCache(levels)
    assert [face.get(cache, "key"), face.get(cache, "key")] == [value, value]
    assert cache.stats().hits == {"slow": 1, "fast": 1}
    assert MultiLevelCache([levels[1]]).get("key") == value


def test_a_hit_on_a_middle_level_leaves_the_slower_ones(levels, face):
    """Only levels that were asked in vain are filled."""
    MultiLevelCache([levels[1]]).set("key", 1)
    face.get(MultiLevelCache(levels), "key")
    assert [len(level) for level in levels] == [1, 1, 0]


def test_filling_keeps_the_time_that_is_left(levels, clock, face):
    """A value copied to a faster level ends there when it would have ended where it came from."""
    MultiLevelCache(levels[2:], ttl=100).set("key", 1)
    clock.pass_(60)
    cache = MultiLevelCache(levels, ttl=100)
    assert face.get(cache, "key") == 1
    fast = MultiLevelCache(levels[:1])
    clock.pass_(39)
    assert fast.get("key") == 1
    clock.pass_(2)
    assert fast.get("key") is MISSING
    assert face.get(cache, "key") is MISSING


def test_filling_keeps_the_time_on_the_server(server, tmp_path, clock, face):
    """The rest of the time to live, not a new one, is given to the Redis level."""
    disk = DiskLevel(tmp_path / "cache.sqlite")
    MultiLevelCache([disk], ttl=1_000).set("key", 1)
    clock.pass_(400)
    cache = MultiLevelCache([RedisLevel(server.url, timeout=10.0), disk])
    assert face.get(cache, "key") == 1
    with server.client() as client:
        (name,) = client.scan_iter()
        assert 590_000 < client.pttl(name) <= 600_000
    face.close(cache)


def test_memory_disk_and_redis_together(server, tmp_path, face):
    """The three levels serve each other's entries, process after process."""

    def opened() -> MultiLevelCache:
        return MultiLevelCache(
            [
                MemoryLevel(),
                DiskLevel(tmp_path / "cache.sqlite"),
                RedisLevel(server.url, timeout=10.0),
            ]
        )

    first = opened()
    face.set(first, "key", {"text": "ä" * 10_000})
    first.levels[1].clear()
    face.close(first)
    second = opened()
    for _ in range(2):
        assert face.get(second, "key") == {"text": "ä" * 10_000}
    assert second.stats().hits == {"redis": 1, "memory": 1}
    face.close(second)
    third = opened()
    assert face.get(third, "key") == {"text": "ä" * 10_000}
    assert third.stats().hits == {"disk": 1}
    face.close(third)


# ---- time to live --------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [90, 90.0, timedelta(minutes=1.5)])
def test_an_entry_is_served_for_its_time(levels, clock, face, ttl):
    """The cache's time to live counts for every entry, in seconds or as a timedelta."""
    cache = MultiLevelCache(levels, ttl=ttl)
    compute = Compute()
    face.get_or_compute(cache, "key", compute)
    face.set(cache, "set", 1)
    clock.pass_(89)
    face.get_or_compute(cache, "key", compute)
    assert (compute.calls, face.get(cache, "set")) == (1, 1)
    clock.pass_(2)
    face.get_or_compute(cache, "key", compute)
    assert (compute.calls, face.get(cache, "set")) == (2, MISSING)


@pytest.mark.parametrize("ttl", [10, timedelta(seconds=10)])
def test_an_entry_may_have_a_time_of_its_own(cache, clock, face, ttl):
    """`ttl=` of a call overrides the cache's."""
    face.set(cache, "set", 1, ttl=ttl)
    face.get_or_compute(cache, "computed", lambda: 1, ttl=ttl)
    clock.pass_(11)
    assert face.get(cache, "set") is MISSING
    assert face.get(cache, "computed") is MISSING


def test_without_a_limit_entries_stay(levels, clock, face):
    """`ttl=None` of the cache is no limit."""
    cache = MultiLevelCache(levels, ttl=None)
    face.set(cache, "key", 1)
    clock.pass_(50 * 365 * 86_400)
    assert face.get(cache, "key") == 1


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), timedelta(0), "soon", object(), [1]])
def test_a_time_to_live_that_is_none_is_refused(ttl, face):
    """Whatever is no positive time is said at once, and nothing is computed for it."""
    with pytest.raises(ConfigurationError, match="ttl"):
        MultiLevelCache([MemoryLevel()], ttl=ttl)
    cache = MultiLevelCache([MemoryLevel()])
    compute = Compute()
    with pytest.raises(ConfigurationError, match="ttl"):
        face.get_or_compute(cache, "key", compute, ttl=ttl)
    with pytest.raises(ConfigurationError, match="ttl"):
        face.set(cache, "key", 1, ttl=ttl)
    assert compute.calls == 0


# ---- values and keys -----------------------------------------------------------------------------


def test_none_is_a_value(cache, face):
    """A computation that gave None is not repeated, and None is told from nothing."""
    compute = Compute(None)
    assert face.get_or_compute(cache, "key", compute) is None
    assert face.get_or_compute(cache, "key", compute) is None
    assert compute.calls == 1
    assert face.get(cache, "key") is None
    assert face.get(cache, "other") is MISSING


def test_missing_is_falsy_and_prints_its_name():
    """`if not cache.get(key)` works, and a log shows what it was."""
    assert not MISSING
    assert repr(MISSING) == "MISSING"


def test_missing_stays_itself():
    """A comparison with `is` also holds for a copy or in another process."""
    assert copy.copy(MISSING) is MISSING
    assert copy.deepcopy([MISSING]) == [MISSING]
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING


@pytest.mark.parametrize("bad", [object(), len, {1, 2}.__iter__()])
def test_bad_keys_are_refused(cache, face, bad):
    """A key that cannot be told from others is the caller's mistake; nothing is computed."""
    compute = Compute()
    with pytest.raises(ConfigurationError, match="key"):
        face.get(cache, ["part", bad])
    with pytest.raises(ConfigurationError, match="key"):
        face.set(cache, bad, 1)
    with pytest.raises(ConfigurationError, match="key"):
        face.delete(cache, bad)
    with pytest.raises(ConfigurationError, match="key"):
        face.get_or_compute(cache, bad, compute)
    assert compute.calls == 0


@pytest.mark.parametrize("bad", [(1,), {1}, object(), 2**70])
def test_bad_values_are_refused(cache, face, bad):
    """A value that would not come back equal is the caller's mistake in `set`."""
    with pytest.raises(ConfigurationError, match="stored faithfully"):
        face.set(cache, "key", bad)


@pytest.mark.parametrize(
    "levels", [[], None, (), DiskLevel("cache.sqlite"), MemoryLevel(), ["memory"], [None]]
)
def test_bad_levels_are_refused(levels):
    """No level, a level outside a list, or something that is none, is said at once."""
    with pytest.raises(ConfigurationError, match="level"):
        MultiLevelCache(levels)


def test_two_namespaces_share_nothing(levels, face):
    """Two tenants on the same levels never see or forget each other's values."""
    one = MultiLevelCache(levels, namespace="one")
    other = MultiLevelCache(levels, namespace="other")
    face.set(one, "key", "of one")
    assert face.get(other, "key") is MISSING
    assert face.get_or_compute(other, "key", lambda: "of the other") == "of the other"
    assert face.get(one, "key") == "of one"
    face.delete(other, "key")
    assert face.get(one, "key") == "of one"


# ---- forgetting ----------------------------------------------------------------------------------


def test_delete_forgets_one_key_everywhere(cache, levels, face):
    """A deleted key is on no level any more; an unknown one is no error."""
    face.set(cache, "key", 1)
    face.set(cache, "other", 2)
    face.delete(cache, "key")
    face.delete(cache, "unknown")
    assert [len(level) for level in levels] == [1, 1, 1]
    assert face.get(cache, "key") is MISSING
    assert face.get(cache, "other") == 2


def test_clear_forgets_everything_everywhere(levels, face):
    """Afterwards all levels are empty, in all namespaces."""
    cache, other = MultiLevelCache(levels), MultiLevelCache(levels, namespace="other")
    face.set(cache, "key", 1)
    face.set(other, "key", 1)
    face.clear(cache)
    assert [len(level) for level in levels] == [0, 0, 0]


def test_a_clear_that_fails_is_heard_of_and_clears_the_rest(levels, face):
    """The caller learns that something is still there; what could be cleared is."""
    cache = MultiLevelCache([levels[0], Broken(), levels[1]])
    face.set(cache, "key", 1)
    with pytest.raises(OSError, match="on fire"):
        face.clear(cache)
    assert [len(level) for level in levels[:2]] == [0, 0]


@pytest.mark.parametrize("call", ["get", "set", "delete", "clear", "get_or_compute"])
def test_a_closed_cache_says_so(face, tmp_path, call):
    """After `close` every call raises `CacheClosedError`, and no file is opened again."""
    cache = MultiLevelCache.open(tmp_path)
    face.close(cache)
    rest = {"set": ("key", 1), "get_or_compute": ("key", Compute()), "clear": ()}
    with pytest.raises(CacheClosedError):
        getattr(face, call)(cache, *rest.get(call, ("key",)))
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_is_no_error(cache, face):
    """A cache may be closed by a `with` statement and by hand; its statistics stay."""
    face.set(cache, "key", 1)
    face.get(cache, "key")
    face.close(cache)
    face.close(cache)
    assert cache.stats().hits == {"fast": 1}


async def test_the_cache_is_a_context_manager():
    """Leaving `with` or `async with` closes it."""
    with MultiLevelCache.open() as cache:
        cache.set("key", 1)
    with pytest.raises(CacheClosedError):
        cache.get("key")
    async with MultiLevelCache.open() as cache:
        await cache.aset("key", 1)
    with pytest.raises(CacheClosedError):
        await cache.aget("key")


def test_invalidated_entries_are_not_served_and_not_deleted(cache, levels, face):
    """Invalidating writes down what may not be served; it looks at no entry."""
    face.set(cache, "tagged", 1, tags=["tag"])
    face.set(cache, "of a document", 2, documents=["document"])
    face.set(cache, "neither", 3)
    face.invalidate(cache, tags=["tag"], documents=["document"])
    assert face.get_many(cache, ["tagged", "of a document", "neither"]) == [MISSING, MISSING, 3]
    assert [len(level) for level in levels] == [3, 3, 3]
    assert cache.stats().damaged == 0


def test_tags_may_be_any_iterable(cache, face):
    """Tags and documents are read once: those of a generator count like those of a list."""
    for tags in (["tag"], iter(["tag"])):
        compute = Compute()
        face.get_or_compute(cache, "key", compute, tags=tags)
        face.invalidate(cache, tags=["tag"])
        face.get_or_compute(cache, "key", compute)
        assert compute.calls == 2
        face.delete(cache, "key")


def test_tags_to_invalidate_may_be_any_iterable(cache, face):
    """A generator of tags invalidates what has them, and nothing else of the namespace."""
    face.set(cache, "tagged", 1, tags=["tag"])
    face.set(cache, "other", 2)
    face.invalidate(cache, tags=iter(["tag"]), namespace="default")
    assert face.get_many(cache, ["tagged", "other"]) == [MISSING, 2]


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError, KeyError, RuntimeError, StopIteration, MemoryError])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_level_that_fails_never_reaches_the_caller(levels, caplog, face, place, error):
    """Every call gives what it would give without the level; its faults count and are logged."""
    broken = Broken(error=error)
    cache = MultiLevelCache([*levels[:place], broken, *levels[place:2]])
    face.set(cache, "key", 1)
    assert face.get(cache, "key") == 1
    assert face.get_or_compute(cache, "key", Compute()) == 1
    compute = Compute()
    assert face.get_or_compute(cache, "new", compute) == "value"
    assert face.get_or_compute(cache, "new", compute) == "value"
    assert compute.calls == 1
    assert face.get_many(cache, ["key", "new", "unknown"]) == [1, "value", MISSING]
    assert sorted(cache.scan(), key=str) == [1, "value"]
    face.delete(cache, "key")
    assert face.get(cache, "key") is MISSING
    assert cache.stats().errors == {"broken": broken.calls}
    assert cache.stats().levels["broken"] == Usage(-1, -1, -1)
    lines = logged(caplog, "of the cache's broken level fail and are passed over")
    assert sorted(line.split()[0] for line in lines) in (["Reads", "Writes"], ["Writes"])


def test_only_broken_levels_are_as_good_as_no_cache(face, caplog):
    """With nothing but failing levels every call computes, and each level is logged about once."""
    cache = MultiLevelCache([Broken("one"), Broken("two")])
    compute = Compute()
    for _ in range(3):
        assert face.get_or_compute(cache, "key", compute) == "value"
    assert compute.calls == 3
    lines = [" ".join(line.split()[:6]) for line in logged(caplog, "fail")]
    assert sorted(lines) == [
        f"{work} of the cache's {level} level"
        for work in ("Reads", "Writes")
        for level in ("one", "two")
    ]


class Moody(MemoryLevel):
    """A level that fails while `error` is set, in what `fails` names."""

    name = "moody"

    def __init__(self, *fails: str) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.fails = fails or ("get", "put", "delete")

    def get_many(self, keys):
        self._perhaps("get")
        return super().get_many(keys)

    def put_many(self, entries):
        self._perhaps("put")
        super().put_many(entries)

    def delete_many(self, keys):
        self._perhaps("delete")
        super().delete_many(keys)

    def _perhaps(self, what: str) -> None:
        if self.error is not None and what in self.fails:
            raise self.error


def test_each_change_of_a_level_is_logged_once(face, caplog):
    """One line says what fails and of what, with the error, and one that it works again."""
    level = Moody()
    cache = MultiLevelCache([level])
    face.set(cache, "key", 1)
    for _ in range(2):
        level.error = OSError("the disk is gone")
        for _ in range(3):
            face.get(cache, "key")
            face.set(cache, "key", 2)
        level.error = None
        for _ in range(3):
            face.set(cache, "key", 3)
            assert face.get(cache, "key") == 3
    once = [
        (
            "Reads of the cache's moody level fail and are passed over while they do: "
            "OSError: the disk is gone"
        ),
        (
            "Writes of the cache's moody level fail and are passed over while they do: "
            "OSError: the disk is gone"
        ),
        "Writes of the cache's moody level work again",
        "Reads of the cache's moody level work again",
    ]
    assert logged(caplog) == once * 2
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_what_a_breaker_has_logged_is_not_logged_again(face, caplog):
    """A level whose breaker is open is counted, and silent: the breaker has said it."""
    level = Moody()
    cache = MultiLevelCache([level])
    level.error = Unavailable("not asked again yet")
    assert face.get_or_compute(cache, "key", Compute()) == "value"
    assert cache.stats().errors == {"moody": 2}
    assert logged(caplog) == []


def test_what_a_level_could_not_delete_is_not_served(face):
    """A level that fails at deleting, and keeps no ledger, does not bring the value back."""
    slow = Moody("delete")
    cache = MultiLevelCache([MemoryLevel(), slow])
    face.set(cache, "key", 1)
    slow.error = OSError("the disk is gone")
    face.delete(cache, "key")
    assert face.get(cache, "key") is MISSING


def test_what_a_level_could_not_replace_is_not_served(face):
    """A level that failed at a write, and keeps no ledger, does not bring the old value back."""
    fast, slow = MemoryLevel(), Moody("put")
    cache = MultiLevelCache([fast, slow])
    face.set(cache, "key", "old")
    slow.error = OSError("the disk is full")
    face.set(cache, "key", "new")
    fast.clear()
    assert face.get(cache, "key") is MISSING


class Nonsense(MemoryLevel):
    """A level that answers with something that is no entry."""

    name = "nonsense"

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def get_many(self, keys):
        return self.answer if self.answer is None else dict.fromkeys(keys, self.answer)


@pytest.mark.parametrize("answer", [None, 7, b"", b"nonsense", "text", [1], bytearray(50)])
def test_a_level_that_answers_nonsense_never_reaches_the_caller(face, caplog, answer):
    """What is no mapping of keys to bytes is counted as a fault or as damage, and computed."""
    cache = MultiLevelCache([Nonsense(answer)])
    assert face.get_or_compute(cache, "key", Compute()) == "value"
    stats = cache.stats()
    if answer is None:
        assert stats.errors == {"nonsense": 1}
        assert len(logged(caplog, "Reads of the cache's nonsense level fail")) == 1
    else:
        assert stats.damaged >= 1
        assert (stats.errors, logged(caplog)) == ({}, [])


@pytest.mark.parametrize("answer", [None, 7, b"nonsense"])
def test_a_level_that_answers_many_with_nonsense_never_reaches_the_caller(face, answer):
    """The same for several keys at once."""
    cache = MultiLevelCache([Nonsense(answer)])
    assert face.get_many(cache, ["key", "other"]) == [MISSING, MISSING]
    face.set(cache, "key", 1)
    stats = cache.stats()
    assert (stats.errors, stats.damaged) == (({"nonsense": 1}, 0) if answer is None else ({}, 2))


class Leases:
    """Leases of which some calls fail, and that are given otherwise."""

    def __init__(self, *fails: str) -> None:
        self.fails = fails

    def acquire(self, key):
        self._perhaps("acquire")
        return True

    def release(self, key):
        self._perhaps("release")

    async def aacquire(self, key):
        return self.acquire(key)

    async def arelease(self, key):
        self.release(key)

    def _perhaps(self, what: str) -> None:
        if what in self.fails:
            raise OSError("no leases today")


class Leasing(MemoryLevel):
    """A level that gives leases."""

    name = "leasing"

    def __init__(self, *fails: str) -> None:
        super().__init__()
        self.leases = Leases(*fails)


def test_leases_that_cannot_be_had_are_done_without(face, caplog):
    """A miss is computed and stored without its lease; the faults count and one line is logged."""
    cache = MultiLevelCache([Leasing("acquire")])
    for number in range(3):
        assert face.get_or_compute(cache, number, Compute(number)) == number
        assert face.get(cache, number) == number
    assert cache.stats().errors == {"leasing": 3}
    (line,) = logged(caplog)
    assert line.startswith("Leases of the cache's leasing level fail")


def test_a_lease_that_cannot_be_given_back_never_reaches_the_caller(face):
    """The caller gets its value; what became of the lease is no fault of the caller's."""
    cache = MultiLevelCache([Leasing("release")])
    assert face.get_or_compute(cache, "key", Compute()) == "value"
    assert cache.stats().errors == {"leasing": 1}


def test_leases_that_work_again_are_logged(face, caplog):
    """Each change of the leases is logged once, as that of reads and writes."""
    level = Leasing("acquire")
    cache = MultiLevelCache([level])
    for number, fails in enumerate([("acquire",), (), ("acquire",)]):
        level.leases.fails = fails
        face.get_or_compute(cache, number, Compute())
    assert [line.split(" level ")[1].split(":")[0] for line in logged(caplog)] == [
        "fail and are passed over while they do",
        "work again",
        "fail and are passed over while they do",
    ]


class Ledger:
    """A ledger that many share, in which nothing can be written."""

    shared = True
    is_prepared = False

    def position(self):
        return (1, 0)

    def stands(self, position, created, marks):
        return True

    def strike(self, namespace, marks):
        raise OSError("no ledger today")

    async def astrike(self, namespace, marks):
        self.strike(namespace, marks)

    def prepare(self):
        pass

    async def aprepare(self):
        pass


@pytest.mark.parametrize(
    "call",
    [
        lambda face, cache: face.delete(cache, "key"),
        lambda face, cache: face.invalidate(cache, tags=["tag"]),
        lambda face, cache: face.invalidate(cache, namespace="default"),
        lambda face, cache: face.invalidate(cache, everything=True),
        lambda face, cache: face.clear(cache),
        lambda face, cache: face.set(cache, "key", 2),
    ],
    ids=["delete", "tags", "namespace", "everything", "clear", "replacing"],
)
def test_an_invalidation_that_cannot_be_written_down_is_heard_of(face, call):
    """Whoever forgets something learns that others may go on serving it."""
    level = MemoryLevel()
    level.ledger = Ledger()
    cache = MultiLevelCache([level])
    face.set(cache, "key", 1)
    with pytest.raises(InvalidationError, match="old values may still be served") as raised:
        call(face, cache)
    assert isinstance(raised.value.__cause__, OSError)


# ---- statistics ----------------------------------------------------------------------------------


def test_statistics_count_what_happened(levels, face):
    """Hits by level, misses, bypasses, the hit rate and the time saved."""
    cache = MultiLevelCache(levels)
    nothing = CacheStats(levels={level.name: Usage(0, 0, 0) for level in levels})
    assert cache.stats() == nothing
    assert cache.stats().hit_rate == 0.0

    def slow() -> str:
        time.sleep(0.05)
        return "value"

    for _ in range(4):
        face.get_or_compute(cache, "key", slow)
    face.get(cache, "unknown")
    levels[0].clear()
    face.get(cache, "key")
    face.get_or_compute(cache, "odd", lambda: (1,))
    cache.bypass("component")
    stats = cache.stats()
    assert stats.hits == {"fast": 3, "middle": 1}
    assert stats.misses == 3
    assert stats.lookups == 7
    assert stats.hit_rate == pytest.approx(4 / 7)
    assert stats.bypasses == {"value": 1, "component": 1}
    assert (stats.coalesced, stats.damaged, stats.stale, stats.errors) == (0, 0, 0, {})
    assert (stats.invalidated, stats.refreshed, stats.refresh_errors) == (0, 0, 0)
    assert 4 * 0.05 <= stats.saved_seconds < 5
    assert [stats.levels[level.name] for level in levels] == [level.usage() for level in levels]
    assert [usage.entries for usage in stats.levels.values()] == [1, 1, 1]


def test_statistics_are_kept_by_namespace(levels, face):
    """Each tenant's look-ups are counted apart, and their sum is the cache's."""
    cache = MultiLevelCache(levels, namespace="own")
    face.get_or_compute(cache, "key", Compute())
    face.get_or_compute(cache, "key", Compute())
    face.get_many(cache, ["key", "unknown", "key"])
    face.invalidate(cache, namespace="own")
    face.get(cache, "key")
    other = MultiLevelCache(levels, namespace="other")
    face.get(other, "key")
    stats = cache.stats()
    assert list(stats.namespaces) == ["own"]
    own = stats.namespaces["own"]
    assert own == Counts(**{field.name: getattr(stats, field.name) for field in FIELDS})
    assert (own.hits, own.misses, own.lookups) == ({"fast": 2}, 3, 5)
    assert own.invalidated == 3  # once on each level
    assert list(other.stats().namespaces) == ["other"]


FIELDS = dataclasses.fields(Counts)


def test_an_entry_that_is_only_good_enough_for_a_refresh_is_one_miss(levels, clock, face):
    """`get` does not serve what is past its lifetime, and counts one look-up for it."""
    cache = MultiLevelCache(levels, ttl=10, stale_while_revalidate=100)
    face.set(cache, "key", 1)
    clock.pass_(20)
    assert face.get(cache, "key") is MISSING
    assert (cache.stats().hits, cache.stats().misses) == ({}, 1)


def test_a_snapshot_of_the_statistics_does_not_change(cache, levels, face):
    """Statistics taken before stay what they were."""
    before = cache.stats()
    face.get(cache, "key")
    face.set(cache, "key", 1)
    face.get(cache, "key")
    assert before == CacheStats(levels={level.name: Usage(0, 0, 0) for level in levels})


# ---- copies and faces ----------------------------------------------------------------------------


def test_a_pickled_cache_works(tmp_path, server, face):
    """A cache sent to another process has the same levels, namespace and time to live."""
    cache = MultiLevelCache(
        [
            MemoryLevel(1_000_000),
            DiskLevel(tmp_path / "cache.sqlite", 5_000_000),
            RedisLevel(server.url, prefix="mine:", timeout=10.0),
        ],
        namespace="tenant",
        ttl=50,
    )
    face.set(cache, "key", "value")
    back = pickle.loads(pickle.dumps(cache))
    assert face.get(back, "key") == "value"
    assert back.stats().hits == {"disk": 1}
    assert back.namespace == "tenant"
    assert [level.name for level in back.levels] == ["memory", "disk", "redis"]
    face.set(back, "new", 1)
    with server.client() as client:
        assert 0 < client.pttl(max(client.scan_iter(b"mine:*"), key=client.pttl)) <= 50_000
    face.close(back)
    face.close(cache)


def test_a_pickled_cache_without_a_limit_has_none(levels, clock):
    """`ttl=None` survives pickling."""
    back = pickle.loads(pickle.dumps(MultiLevelCache([MemoryLevel()], ttl=None)))
    back.set("key", 1)
    clock.pass_(1e9)
    assert back.get("key") == 1


def test_every_method_has_its_async_twin():
    """Whatever may wait exists twice, with the same parameters."""
    for name in (
        "get",
        "get_many",
        "set",
        "set_many",
        "delete",
        "get_or_compute",
        "invalidate",
        "warm",
        "clear",
        "close",
    ):
        twin = getattr(MultiLevelCache, f"a{name}")
        assert inspect.iscoroutinefunction(twin)
        assert list(inspect.signature(twin).parameters) == list(
            inspect.signature(getattr(MultiLevelCache, name)).parameters
        )


async def test_both_faces_are_one_cache(tmp_path):
    """What a sync call stored an async call serves, inside a running loop too, and vice versa."""
    async with MultiLevelCache.open(tmp_path) as cache:
        cache.set("sync", 1)
        await cache.aset("async", 2)
        assert [await cache.aget("sync"), cache.get("async")] == [1, 2]
        assert cache.get_or_compute("a", lambda: 3) == 3
        assert await cache.aget_or_compute("a", Compute(4).awaited) == 3
        assert await cache.aget_or_compute("b", Compute(5).awaited) == 5
        assert cache.get_or_compute("b", Compute(6)) == 5
        await cache.adelete("a")
        cache.delete("b")
        assert [cache.get("a"), await cache.aget("b")] == [MISSING, MISSING]


async def test_async_calls_leave_the_loop_free(tmp_path):
    """While a value is computed the event loop does other things."""
    async with MultiLevelCache.open(tmp_path) as cache:
        proceed = asyncio.Event()

        async def slow() -> str:
            await proceed.wait()
            return "value"

        task = asyncio.create_task(cache.aget_or_compute("key", slow))
        await cache.aset("other", 1)
        assert await cache.aget("other") == 1
        proceed.set()
        assert await task == "value"
