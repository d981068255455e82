"""Room of deleted rows goes back to the file system, and old changes are forgotten."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest

from ragaccel import VectorCollection
from ragaccel.errors import CorruptCollectionError
from ragaccel.vectors import slab, store
from tests.vectors.children import DIM, put, row_vector
from tests.vectors.data import clustered, names
from tests.vectors.processes import child
from tests.vectors.states import QUERY, versions

ROWS = 20_000


def on_disk(folder):
    return (folder / "vectors.bin").stat().st_blocks * 512


@pytest.fixture
def folder(tmp_path):
    """A folder with a collection of ROWS rows of 64 dimensions."""
    with open_(tmp_path) as collection:
        collection.upsert(names(ROWS), clustered(ROWS, seed=1))
    return tmp_path


def open_(folder, **options):
    return VectorCollection.open(folder, compression="float32", **options)


def read(collection):
    return {row.id: (row.slot, row.vector.tobytes()) for row in collection.select(vectors=True)}


def test_room_is_given_back(folder):
    """Runs of deleted rows take no room after a compaction; the others stay where they are."""
    with open_(folder) as collection:
        before, kept = on_disk(folder), read(collection)
        collection.delete(names(ROWS)[1000:16_000])
        collection.delete(names(ROWS)[16_000::3])  # too scattered to free a page
        kept = {one: kept[one] for one in sorted(set(kept) & set(read(collection)))}
        assert on_disk(folder) == before
        collection.compact()
        assert on_disk(folder) < before * 0.3
        assert collection.stats().bytes_on_disk < before + 20_000_000
        assert read(collection) == kept
        assert collection.verify() == []
        collection.upsert(["later"], np.ones((1, 64)))
    with open_(folder) as collection:
        assert {**read(collection), "later": 0} == {**kept, "later": 0}
        assert collection.verify() == []
        collection.clear()
        assert on_disk(folder) < 10_000
        collection.upsert(["after"], np.ones((1, 64)))
        collection.flush()
        assert collection.select()[0].slot == ROWS + 1
        assert collection.verify() == []


@pytest.mark.parametrize("kept", [0, 10])
def test_room_of_the_newest_rows(folder, kept):
    """Deleted rows above the last living one are given back after a reopening, too."""
    with open_(folder) as collection:
        collection.delete(names(ROWS)[kept:])
    with open_(folder) as collection:
        collection.compact()
        assert on_disk(folder) < 10_000
        assert collection.verify() == []
        collection.upsert(["later"], np.ones((1, 64)))
        assert [row.slot for row in collection.select()] == [*range(kept), ROWS]


def test_a_system_that_cannot_give_back(folder, monkeypatch):
    """Without fallocate(2) nothing is freed, and everything else is as ever."""
    monkeypatch.setattr(slab, "_fallocate", None)
    with open_(folder) as collection:
        before = on_disk(folder)
        collection.delete(names(ROWS)[:10_000])
        collection.compact()
        assert on_disk(folder) == before
        assert collection.verify() == []
        assert len(read(collection)) == ROWS - 10_000


def test_a_stop_between_the_note_and_the_hole(folder, monkeypatch):
    """A process that ends after it noted which rows go, but before they go, damages nothing."""
    monkeypatch.setattr(slab.FileSlab, "give_back", lambda *_: None)
    with open_(folder) as collection:
        collection.delete(names(ROWS)[:10_000])
        collection.compact()
    monkeypatch.undo()
    with open_(folder) as collection:
        assert collection.verify() == []
        collection.delete(names(ROWS)[10_000:12_000])
        collection.compact()
        assert collection.verify() == []
        assert on_disk(folder) < 64 * 4 * (ROWS - 11_900)


def test_damage_is_not_hidden_by_giving_back(folder):
    """A block that is damaged already is not summed anew: its damage stays known."""
    with (folder / "vectors.bin").open("r+b") as file:
        file.seek(15_000 * 256)
        file.write(b"\1")
    with open_(folder) as collection:
        collection.delete(names(ROWS)[8192:12_000])
        collection.compact()
        with pytest.raises(CorruptCollectionError, match="rows 8192 to 16383"):
            collection.verify()


def test_a_reader_elsewhere_while_room_is_given_back(folder):
    """Rows that vanish while a follower reads them are not told as zeros: it looks again."""
    with open_(folder) as writer, open_(folder, read_only=True) as follower:
        raw, calls = follower._store.raw, []

        def late(db, slots):
            calls.append(len(slots))
            if len(calls) == 1:
                writer.delete(names(ROWS)[:15_000])
                writer.compact()
            return raw(db, slots)

        follower._store.raw = late
        (hits,) = follower.search(clustered(1, seed=1)[0], k=50, vectors=True)
        assert calls == [50, 50]
        assert {int(hit.id[4:]) for hit in hits} <= set(range(15_000, ROWS))
        assert all(np.abs(hit.vector).sum() > 0 for hit in hits)


def test_followers_beside_compactions(tmp_path):
    """While another process rewrites, deletes and compacts, every row read is one that was put."""
    with child("write", tmp_path, 0) as writer, contextlib.ExitStack() as stack:
        for _ in range(5):
            writer.stdout.readline()
        follower = stack.enter_context(
            VectorCollection.open(tmp_path, compression="int8", read_only=True)
        )
        for _ in range(10):
            for record in follower.select(vectors=True):
                vector = row_vector(record.metadata["row"], record.metadata["version"])
                assert record.vector.tobytes() == vector.tobytes()
            (hits,) = follower.search(QUERY, k=20, vectors=True)
            for hit in hits:
                cosine = QUERY @ hit.vector / np.linalg.norm(QUERY) / np.linalg.norm(hit.vector)
                assert hit.score == pytest.approx(cosine, abs=1e-5)
            follower.verify()
        assert writer.poll() is None


# -- the change log --------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """Let compactions leave a log of 50 entries."""
    monkeypatch.setattr(store, "_LOG_ENTRIES", 50)


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
@pytest.mark.usefixtures("short")
def test_changes_that_are_forgotten(tmp_path, on_disk):
    """From a position that the log has forgotten no changes are told, not even some."""
    with VectorCollection.open(tmp_path if on_disk else None) as collection:
        put(collection, range(200), 1)
        kept = collection.changes_since(0)
        collection.compact()
        assert len(kept.upserted) == 200
        assert collection.seq == 200
        for position in (0, 1, 149, 150):
            assert collection.changes_since(position) is None
        assert len(collection.changes_since(151).upserted) == 49
        put(collection, [7], 2)
        assert collection.changes_since(199).upserted.tolist() == [199, 200]
        assert collection.changes_since(0) is None
        collection.clear()
        put(collection, [7], 3)
        assert collection.seq == 200 + 2 + 200 + 1
        assert collection.changes_since(402).upserted.tolist() == [201]


@pytest.mark.parametrize("compression", ["float32", "int8"])
@pytest.mark.usefixtures("short")
def test_a_follower_behind_the_log(tmp_path, compression):
    """A follower that missed more than the log tells loads everything anew, and misses nothing."""
    with (
        VectorCollection.open(tmp_path, dim=DIM, compression=compression) as writer,
        VectorCollection.open(tmp_path, compression=compression, read_only=True) as follower,
    ):
        for version in range(1, 6):
            put(writer, range(version * 10, 1500), version)
            writer.delete([f"row-{row}" for row in range(0, 1500, version + 1)])
            writer.compact()
            if version != 3:
                assert versions(follower) == versions(writer)
            put(writer, [1, 2], version)
            assert versions(follower) == versions(writer)


@pytest.mark.usefixtures("short")
def test_codes_are_known_after_forgetting(tmp_path):
    """Codes that were stored at a compaction are used again: their position is kept."""
    with VectorCollection.open(tmp_path, compression="int8") as collection:
        put(collection, range(1500), 1)
        collection.compact()
        put(collection, range(30), 2)
        collection.delete(["row-40"])
        wanted = versions(collection)
        store_ = collection._store
        with store_.db.snapshot() as db:
            head = (tmp_path / "segment.faiss").read_bytes()[:2000].decode(errors="replace")
            name = head.split('"rows_of":"')[1].split('"')[0]
            assert store_._is_known(db, name)
    with VectorCollection.open(tmp_path, compression="int8") as collection:
        assert versions(collection) == wanted


# -- which rows live -------------------------------------------------------------------------------


def test_rows_that_live_are_known_after_any_end(tmp_path):
    """What was stored of living rows is brought up to date from the log, whatever came since."""
    stale = []
    for version in range(1, 9):
        with VectorCollection.open(tmp_path, compression="int8") as collection:
            if stale:
                assert versions(collection) == stale.pop()
            put(collection, range(version * 50, version * 150 + 1000), version)
            collection.flush()
            put(collection, range(version * 10, version * 12), version + 100)
            collection.delete([f"row-{row}" for row in range(0, 3000, version + 3)])
            stale.append(versions(collection))
            os.sync()
            # Let go as a killed process does, without storing anything.
            collection._writer.release()
            collection._store.close()
            collection._writer, collection._closed = None, True
