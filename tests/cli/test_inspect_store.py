"""`ragaccel inspect store`: what it tells, what it finds damaged, and that it only looks."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3

import numpy as np
import pytest
from typer.testing import CliRunner

from ragaccel import VectorCollection
from ragaccel.cli import app
from tests.vectors.data import clustered, names
from tests.vectors.processes import child

ROWS = 1480


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a compressed collection, some of whose rows were deleted."""
    folder = tmp_path_factory.mktemp("original") / "store"
    with VectorCollection.open(folder, compression="int8") as collection:
        collection.upsert(
            names(ROWS),
            clustered(ROWS, seed=1),
            metadata=[{"n": at, "even": at % 2 == 0} for at in range(ROWS)],
            document_ids=[f"document-{at % 7}" for at in range(ROWS)],
        )
        collection.delete(names(100))
        collection.create_index("n")
        collection.flush()
    return folder


@pytest.fixture
def folder(tmp_path, original):
    return shutil.copytree(original, tmp_path / "store")


def inspect(*arguments):
    return CliRunner().invoke(app, ["inspect", "store", *map(str, arguments)])


def told(*arguments):
    """Return what `--json` tells."""
    result = inspect(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_it_tells(folder):
    """Rows, settings, codes, log, files and metadata are told; nothing is changed or left."""
    before = contents(folder)
    found = told(folder, "--check")
    assert contents(folder) == before

    assert (found["rows"], found["dim"], found["metric"]) == (ROWS - 100, 64, "cosine")
    assert (found["position"], found["log_entries"], found["log_from"]) == (
        ROWS + 100,
        ROWS + 100,
        1,
    )
    assert (found["slots"], found["deleted_in_slab"], found["documents"]) == (ROWS, 100, 7)
    assert found["codes"]["codec"] == "int8"
    assert 0.9 < found["codes"]["recall"] <= 1
    assert found["files"]["vectors.bin"] == (ROWS) * 64 * 4
    assert found["metadata"] == {"even": {"boolean": ROWS - 100}, "n": {"integer": ROWS - 100}}
    assert found["indexes"] == ["n"]
    assert (found["damaged"], found["damaged_codes"], found["without_checksum"]) == ([], [], 0)

    drawn = inspect(folder)
    assert drawn.exit_code == 0
    for words in ("1,380", "int8", "vectors.bin", "boolean 1,380"):
        assert words in drawn.stdout
    assert contents(folder) == before


def test_names_with_brackets(tmp_path):
    """Folders and metadata fields are printed as they are called, not read as rich's markup."""
    folder = tmp_path / "shop[bold]"
    with VectorCollection.open(folder) as collection:
        collection.upsert(["a"], np.ones((1, 2)), metadata=[{"[/b]": 1, "[red]x": "y"}])
    drawn = inspect(folder)
    assert drawn.exit_code == 0, drawn.exception
    for words in ("shop[bold]", "[/b]", "[red]x"):
        assert words in drawn.stdout


def test_exact_and_empty_collections(tmp_path):
    """A collection without codes or rows is told as such."""
    VectorCollection.open(tmp_path).close()
    found = told(tmp_path, "--check")
    assert (found["rows"], found["dim"], found["codes"], found["damaged"]) == (0, None, None, [])
    assert "compare with the raw vectors" in inspect(tmp_path).stdout


def test_an_open_collection(tmp_path):
    """What another process has open, and has not closed, is told as it is now."""
    with child("hold", tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        assert told(tmp_path, "--check")["rows"] == 1
        holder.kill()
        holder.wait()
        assert told(tmp_path)["recent_rows"] == 1
    with VectorCollection.open(tmp_path) as collection:
        assert len(collection) == 1


def test_a_collection_that_is_being_written(tmp_path):
    """Beside a writer that rewrites and compacts, each look finds a whole collection."""
    with child("write", tmp_path, 0) as writer:
        for _ in range(8):
            writer.stdout.readline()
        for _ in range(15):
            found = told(tmp_path, "--check")
            assert (found["damaged"], found["rows"] > 0) == ([], True)
        assert writer.poll() is None


@pytest.mark.parametrize("place", [0, 100_000, -1])
def test_damage(folder, place):
    """A flipped bit of the truth is told with its place, and by the exit code."""
    slab = folder / "vectors.bin"
    body = bytearray(slab.read_bytes())
    body[place] ^= 4
    slab.write_bytes(body)

    assert inspect(folder).exit_code == 0
    result = inspect(folder, "--check")
    assert result.exit_code == 1
    assert "rows 0 to 1479 are not what was stored" in result.stdout


def test_damage_to_codes(folder):
    """Damaged codes are told, but are no fault: they are made anew."""
    segment = folder / "segment.faiss"
    segment.write_bytes(segment.read_bytes()[:-1])
    found = told(folder, "--check")
    assert found["damaged"] == []
    assert len(found["damaged_codes"]) == 1


@pytest.mark.parametrize("damage", ["nothing there", "no database", "cut"])
def test_what_cannot_be_read(folder, damage):
    """Where there is no collection, or its database is none, one line says so."""
    file = folder / "collection.sqlite"
    body = b"" if damage == "nothing there" else file.read_bytes()
    file.write_bytes({"no database": b"no database\n" * 999, "cut": body[:5000]}.get(damage, b""))
    if damage == "nothing there":
        file.unlink()
    result = inspect(folder)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_collection_of_an_older_release(folder):
    """Without tables of checksums, rows are told as unchecked."""
    with contextlib.closing(sqlite3.connect(folder / "collection.sqlite")) as db:
        db.executescript("DROP TABLE block; DROP TABLE living; PRAGMA user_version = 1;")
    found = told(folder, "--check")
    assert (found["without_checksum"], found["damaged"]) == (ROWS, [])
    with VectorCollection.open(folder, compression="int8") as collection:
        assert collection.verify() == []
        collection.upsert(["new"], np.ones((1, 64)))
        collection.flush()
    assert told(folder, "--check")["rows"] == ROWS - 99
