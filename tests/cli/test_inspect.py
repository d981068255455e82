"""`ragaccel inspect cache`: what it tells, what it keeps to itself, and that it only looks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from ragaccel.cache import MultiLevelCache
from ragaccel.cache.keys import namespace_mark
from ragaccel.cli import app

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

SECRETS = ("the secret key", "the secret value", "secret-tag", "secret-document")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def folder(tmp_path):
    """A folder with a cache of three namespaces."""
    folder = tmp_path / "cache"
    with MultiLevelCache.open(folder) as cache:
        for namespace, count in (("default", 3), ("acme", 2), ("other", 1)):
            for number in range(count):
                cache.set(
                    ["the secret key", number],
                    "the secret value",
                    tags=["secret-tag"],
                    documents=["secret-document"],
                    namespace=namespace,
                )
        cache.invalidate(["another tag"])
    return folder


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", "cache", *map(str, arguments)])


def contents(folder: Path) -> dict[str, str]:
    """Return the names of the files and digests of what is in them."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if not path.name.endswith(("-wal", "-shm"))
    }


def row(output: str, name: str) -> str:
    """Return the last cells of the table's row that begins with a name."""
    lines = [line.strip("│┃ ") for line in output.splitlines()]
    found = [line for line in lines if line.startswith(name)]
    assert len(found) == 1, output
    return found[0][len(name) :].strip("│ ")


@pytest.mark.parametrize("named_as", ["folder", "file"])
def test_what_a_cache_holds(folder, named_as):
    """Entries, bytes, ages and strikes, of a folder or of the file in it."""
    done = inspect(folder if named_as == "folder" else folder / "cache.sqlite")
    assert done.exit_code == 0, done.output
    assert row(done.output, "entries ") == "6"
    assert row(done.output, "expired") == "0"
    assert row(done.output, "strikes") == "1"
    assert row(done.output, "set aside") == "0"
    assert int(row(done.output, "bytes ").replace(",", "")) > 0


def test_namespaces_by_name_and_by_mark(folder):
    """The default one and those that are named; of others only the mark is known."""
    done = inspect(folder, "--namespace", "acme", "--namespace", "absent")
    assert row(done.output, "default").startswith("│ 3") or row(done.output, "default")[0] == "3"
    assert row(done.output, "acme").lstrip("│ ").startswith("2")
    assert row(done.output, namespace_mark("other").hex()).lstrip("│ ").startswith("1")
    assert namespace_mark("acme").hex() not in done.output
    assert "absent" not in done.output


def test_no_content_is_shown(folder):
    """Neither keys nor values, tags, documents or names of namespaces."""
    for arguments in ((), ("--check",), ("--namespace", "acme")):
        output = inspect(folder, *arguments).output
        assert not [secret for secret in (*SECRETS, "other") if secret in output]


def test_check_finds_every_damaged_row(folder):
    """Without it rows are not looked at; with it the exit code tells."""
    assert row(inspect(folder, "--check").output, "damaged") == "0"
    with contextlib.closing(sqlite3.connect(folder / "cache.sqlite")) as db:
        damaged = [row[0] for row in db.execute("SELECT hash FROM entry LIMIT 2")]
        for number, found in enumerate(damaged):
            harm = "zeroblob(length(blob))" if number else "substr(blob, 1, length(blob) - 1)"
            db.execute(f"UPDATE entry SET blob = {harm} WHERE hash = ?", (found,))
        db.commit()
    assert inspect(folder).exit_code == 0
    done = inspect(folder, "--check")
    assert done.exit_code == 1
    assert row(done.output, "damaged") == "2"
    assert row(done.output, "entries ") == "6"


def test_a_missing_file_is_told(tmp_path):
    """It is no empty cache, and none is made."""
    for where in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere" / "cache.sqlite"):
        done = inspect(where)
        assert done.exit_code == 1
        assert "no cache file" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_told():
    """An exit code and a line, no traceback."""
    done = inspect("redis://127.0.0.1:1")
    assert done.exit_code == 1
    assert "cannot be read" in done.output
    assert "Traceback" not in done.output


