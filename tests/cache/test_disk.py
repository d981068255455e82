"""The disk level: bounded, shared by processes, and never the reason why a call fails."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from ragaccel.cache import MISSING, DiskLevel, MemoryLevel, MultiLevelCache
from ragaccel.cache.levels.breaker import Unavailable
from ragaccel.errors import ConfigurationError, InvalidationError
from tests.cache.helpers import (
    SOURCE,
    Compute,
    here,
    key,
    logged,
    script,
    share_a_file,
    stored,
    together,
    wait_until,
)

OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.sqlite"


@pytest.fixture
def open_level(path):
    """Give a function that opens a level on the same file each time."""
    levels = []

    def open_(**options) -> DiskLevel:
        levels.append(DiskLevel(path, **options))
        return levels[-1]

    yield open_
    for level in levels:
        level.close()


@pytest.fixture
def open_cache(open_level):
    """Give a function that opens a cache that has nothing but a level on the same file."""
    return lambda: MultiLevelCache([open_level()])


def set_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def into_the_file(path: Path) -> None:
    """Bring everything that was written from the log into the file itself."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


# ---- size and time -------------------------------------------------------------------------------


def test_the_size_bound_holds_over_many_writes(open_level, path):
    """However much is written, the newest entries stay, within the bound, and the file too."""
    bound = 200_000
    level = open_level(max_bytes=bound)
    sizes = random.Random(7)
    written = []
    for number in range(2_000):
        blob = bytes(sizes.choice([0, 30, 1_500, 9_000]))
        level.put_many([stored(number, blob)])
        written.append(len(blob))
    kept = here(level, *range(2_000))
    assert sum(written[number] for number in kept) <= bound
    assert kept == list(range(kept[0], 2_000))
    level.close()
    assert path.stat().st_size <= 3 * bound


def test_a_batch_larger_than_the_bound_is_held_to_it(open_level):
    """One call that writes more than fits leaves no more than fits."""
    level = open_level(max_bytes=10_000)
    level.put_many([stored(number, bytes(1_000)) for number in range(100)])
    assert len(here(level, *range(100))) <= 10
    level.put_many([stored("giant", bytes(50_000))])
    assert here(level, "giant") == []
    level.put_many([stored("after")])
    assert here(level, "after") == ["after"]


def test_eviction_makes_room_and_no_more(open_level):
    """Small old entries before large new ones do not make an eviction take nearly everything."""
    level = open_level(max_bytes=2_000_000)
    level.put_many([stored(("small", number), b"small") for number in range(16)])
    for number in range(30):
        level.put_many([stored(number, bytes(100_000))])
    assert len(here(level, *range(30))) >= 15


@pytest.mark.parametrize("how", ["evicted", "cleared"])
def test_entries_that_went_before_their_time_are_remembered_until_then(open_level, clock, how):
    """Another process may have copies of them; so it is told by whichever level is asked."""
    level, other = open_level(max_bytes=10_000), open_level()
    level.put_many([stored(number, bytes(1_000), 100) for number in range(5)])
    assert not level.has_lost()
    if how == "cleared":
        level.clear()
    else:
        level.put_many([stored(("new", number), bytes(1_000), 10) for number in range(8)])
        assert level.usage().evictions
    assert level.has_lost()
    assert other.has_lost()
    clock.pass_(101)
    assert not level.has_lost()


def test_what_expired_or_was_deleted_is_not_lost(open_level, clock):
    """Nobody serves it."""
    level = open_level(max_bytes=10_000)
    level.put_many([stored(number, bytes(1_000), 10) for number in range(5)])
    clock.pass_(11)
    level.put_many([stored(("new", number), bytes(1_000), 100) for number in range(8)])
    level.delete_many([key(("new", 0))])
    assert not level.has_lost()


def test_a_damaged_time_does_not_hide_what_is_lost(open_level, path):
    """Of rows whose time is no number nothing is known."""
    level = open_level()
    level.put_many([stored(number) for number in range(2)])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE entry SET expires = 'odd' WHERE key = ?", (key(0),))
        connection.commit()
    level.clear()
    assert level.has_lost()


