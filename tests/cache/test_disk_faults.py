"""Full, cut, replaced, deleted, locked or shared with a process that dies: the cache goes on.

No caller ever gets an error or a wrong value out of a look-up, whatever happens to the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ragaccel.cache import MISSING, DiskLevel, MultiLevelCache
from ragaccel.cache.levels.disk import file as cache_file
from tests.cache.helpers import (
    FILE,
    PATIENCE,
    SOURCE,
    Compute,
    Puppet,
    here,
    key,
    locked,
    logged,
    script,
    stored,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def serves(cache: MultiLevelCache, name: Any, value: Any = "value") -> None:
    """Assert that a caller gets the value, found or computed."""
    assert cache.get_or_compute(name, lambda: value) == value
    assert cache.get(name) in {value, MISSING}


# ---- a disk that is full -------------------------------------------------------------------------


class Disk:
    """Where cache files find no more room than so many pages; None for as many as they like."""

    pages: int | None = None


@pytest.fixture
def disk(monkeypatch) -> Disk:
    disk, connect = Disk(), cache_file._connect

    def limited(path: Path) -> sqlite3.Connection:
        db = connect(path)
        if disk.pages is not None:
            db.execute(f"PRAGMA max_page_count = {disk.pages}")
        return db

    monkeypatch.setattr(cache_file, "_connect", limited)
    return disk


def test_a_full_disk_stops_nobody(open_cache, disk, caplog, face):
    """Callers are served, what was stored is found, it is logged once, and it comes back."""
    disk.pages = 50
    cache = open_cache()
    for number in range(100):
        value = [number, "x" * 3_000, random.Random(number).randbytes(3_000)]
        assert face.get_or_compute(cache, number, lambda value=value: value) == value
        assert face.get(cache, number) == value
    assert cache.stats().errors["disk"] > 50
    assert len(logged(caplog)) == 1
    assert "full" in logged(caplog)[0]
    cache.levels[0].clear()
    found = [number for number in range(100) if cache.get(number) is not MISSING]
    assert found == list(range(len(found)))
    assert found
    disk.pages = None
    cache.levels[1].close()
    for number in range(100, 110):
        large = random.Random(number).randbytes(30_000)
        face.get_or_compute(cache, number, lambda large=large: large)
    cache.levels[0].clear()
    assert cache.get(109) == large
    assert len(logged(caplog)) == 2
    assert "again" in logged(caplog)[1]


def test_a_disk_that_is_full_from_the_start(open_cache, disk, caplog, face):
    """Not even the tables find room: everybody computes."""
    disk.pages = 2
    cache, compute = open_cache(), Compute()
    for _ in range(5):
        assert face.get_or_compute(cache, "a", compute) == "value"
    assert cache.get_many(["a", "b"])[1] is MISSING
    assert list(cache.scan()) in ([], ["value"])
    assert cache.stats().errors["disk"] > 0
    assert len(logged(caplog)) <= 2  # reads, writes
    disk.pages = None
    cache.levels[1].close()
    wait_until(lambda: face.get_or_compute(cache, "a", compute) and cache.get("a") == "value")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_file_system_without_room(small_disk, when, caplog):
    """Neither the file nor its log, nor the small files beside it, find room."""
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))

    if when == "before":
        fill()
    with MultiLevelCache.open(small_disk) as cache:
        serves(cache, "first")
        fill()
        for number in range(40):
            serves(cache, number, random.Random(number).randbytes(3_000))
        assert cache.stats().errors["disk"] > 0
        with contextlib.suppress(Exception):
            cache.invalidate(["t"])
        ballast.unlink()
        cache.invalidate(["t"])
        wait_until(lambda: cache.get_or_compute("new", lambda: 1) and cache.get("new") == 1)
        cache.levels[0].clear()
        wait_until(lambda: cache.get_or_compute("new", lambda: 1) and cache.get("new") == 1)
    assert len(logged(caplog)) <= 6
    with MultiLevelCache.open(small_disk) as cache:
        assert cache.get("new") == 1


@pytest.mark.parametrize("harm", ["unlinked", "replaced"])
def test_a_strike_reaches_a_memory_that_was_asked_just_before_harm_to_the_epoch(tmp_path, harm):
    """The look at the path is left out for less time than a newcomer needs to strike."""
    epoch = tmp_path / f"{FILE}.epoch"
    for _ in range(10):
        with MultiLevelCache.open(tmp_path) as cache:
            cache.set("a", 1, tags=["t"])
            copy = epoch.with_name("copy")
            copy.write_bytes(epoch.read_bytes())
            assert cache.get("a") == 1
            if harm == "unlinked":
                epoch.unlink()
            else:
                copy.rename(epoch)
            with MultiLevelCache.open(tmp_path) as newcomer:
                newcomer.invalidate(["t"])
            assert cache.get("a") is MISSING


def test_a_full_disk_and_an_empty_epoch_are_got_over(small_disk):
    """Once there is room again, entries are served again."""
    ballast = small_disk / "ballast"
    with MultiLevelCache.open(small_disk) as cache:
        cache.set("a", 1)
        cache.set("b", "b" * 3_000)
        os.truncate(small_disk / f"{FILE}.epoch", 0)
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))
        cache.get("a")
        ballast.unlink()
        assert cache.get_or_compute("c", lambda: 3) == 3
        assert cache.get_many(["a", "c"]) == [1, 3]
        with MultiLevelCache.open(small_disk) as other:
            assert other.get("c") == 3


# ---- a file that is harmed while it is open ------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def garbage_behind_the_head(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def replaced(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"no database" * 500)
    new.replace(path)


def replaced_by_a_folder(path: Path) -> None:
    deleted(path)
    path.mkdir()


def deleted(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def log_deleted(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def garbage_in_the_log(path: Path) -> None:
    garbage(path.with_name(f"{path.name}-wal"))


HARMS = [
    cut, empty, garbage, garbage_behind_the_head, replaced, replaced_by_a_folder, deleted,
    log_deleted, garbage_in_the_log,
]  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_harm_while_two_processes_have_it_open(open_cache, folder, puppet, harm):
    """Both go on with right values or none, and find a way to share again."""
    cache = open_cache()
    puppet.open(folder)
    for number in range(60):
        value = f"{number} " * 300
        cache.set(number, value)
        assert puppet(f"cache.get({number})") == repr(value)
    if harm is not garbage_in_the_log:
        with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    harm(folder / FILE)
    for lap in range(2):
        cache.levels[0].clear()
        puppet("cache.levels[0].clear()")
        for number in range(0, 60, 3):
            value = f"{number} " * 300
            assert cache.get(number) in {value, MISSING}
            assert puppet(f"cache.get({number})") in {repr(value), "MISSING"}
            serves(cache, (lap, number), value)
            told = puppet(f"cache.get_or_compute(('theirs', {lap}, {number}), lambda: 1)")
            assert told == "1"
    if harm is replaced_by_a_folder:
        (folder / FILE).rmdir()

    def shared() -> bool:
        cache.get_or_compute("shared", lambda: "shared")
        cache.levels[0].clear()
        puppet("cache.levels[0].clear()")
        return puppet("cache.get('shared')") == "'shared'" and cache.get("shared") == "shared"

    wait_until(shared)
    puppet("cache.close()")


def test_pages_that_rot_one_by_one(open_cache, folder):
    """Any page of the file may be lost at any time: values stay right, and nothing is raised."""
    draw = random.Random(5)
    for _ in range(12):
        with open_cache() as cache:
            cache.set_many([(number, f"{number} " * 200) for number in range(150)])
        path = folder / FILE
        with path.open("r+b") as file:
            file.seek(4096 * draw.randrange(path.stat().st_size // 4096) + draw.randrange(100))
            file.write(draw.randbytes(draw.choice([1, 50, 4096])))
        with open_cache() as cache:
            for number in range(150):
                assert cache.get(number) in {f"{number} " * 200, MISSING}
                serves(cache, number, f"{number} " * 200)
            list(cache.scan())
            cache.stats()
    assert len(list(folder.glob("*.damaged-*"))) <= 36


# ---- processes that die --------------------------------------------------------------------------

WRITER = """
import sys
from ragaccel.cache import MultiLevelCache
cache = MultiLevelCache.open(sys.argv[1], disk_bytes=400_000)
for number in range(10**9):
    cache.set(("k", number % 300), f"{number % 300} " * 400)
    if number % 7 == 0:
        cache.set_many([(("k", n), f"{n} " * 400) for n in range(number % 50)])
        cache.delete(("k", number % 90))
    print(number, flush=True)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_in_the_middle_of_writes(open_cache, folder, kills):
    """Whatever a killed writer left is a value or a miss, and its locks are gone with it."""
    reader, draw = open_cache(), random.Random(9)
    for lap in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdout=subprocess.PIPE,
        )
        for _ in range(draw.randrange(1, 40)):
            writer.stdout.readline()
        time.sleep(draw.random() / 100)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        found = reader.get_many([("k", number) for number in range(300)])
        for number, value in enumerate(found):
            assert value in {f"{number} " * 400, MISSING}
        assert any(value is not MISSING for value in found)
        reader.set("mine", lap)
        assert reader.get("mine") == lap
    assert reader.levels[1].describe(check=True)["damaged"] == 0
    assert reader.stats().errors == {}
    with contextlib.closing(sqlite3.connect(folder / FILE)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counted = db.execute("SELECT count(*), sum(size) FROM entry").fetchone()
    usage = reader.levels[1].usage()
    assert (usage.entries, usage.bytes) == counted
    assert usage.bytes <= 400_000


# ---- a lock that is held -------------------------------------------------------------------------


def test_a_held_lock_holds_nobody_up_for_long(open_cache, folder, face, caplog):
    """The breaker opens: one short wait and one line, not one per caller; then it comes back."""
    cache = open_cache()
    cache.set("before", 1)
    with locked(folder):
        start = time.monotonic()
        for number in range(50):
            assert face.get_or_compute(cache, number, lambda: "value") == "value"
            assert face.get(cache, number) == "value"
        assert time.monotonic() - start < 5
        cache.levels[0].clear()
        assert face.get(cache, "before") == 1
        assert cache.stats().errors["disk"] >= 50
        assert len(logged(caplog)) == 1
        assert "cannot be reached" in logged(caplog)[0]

    def is_back() -> bool:
        serves(cache, "after")
        cache.levels[0].clear()
        return cache.get("after") == "value"

    wait_until(is_back)
    assert len(logged(caplog)) == 2
    assert "can be reached again" in logged(caplog)[1]


def test_a_lock_held_by_a_process_that_is_killed(open_cache, folder, puppet):
    """Its end frees the lock."""
    cache = open_cache()
    cache.set("a", 1)
    holder = Puppet()
    holder(f"!import sqlite3; db = sqlite3.connect({str(folder / FILE)!r}, isolation_level=None)")
    holder("!db.execute('BEGIN EXCLUSIVE')")
    serves(cache, "b")
    holder.kill()
    wait_until(lambda: cache.get_or_compute("c", lambda: 1) and not cache.levels[0].clear() and (
        cache.get("c") == 1
    ))  # fmt: skip


def test_threads_and_tasks_behind_a_held_lock(open_cache, folder):
    """Many callers at once wait about as long as one, and the event loop goes on."""
    cache = open_cache()
    cache.set("before", 1)

    async def value() -> str:
        return "value"

    async def ask() -> float:
        longest, last, done = 0.0, time.monotonic(), False

        async def tick() -> None:
            nonlocal longest, last
            while not done:
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(*[cache.aget_or_compute(n, value) for n in range(100)])
        done = True
        await ticking
        assert found == ["value"] * 100
        return longest

    with locked(folder):
        start = time.monotonic()
        longest = asyncio.run(ask())
        assert time.monotonic() - start < 10
        assert longest < 0.45  # the wait for the lock is 0.5 s


# ---- forks, and files that begin -----------------------------------------------------------------


def test_a_fork_after_use(folder):
    """Parent and child go on with the same file, and hear of each other's strikes."""
    printed = script(
        """
        import os, sys
        from ragaccel.cache import MISSING, MultiLevelCache
        cache = MultiLevelCache.open(sys.argv[1])
        cache.set("a", 1, tags=["t"])
        cache.set("b", 2)
        to_child, from_child = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            assert cache.get("a") == 1
            cache.set("child", "of the child")
            os.write(from_child[1], b"1")
            os.read(to_child[0], 1)
            assert cache.get("a") is MISSING, "strike of the parent"
            assert cache.get("parent") == "of the parent"
            cache.invalidate(namespace="default")
            cache.set("last", 3)
            os.write(from_child[1], b"2")
            os._exit(0)
        os.read(from_child[0], 1)
        assert cache.get("child") == "of the child"
        assert cache.get("a") == 1
        cache.invalidate(["t"])
        cache.set("parent", "of the parent")
        os.write(to_child[1], b"1")
        os.read(from_child[0], 1)
        assert cache.get("b") is MISSING
        assert cache.get("last") == 3
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cache.stats().errors == {}
        print("well")
        """,
        folder,
    )
    assert printed == "well\n"


def test_forks_while_threads_work(folder):
    """Children of a busy process work, and none hangs on a lock of a thread it does not have."""
    printed = script(
        """
        import contextlib, os, signal, sys, threading, time
        from ragaccel.cache import MultiLevelCache
        cache = MultiLevelCache.open(sys.argv[1], ttl=0.02, stale_while_revalidate=60)
        end = threading.Event()
        def work(number):
            lap = 0
            while not end.is_set():
                lap += 1
                cache.get_or_compute((number, lap % 20), lambda: "x" * 3000, tags=["t"])
                if lap % 50 == 0:
                    cache.invalidate(["t"])
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        codes = []
        for number in range(15):
            time.sleep(0.02)
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                code = 1
                with contextlib.suppress(BaseException):
                    for lap in range(10):
                        assert cache.get_or_compute((number, lap), lambda: "x" * 3000) == "x" * 3000
                    cache.invalidate(["u"])
                    code = 0 if cache.get_or_compute(number, lambda: 1) == 1 else 2
                os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        end.set()
        for thread in threads:
            thread.join()
        print(codes)
        """,
        folder,
    )
    assert printed == f"{[0] * 15}\n"


def test_two_processes_that_begin_the_same_file_at_once(tmp_path, puppet):
    """Twenty times: both work, over one ledger, and nobody sets the other's file aside."""
    other = Puppet()
    for lap in range(20):
        folder = tmp_path / str(lap)
        go = tmp_path / f"{lap}.go"
        for number, one in enumerate((puppet, other)):
            one.open(folder)
            one.begin(f"wait_for({str(go)!r}) or cache.set({number}, {number}, tags=['t'])")
        go.touch()
        assert [one.end() for one in (puppet, other)] == ["None", "None"]
        for one in (puppet, other):
            assert one("cache.get_many([0, 1])") == "[0, 1]"
            assert one("cache.stats().errors") == "{}"
        puppet("cache.invalidate(['t'])")
        assert other("cache.get_many([0, 1])") == "[MISSING, MISSING]"
        for one in (puppet, other):
            one("cache.close()")
        assert not list(folder.glob("*.damaged-*"))
    other.kill()


def test_threads_that_begin_the_same_file_at_once(tmp_path):
    """Each with a level of its own."""
    start = threading.Barrier(6)

    def work(number: int, wrong: list[Any]) -> None:
        for lap in range(10):
            level = DiskLevel(tmp_path / str(lap) / FILE)
            start.wait(PATIENCE)
            try:
                level.put_many([stored(number)])
                if here(level, number) != [number]:
                    wrong.append((number, lap))
            except Exception as error:  # noqa: BLE001 - told by the assertion
                wrong.append(error)
            level.close()

    run_threads(6, work)


def run_threads(count: int, work: Callable[[int, list[Any]], None]) -> None:
    wrong: list[Any] = []
    threads = [threading.Thread(target=work, args=(n, wrong)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not wrong


def test_a_scan_reads_every_entry_once(tmp_path):
    """What a scan costs grows with the entries, not with their square."""
    took = []
    for count in (1_000, 8_000):
        level, steps = DiskLevel(tmp_path / str(count)), list[None]()
        level.put_many([stored(number, bytes(400)) for number in range(count)])
        step = functools.partial(steps.append, None)
        level._file.do(lambda db, step=step: db.set_progress_handler(step, 100))
        assert sum(1 for _ in level.scan(bytes(8))) == count
        took.append(len(steps))
        level.close()
    assert took[1] < 12 * took[0]  # 8 times as many; 64 times where it grows with the square


def test_keys_that_begin_alike_never_answer_for_each_other(tmp_path):
    """Rows are found by the first eight bytes; the rest is compared."""
    level = DiskLevel(tmp_path / FILE)
    one, other = key("a"), key("a")[:8] + key("b")[8:]
    level.put_many([stored("a", b"a")])
    assert level.get_many([other]) == {}
    level.delete_many([other])
    assert level.get_many([one]) == {one: b"a"}
    level.close()
