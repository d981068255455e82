"""What was invalidated, deleted or overwritten is served by nobody, whatever happens to the files.

Two caches over one folder stand for two processes where that is as good: they share nothing but the
files.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ragaccel.cache import MISSING, MemoryLevel, MultiLevelCache, ledger
from ragaccel.cache.levels.disk import ledger as disk_ledger
from ragaccel.errors import ConfigurationError, InvalidationError
from tests.cache.helpers import FILE, PATIENCE, SOURCE, Compute, locked, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

EPOCH = f"{FILE}.epoch"


@pytest.fixture
def two(open_cache):
    return open_cache(), open_cache()


def strike(cache: MultiLevelCache, face: str, **what: Any) -> None:
    """Invalidate through one of the faces."""
    if face == "sync":
        cache.invalidate(**what)
    else:
        asyncio.run(cache.ainvalidate(**what))


BY = {
    "tag": {"tags": ["t"]},
    "one of several tags": {"tags": ["other", "t"]},
    "document": {"documents": ["d"]},
    "namespace": {"namespace": "default"},
    "everything": {"everything": True},
}


# ---- what is named goes, and nothing else --------------------------------------------------------


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("how", ["sync", "async"])
def test_it_is_gone_at_once_for_all_who_share_the_folder(two, by, how):
    """Also for a cache that has the entry in its memory, which the strike cannot reach."""
    here, there = two
    here.set("a", "old", tags=["t"], documents=["d"])
    assert there.get("a") == "old"
    strike(here, how, **BY[by])
    assert there.get("a") is MISSING
    assert here.get("a") is MISSING
    assert there.get_many(["a"]) == [MISSING]
    assert list(there.scan()) == []
    assert there.get_or_compute("a", lambda: "new") == "new"
    assert here.get("a") == "new"


@pytest.mark.parametrize("how", ["sync", "async"])
def test_what_was_not_named_stays(two, how):
    """Another tag, document, namespace or key is not touched."""
    here, there = two
    here.set("a", 1, tags=["t"], documents=["d"])
    here.set("plain", 2)
    for what in (
        {"tags": ["d"]},
        {"documents": ["t"]},
        {"tags": ["t"], "namespace": "other"},
        {"namespace": "other"},
    ):
        strike(there, how, **what)
    there.delete("b")
    assert (here.get("a"), here.get("plain")) == (1, 2)
    assert (there.get("a"), there.get("plain")) == (1, 2)
    assert here.levels[0].usage().entries == 2


def test_deleted_is_gone_for_all(two, face):
    """A deleted key is gone from the memory of the others too, and can be stored again."""
    here, there = two
    face.set(here, "a", 1)
    face.set(here, "b", 2)
    assert [face.get(there, name) for name in "ab"] == [1, 2]
    face.delete(here, "a")
    assert [face.get(there, name) for name in "ab"] == [MISSING, 2]
    face.set(there, "a", 3)
    assert face.get(here, "a") == 3


def test_overwritten_is_gone_for_all(two, face):
    """A value that was replaced is not served from the memory of others."""
    here, there = two
    for value in range(5):
        face.set(here, "a", value)
        assert face.get(there, "a") == value
        face.set(there, "a", -value)
        assert face.get(here, "a") == -value
    here.set_many([("a", "many"), ("b", "many")])
    assert there.get_many(["a", "b"]) == ["many", "many"]


def test_overwritten_is_gone_although_the_disk_had_lost_it(two):
    """The disk evicts what others still have in memory; set() replaces that too."""
    here, there = two
    here.set("a", "old")
    assert there.get("a") == "old"
    here.levels[-1].clear()  # as an eviction does
    here.set("a", "new")
    assert there.get("a") == "new"


def test_a_set_value_is_not_replaced_by_a_computation_of_before(two, face):
    """What was set while an older computation ran is what is served afterwards."""
    here, _ = two
    with Slow(here) as slow:
        face.set(here, "a", "set")
        slow.finish()
    assert face.get(here, "a") == "set"


def test_another_process_sees_it_at_once(open_cache, folder, puppet):
    """Both ways, for every way to invalidate."""
    here = open_cache()
    puppet.open(folder)
    for number, what in enumerate([*BY.values(), None]):
        here.set("a", number, tags=["t"], documents=["d"])
        assert puppet("cache.get('a')") == str(number)
        here.delete("a") if what is None else here.invalidate(**what)
        assert puppet("cache.get('a')") == "MISSING"
        assert puppet(f"cache.set('a', {-number}, tags=['t'], documents=['d'])") == "None"
        assert here.get("a") == -number
        told = "cache.delete('a')" if what is None else f"cache.invalidate(**{what!r})"
        assert puppet(told) == "None"
        assert here.get("a") is MISSING
    puppet("cache.close()")


def test_nothing_named_is_an_error(two):
    """A call that would do nothing, or a string meant as a list, is no silent success."""
    here, _ = two
    here.set("a", 1, tags=["t"])
    for what in ({}, {"tags": []}, {"tags": (), "documents": ()}, {"tags": "t"}, {"tags": [1]}):
        with pytest.raises(ConfigurationError):
            here.invalidate(**what)
        with pytest.raises(ConfigurationError):
            asyncio.run(here.ainvalidate(**what))
    assert here.get("a") == 1


@pytest.mark.parametrize("what", ["tags", "documents"])
def test_tags_may_be_an_iterator(two, what):
    """The types say Iterable: a generator tags an entry as a list does."""
    here, _ = two
    here.set("a", 1, **{what: iter(["x"])})
    here.get_or_compute("b", lambda: 1, **{what: iter(["x"])})
    here.set("other", 1)
    here.invalidate(**{what: iter(["x"])}, namespace="default")
    assert here.get_many(["a", "b", "other"]) == [MISSING, MISSING, 1]


def test_more_tags_than_an_entry_can_carry_is_a_wrong_argument(two):
    """It has nothing to do with an invalidation that failed."""
    here, _ = two
    with pytest.raises(ConfigurationError):
        here.set("a", 1, tags=map(str, range(70_000)))


def test_more_documents_than_an_entry_can_carry_is_a_bypass(two):
    """The answer is given, and no level is blamed."""
    here, _ = two
    many = [str(number) for number in range(70_000)]
    assert here.get_or_compute("a", lambda: 1, documents=many) == 1
    assert here.stats().errors == {}


def test_strikes_cost_the_same_however_many_entries_there_are(two):
    """No entry is looked at: a strike is a few rows."""
    here, _ = two
    here.set_many([(number, number) for number in range(3_000)], tags=["t"])
    before = (here.levels[-1].path.with_name(f"{FILE}-wal")).stat().st_size
    here.invalidate(["t"])
    grown = here.levels[-1].path.with_name(f"{FILE}-wal").stat().st_size - before
    assert grown < 100_000
    assert here.levels[-1].usage().entries == 3_000
    assert here.get_many(list(range(10))) == [MISSING] * 10


def test_a_memory_of_its_own_forgets_too(face):
    """Without a shared level the same holds within the process."""
    with MultiLevelCache([MemoryLevel()]) as cache:
        for number, what in enumerate(BY.values()):
            face.set(cache, "a", number, tags=["t"], documents=["d"])
            face.set(cache, "b", number)
            cache.invalidate(**what)
            assert face.get(cache, "a") is MISSING
            if "tags" in what:
                assert face.get(cache, "b") == number


# ---- computations that are under way -------------------------------------------------------------


class Slow:
    """A computation of "a" in a thread, which a test ends."""

    def __init__(self, cache: MultiLevelCache, **options: Any) -> None:
        self._cache, self._options = cache, options
        self._started, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.served: Any = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        self._end.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        self.served = self._cache.get_or_compute("a", self._compute, **self._options)

    def _compute(self) -> str:
        self._started.set()
        assert self._end.wait(PATIENCE)
        return "old"


@pytest.mark.parametrize("struck_here", [True, False], ids=["same cache", "other cache"])
@pytest.mark.parametrize("by", [*BY, "delete"])
def test_an_answer_that_was_being_computed_does_not_stand(two, by, struck_here):
    """Its caller gets it; nobody who asks later does."""
    here, there = two
    with Slow(here, tags=["t"], documents=["d"]) as slow:
        striker = here if struck_here else there
        striker.delete("a") if by == "delete" else striker.invalidate(**BY[by])
        slow.finish()
    assert slow.served == "old"
    assert here.get("a") is MISSING
    assert there.get("a") is MISSING
    assert there.get_or_compute("a", lambda: "new") == "new"
    assert here.get("a") == "new"


@pytest.mark.parametrize("by", [*BY, "delete"])
def test_a_memory_level_alone_keeps_no_answer_of_before(by):
    """Also where nothing is shared."""
    cache = MultiLevelCache([MemoryLevel()])
    with cache, Slow(cache, tags=["t"], documents=["d"]) as slow:
        cache.delete("a") if by == "delete" else cache.invalidate(**BY[by])
        slow.finish()
        assert cache.get("a") is MISSING


def test_who_comes_after_does_not_join_the_older_flight(two, face):
    """A caller that asks after the invalidation gets an answer of after it, at once."""
    here, _ = two
    with Slow(here, tags=["t"]) as slow:
        here.invalidate(["t"])
        assert face.get_or_compute(here, "a", lambda: "new") == "new"
        slow.finish()
        assert face.get(here, "a") == "new" or face.get(here, "a") is MISSING
    assert slow.served == "old"


def test_what_is_stored_after_it_stands(two):
    """However often something was struck, what came after it is served everywhere."""
    here, there = two
    for number in range(20):
        here.invalidate(["t"])
        there.invalidate(documents=["d"])
        here.set(number, number, tags=["t"], documents=["d"])
        assert there.get(number) == number
        assert here.get(number) == number
    assert there.get_many(list(range(20))) == [MISSING] * 19 + [19]


# ---- the ledger's own bounds, and its files ------------------------------------------------------


@pytest.fixture
def small_ledger(monkeypatch):
    monkeypatch.setattr(ledger, "CAPACITY", 10)
    monkeypatch.setattr(disk_ledger, "CAPACITY", 10)


@pytest.mark.parametrize("at_once", [1, 7, 30])
def test_a_full_ledger_lets_nothing_stand_that_was_invalidated(two, small_ledger, at_once):
    """What is forgotten takes its entries with it; what was stored last stands."""
    here, there = two
    for number in range(60):
        here.set(number, number, tags=[f"tag {number}"])
        assert there.get(number) == number
    struck = set()
    for first in range(0, 60, 2 * at_once):
        numbers = range(first, min(first + at_once, 60))
        here.invalidate([f"tag {number}" for number in numbers])
        struck.update(numbers)
        for cache in two:
            served = {number for number in range(60) if cache.get(number) is not MISSING}
            assert not served & struck
    here.set("after", 1, tags=["tag 0"])
    assert [cache.get("after") for cache in two] == [1, 1]
    assert here.levels[-1].describe()["strikes"] <= 10 + at_once


def test_a_full_ledger_of_a_process(small_ledger):
    """The same without a shared level."""
    with MultiLevelCache([MemoryLevel()]) as cache:
        for number in range(60):
            cache.set(number, number, tags=[f"tag {number}"])
        for number in range(40):
            cache.invalidate([f"tag {number}"])
            assert cache.get(number) is MISSING
        cache.set("after", 1, tags=["tag 0"])
        assert cache.get("after") == 1
        assert cache.get_many(list(range(40))) == [MISSING] * 40


def test_what_overflowed_while_a_cache_slept_is_not_served(two, small_ledger):
    """A cache that hears of many strikes at once hears of those that were forgotten too."""
    here, there = two
    here.set("a", 1, tags=["t"])
    assert there.get("a") == 1
    here.invalidate(["t"])
    for number in range(50):
        here.invalidate([f"other {number}"])
    assert there.get("a") is MISSING


def test_a_restart_remembers(open_cache):
    """What was struck before all processes ended is not served by the next one."""
    with open_cache() as cache:
        for name in "abcd":
            cache.set(name, 1, tags=[f"tag {name}"])
        cache.invalidate(["tag a"])
        cache.invalidate(["tag b"])
    with open_cache() as cache:
        assert cache.get_many("abcd") == [MISSING, MISSING, 1, 1]
        cache.invalidate(["tag c"])
    with open_cache() as cache:
        assert cache.get_many("abcd") == [MISSING, MISSING, MISSING, 1]


def unlink_epoch(folder: Path) -> None:
    (folder / EPOCH).unlink()


def garbage_in_epoch(folder: Path) -> None:
    (folder / EPOCH).write_bytes(os.urandom(16))


def empty_epoch(folder: Path) -> None:
    os.truncate(folder / EPOCH, 0)


def cut_epoch(folder: Path) -> None:
    os.truncate(folder / EPOCH, 9)


def new_epoch(folder: Path) -> None:
    (folder / "new").write_bytes((folder / EPOCH).read_bytes())
    (folder / "new").replace(folder / EPOCH)


def unlink_file(folder: Path) -> None:
    for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
        (folder / name).unlink(missing_ok=True)


def garbage_in_file(folder: Path) -> None:
    (folder / "new").write_bytes(b"no database" * 1000)
    (folder / "new").replace(folder / FILE)


def unlink_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


HARMS = [
    garbage_in_epoch, empty_epoch, cut_epoch, unlink_epoch, new_epoch, unlink_file, garbage_in_file,
    unlink_folder, move_folder,
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_strike_after_harm_to_the_files_reaches_a_memory(open_cache, harm, folder):
    """A cache that answers from its memory hears of a newcomer's strike the first time it asks."""
    there = open_cache()
    there.set("a", 1, tags=["t"])
    harm(folder)
    with open_cache() as newcomer:
        newcomer.invalidate(["t"])
    assert there.get("a") is MISSING


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_the_files_brings_nothing_back(open_cache, harm, folder):
    """Nothing that was struck, before the harm or after it by a newcomer, is served by anybody."""
    here, there = open_cache(), open_cache()
    here.set("before", 1, tags=["t"])
    here.set("after", 1, tags=["u"])
    here.set("kept", 1)
    assert there.get_many(["before", "after", "kept"]) == [1, 1, 1]
    here.invalidate(["t"])
    harm(folder)
    for cache in (here, there, open_cache()):
        assert cache.get("before") is MISSING
        assert cache.get("kept") in {1, MISSING}
    with open_cache() as newcomer:
        newcomer.invalidate(["u"])
        for cache in (here, there, open_cache()):
            assert cache.get_many(["before", "after"]) == [MISSING, MISSING]
        newcomer.set("new", 2)
        for cache in (here, there, open_cache()):
            assert cache.get("new") == 2
            assert cache.get_many(["before", "after"]) == [MISSING, MISSING]