def test_looking_changes_nothing(folder):
    """Neither the entries nor the files beside them."""
    before = contents(folder)
    for _ in range(2):
        assert inspect(folder, "--check").exit_code == 0
    assert contents(folder) == before
    with MultiLevelCache.open(folder) as cache:
        assert cache.get(["the secret key", 0]) == "the secret value"


def test_looking_makes_no_file(folder):
    """Not even the log and its index, which SQLite makes beside a file that it opens."""
    before = sorted(path.name for path in folder.iterdir())
    assert inspect(folder, "--check").exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == before


def test_what_a_killed_process_left_in_the_log(folder):
    """It is read where it lies: neither brought into the file nor dropped."""
    killed = """
import os, sys
from ragaccel.cache import MultiLevelCache
cache = MultiLevelCache.open(sys.argv[1])
cache.set("last", 1)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", killed, str(folder)], check=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before["cache.sqlite-wal"]
    look = [sys.executable, "-m", "ragaccel.cli", "inspect", "cache", str(folder)]
    done = subprocess.run(look, capture_output=True, text=True, check=True)
    assert row(done.stdout, "entries ") == "7"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_cache_that_is_in_use(folder):
    """Looking waits for nobody and disturbs nobody, while another holds the write lock."""
    with MultiLevelCache.open(folder) as cache:
        assert cache.get(["the secret key", 0]) == "the secret value"
        with contextlib.closing(
            sqlite3.connect(folder / "cache.sqlite", isolation_level=None)
        ) as db:
            db.execute("BEGIN EXCLUSIVE")
            assert inspect(folder, "--check").exit_code == 0
            db.execute("ROLLBACK")
        cache.set("a", 1)
        assert row(inspect(folder).output, "entries ") == "7"


def test_a_file_that_is_no_cache_is_left_alone(tmp_path):
    """A wrong path is a wrong path."""
    file = tmp_path / "notes.txt"
    file.write_text("my notes " * 1000)
    done = inspect(file)
    assert file.read_text() == "my notes " * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert done.exit_code == 1


def test_a_database_of_others_is_left_alone(tmp_path):
    """Also one that has a table with the name of ours."""
    file = tmp_path / "accounts.db"
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE entry (amount INTEGER)")
        db.execute("INSERT INTO entry VALUES (100)")
        db.commit()
    done = inspect(file)
    with contextlib.closing(sqlite3.connect(file)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master")]
        assert tables == ["entry"]
        assert db.execute("SELECT * FROM entry").fetchall() == [(100,)]
    assert done.exit_code == 1


def test_a_damaged_cache_file_is_told_and_left(folder):
    """That is what one looks for."""
    file = folder / "cache.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with file.open("r+b") as opened:
        opened.seek(0)
        opened.write(os.urandom(file.stat().st_size))
    before = contents(folder)
    done = inspect(folder)
    assert contents(folder) == before
    assert done.exit_code == 1


def test_files_that_were_set_aside_are_counted(folder):
    """So that somebody notices."""
    (folder / "cache.sqlite").write_bytes(b"garbage" * 1000)
    for suffix in ("-wal", "-shm"):
        (folder / f"cache.sqlite{suffix}").unlink(missing_ok=True)
    with MultiLevelCache.open(folder) as cache:
        cache.set("a", 1)
    done = inspect(folder)
    assert row(done.output, "set aside") == "1"
    assert row(done.output, "entries ") == "1"


@pytest.mark.parametrize("name", ["[/closing]", "[bold]tenant"])
def test_names_with_brackets_are_shown_as_they_are(tmp_path, name):
    """Namespaces and folders may be called anything."""
    folder = tmp_path / "[red]caches"
    with MultiLevelCache.open(folder, namespace=name) as cache:
        cache.set("a", 1)
    done = inspect(folder, "--namespace", name)
    assert done.exit_code == 0
    assert name in done.output
    assert "[red]caches" in done.output.replace("\n", "")


def test_the_command_itself(folder):
    """Through the installed entry, as a user does; help for a call without arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "ragaccel.cli", "inspect", "cache", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "entries" in done.stdout
    assert "cache" in CliRunner().invoke(app, ["inspect"]).output
    assert inspect().exit_code == 2
