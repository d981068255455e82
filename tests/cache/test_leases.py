"""Of all who miss a key together, in all processes, one computes; and nobody waits for a dead one.

The computations of the processes append to a file, whose length counts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from ragaccel.cache import MISSING, DiskLevel, MemoryLevel, MultiLevelCache, multilevel
from tests.cache.helpers import PATIENCE, SOURCE, Compute, together, wait_until

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, os, sys, time
from pathlib import Path
from ragaccel.cache import MultiLevelCache, multilevel

folder, log, go, how, seconds, options = sys.argv[1:7]
options = eval(options)
multilevel._FLIGHT_TIMEOUT = options.pop("flight_timeout", 60.0)
tags = options.pop("tags", ())
cache = MultiLevelCache.open(folder, **options)

def compute():
    with open(log, "ab") as file:
        file.write(b"%d\\n" % os.getpid())
    time.sleep(float(seconds))
    if how.startswith("raise"):
        raise ValueError("no answer")
    return f"value of {os.getpid()}"

async def acompute():
    return await asyncio.to_thread(compute)

print("ready", flush=True)
while go != "-" and not Path(go).exists():
    time.sleep(0.001)
try:
    if how.endswith("async"):
        print(asyncio.run(cache.aget_or_compute("a", acompute, tags=tags)), flush=True)
    else:
        print(cache.get_or_compute("a", compute, tags=tags), flush=True)
except ValueError as error:
    print(error, flush=True)
"""


class Stage:
    """Processes over one folder that look up one key."""

    def __init__(self, path: Path) -> None:
        self.folder, self.log, self.go = path / "cache", path / "log", path / "go"
        self.log.touch()
        self.processes: list[subprocess.Popen[str]] = []

    @property
    def computations(self) -> int:
        return len(self.log.read_bytes().splitlines())

    def process(self, how: str = "sync", seconds: float = 0.0, *, at_once: bool = True, **options):
        """Start a process, and return it when it is ready to look up the key."""
        waits_for = "-" if at_once else self.go
        arguments = [self.folder, self.log, waits_for, how, seconds, options]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    def leader(self, how: str = "sync", seconds: float = PATIENCE, **options):
        """Start a process, and return it when it computes."""
        before = self.computations
        process = self.process(how, seconds, **options)
        wait_until(lambda: self.computations > before)
        return process

    def answers(self, processes) -> list[str]:
        self.go.touch()
        return [answer_of(process) for process in processes]


def answer_of(process: subprocess.Popen[str]) -> str:
    """Return what is left to read; `communicate` passes over what came along with "ready"."""
    told = process.stdout.read().strip()
    process.wait(PATIENCE)
    return told


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    for process in stage.processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.fixture
def short_flights(monkeypatch):
    monkeypatch.setattr(multilevel, "_FLIGHT_TIMEOUT", 0.5)


# ---- one of many processes -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sync", "async", "mixed"])
def test_of_eight_processes_one_computes(stage, how):
    """All get its value, which is stored once."""
    ways = ["sync", "async"] * 4 if how == "mixed" else [how] * 8
    processes = [stage.process(way, 0.2, at_once=False) for way in ways]
    answers = stage.answers(processes)
    assert stage.computations == 1
    assert len(set(answers)) == 1
    assert answers[0].startswith("value of ")


def test_without_it_every_process_computes(stage):
    """It can be switched off, and the processes do not wait for each other."""
    leader = stage.leader()
    with MultiLevelCache.open(stage.folder, single_flight_across_processes=False) as cache:
        start = time.monotonic()
        assert cache.get_or_compute("a", lambda: "mine") == "mine"
        assert time.monotonic() - start < PATIENCE / 3
    leader.kill()


def test_other_keys_do_not_wait(stage):
    """A lease is that of a key."""
    leader = stage.leader()
    with MultiLevelCache.open(stage.folder) as cache:
        start = time.monotonic()
        for number in range(200):
            assert cache.get_or_compute(number, lambda: "mine") == "mine"
        assert time.monotonic() - start < PATIENCE / 3
    assert leader.poll() is None


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_killed_leader_is_replaced_at_once(stage, face, way):
    """The system takes the lease from a dead process; nobody waits for a timeout."""
    leader = stage.leader(way)
    with MultiLevelCache.open(stage.folder) as cache:
        timer = threading.Timer(0.3, leader.send_signal, [signal.SIGKILL])
        timer.start()
        start = time.monotonic()
        assert face.get_or_compute(cache, "a", lambda: "mine") == "mine"
        assert 0.2 < time.monotonic() - start < PATIENCE / 3
        timer.join()


@pytest.mark.parametrize("how", ["raise", "raise async"])
def test_who_waited_for_a_leader_that_fails_computes(stage, how):
    """The error of another process is not theirs."""
    leader = stage.leader(how, 0.5)
    with MultiLevelCache.open(stage.folder) as cache:
        assert cache.get_or_compute("a", lambda: "mine") == "mine"
    assert stage.answers([leader]) == ["no answer"]