@pytest.mark.parametrize("harm", [unlink_epoch, garbage_in_epoch, empty_epoch, cut_epoch])
def test_harm_to_the_epoch_costs_no_entries(two, harm, folder):
    """The small file only says that something happened; what, stands in the cache file."""
    here, there = two
    here.set("kept", 1)
    assert there.get("kept") == 1
    harm(folder)
    for _ in range(3):
        assert [here.get("kept"), there.get("kept")] == [1, 1]


def test_an_older_copy_of_the_file_brings_nothing_back(open_cache, folder):
    """A backup knows nothing of later strikes, but the epoch does."""
    with open_cache() as cache:
        cache.set("a", 1, tags=["t"])
    shutil.copy(folder / FILE, folder / "backup")
    with open_cache() as cache:
        cache.invalidate(["t"])
        cache.invalidate(["u"])
    (folder / "backup").replace(folder / FILE)
    with open_cache() as cache:
        assert cache.get("a") is MISSING


def test_strikes_in_an_older_copy_of_the_file_are_heard(open_cache, folder):
    """The numbers of an older copy begin again where it was made."""
    with open_cache() as cache:
        cache.set("a", 1, tags=["t"])
    shutil.copy(folder / FILE, folder / "backup")
    here = open_cache()
    assert here.get("a") == 1
    for _ in range(5):
        here.invalidate(["other"])
    (folder / "backup").replace(folder / FILE)
    for name in (f"{FILE}-wal", f"{FILE}-shm"):
        (folder / name).unlink(missing_ok=True)
    with open_cache() as there:
        there.invalidate(["t"])
    assert here.get("a") is MISSING


