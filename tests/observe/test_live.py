"""The socket that `ragaccel top` reads: who may, what it gives, and when there is none."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from ragaccel import telemetry
from ragaccel.errors import ConfigurationError
from ragaccel.observe import Monitor, Threshold
from ragaccel.observe.live import fetch, socket_path
from ragaccel.telemetry.stage import past_stage


@pytest.fixture
def folder():
    """A folder with a short name: that of a socket has about a hundred characters at most."""
    folder = Path(tempfile.mkdtemp(prefix="live"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def runtime(folder, monkeypatch):
    """Sockets without a path are not put beside those of others."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))


@pytest.fixture
def monitor():
    """A running one, which saw a request."""
    rule = Threshold("throughput", below=1e9, for_=1)
    with Monitor(interval=None, rules=[rule], window=1000) as monitor:
        past_stage("query", 0, 10_000_000)
        yield monitor


def test_a_snapshot_for_each_who_connects(monitor, folder):
    """What a report tells of the last window."""
    path = monitor.serve(folder / "socket")
    found = [fetch(path) for _ in range(3)]
    past_stage("query", 0, 10_000_000)
    found.append(fetch(path))
    assert [one.stages["query"].count for one in found] == [1, 1, 1, 2]
    assert found[0].stages["query"].latency_p50 == pytest.approx(0.01, rel=0.02)
    assert found[0].pid == os.getpid()
    assert found[0].resources.rss_bytes > 0


def test_alerts_come_with_their_rules(folder):
    """As the values that they are."""
    fired = threading.Event()
    rule = Threshold("throughput", below=1e9, for_=1)
    with Monitor(window=0.1, interval=0.02, rules=[rule], on_alert=lambda _: fired.set()) as one:
        path = one.serve()
        assert fired.wait(30)
        (alert,) = fetch(path).alerts
        assert (alert.rule, alert.state) == (rule, "firing")


def test_only_the_user_can_connect(monitor):
    """The socket and the folder that is made for it are private."""
    path = monitor.serve()
    assert path == socket_path(os.getpid())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_without_a_runtime_directory_it_is_among_temporary_files(folder, monkeypatch):
    """In a folder of the user's own."""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with Monitor(interval=None) as monitor:
        path = monitor.serve()
        assert path == folder / f"ragaccel-{os.getuid()}" / f"{os.getpid()}.sock"
        assert fetch(path).pid == os.getpid()


def test_it_goes_with_the_monitor(monitor):
    """The socket and its thread."""
    path = monitor.serve()
    monitor.close()
    assert not path.exists()
    assert "ragaccel-live" not in [one.name for one in threading.enumerate()]
    with pytest.raises(ConfigurationError, match=r"monitor\.serve\(\)"):
        fetch(path)


def test_a_folder_of_another_is_not_used(monitor, folder):
    """One that others may look into could be a trap."""
    (folder / "ragaccel").mkdir()
    (folder / "ragaccel").chmod(0o755)
    with pytest.raises(ConfigurationError, match="alone"):
        monitor.serve()
    (folder / "ragaccel").rmdir()
    (folder / "ragaccel").symlink_to(folder)
    with pytest.raises(ConfigurationError, match="alone"):
        monitor.serve()


def test_what_a_process_left_behind_is_replaced(monitor, folder):
    """A socket at which nobody listens; nothing else is ever removed."""
    path, file = folder / "socket", folder / "file"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    file.write_text("mine")
    with pytest.raises(ConfigurationError, match="no socket"):
        monitor.serve(file)
    assert file.read_text() == "mine"
    assert fetch(monitor.serve(path)).pid == os.getpid()


def test_a_place_that_is_taken(monitor, folder):
    """The one who has it keeps it."""
    path = monitor.serve(folder / "socket")
    with Monitor(interval=None) as other:
        with pytest.raises(ConfigurationError, match="another monitor"):
            other.serve(path)
        assert other.serve(folder / "other") == folder / "other"
    assert fetch(path).stages["query"].count == 1


@pytest.mark.parametrize("name", ["x" * 200, "missing/socket"])
def test_a_place_where_no_socket_can_be(monitor, folder, name):
    """Too long a name, or no folder: said, and another can be tried."""
    with pytest.raises(ConfigurationError, match="no socket can be made"):
        monitor.serve(folder / name)
    assert fetch(monitor.serve(folder / "socket")).pid == os.getpid()


def test_only_a_running_monitor_serves_and_once(monitor, folder):
    """The message says what to do."""
    with pytest.raises(ConfigurationError, match="not running"):
        Monitor().serve(folder / "socket")
    monitor.serve(folder / "socket")
    with pytest.raises(ConfigurationError, match="serves already"):
        monitor.serve(folder / "other")


def test_what_is_no_monitor_is_said(folder):
    """Another program's socket, one that says nothing, and one that hangs up."""
    for said in (b"HTTP/1.1 400 Bad Request\r\n", b'{"pid": "x"}\n', b""):
        path = folder / "socket"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            thread = threading.Thread(target=_answer, args=(listening, said))
            thread.start()
            with pytest.raises(ConfigurationError, match="is no monitor"):
                fetch(path)
            thread.join()
        path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(ConfigurationError, match="timed out"):
            fetch(path, timeout=0.05)


def _answer(listening, said):
    connection, _ = listening.accept()
    with connection:
        connection.sendall(said)


def test_one_who_hangs_up_or_says_nothing_disturbs_nobody(monitor, folder, capfd):
    """Others are answered all the same, and nothing is printed."""
    path = monitor.serve(folder / "socket")
    idle = []
    for _ in range(5):
        idle.append(socket.socket(socket.AF_UNIX))
        idle[-1].connect(str(path))
    for one in idle:
        one.close()
    assert fetch(path).pid == os.getpid()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_leaves_the_socket_to_its_parent(monitor, folder):
    """It ends its copy of the monitor, may have a monitor of its own, and the parent's goes on."""
    path = monitor.serve(folder / "socket")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            monitor.close()
            with Monitor(interval=None) as own, telemetry.stage("embed"):
                found = fetch(own.serve())
                code = not (found.pid == os.getpid() != os.getppid() == fetch(path).pid)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert fetch(path).pid == os.getpid()
    assert set(fetch(path).stages) == {"query"}


def test_a_program_that_is_killed_can_serve_again(folder):
    """Its socket is still there, and is no hindrance."""
    script = (
        "import sys; from ragaccel.observe import Monitor\n"
        "Monitor(interval=None).start().serve(sys.argv[1]); print('ready', flush=True)\n"
        "sys.stdin.read()"
    )
    path = folder / "socket"
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout.readline() == b"ready\n"
            assert fetch(path).pid == process.pid
            process.kill()
        assert path.exists()