def test_all_fail_by_themselves(stage):
    """Each process computes, and gets its own error; none hangs."""
    processes = [stage.process("raise", 0.01, at_once=False) for _ in range(4)]
    assert stage.answers(processes) == ["no answer"] * 4
    assert stage.computations == 4


def test_a_leader_that_hangs_is_waited_for_as_long_as_told(stage, short_flights, face):
    """A stopped process keeps its lease; the others go on without it after the flight timeout."""
    leader = stage.leader()
    leader.send_signal(signal.SIGSTOP)
    with MultiLevelCache.open(stage.folder) as cache:
        start = time.monotonic()
        assert face.get_or_compute(cache, "a", lambda: "mine") == "mine"
        assert 0.4 < time.monotonic() - start < PATIENCE / 3
        assert face.get(cache, "a") == "mine"
    leader.send_signal(signal.SIGCONT)


def test_threads_behind_a_leader_that_hangs_all_go_on(stage, short_flights):
    """Also those that wait for the thread that waits for the process."""
    leader = stage.leader()
    leader.send_signal(signal.SIGSTOP)
    compute = Compute()
    with MultiLevelCache.open(stage.folder) as cache:
        assert together(8, lambda _: cache.get_or_compute("a", compute)) == ["value"] * 8
    assert 1 <= compute.calls <= 8


def test_an_answer_that_is_not_kept_is_computed_by_each_process(stage):
    """What one does not store another cannot have; and it is not waited for in vain."""
    processes = [stage.process("sync", 0.01, at_once=False, ttl=1e-9) for _ in range(3)]
    answers = stage.answers(processes)
    assert stage.computations == 3
    assert len(set(answers)) == 3


@pytest.mark.parametrize("stored_first", [False, True])
def test_a_leader_whose_tag_is_struck_makes_way(stage, stored_first):
    """What another process was computing before the strike is not taken over after it."""
    leader = stage.leader("sync", 0.7, tags=["t"])
    with MultiLevelCache.open(stage.folder) as cache:
        if stored_first:
            cache.set("b", 1, tags=["t"])
        cache.invalidate(["t"])
        assert cache.get_or_compute("a", lambda: "mine", tags=["t"]) == "mine"
        assert stage.answers([leader])[0].startswith("value of ")
        assert cache.get("a") == "mine"
    with MultiLevelCache.open(stage.folder) as other:
        assert other.get("a") in {"mine", MISSING}


# ---- within a process ----------------------------------------------------------------------------


async def test_a_cancelled_leader_gives_its_lease_back(stage):
    """The next caller, here or in another process, computes at once."""
    with MultiLevelCache.open(stage.folder) as cache:
        started = asyncio.Event()

        async def hang() -> str:
            started.set()
            await asyncio.sleep(PATIENCE)
            return "never"

        for _ in range(3):
            task = asyncio.create_task(cache.aget_or_compute("a", hang))
            await started.wait()
            started.clear()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        other = stage.process()
        answer = await asyncio.to_thread(answer_of, other)
        assert answer.startswith("value of ")
        assert await cache.aget("a") == answer


class LateDisk(DiskLevel):
    """A disk level whose reads give other tasks a turn, as those of a server do."""

    async def aget_many(self, keys):
        await asyncio.sleep(0.05)
        return await super().aget_many(keys)


async def test_a_leader_cancelled_while_it_looks_once_more_gives_its_lease_back(stage):
    """At whatever point a task is cancelled, it leaves no lease behind."""
    level = LateDisk(stage.folder / "cache.sqlite")
    with MultiLevelCache([MemoryLevel(), level]) as cache:
        task = asyncio.create_task(cache.aget_or_compute("a", Compute().awaited))
        await asyncio.sleep(0.075)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        other = stage.process("sync", 0.0, flight_timeout=20.0)
        start = time.monotonic()
        await asyncio.to_thread(other.communicate, timeout=PATIENCE)
        assert time.monotonic() - start < 15


@pytest.mark.parametrize("on_disk", [False, True])
async def test_ten_thousand_tasks_make_one_computation(stage, on_disk):
    """Tasks that miss one key together."""
    levels = [MemoryLevel()]
    if on_disk:
        levels.append(DiskLevel(stage.folder / "cache.sqlite"))
    calls = 0

    async def compute() -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.1)
        return "value"

    with MultiLevelCache(levels) as cache:
        found = await asyncio.gather(*[cache.aget_or_compute("a", compute) for _ in range(10_000)])
        assert cache.stats().lookups == 10_000
    assert set(found) == {"value"}
    assert calls == 1


@pytest.mark.parametrize("on_disk", [False, True])
def test_two_hundred_threads_make_one_computation(stage, on_disk):
    """Threads that miss one key together, over and over."""
    levels = [MemoryLevel()]
    if on_disk:
        levels.append(DiskLevel(stage.folder / "cache.sqlite"))
    compute = Compute()

    def ask(_: int) -> list[Any]:
        return [cache.get_or_compute(lap, slow) for lap in range(50)]

    def slow() -> Any:
        time.sleep(0.005)
        return compute()

    with MultiLevelCache(levels) as cache:
        found = together(200, ask)
        assert cache.stats().lookups == 200 * 50
    assert found == [["value"] * 50] * 200
    assert compute.calls == 50