def test_everything_struck_in_the_middle_of_hearing(two):
    """Who hears of strikes while another clears misses none of those before."""
    here, there = two
    here.set("a", 1, tags=["t"])
    assert there.get("a") == 1
    here.invalidate(["t"])
    busy = []

    def meanwhile(statement: str) -> None:
        if "FROM strike" in statement and not busy:
            busy.append(statement)
            here.invalidate(everything=True)

    for lease in there.levels[-1]._file._connections._idle:
        lease.db.set_trace_callback(meanwhile)
    assert there.get("a") is MISSING
    assert busy


def test_killed_in_the_middle_of_strikes(open_cache, folder):
    """Strikes that returned hold, whenever the process is killed, and the next one works on."""
    code = """
import sys
from ragaccel.cache import MultiLevelCache
cache = MultiLevelCache.open(sys.argv[1])
for number in range(int(sys.argv[2]), 10**9):
    cache.invalidate([f"tag {number}"])
    print(number, flush=True)
"""
    cache, first = open_cache(), 0
    for lap in range(6):
        cache.set_many([((lap, n), n) for n in range(first, first + 2_000)])
        for number in range(first, first + 300):
            cache.set(number, number, tags=[f"tag {number}"])
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(first)],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdout=subprocess.PIPE,
            text=True,
        )
        last = -1
        for _ in range(5 + 13 * lap):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        last = int((child.communicate()[0].split() or [last])[-1])
        for one in (cache, open_cache()):
            struck = range(first, min(last + 1, first + 300))
            assert one.get_many(list(struck)) == [MISSING] * len(struck)
            # the one that was being struck may be either way; later ones stand
            assert one.get_many(list(range(last + 2, first + 300))) == list(
                range(last + 2, first + 300)
            )
        first = last + 300
        cache.invalidate(["works on"])


