"""Full disks, power failures and calls of unusual size: a clear error or a right answer."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import subprocess

import numpy as np
import pytest

from ragaccel import VectorCollection
from ragaccel.errors import CollectionError, CorruptCollectionError
from ragaccel.vectors import Field
from tests.vectors.children import put
from tests.vectors.data import names
from tests.vectors.processes import child
from tests.vectors.states import versions

# -- a full disk -----------------------------------------------------------------------------------


def written(calls):
    """Return what so many calls of the role `fill` store."""
    return {row: row // 40 for row in range(calls * 40)}


@pytest.mark.parametrize("kilobytes", [20, 45, 90, 130, 300])
def test_a_file_that_cannot_grow(tmp_path, kilobytes):
    """When the disk is full a call says so; nothing acknowledged is lost, and writing goes on."""
    with child("fill", tmp_path, kilobytes) as writer:
        told = writer.communicate()[0].splitlines()
    assert told[0].startswith("error ")
    assert str(tmp_path) in told[0]
    done = int(told[1].removeprefix("full "))
    assert told[2:] == [f"rows {done * 40} {done * 40}", "ended"]
    with VectorCollection.open(tmp_path, compression="int8") as collection:
        assert versions(collection) == written(done + 5)
        assert collection.verify() == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid():
        pytest.skip("only root can mount a file system")
    if subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False
    ).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk(small_disk):
    """On a file system that is really full, a call says so and the rows of before stay."""
    with VectorCollection.open(small_disk / "store", compression="float32") as collection:
        calls = _calls_until_full(collection)
        assert versions(collection) == written(calls)
        with contextlib.suppress(CollectionError):
            collection.flush()
        assert versions(collection) == written(calls)
        subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
        put(collection, range(calls * 40, calls * 40 + 40), calls)
        collection.flush()
    with VectorCollection.open(small_disk / "store", compression="float32") as collection:
        assert versions(collection) == written(calls + 1)
        assert collection.verify() == []


def test_a_commit_that_fails_after_the_slab(tmp_path, monkeypatch):
    """Rows that were appended to the slab, but not committed, are moved again later."""
    with VectorCollection.open(tmp_path, compression="float32") as collection:
        put(collection, range(10), 1)
        store = collection._store
        append = store.index.slab.append

        def fail(*arguments):
            append(*arguments)
            raise CollectionError("the disk is full")

        monkeypatch.setattr(store.index.slab, "append", fail)
        with pytest.raises(CollectionError):
            collection.flush()
        monkeypatch.undo()
        put(collection, range(5, 30), 2)
        collection.flush()
        wanted = {row: 1 if row < 5 else 2 for row in range(30)}
        assert versions(collection) == wanted
        assert collection.verify() == []
    with VectorCollection.open(tmp_path, compression="float32", read_only=True) as collection:
        assert versions(collection) == wanted


def test_rows_are_stored_where_the_slab_cannot_grow(tmp_path, monkeypatch, caplog):
    """A call whose rows are in the database succeeds, though they cannot be moved on yet."""
    with VectorCollection.open(tmp_path, compression="int8") as collection:
        put(collection, [0], 1)

        def fail(*arguments):
            raise CollectionError("the disk is full")

        monkeypatch.setattr(collection._store.index.slab, "append", fail)
        put(collection, range(3000), 2)
        assert "the disk is full" in caplog.text
        assert versions(collection) == dict.fromkeys(range(3000), 2)
        monkeypatch.undo()
        put(collection, [1], 3)
        assert collection.stats().compression.codec == "int8"
        assert versions(collection) == {**dict.fromkeys(range(3000), 2), 1: 3}


def _calls_until_full(collection):
    calls = 0
    with contextlib.suppress(CollectionError):
        while True:
            put(collection, range(calls * 40, calls * 40 + 40), calls)
            calls += 1
    with pytest.raises(CollectionError, match=r"collection\.sqlite.*full"):
        put(collection, range(calls * 40, calls * 40 + 40), calls)
    return calls


# -- a power failure -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_power_failure(tmp_path, seed):
    """With the end of the WAL lost at any byte, the collection opens as it was after some call."""
    moments = random.Random(seed)
    folder, states = tmp_path / "folder", []
    with VectorCollection.open(folder, compression="int8") as collection:
        put(collection, range(1100), 0)
        states.append(versions(collection))
        for number in range(1, 40):
            rows = moments.sample(range(1400), moments.choice([1, 30, 400]))
            if number % 3:
                put(collection, rows, number)
            else:
                collection.delete([f"row-{row}" for row in rows])
            states.append(versions(collection))
        copy = shutil.copytree(folder, tmp_path / "copy")
    wal = copy / "collection.sqlite-wal"
    whole, found = wal.read_bytes(), []
    # What a checkpoint copied to the database was synced before, and no power failure takes it.
    (copied,) = struct.unpack_from("=I", (copy / "collection.sqlite-shm").read_bytes(), 96)
    synced = 32 + copied * (24 + int.from_bytes(whole[8:12], "big"))
    states.insert(0, {})  # before the first call
    for length in sorted(moments.choices(range(synced, len(whole) + 1), k=12), reverse=True):
        after = shutil.copytree(copy, tmp_path / "after")
        (after / "collection.sqlite-shm").unlink()
        (after / wal.name).write_bytes(whole[:length])
        with VectorCollection.open(after, compression="int8") as collection:
            found.append(states.index(versions(collection)))
            collection.verify()
            put(collection, range(2000, 2100), 99)
            assert len(versions(collection)) == len(states[found[-1]]) + 100
        shutil.rmtree(after)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(("durable", "level"), [(False, 1), (True, 2)])
def test_waiting_for_the_disk(tmp_path, durable, level):
    """`durable` asks SQLite to wait for the disk at each commit; its default is not to."""
    with VectorCollection.open(tmp_path, durable=durable) as collection:
        put(collection, range(3000), 1)
        collection.delete(names(2000))
        collection.compact()
        with collection._store.db.read() as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (level,)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# -- calls of unusual size -------------------------------------------------------------------------


def test_metadata_of_a_hundred_megabytes(tmp_path):
    """A large value is stored as it is, and rows beside it are found as fast as ever."""
    large = "x" * 100_000_000
    with VectorCollection.open(tmp_path) as collection:
        collection.upsert(
            ["large", "small"], [[1, 0], [0, 1]], metadata=[{"value": large}, {"value": "small"}]
        )
        (hits,) = collection.search([0, 1], k=1, where=Field("value", "eq", "small"))
        assert [hit.id for hit in hits] == ["small"]
    with VectorCollection.open(tmp_path) as collection:
        assert collection.get(["large"])[0].metadata["value"] == large
        assert collection.delete_where(Field("value", "eq", large)) == 1


def test_a_value_beyond_what_the_database_takes(tmp_path):
    """A value that SQLite refuses is an error that names the file, and stores nothing."""
    with VectorCollection.open(tmp_path) as collection:
        collection.upsert(["kept"], [[1, 0]])
        with pytest.raises(CollectionError, match="too big"):
            collection.upsert(["kept", "huge"], [[0, 1], [0, 1]], payloads=[None, bytes(10**9 + 1)])
        assert [record.id for record in collection.select()] == ["kept"]
        assert collection.search([1, 0])[0][0].score == pytest.approx(1)


def test_equal_ids_in_one_call(tmp_path):
    """Of rows with the same id in one call the last counts, also where the id exists."""
    for _ in range(2):
        with VectorCollection.open(tmp_path) as collection:
            collection.upsert(
                ["a", "b", "a", "a"], np.eye(4), texts=["first", "b", "second", "third"]
            )
            assert [(one.id, one.text) for one in collection.select()] == [
                ("b", "b"),
                ("a", "third"),
            ]
            assert [hit.id for hit in collection.search([0, 0, 1, 0], k=5)[0]] == ["b", "a"]
            assert collection.search([0, 0, 0, 1], k=1)[0][0].score == pytest.approx(1)


def test_a_folder_that_cannot_be_written(tmp_path):
    """Files of another kind where the collection's belong are told, not overwritten."""
    with VectorCollection.open(tmp_path) as collection:
        put(collection, range(2000), 1)
    slab = tmp_path / "vectors.bin"
    slab.rename(tmp_path / "elsewhere")
    slab.mkdir()
    with pytest.raises((CorruptCollectionError, CollectionError), match=r"vectors\.bin"):
        VectorCollection.open(tmp_path)