def test_an_unrelated_strike_does_not_part_the_callers(stage):
    """While documents change all the time, a popular question is still computed once."""
    compute, started = Compute(), threading.Barrier(9)
    with MultiLevelCache.open(stage.folder) as cache:

        def slow() -> Any:
            time.sleep(0.5)
            return compute()

        def ask(number: int) -> Any:
            if number == 8:
                started.wait(PATIENCE)
                for lap in range(8):
                    cache.invalidate(documents=[f"unrelated {lap}"])
                    time.sleep(0.02)
                return None
            started.wait(PATIENCE)
            time.sleep(0.02 * number)
            return cache.get_or_compute("a", slow, documents=["related"])

        together(9, ask)
    assert compute.calls == 1


def test_two_caches_of_one_process_make_one_computation(stage):
    """Components that open the same folder each are like two processes."""
    compute = Compute()

    def slow() -> Any:
        time.sleep(0.3)
        return compute()

    with MultiLevelCache.open(stage.folder) as one, MultiLevelCache.open(stage.folder) as other:
        together(2, lambda number: (one, other)[number].get_or_compute("a", slow))
    assert compute.calls == 1


def test_closing_one_cache_leaves_the_leases_of_another(stage):
    """Another process does not get a key that is being computed, because a cache was closed."""
    ready, end = threading.Event(), threading.Event()

    def slow() -> str:
        ready.set()
        end.wait(PATIENCE)
        return "mine"

    with MultiLevelCache.open(stage.folder) as cache:
        thread = threading.Thread(target=cache.get_or_compute, args=("a", slow))
        thread.start()
        ready.wait(PATIENCE)
        with MultiLevelCache.open(stage.folder) as other:
            other.get_or_compute("b", lambda: 1)
        process = stage.process()
        time.sleep(0.3)
        computed = stage.computations
        end.set()
        thread.join(PATIENCE)
        answer = answer_of(process)
    assert (computed, answer) == (0, "mine")


# ---- leases that cannot be had -------------------------------------------------------------------


def test_a_lease_file_that_cannot_be_opened(stage, face, caplog):
    """Everybody computes for themselves; the fault is counted, and logged once."""
    (stage.folder / "cache.sqlite.leases").mkdir(parents=True)
    with MultiLevelCache.open(stage.folder) as cache:
        for number in range(5):
            assert face.get_or_compute(cache, number, lambda: "mine") == "mine"
        assert [face.get(cache, number) for number in range(5)] == ["mine"] * 5
        assert cache.stats().errors == {"disk": 5}
    assert len(caplog.records) == 1
    assert "Leases" in caplog.text


@pytest.mark.parametrize("harm", ["garbage", "deleted", "truncated"])
def test_harm_to_the_lease_file_stops_nobody(stage, harm):
    """It holds locks and no content."""
    file = stage.folder / "cache.sqlite.leases"
    with MultiLevelCache.open(stage.folder) as cache:
        assert cache.get_or_compute("first", lambda: 1) == 1
        if harm == "deleted":
            file.unlink()
        else:
            file.write_bytes(b"garbage" * 1000 if harm == "garbage" else b"")
        assert cache.get_or_compute("second", lambda: 2) == 2
        other = stage.process()
        assert stage.answers([other])[0].startswith("value of ")
        assert cache.stats().errors == {}


class Forgetful:
    """Leases that are given and cannot be given back, as on a server that went away."""

    def acquire(self, key: bytes) -> bool:
        return True

    def release(self, key: bytes) -> None:
        raise OSError("gone")

    async def aacquire(self, key: bytes) -> bool:
        return True

    async def arelease(self, key: bytes) -> None:
        self.release(key)

    def close(self) -> None:
        pass


def test_a_lease_that_cannot_be_given_back_is_not_the_callers_matter(tmp_path, face):
    """Any fault of a level may be raised; the answer is there."""
    level = DiskLevel(tmp_path / "cache.sqlite")
    level.leases = Forgetful()
    with MultiLevelCache([MemoryLevel(), level]) as cache:
        assert face.get_or_compute(cache, "a", lambda: 1) == 1
        assert cache.stats().errors == {"disk": 1}


def test_a_fork_takes_no_leases_along(stage):
    """A child of a process that computes waits for it, and its end takes no lease away."""
    ready, end = threading.Event(), threading.Event()

    def slow() -> str:
        ready.set()
        end.wait(PATIENCE)
        return "of the parent"

    with MultiLevelCache.open(stage.folder) as cache:
        thread = threading.Thread(target=cache.get_or_compute, args=("a", slow))
        thread.start()
        ready.wait(PATIENCE)
        for _ in range(2):
            if (child := os.fork()) == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    cache.get_or_compute("b", lambda: 1)
                    code = 0
                os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        process = stage.process()
        time.sleep(0.3)
        assert stage.computations == 0
        end.set()
        thread.join(PATIENCE)
        assert stage.answers([process]) == ["of the parent"]