def test_expired_entries_go_first(open_level, clock):
    """An eviction takes what nobody can get any more before it takes the oldest."""
    level = open_level(max_bytes=100_000)
    level.put_many([stored(("lives", number), bytes(1_000), 1_000) for number in range(40)])
    level.put_many([stored(("expires", number), bytes(1_000), 10) for number in range(40)])
    clock.pass_(100)
    level.put_many([stored(("new", number), bytes(1_000), 1_000) for number in range(40)])
    lives = [("lives", number) for number in range(40)]
    assert here(level, *lives) == lives


@pytest.mark.parametrize("bound", ["max_bytes", "namespace_bytes"])
@pytest.mark.parametrize("size", [0, -5])
def test_a_bound_without_room_is_refused(path, bound, size):
    """A size bound that could hold nothing is a mistake that is said at once."""
    with pytest.raises(ConfigurationError, match=f"must be positive, got {size}"):
        DiskLevel(path, **{bound: size})


def test_a_namespace_makes_room_for_itself_only(open_level):
    """A tenant that writes much loses its own oldest entries, and costs no other tenant any."""
    level = open_level(max_bytes=1_000_000, namespace_bytes=50_000)
    small = [("small", number) for number in range(20)]
    level.put_many([stored(name, bytes(1_000))._replace(namespace=b"s" * 8) for name in small])
    for number in range(200):
        level.put_many([stored(number, bytes(1_000))._replace(namespace=b"l" * 8)])
    assert here(level, *small) == small
    kept = here(level, *range(200))
    assert kept == list(range(kept[0], 200))
    assert 30 <= len(kept) <= 50
    assert level.usage().evictions == 200 - len(kept)


# ---- processes and threads -----------------------------------------------------------------------


def test_entries_survive_reopening(tmp_path):
    """The next process finds what this one stored."""
    with MultiLevelCache.open(tmp_path / "new" / "folder") as cache:
        cache.set("key", {"answer": 42})
    with MultiLevelCache.open(tmp_path / "new" / "folder") as cache:
        assert cache.get("key") == {"answer": 42}
        assert cache.stats().hits == {"disk": 1}


def test_a_level_goes_on_after_close(open_level):
    """A closed level opens its file again when it is used."""
    level = open_level()
    level.put_many([stored("a")])
    level.close()
    assert here(level, "a") == ["a"]


