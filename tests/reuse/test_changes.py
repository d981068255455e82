"""The change log of a store: what an answer that is searched for now has to be judged by later."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading

import pytest

from ragaccel.errors import ConfigurationError, InvalidationError
from ragaccel.reuse import changes
from ragaccel.reuse.changes import EVERYTHING, Change, MemoryChanges, open_log
from ragaccel.reuse.changes_file import FileChanges

ADD = Change("upsert", ("a",), b"")
DELETE = Change("delete", ("b",))


@pytest.fixture(params=["memory", "file"])
def log(request, tmp_path):
    """An empty log of either kind."""
    return MemoryChanges() if request.param == "memory" else FileChanges(tmp_path / "changes")


def write(log, change):
    with log.writing(change):
        pass


def changed(log, position):
    """What was changed since, or None."""
    news = log.since(position)
    return None if news is None else list(news[1])


def test_changes_come_in_order_after_the_place_they_are_asked_from(log):
    """Each is told once, and nothing before the place."""
    start = log.position()
    write(log, ADD)
    between = log.position()
    write(log, DELETE)
    assert changed(log, start) == [ADD, DELETE]
    assert changed(log, between) == [DELETE]
    assert changed(log, log.position()) == []


def test_a_write_is_known_before_it_begins(log):
    """Who asks while it is under way is told of it, and stays before it until it has ended."""
    start = log.position()
    with log.writing(ADD):
        assert changed(log, start) == [ADD]
        during = log.position()
        assert during == start
        write(log, DELETE)
        assert log.position() == start
    assert changed(log, during) == [ADD, DELETE]
    assert changed(log, log.position()) == []


def test_what_a_write_did_can_be_told_when_it_has_ended(log):
    """Until then it is what it may do at most."""
    start = log.position()
    with log.writing(EVERYTHING) as writing:
        assert changed(log, start) == [EVERYTHING]
        writing.change = ADD
    assert changed(log, start) == [ADD]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_failed_counts_as_under_way(log, error, monkeypatch):
    """It may still arrive: an answer made now is judged by it for as long as it lingers."""
    start = log.position()
    with pytest.raises(error), log.writing(ADD):
        raise error
    assert log.position() == start
    assert changed(log, start) == [ADD]
    monkeypatch.setattr(changes, "LINGER_SECONDS", -1.0)
    monkeypatch.setattr("ragaccel.reuse.changes_file.LINGER_SECONDS", -1.0)
    with pytest.raises(error), log.writing(DELETE):
        raise error
    assert changed(log, log.position()) == [ADD, DELETE]


def test_old_changes_are_forgotten(log):
    """Whoever asks from before them is told that it is not known."""
    start = log.position()
    many = Change("delete", tuple(map(str, range(1000))))
    for _ in range(3):
        write(log, many)
    between = log.position()
    assert changed(log, start) == [many] * 3
    for _ in range(4):
        write(log, many)
    assert changed(log, start) is None
    assert changed(log, between) == [many] * 4
    for _ in range(2):
        write(log, many)
    assert changed(log, between) is None
    assert changed(log, log.position()) == []


def test_a_bulk_load_changes_everything(log):
    """Its vectors are not kept."""
    start = log.position()
    write(log, Change("upsert", tuple(map(str, range(1001))), bytes(4 * 1001)))
    (change,) = changed(log, start)
    assert (change.sort, change.vectors) == ("everything", b"")


def test_a_place_that_the_log_never_reached_is_not_known(log):
    """It is another log's, or that of a file that was put back from a copy."""
    write(log, ADD)
    seq, mark = log.position()
    assert changed(log, changes.Position(seq + 1, mark)) is None


def test_a_log_is_found_by_its_id_while_it_lives(log):
    """No two have the same one."""
    assert open_log(log.id) is log
    other = MemoryChanges()
    name = other.id
    assert open_log(name) is other
    del other
    assert open_log(name) is None


def test_threads_lose_no_change(log):
    """Of many that write at once every change is in the log."""
    start = log.position()

    def work(name):
        for number in range(20):
            write(log, Change("delete", (f"{name}-{number}",)))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(changed(log, start)) == 80
    assert changed(log, log.position()) == []


