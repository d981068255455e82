"""Recording to a file: bounded, shared, and never a burden to requests."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from ragaccel.errors import ConfigurationError
from ragaccel.tuning.recorder import TrafficRecorder
from ragaccel.tuning.traffic import Traffic


@pytest.fixture
def path(tmp_path):
    return tmp_path / "traffic.jsonl"


def test_what_is_recorded_is_read(path):
    """Query, arguments, ids, seconds and error; in order, at the times at which they began."""
    began = time.time()
    with TrafficRecorder.open(path) as recorder:
        recorder.record("a", ids=("1", "2"), seconds=0.5, arguments={"k": 2})
        recorder.record("b", seconds=0.125, error="TimeoutError")
    a, b = Traffic.read(path)
    assert (a.query, a.ids, a.seconds, a.arguments, a.error) == (
        "a",
        ("1", "2"),
        0.5,
        {"k": 2},
        None,
    )
    assert (b.query, b.ids, b.error) == ("b", (), "TimeoutError")
    assert b.at == pytest.approx(0.375, abs=time.time() - began)
    assert (recorder.recorded, recorder.lost) == (2, 0)


def test_a_thread_writes_what_is_recorded(path):
    """Nobody needs to close or flush for that."""
    recorder = TrafficRecorder.open(path)
    recorder.record("a", seconds=0.0)
    while not Traffic.read(path):
        time.sleep(0.02)
    recorder.close()


def test_it_begins_nothing_before_a_request_and_leaves_nothing_behind(path):
    """Its thread begins with the first request and ends when it is closed."""
    threads = threading.active_count()
    recorder = TrafficRecorder.open(path)
    assert threading.active_count() == threads
    recorder.record("a", seconds=0.0)
    recorder.close()
    recorder.close()
    recorder.record("b", seconds=0.0)
    while threading.active_count() > threads:
        time.sleep(0.02)
    assert [one.query for one in Traffic.read(path)] == ["a"]


def test_a_forgotten_recorder_writes_what_it_has(path):
    """It need not be closed."""
    TrafficRecorder.open(path).record("a", seconds=0.0)
    assert len(Traffic.read(path)) == 1


def test_the_end_of_the_process_writes_what_it_has(path):
    """As that of a script that closes nothing."""
    program = (
        "import sys; from ragaccel.tuning.recorder import TrafficRecorder\n"
        "recorder = TrafficRecorder.open(sys.argv[1]); recorder.record('a', seconds=0.0)"
    )
    subprocess.run([sys.executable, "-c", program, path], check=True)
    assert len(Traffic.read(path)) == 1


def test_content_can_be_left_out(path):
    """Neither the query nor words among the arguments are in the file; equal ones are known."""
    for _ in range(2):
        with TrafficRecorder.open(path, content=False) as recorder:
            recorder.record("my secret", seconds=0.0, arguments={"k": 3, "user": "my name"})
            recorder.record("another", seconds=0.0)
    assert b"secret" not in path.read_bytes()
    assert b"my name" not in path.read_bytes()
    traffic = Traffic.read(path)
    assert {one.query for one in traffic} == {None}
    assert [one.arguments for one in traffic] == [{"k": 3}, {}] * 2
    assert [one.key for one in traffic[:2]] == [one.key for one in traffic[2:]]
    assert traffic[0].key != traffic[1].key


def test_a_digest_does_not_tell_the_query(path, tmp_path):
    """Another file has another secret, which only the owner can read."""
    for name in ("one", "two"):
        with TrafficRecorder.open(tmp_path / name, content=False) as recorder:
            recorder.record("my secret", seconds=0.0)
    assert Traffic.read(tmp_path / "one")[0].key != Traffic.read(tmp_path / "two")[0].key
    assert (tmp_path / "one").stat().st_mode & 0o077 == 0
    assert (tmp_path / "one.secret").stat().st_mode & 0o077 == 0


def test_it_stops_when_the_file_is_full(path):
    """The file holds whole lines, never more than was allowed, also over several openings."""
    for _ in range(2):
        with TrafficRecorder.open(path, max_bytes=1000) as recorder:
            for number in range(20):
                recorder.record(f"query {number}", seconds=0.0)
                recorder.flush()
            assert recorder.is_full
            assert 0 <= recorder.recorded < 20
    assert 800 < path.stat().st_size <= 1000
    assert Traffic.read(path).left_out == 0


def test_a_query_is_sampled_each_time_or_never(path):
    """About the share that was asked for, with all its repetitions."""
    with TrafficRecorder.open(path, sample=0.25) as recorder:
        for _ in range(3):
            for number in range(1000):
                recorder.record(f"query {number}", seconds=0.0)
            recorder.flush()
    queries = [one.query for one in Traffic.read(path)]
    assert all(queries.count(one) == 3 for one in set(queries))
    assert 190 <= len(set(queries)) <= 310


def test_what_no_file_can_hold_is_left_out(path):
    """An argument alone; a query that is no Unicode with all that belongs to it."""
    with TrafficRecorder.open(path) as recorder:
        recorder.record("a", seconds=0.0, arguments={"k": 3, "filter": lambda _: True})
        recorder.record("\ud800", seconds=0.0)
    (only,) = Traffic.read(path)
    assert only.arguments == {"k": 3}
    assert recorder.lost == 1


def test_a_full_disk_breaks_nothing(path, caplog):
    """What does not fit is lost and counted, and what fits later is whole."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TrafficRecorder.open(path) as recorder:
        recorder.record("before", seconds=0.0)
        recorder.flush()
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, limits[1]))
            for _ in range(3):
                recorder.record("while it is full", seconds=0.0)
                recorder.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        recorder.record("after", seconds=0.0)
    traffic = Traffic.read(path)
    assert [one.query for one in traffic] == ["before", "after"]
    assert (traffic.left_out, recorder.lost, recorder.recorded) == (1, 3, 2)
    assert caplog.text.count("lacks requests") == 1