def test_entries_survive_a_killed_process(open_level, path):
    """What a call had stored before its process was killed is found afterwards."""
    program = """
        import sys
        from ragaccel.cache import DiskLevel
        from tests.cache.helpers import stored
        level = DiskLevel(sys.argv[1])
        for number in range(1_000_000):
            level.put_many([stored(number)])
            print(number, flush=True)
    """
    root = Path(__file__).parents[2]
    writer = subprocess.Popen(
        [sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines()), path],
        env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{root}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        acknowledged = [int(writer.stdout.readline()) for _ in range(300)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    assert here(open_level(), *acknowledged) == acknowledged
    assert not set_aside(path)


def test_two_processes_share_the_file_at_once(open_level, path):
    """Two processes that read and write together fail at nothing and see each other's entries."""
    level = open_level()
    level.put_many([stored("parent")])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        sides = [pool.submit(share_a_file, path, me, other) for me, other in ("ab", "ba")]
        assert [side.result(timeout=100) for side in sides] == [300, 300]
    everything = [(side, number) for side in "ab" for number in range(300)]
    assert here(level, *everything) == everything
    assert not set_aside(path)


def test_a_file_that_another_process_is_just_making_is_waited_for(open_level, path):
    """A first use waits for the lock that another first use holds for a moment."""
    with contextlib.closing(
        sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        done = threading.Timer(0.3, other.execute, ("COMMIT",))
        done.start()
        level = open_level()
        try:
            level.put_many([stored("a")])
        finally:
            done.join()
        assert here(level, "a") == ["a"]


def test_first_uses_by_many_threads_at_once(open_level):
    """Threads that all meet an absent file make it together."""
    level = open_level()
    together(16, lambda number: level.put_many([stored(number)]))
    assert here(level, *range(16)) == list(range(16))


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="the system does not list open files there")
def test_threads_that_ended_leave_no_open_files(open_level):
    """A server with one thread per request does not collect connections for ever."""
    level = open_level()
    level.put_many([stored("a")])
    before = len(list(OPEN_FILES.iterdir()))
    for _ in range(60):
        reader = threading.Thread(target=level.get_many, args=((key("a"),),))
        reader.start()
        reader.join()
    assert len(list(OPEN_FILES.iterdir())) <= before + 30


def test_closing_while_others_read_is_no_fault(path):
    """A close in one thread neither crashes the process nor costs the others their entries."""
    printed = script(
        """
        import os, sys, threading, time
        from ragaccel.cache import DiskLevel, Stored
        level = DiskLevel(sys.argv[1])
        level.put_many([Stored(b"k" * 20, b"v" * 5_000, time.time() + 600)])
        stop, wrong = threading.Event(), set()

        def read():
            while not stop.is_set():
                try:
                    if not level.get_many([b"k" * 20]):
                        wrong.add("lost")
                except Exception as error:
                    wrong.add(type(error).__name__)

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for _ in range(150):
            time.sleep(0.01)
            level.close()
        stop.set()
        for reader in readers:
            reader.join()
        print(sorted(wrong), [name for name in os.listdir(os.path.dirname(sys.argv[1]))
                              if "damaged" in name])
        """,
        path,
    )
    assert printed == "[] []\n"


@pytest.fixture
def locked(open_cache, path, monkeypatch):
    """A cache with an old entry, while another process holds the write lock; and that process."""
    monkeypatch.setattr("ragaccel.cache.levels.disk.file._BUSY_SECONDS", 0.1)
    cache = open_cache()
    cache.set("old", 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield cache, other


def test_a_lock_that_is_held_for_long_fails_writes_only(locked, path, caplog):
    """While another process holds the write lock, look-ups are served and writes are given up.

    They are not even tried for a while; the two changes are logged, in one line each.
    """
    cache, other = locked
    assert cache.get("old") == 1
    assert cache.get_or_compute("new", Compute()) == "value"
    started = time.monotonic()
    for number in range(50):
        assert cache.get_or_compute(number, Compute(number)) == number
    assert time.monotonic() - started < 2  # to wait for the lock each time would take 5 s
    assert len(logged(caplog)) == 1
    assert logged(caplog, "the cache file's lock cannot be reached (BusyError)")
    assert cache.stats().errors == {"disk": 51}
    other.execute("COMMIT")
    wait_until(lambda: cache.get_or_compute("new", Compute()) == cache.get("new"))
    assert logged(caplog)[1:] == ["the cache file's lock can be reached again"]
    assert not set_aside(path)


def test_what_cannot_be_written_down_for_the_lock_is_heard_of(locked, face):
    """Who forgets something while the lock is held learns that it may still be served."""
    cache, other = locked
    calls = [
        lambda: face.delete(cache, "old"),
        lambda: face.invalidate(cache, namespace="default"),
        lambda: face.set(cache, "old", 2),
    ]
    for call in calls:
        with pytest.raises(InvalidationError):
            call()
        assert face.get(cache, "old") == 1
    other.execute("COMMIT")
    face.invalidate(cache, namespace="default")
    assert face.get(cache, "old") is MISSING


def test_a_write_that_finds_the_lock_held_says_so(locked):
    """A level on its own raises `Unavailable`, at first for the lock and then at once."""
    cache, _ = locked
    (level,) = cache.levels
    with pytest.raises(Unavailable, match="BusyError"):
        level.put_many([stored("a")])
    with pytest.raises(Unavailable, match="not asked again yet"):
        level.put_many([stored("a")])
    assert here(level, "a") == []


# ---- files of other versions, files beside -------------------------------------------------------


def test_a_file_of_the_first_version_loses_its_entries_only(open_cache, path):
    """The entries of an older release are dropped, and the file is used on; it is no damage."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """
            PRAGMA journal_mode = WAL;
            CREATE TABLE entry (
              hash INTEGER PRIMARY KEY, key BLOB NOT NULL, blob BLOB NOT NULL,
              expires REAL NOT NULL, written INTEGER NOT NULL
            );
            CREATE INDEX entry_expires ON entry (expires);
            CREATE TABLE total (bytes INTEGER NOT NULL);
            INSERT INTO total VALUES (4);
            INSERT INTO entry VALUES (1, x'00', x'01', 1e12, 1);
            PRAGMA user_version = 1;
            """
        )
    cache = open_cache()
    assert cache.get("key") is MISSING
    cache.set("key", 1)
    assert cache.get("key") == 1
    assert cache.levels[0].usage().entries == 1
    assert cache.stats().errors == {}
    assert not set_aside(path)


def test_what_lies_beside_the_file(open_cache, path):
    """Invalidations are told through a small file, and leases are locks in another one."""
    open_cache().get_or_compute("key", Compute())
    beside = {file.name for file in path.parent.iterdir()} - {
        f"{path.name}-wal",
        f"{path.name}-shm",
    }
    assert beside == {path.name, f"{path.name}.epoch", f"{path.name}.leases"}
    assert path.with_name(f"{path.name}.epoch").stat().st_size == 24


def test_two_processes_that_miss_together_compute_once(path):
    """One of them computes, and the others wait for it and find its value."""
    printed = script(
        """
        import os, sys, time
        from ragaccel.cache import DiskLevel, MemoryLevel, MultiLevelCache
        cache = MultiLevelCache([MemoryLevel(), DiskLevel(sys.argv[1])])
        cache.set("warm", 1)
        begin, computed = os.pipe(), os.pipe()

        def slow():
            os.write(computed[1], b"x")
            time.sleep(0.5)
            return os.getpid()

        children = []
        for _ in range(4):
            child = os.fork()
            if not child:
                os.read(begin[0], 1)
                got = cache.get_or_compute("key", slow)
                os._exit(0 if got == cache.get("key") and not cache.stats().errors else 1)
            children.append(child)
        os.write(begin[1], b"xxxx")
        print([os.waitpid(child, 0)[1] for child in children], len(os.read(computed[0], 9)))
        """,
        path,
    )
    assert printed == "[0, 0, 0, 0] 1\n"


def test_the_lease_of_a_killed_process_is_free(path):
    """Others do not wait for a process that was killed while it computed."""
    printed = script(
        """
        import os, signal, sys, time
        from ragaccel.cache import DiskLevel, MultiLevelCache
        cache = MultiLevelCache([DiskLevel(sys.argv[1])])
        started = os.pipe()

        def never():
            os.write(started[1], b"x")
            time.sleep(100)

        child = os.fork()
        if not child:
            cache.get_or_compute("key", never)
        os.read(started[0], 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before = time.monotonic()
        print(cache.get_or_compute("key", lambda: "value"), time.monotonic() - before < 30)
        """,
        path,
    )
    assert printed == "value True\n"


def test_an_invalidation_reaches_other_users_of_the_file_at_once(path, open_level, face):
    """What one cache has struck another one does not serve any more, not even from memory."""
    one, other = (MultiLevelCache([MemoryLevel(), open_level()]) for _ in range(2))
    for forget in (
        lambda: face.invalidate(one, tags=["tag"]),
        lambda: face.invalidate(one, namespace="default"),
        lambda: face.invalidate(one, everything=True),
        lambda: face.delete(one, "key"),
        lambda: face.clear(one),
    ):
        face.set(one, "key", 1, tags=["tag"])
        assert [face.get(other, "key") for _ in range(2)] == [1, 1]
        forget()
        assert [face.get(cache, "key") for cache in (one, other)] == [MISSING, MISSING]
    face.set(one, "key", 1)
    assert face.get(other, "key") == 1
    face.set(one, "key", 2)
    assert face.get(other, "key") == 2


def test_a_replaced_value_that_the_file_had_lost_is_not_served_from_memory(open_level, face):
    """An eviction from the file in between makes no difference to who replaces a value."""
    one, other = (MultiLevelCache([MemoryLevel(), open_level()]) for _ in range(2))
    face.set(one, "key", 1)
    assert face.get(other, "key") == 1
    open_level().clear()  # as an eviction would
    face.set(one, "key", 2)
    assert face.get(other, "key") == 2


def test_invalidations_survive_reopening(open_level, path, face):
    """A strike holds for the next process too, and for entries that come back from elsewhere."""
    memory = MemoryLevel()
    cache = MultiLevelCache([memory, open_level()])
    face.set(cache, "key", 1)
    face.invalidate(cache, namespace="default")
    face.close(MultiLevelCache([open_level()]))
    path.with_name(f"{path.name}.epoch").unlink()
    assert face.get(MultiLevelCache([memory, open_level()]), "key") is MISSING
    assert face.get(MultiLevelCache([open_level()]), "key") is MISSING


# ---- fork ----------------------------------------------------------------------------------------


def test_a_fork_after_use_works(path):
    """Parent and child both go on with a level that was used before the fork, and share it."""
    printed = script(
        """
        import os, sys
        from ragaccel.cache import DiskLevel, MemoryLevel, MultiLevelCache
        cache = MultiLevelCache([DiskLevel(sys.argv[1])])
        cache.set("before", 1)
        child = os.fork()
        if not child:
            assert cache.get("before") == 1
            cache.set("from the child", 2)
            assert cache.get_or_compute("computed by the child", lambda: 3) == 3
            cache.close()
            os._exit(0 if not cache.stats().errors else 1)
        cache.set("from the parent", 4)
        assert os.waitpid(child, 0)[1] == 0
        print([cache.get(key) for key in
               ("before", "from the child", "computed by the child", "from the parent")],
              cache.stats().errors)
        """,
        path,
    )
    assert printed == "[1, 2, 3, 4] {}\n"


def test_a_parent_that_closes_leaves_its_forked_child_the_file(path):
    """What a forked worker stores after the parent has closed is found by the next process."""
    printed = script(
        """
        import os, sys
        from ragaccel.cache import DiskLevel, MultiLevelCache
        parent = MultiLevelCache([DiskLevel(sys.argv[1])])
        parent.set("parent", 1)
        to_child, to_parent = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            parent.set("first", 2)
            os.write(to_parent[1], b"x")
            os.read(to_child[0], 1)
            parent.set("second", 3)
            os.write(to_parent[1], b"x")
            os.read(to_child[0], 1)
            os._exit(0)
        os.read(to_parent[0], 1)
        parent.close()
        os.write(to_child[1], b"x")
        os.read(to_parent[0], 1)
        third = MultiLevelCache([DiskLevel(sys.argv[1])])
        print([third.get(key) for key in ("parent", "first", "second")])
        os.write(to_child[1], b"x")
        os.waitpid(child, 0)
        """,
        path,
    )
    assert printed == "[1, 2, 3]\n"


@pytest.mark.parametrize("level", ["MemoryLevel()", "DiskLevel(sys.argv[1])"])
def test_a_fork_amid_other_threads_work_leaves_the_child_a_cache(path, level):
    """A child forked while other threads use the cache neither hangs nor loses the level."""
    script(
        f"""
        import contextlib, os, signal, sys, threading, time
        from ragaccel.cache import DiskLevel, MemoryLevel, MultiLevelCache
        from ragaccel.errors import InvalidationError
        cache = MultiLevelCache([{level}])
        stop = threading.Event()

        def hammer():
            while not stop.is_set():
                cache.set("key", 1)
                cache.get("key")
                time.sleep(0.001)

        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        bad = []
        for _ in range(40):
            time.sleep(0.005)
            child = os.fork()
            if not child:
                signal.alarm(100)
                for _ in range(40):
                    with contextlib.suppress(InvalidationError):  # others may have the lock
                        cache.set("child", 1)
                        if cache.get("child") == 1:
                            os._exit(0)
                    time.sleep(0.5)
                os._exit(1)
            status = os.waitpid(child, 0)[1]
            if status:
                bad.append("hung" if os.WIFSIGNALED(status) else "lost")
                break
        stop.set()
        for thread in threads:
            thread.join()
        sys.exit(bad[0] if bad else 0)
        """,
        path,
    )


def test_a_fork_while_another_thread_makes_caches_leaves_both_processes_theirs(path):
    """What is made between the two halves of a fork's preparation confuses neither process."""
    script(
        """
        import os, signal, sys, threading, time
        from ragaccel.cache import DiskLevel, MultiLevelCache
        cache = MultiLevelCache([DiskLevel(sys.argv[1])])
        cache.set("key", 1)
        stop = threading.Event()

        def make():
            while not stop.is_set():
                MultiLevelCache([DiskLevel(sys.argv[1])])

        threads = [threading.Thread(target=make, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        signal.alarm(60)
        for _ in range(50):
            time.sleep(0.002)
            child = os.fork()
            if not child:
                signal.alarm(10)
                os._exit(0 if cache.get("key") == 1 else 1)
            assert os.waitpid(child, 0)[1] == 0, "the child lost its cache"
            assert cache.get("key") == 1, "the parent lost its cache"
        stop.set()
        """,
        path,
    )


# ---- damage --------------------------------------------------------------------------------------


def test_a_file_of_garbage_is_set_aside(open_cache, path):
    """A file that is no database is kept for its owner under another name, and a new one begun."""
    path.write_bytes(b"my thesis" * 1_000)
    cache = open_cache()
    assert cache.get_or_compute("key", Compute()) == "value"
    assert cache.get("key") == "value"
    assert cache.stats().errors == {}
    assert [file.read_bytes() for file in set_aside(path)] == [b"my thesis" * 1_000]


def test_a_file_of_garbage_that_many_meet_is_set_aside_once(path):
    """Users who find the garbage together begin one new file, and none of them loses an entry."""
    printed = script(
        """
        import sys, time
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from ragaccel.cache import DiskLevel, Stored
        keys = [bytes((number,)) * 20 for number in range(8)]
        lost = asides = 0
        with ThreadPoolExecutor(8) as pool:
            for round_ in range(30):
                path = Path(sys.argv[1] + str(round_))
                path.write_bytes(b"my thesis" * 1_000)
                levels = [DiskLevel(path), DiskLevel(path)]

                def put(number):
                    levels[number % 2].put_many([Stored(keys[number], b"", time.time() + 600)])

                list(pool.map(put, range(8)))
                lost += sum(8 - len(level.get_many(keys)) for level in levels)
                asides += len(list(path.parent.glob(path.name + ".damaged-*")))
                for level in levels:
                    level.close()
        print(lost, asides)
        """,
        path,
    )
    assert printed == "0 30\n"


@pytest.mark.parametrize("total", [10**15, -(10**15)])
def test_a_wrong_count_of_bytes_is_put_right(open_level, path, total):
    """A damaged count neither stops the level from storing nor lets it grow without bound."""
    level = open_level(max_bytes=20_000)
    level.put_many([stored("old")])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE total SET bytes = ?", (total,))
        connection.commit()
    level.close()
    for number in range(100):
        level.put_many([stored(number, bytes(1_000))])
        assert here(level, number) == [number]
    assert len(here(level, *range(100))) <= 20


@pytest.mark.parametrize("length", [0, 1, 99, 100, 4_096, 0.5, 0.99])
@pytest.mark.parametrize("used", ["closed", "in use"])
def test_a_truncated_file_costs_entries_only(open_cache, path, length, used):
    """Whatever is cut off, every call gets the right answer and the cache works on."""
    cache = open_cache()
    for number in range(100):
        cache.set(number, [number] * 1_000)
    into_the_file(path)
    if used == "closed":
        cache.levels[0].close()
    os.truncate(path, length if isinstance(length, int) else int(length * path.stat().st_size))
    for _ in range(2):
        for number in range(100):
            assert cache.get_or_compute(number, lambda n=number: [n] * 1_000) == [number] * 1_000
    assert all(cache.get(number) == [number] * 1_000 for number in range(100))
    assert cache.stats().errors == {}


@pytest.mark.parametrize("used", ["closed", "in use"])
def test_a_file_overwritten_with_garbage_costs_entries_only(open_cache, path, used):
    """A file that turns into garbage is set aside, under its users too, and calls go on."""
    cache = open_cache()
    for number in range(100):
        cache.set(number, [number] * 1_000)
    into_the_file(path)
    if used == "closed":
        cache.levels[0].close()
    with path.open("r+b") as file:
        file.write(random.Random(3).randbytes(path.stat().st_size))
    for number in range(100):
        assert cache.get_or_compute(number, lambda n=number: [n] * 1_000) == [number] * 1_000
    assert all(cache.get(number) == [number] * 1_000 for number in range(100))
    assert cache.stats().errors == {}
    assert set_aside(path)


def test_pages_of_garbage_never_give_a_wrong_answer(tmp_path):
    """With random pages overwritten the cache gives right values or computes them anew."""
    for seed in range(20):
        path = tmp_path / f"{seed}.sqlite"
        chance = random.Random(seed)
        with MultiLevelCache([DiskLevel(path)]) as cache:
            for number in range(60):
                cache.set(number, [number] * 700)
        with path.open("r+b") as file:
            for _ in range(4):
                file.seek(4_096 * chance.randrange(path.stat().st_size // 4_096))
                file.write(chance.randbytes(4_096))
        with MultiLevelCache([DiskLevel(path)]) as cache:
            for number in range(60):
                assert cache.get_or_compute(number, lambda n=number: [n] * 700) == [number] * 700
            cache.set("after", seed)
            assert cache.get("after") == seed
            assert cache.stats().errors == {}


def test_all_users_of_a_damaged_file_move_to_the_same_new_one(open_level, path):
    """When one user of the path has set a damaged file aside, the others follow it."""
    first, second = open_level(), open_level()
    first.put_many([stored(number, bytes(2_000)) for number in range(200)])
    here(second, 1)
    into_the_file(path)
    with path.open("r+b") as file:
        file.write(random.Random(3).randbytes(path.stat().st_size))
    here(first, *range(200))
    first.put_many([stored("by the first")])
    here(second, *range(200))
    second.put_many([stored("by the second")])
    assert here(first, "by the first", "by the second") == ["by the first", "by the second"]
    assert here(second, "by the first", "by the second") == ["by the first", "by the second"]
    assert len([file for file in set_aside(path) if file.stat().st_size > 100_000]) == 1


def test_damage_met_by_many_threads_is_no_crash(path):
    """Threads that meet the damage together all go on, and one new file is begun."""
    printed = script(
        """
        import os, sys, threading, time
        from concurrent.futures import ThreadPoolExecutor
        from ragaccel.cache import DiskLevel, MultiLevelCache
        path = sys.argv[1]
        wrong = 0
        with ThreadPoolExecutor(8) as pool:
            for round_ in range(40):
                cache = MultiLevelCache([DiskLevel(path + str(round_))])
                for number in range(50):
                    cache.set(number, [number] * 1_000)
                list(pool.map(cache.get, range(50)))
                size = os.path.getsize(path + str(round_))
                with open(path + str(round_), "r+b") as file:
                    file.write(os.urandom(size))
                with open(path + str(round_) + "-wal", "r+b") as file:
                    file.write(os.urandom(os.path.getsize(path + str(round_) + "-wal")))

                def ask(number):
                    return cache.get_or_compute(number, lambda: [number] * 1_000)

                wrong += sum(got != [n] * 1_000 for n, got in enumerate(pool.map(ask, range(50))))
        print(wrong)
        """,
        path,
    )
    assert printed == "0\n"


def test_a_damaged_row_is_a_miss_and_is_removed(open_cache, path, face):
    """A row whose bytes were changed is not served, is counted, and does not stay."""
    cache = open_cache()
    face.set(cache, "key", "value")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [(blob,)] = connection.execute("SELECT blob FROM entry")
        flipped = bytes([*blob[:-3], blob[-3] ^ 1, *blob[-2:]])
        connection.execute("UPDATE entry SET blob = ?", (flipped,))
        connection.commit()
        assert face.get(cache, "key") is MISSING
        assert connection.execute("SELECT count(*) FROM entry").fetchone() == (0,)
    assert (cache.stats().damaged, cache.stats().errors) == (1, {})
    assert face.get_or_compute(cache, "key", lambda: "new") == "new"
    assert face.get(cache, "key") == "new"


def test_a_mistake_of_the_caller_does_not_cost_the_file(open_level, path):
    """An entry that SQLite refuses is a fault of that call, not damage of the file."""
    level = open_level()
    level.put_many([stored("kept")])
    with contextlib.suppress(Exception):
        level.put_many([stored("odd")._replace(blob=None)])
    assert here(level, "kept") == ["kept"]
    assert not set_aside(path)


# ---- places where nothing can be written ---------------------------------------------------------


def unwritable(tmp_path: Path, kind: str) -> Path:
    if kind == "a folder":
        (tmp_path / "cache.sqlite").mkdir()
    elif kind == "below a file":
        (tmp_path / "file").touch()
        return tmp_path / "file" / "cache.sqlite"
    elif kind == "a file system that takes no files":
        return Path("/proc/ragaccel/cache.sqlite")
    elif kind == "a read-only folder":
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        tmp_path.chmod(0o500)
    return tmp_path / "cache.sqlite"


UNWRITABLE = pytest.mark.parametrize(
    "kind",
    ["a folder", "below a file", "a file system that takes no files", "a read-only folder"],
)


@UNWRITABLE
def test_an_unwritable_path_is_survived(tmp_path, caplog, face, kind):
    """Where the file cannot be, calls are answered, and each sort of fault is logged once."""
    cache = MultiLevelCache([MemoryLevel(), DiskLevel(unwritable(tmp_path, kind))])
    for _ in range(3):
        assert face.get_or_compute(cache, "key", Compute()) == "value"
    assert face.get(cache, "other") is MISSING
    assert cache.stats().errors["disk"] >= 2
    assert cache.stats().levels["disk"].entries == -1
    lines = [line.split()[0] for line in logged(caplog, "of the cache's disk level fail")]
    assert len(lines) == len(set(lines)) == len(logged(caplog))
    assert {"Reads", "Writes"} <= set(lines) <= {"Reads", "Writes", "Leases"}
    face.close(cache)


@UNWRITABLE
def test_beside_an_unwritable_path_memory_works_on(tmp_path, face, kind):
    """Where the file cannot be, calls are answered by the rest of the cache."""
    cache = MultiLevelCache([MemoryLevel(), DiskLevel(unwritable(tmp_path, kind))])
    compute = Compute()
    for _ in range(3):
        assert face.get_or_compute(cache, "key", compute) == "value"
    assert compute.calls == 1
    face.close(cache)


def test_a_full_disk_is_survived(path):
    """When the file cannot grow any more, calls go on, old entries are served, nothing is lost."""
    printed = script(
        """
        import logging, os, resource, sys
        from ragaccel.cache import DiskLevel, MultiLevelCache
        cache = MultiLevelCache([DiskLevel(sys.argv[1])])
        cache.set("old", 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        said = []
        logging.getLogger("ragaccel.cache").addFilter(said.append)
        for number in range(50):
            value = os.urandom(50_000)
            assert cache.get_or_compute(number, lambda: value) == value
        assert cache.get("old") == 1
        print(len(said), cache.stats().errors["disk"] > 10, len(os.listdir(sys.argv[2])))
        """,
        path,
        path.parent,
    )
    lines, failed, files = printed.split()
    assert (lines, failed) == ("1", "True")
    assert int(files) <= 5  # the file, its log and index, the epoch and the leases


def test_nothing_is_opened_before_the_first_use(path):
    """Making a level does no input or output."""
    DiskLevel(path)
    MultiLevelCache([DiskLevel(path)])
    assert not path.exists()


def test_the_log_does_not_grow_without_bound(open_level, path):
    """The write-ahead log is folded back into the file as writes go on."""
    level = open_level(max_bytes=1_000_000)
    for number in range(3_000):
        level.put_many([stored(number, bytes(5_000))])
    log = path.with_name(f"{path.name}-wal")
    wait_until(log.exists)
    assert log.stat().st_size < 8_000_000