def test_a_forked_child_has_a_log_of_its_own_in_memory():
    """What it writes happens to its own copy of the rows."""
    log = MemoryChanges()
    write(log, ADD)
    before = log.id
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.write(into, f"{log.id} {log.position().seq}".encode())
        os._exit(0)
    os.close(into)
    its, seq = os.read(out, 100).decode().split()
    os.close(out)
    os.waitpid(child, 0)
    assert its != before
    assert seq == "0"
    assert (log.id, log.position().seq) == (before, 1)


def test_a_forked_child_shares_a_file(tmp_path):
    """What it writes the parent is told."""
    log = FileChanges(tmp_path / "changes")
    start = log.position()
    child = os.fork()
    if not child:
        write(log, ADD)
        os._exit(0)
    os.waitpid(child, 0)
    assert changed(log, start) == [ADD]


# -- files -----------------------------------------------------------------------------------------

WRITER = """
import sys
from ragaccel.reuse.changes import Change
from ragaccel.reuse.changes_file import FileChanges
log = FileChanges(sys.argv[1])
with log.writing(Change("delete", ("b",))):
    print(log.id, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def writer(tmp_path):
    """Another process amid a write; it ends with a line on its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "changes")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.kill()
    process.communicate()


def test_processes_share_a_file(tmp_path, writer):
    """They are one log, and each is told of writes that the other has under way."""
    log = FileChanges(tmp_path / "changes")
    start = log.position()
    assert writer.stdout.readline().strip() == log.id
    during = log.position()
    assert changed(log, during) == [DELETE]
    writer.communicate("\n")
    assert log.position() != during
    assert changed(log, start) == [DELETE]


def test_a_killed_writer_counts_as_under_way_and_not_for_ever(tmp_path, writer, monkeypatch):
    """Its write may have been made, and may still arrive."""
    log = FileChanges(tmp_path / "changes")
    assert writer.stdout.readline().strip() == log.id
    during = log.position()
    writer.kill()
    writer.wait()
    assert log.position() == during
    assert changed(log, during) == [DELETE]
    with sqlite3.connect(tmp_path / "changes") as db:
        db.execute("UPDATE change SET until = until - ?", (changes.LINGER_SECONDS,))
    db.close()
    assert log.position() != during
    assert changed(log, during) == [DELETE]


def test_a_file_outlives_the_process(tmp_path):
    """Opened again it has the same id, and what was changed since."""
    first = FileChanges(tmp_path / "changes")
    start, name = first.position(), first.id
    write(first, ADD)
    del first
    again = FileChanges(tmp_path / "changes")
    assert again.id == name
    assert changed(again, start) == [ADD]


def test_a_file_that_was_replaced_knows_no_place_of_before(tmp_path):
    """Also where the new one has got as far."""
    log = FileChanges(tmp_path / "changes")
    write(log, ADD)
    before = log.position()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"changes{suffix}").unlink(missing_ok=True)
    other = FileChanges(tmp_path / "changes")
    write(other, ADD)
    assert other.position().seq == before.seq
    assert changed(log, before) is None


def test_a_write_that_cannot_be_noted_is_not_made(tmp_path):
    """Others would not know of it; what is there is not known to be all."""
    log = FileChanges(tmp_path / "changes")
    start = log.position()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"changes{suffix}").unlink(missing_ok=True)
    (tmp_path / "changes").write_bytes(b"no database" * 1000)
    with pytest.raises(InvalidationError, match="nothing was written"):
        write(log, ADD)
    assert changed(log, start) is None


@pytest.mark.parametrize("content", [b"no database" * 1000, None])
def test_another_file_is_refused(tmp_path, content):
    """Whether it is no database or another one's; it is not changed."""
    path = tmp_path / "changes"
    if content is None:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE own (x)")
        db.commit()
        db.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="cannot be opened as a change log"):
        FileChanges(path)
    if content is not None:
        assert path.read_bytes() == before


def test_a_folder_that_does_not_exist_is_told(tmp_path):
    """Nobody is left without a log by a slip of the pen."""
    with pytest.raises(ConfigurationError, match="changes="):
        FileChanges(tmp_path / "none" / "changes")
