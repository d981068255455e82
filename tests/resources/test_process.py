"""Readings of real processes that have children, work, write and vanish."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from ragaccel.resources import ProcessTree

MB = 1 << 20
#: Says what it was told to and waits; ends with its parent's end of the line.
CHILD = """
import os, subprocess, sys
{work}
print("ready", flush=True)
sys.stdin.read()
"""


def file_system_of(path):
    """Return the type of the file system that a path is on."""
    mounted = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next(mounted[one] for one in (path, *path.parents) if one in mounted)


@pytest.fixture
def child():
    """Return a function that starts a process, which has done some work when it is given."""
    started = []

    def start(work="", **options):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(work=work)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_children_and_their_children_count(child):
    """Memory, threads, files and processor time are sums over the tree."""
    grandchild = (
        "import threading; held = bytearray(os.urandom(1)) * (64 << 20);"
        "files = [open(os.devnull) for _ in range(50)];"
        "[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(5)];"
        "print(flush=True); sys.stdin.read()"
    )
    before = ProcessTree().read()
    child(
        "below = subprocess.Popen([sys.executable, '-c', 'import os, sys; ' + "
        f"{grandchild!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "below.stdout.readline()"
    )
    after = ProcessTree().read()
    assert after.processes == before.processes + 2
    assert after.rss_bytes > before.rss_bytes + 64 * MB
    assert after.threads >= before.threads + 7
    assert after.open_files >= before.open_files + 50
    assert after.cpu_seconds > before.cpu_seconds


def test_what_a_child_took_is_kept_when_it_has_ended(child):
    """The processor time of the tree never goes back."""
    process = child("import time\nwhile time.process_time() < 0.3: pass")
    tree = ProcessTree()
    during = tree.read()
    process.communicate()
    after = tree.read()
    assert after.processes == during.processes - 1
    assert after.cpu_seconds >= during.cpu_seconds >= 0.3


def test_the_percentage_is_of_the_time_between_two_readings():
    """By the clock that was given: half a second of work in one second is 50% of a core."""
    times = iter([10.0, 11.0])
    tree = ProcessTree(clock=lambda: next(times))
    first = tree.read()
    end = sum(os.times()[:2]) + 0.4
    while sum(os.times()[:2]) < end:
        pass
    second = tree.read()
    assert first.cpu_percent == 0.0
    assert second.cpu_percent == pytest.approx(
        100 * (second.cpu_seconds - first.cpu_seconds), rel=1e-6
    )
    assert second.cpu_percent >= 39


def test_memory_of_its_own_is_told_on_request(child):
    """What it shares with others is not part of it."""
    process = child("held = bytearray(os.urandom(1)) * (32 << 20)")
    assert ProcessTree(process.pid).read().uss_bytes is None
    read = ProcessTree(process.pid, uss=True).read()
    assert 32 * MB < read.uss_bytes <= read.rss_bytes


@pytest.mark.skipif(not hasattr(psutil.Process, "io_counters"), reason="not told by this system")
def test_disk_bytes_are_told(child, tmp_path):
    """Those of a child that wrote and has ended too."""
    if file_system_of(tmp_path) == "tmpfs":
        pytest.skip("temporary files are in memory here")
    before = ProcessTree().read()
    work = (
        f"f = open({str(tmp_path / 'f')!r}, 'wb'); f.write(bytes(8 << 20)); f.flush(); os.fsync(f)"
    )
    process = child(work)
    during = ProcessTree().read()
    process.communicate()
    after = ProcessTree().read()
    assert during.disk_written_bytes >= before.disk_written_bytes + 8 * MB
    assert after.disk_written_bytes >= during.disk_written_bytes


def test_a_process_that_has_ended_takes_nothing(child):
    """Whether it ends before the first reading or after it, and even if nobody waited for it."""
    process = child()
    tree, late = ProcessTree(process.pid), ProcessTree(process.pid)
    assert tree.read().processes == 1
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert tree.read().rss_bytes == 0
    process.communicate()
    for one in (tree, late):
        read = one.read()
        assert (read.processes, read.rss_bytes, read.threads, read.cpu_percent) == (0, 0, 0, 0.0)


def test_children_that_come_and_go_meanwhile():
    """Readings go on while processes vanish under them."""
    tree, stop = ProcessTree(uss=True), threading.Event()

    def churn():
        while not stop.is_set():
            subprocess.run(["/bin/true"], check=False)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        readings = [tree.read() for _ in range(100)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(one.processes >= 1 and one.rss_bytes > 0 for one in readings)