def test_a_cut_line_spoils_no_other(path):
    """As one that a killed process has left."""
    Traffic.of(["a", "b"]).write(path)
    path.write_bytes(path.read_bytes()[:-5])
    with TrafficRecorder.open(path) as recorder:
        recorder.record("c", seconds=0.0)
    assert sorted(one.query for one in Traffic.read(path)) == ["a", "c"]


def _record_many(path, name):
    with TrafficRecorder.open(path) as recorder:
        for number in range(500):
            recorder.record(f"{name} {number}", seconds=0.0, ids=("x" * 50,) * 10)
            if number % 7 == 0:
                recorder.flush()


def test_processes_and_threads_share_a_file(path):
    """No line is lost or cut."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_record_many, args=(path, one)) for one in "ab"]
    threads = [threading.Thread(target=_record_many, args=(path, one)) for one in "cd"]
    for one in (*processes, *threads):
        one.start()
    for one in (*processes, *threads):
        one.join()
    traffic = Traffic.read(path)
    assert (len({one.query for one in traffic}), traffic.left_out) == (2000, 0)


def test_a_fork_records_on_both_sides(path):
    """What waited at the fork is written once."""
    with TrafficRecorder.open(path) as recorder:
        recorder.record("before", seconds=0.0)
        child = os.fork()
        if child == 0:
            recorder.record("child", seconds=0.0)
            recorder.close()
            os._exit(0)
        os.waitpid(child, 0)
        recorder.record("parent", seconds=0.0)
    assert sorted(one.query for one in Traffic.read(path)) == ["before", "child", "parent"]


@pytest.mark.parametrize(
    ("options", "match"),
    [({"max_bytes": 0}, "max_bytes"), ({"sample": 0}, "sample"), ({"sample": 1.5}, "sample")],
)
def test_numbers_that_make_no_sense_are_refused(path, options, match):
    """Before anything is written."""
    with pytest.raises(ConfigurationError, match=match):
        TrafficRecorder.open(path, **options)
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    """It says which one."""
    with pytest.raises(ConfigurationError, match="missing/traffic"):
        TrafficRecorder.open(tmp_path / "missing" / "traffic.jsonl")