def test_a_strike_that_cannot_be_written_says_so(two, folder, face):
    """Nobody is told that something was invalidated while it was not; the next call does it."""
    here, there = two
    here.set("a", 1, tags=["t"])
    assert there.get("a") == 1
    with locked(folder):
        with pytest.raises(InvalidationError):
            here.invalidate(["t"])
        with pytest.raises(InvalidationError):
            asyncio.run(here.ainvalidate(everything=True))
        with pytest.raises(InvalidationError):
            face.delete(there, "a")
        with pytest.raises(InvalidationError):
            face.set(here, "a", 2)
    here.invalidate(["t"])
    assert [here.get("a"), there.get("a")] == [MISSING, MISSING]


def test_the_folder_is_gone_and_cannot_come_back(open_cache, folder):
    """While nobody can tell what was struck, nothing of before is served, and callers go on."""
    cache = open_cache()
    cache.set("a", 1)
    shutil.rmtree(folder)
    folder.write_bytes(b"a file in the place of the folder")
    with pytest.raises(InvalidationError):
        cache.invalidate(["t"])
    for _ in range(3):
        assert cache.get_or_compute("b", lambda: 2) == 2
    folder.unlink()
    cache.invalidate(["t"])
    assert cache.get("a") is MISSING
    wait_until(lambda: cache.get_or_compute("b", lambda: 2) == 2 and cache.get("b") == 2)


