"""`ragaccel top`: what it shows of a second process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ragaccel.cli import app
from ragaccel.observe.live import socket_path

#: An application that has answered some questions and waits for more.
APPLICATION = """
import sys
from ragaccel import MemoryLevel, MicroBatcher, MultiLevelCache, telemetry
from ragaccel.observe import Monitor, Threshold
from ragaccel.telemetry.stage import past_stage
cache = MultiLevelCache([MemoryLevel()])
batcher = MicroBatcher(list, workers=1)
rule = Threshold("latency_p95", above=0.01, for_=1)
now = 0.0
with Monitor(cache=cache, interval=None, rules=[rule], clock=lambda: now) as monitor:
    now = 30.0
    monitor.tick()
    for number in range(110):
        with telemetry.stage("embed"):
            batcher(number)
        cache.get_or_compute(number % 22, lambda: number)
        past_stage("query", 0, 25_000_000)
    now = 60.0
    monitor.tick()
    monitor.serve(*sys.argv[1:])
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    """Where the sockets of these tests are; see `test_live`."""
    folder = Path(tempfile.mkdtemp(prefix="top"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("COLUMNS", "120")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def application():
    """Return a function that starts it, with or without a path for its socket."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", APPLICATION, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.communicate()


def top(*arguments):
    return CliRunner().invoke(app, ["top", *map(str, arguments)])


def cells(output, stage):
    """Return the cells of a stage's row."""
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [stage])


def test_a_process_is_found_by_its_number(application):
    """Rates, latencies, hits, batches, memory, processor and what fires."""
    process = application()
    done = top(process.pid, "--once")
    assert done.exit_code == 0, done.output
    assert f"process {process.pid}, the last 55 s" in done.output
    assert cells(done.output, "query")[:4] == ["query", "2.0", "24.7", "ms"]
    assert cells(done.output, "cache.lookup")[-1] == "80.0%"
    assert cells(done.output, "batch")[-1] == "1.0"
    assert "cache: hit rate 80.0%, memory 80.0% of 110 look-ups" in done.output
    assert "memory: " in done.output
    assert " MB of " in done.output
    assert " cores; processes: 1" in done.output
    assert "latency_p95 of query is 0.0247 s, above 0.01 s" in done.output


def test_a_process_is_found_by_its_socket(application, folder):
    """Wherever that is."""
    process = application(folder / "here")
    done = top(folder / "here", "--once")
    assert done.exit_code == 0, done.output
    assert f"process {process.pid}" in done.output


def test_where_nothing_listens_it_is_said(folder):
    """With what to do, and an exit code."""
    for where in (os.getpid(), folder / "nothing"):
        done = top(where, "--once")
        assert done.exit_code == 1
        assert "nothing listens at" in done.output
        assert "monitor.serve()" in done.output
    socket_path(1).parent.mkdir()
    socket_path(1).write_text("no socket")
    assert "nothing listens at" in top(1).output


def test_it_goes_on_until_it_is_stopped(application):
    """It looks again and again, and ends in peace."""
    process = application()
    with started_top(process.pid) as watching:
        seen = until(watching, "process")
        seen += until(watching, "process")
        rest, faults = interrupted(watching)
    assert watching.returncode == 0
    assert "24.7 ms" in seen + rest
    assert faults == ""


def test_it_ends_with_the_process(application):
    """And says that nobody listens any more."""
    process = application()
    with started_top(process.pid) as watching:
        until(watching, "process")
        process.communicate()
        _, faults = watching.communicate()
    assert watching.returncode == 1
    assert "nothing listens at" in faults


def started_top(pid):
    return subprocess.Popen(
        [sys.executable, "-m", "ragaccel.cli", "top", str(pid), "--interval", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"},
    )  # fmt: skip


def interrupted(process):
    """Interrupt until it ends: Python may lose an interrupt that comes in a destructor."""
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)
    process.kill()
    return process.communicate()


def until(process, word):
    """Return what a process prints until a line with a word."""
    lines = []
    while word not in (lines[-1:] or [""])[0]:
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    return "".join(lines)


def test_an_interval_that_is_too_short_is_refused():
    """It would keep both processes busy."""
    assert top(1, "--interval", "0").exit_code == 2


def test_goals_are_checked_against_a_running_process(application, tmp_path):
    """By its number; what is missed ends with 1."""
    process = application()
    met, missed = tmp_path / "met.toml", tmp_path / "missed.toml"
    met.write_text("[query]\np95 = '1s'\n[cache]\nhit_rate = 0.1\n")
    missed.write_text("[query]\np95 = '1ms'\n")
    for goals, code in ((met, 0), (missed, 1)):
        done = CliRunner().invoke(app, ["bench", str(process.pid), "--goals", str(goals)])
        assert done.exit_code == code, done.output
        assert "query.p95" in done.output