def test_a_ledger_that_cannot_be_read_is_reported(folder, open_cache, caplog):
    """A cache that serves nothing says so."""
    (folder / EPOCH).mkdir(parents=True)
    cache, compute = open_cache(), Compute()
    for _ in range(3):
        assert cache.get_or_compute("a", compute) == "value"
    assert compute.calls == 3
    assert caplog.records or cache.stats().errors


def test_a_held_lock_does_not_hold_back_readers(two, folder):
    """Not even those that find the epoch in disorder: they are bounded by one wait each."""
    here, there = two
    here.set("a", 1)
    assert there.get("a") == 1
    with locked(folder):
        start = time.monotonic()
        for _ in range(50):
            assert here.get("a") == 1
        assert time.monotonic() - start < 1
        garbage_in_epoch(folder)
        start = time.monotonic()
        assert there.get("a") == 1
        assert time.monotonic() - start < 5


def test_a_held_lock_and_an_epoch_in_disorder_hold_nobody_back_for_long(two, folder):
    """One wait at most, not one in each look-up."""
    here, _ = two
    here.set("a", 1)
    with locked(folder):
        garbage_in_epoch(folder)
        start = time.monotonic()
        for _ in range(10):
            assert here.get("a") == 1
        assert time.monotonic() - start < 2.5


def test_many_threads_hear_of_every_strike(two):
    """Threads that read while others strike never see what was struck before they asked."""
    here, there = two
    rounds, ready, wrong = 60, threading.Barrier(5), []

    def read() -> None:
        for number in range(rounds):
            ready.wait(PATIENCE)
            if (got := there.get("a")) != number:
                wrong.append((number, got))
            ready.wait(PATIENCE)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(rounds):
        here.invalidate(["t"])
        here.set("a", number, tags=["t"])
        ready.wait(PATIENCE)
        ready.wait(PATIENCE)
    for reader in readers:
        reader.join(PATIENCE)
    assert not wrong


# ---- against a model -----------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c", 1])
TAGS = st.sets(st.sampled_from(["t", "u"]))
DOCUMENTS = st.sets(st.sampled_from(["t", "d"]))
WHO = st.integers(0, 1)
VALUES = (
    st.none() | st.integers(-9, 9) | st.lists(st.integers(0, 9), max_size=2) | st.just("x" * 5000)
)
NAMESPACES = st.sampled_from(["one", "two"])


class Model(RuleBasedStateMachine):
    """Two caches over one folder behave like one dict."""

    folder: Path
    number = 0

    @initialize()
    def begin(self) -> None:
        type(self).number += 1
        self.path = self.folder / str(self.number)
        self.caches: dict[tuple[int, str], MultiLevelCache] = {}
        self.model: dict[tuple[str, Any], tuple[Any, set[str], set[str]]] = {}
        self.computed = 0

    def cache(self, who: int, namespace: str) -> MultiLevelCache:
        if (who, namespace) not in self.caches:
            self.caches[who, namespace] = MultiLevelCache.open(
                self.path, namespace=namespace, ttl=None, negative_ttl=None
            )
        return self.caches[who, namespace]

    @rule(who=WHO, of=NAMESPACES, key=KEYS, value=VALUES, tags=TAGS, documents=DOCUMENTS)
    def set(self, who, of, key, value, tags, documents):
        self.cache(who, of).set(key, value, tags=tags, documents=documents)
        self.model[of, key] = (value, tags, documents)

    @rule(who=WHO, of=NAMESPACES, keys=st.lists(KEYS, max_size=3), value=VALUES, tags=TAGS)
    def set_many(self, who, of, keys, value, tags):
        self.cache(who, of).set_many([(key, value) for key in keys], tags=tags)
        for key in keys:
            self.model[of, key] = (value, tags, set())

    @rule(who=WHO, of=NAMESPACES, key=KEYS)
    def get(self, who, of, key):
        assert self.cache(who, of).get(key) == self.model.get((of, key), (MISSING,))[0]

    @rule(who=WHO, of=NAMESPACES, keys=st.lists(KEYS, max_size=4))
    def get_many(self, who, of, keys):
        expected = [self.model.get((of, key), (MISSING,))[0] for key in keys]
        assert self.cache(who, of).get_many(keys) == expected

    @rule(who=WHO, of=NAMESPACES, key=KEYS, tags=TAGS, documents=DOCUMENTS)
    def get_or_compute(self, who, of, key, tags, documents):
        self.computed += 1
        value = f"computed {self.computed}"
        found = self.cache(who, of).get_or_compute(
            key, lambda: value, tags=tags, documents=documents
        )
        assert found == self.model.setdefault((of, key), (value, tags, documents))[0]

    @rule(who=WHO, of=NAMESPACES, keys=st.lists(KEYS, min_size=1, max_size=2))
    def delete(self, who, of, keys):
        self.cache(who, of).delete(*keys)
        for key in keys:
            self.model.pop((of, key), None)

    @rule(who=WHO, of=NAMESPACES, tags=TAGS, documents=DOCUMENTS, named=st.booleans())
    def invalidate(self, who, of, tags, documents, named):
        other = "two" if of == "one" else "one"
        if tags or documents or named:
            self.cache(who, other if named else of).invalidate(
                tags, documents, of if named else None
            )
        for (whose, key), (_, its_tags, its_documents) in list(self.model.items()):
            all_of_it = named and not tags and not documents
            struck = all_of_it or its_tags & tags or its_documents & documents
            if whose == of and struck:
                del self.model[whose, key]

    @rule(who=WHO, of=NAMESPACES, clear=st.booleans())
    def forget_everything(self, who, of, clear):
        cache = self.cache(who, of)
        cache.clear() if clear else cache.invalidate(everything=True)
        self.model = {}

    @rule(who=WHO, of=NAMESPACES)
    def reopen(self, who, of):
        self.cache(who, of).close()
        del self.caches[who, of]

    @rule(who=WHO, of=NAMESPACES)
    def drop_memory(self, who, of):
        self.cache(who, of).levels[0].clear()

    @rule(who=WHO, of=NAMESPACES)
    def scan(self, who, of):
        found = sorted(map(repr, self.cache(who, of).scan()))
        stored = [value for (whose, _), (value, *_) in self.model.items() if whose == of]
        assert found == sorted(map(repr, stored))

    @invariant()
    def nothing_fails(self):
        for cache in getattr(self, "caches", {}).values():
            stats = cache.stats()
            assert (stats.errors, stats.damaged) == ({}, 0)

    def teardown(self):
        for cache in getattr(self, "caches", {}).values():
            cache.close()


def test_two_caches_over_a_folder_are_one_dict(tmp_path):
    """Whatever is called in whatever order, both serve what was stored last and not struck."""
    Model.folder = tmp_path
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
