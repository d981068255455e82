"""`verify` reads all that is stored, and tells every damage to it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import threading

import numpy as np
import pytest

from ragaccel import VectorCollection
from ragaccel.errors import CorruptCollectionError
from tests.vectors.children import DIM, put
from tests.vectors.states import versions

ROWS = 3000


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a compressed collection, some of whose rows are only in the database."""
    folder = tmp_path_factory.mktemp("original") / "store"
    with VectorCollection.open(folder, compression="int8") as collection:
        for start in range(0, ROWS, 500):
            put(collection, range(start, start + 500), 1)
        collection.delete([f"row-{row}" for row in range(0, ROWS, 9)])
        collection.flush()
        put(collection, range(ROWS, ROWS + 100), 2)
        shutil.copytree(folder, folder.with_name("open"))  # as a killed process leaves it
    return folder.with_name("open")


@pytest.fixture
def folder(tmp_path, original):
    return shutil.copytree(original, tmp_path / "store")


def verify(folder, **options):
    with VectorCollection.open(folder, compression="int8", **options) as collection:
        return collection.verify()


def change(folder, sql, *parameters):
    with contextlib.closing(sqlite3.connect(folder / "collection.sqlite")) as db, db:
        db.execute(sql, parameters)


@pytest.mark.parametrize("read_only", [False, True])
def test_nothing_is_damaged(folder, read_only):
    """A whole collection is told as such, by a writer and by a follower, in every state."""
    assert verify(folder, read_only=read_only) == []
    with VectorCollection.open(folder, compression="int8") as collection:
        for step in (collection.flush, collection.compact, collection.clear):
            assert collection.verify() == []
            step()
            assert collection.verify() == []


def test_in_memory():
    """A collection in memory can be asked, too."""
    with VectorCollection.open() as collection:
        assert collection.verify() == []
        put(collection, range(2000), 1)
        collection.delete(["row-1"])
        collection.compact()
        assert collection.verify() == []


def test_a_flipped_bit_anywhere_in_the_slab(folder):
    """Each flipped bit of the raw vectors is told, with the rows that it lies in."""
    slab = folder / "vectors.bin"
    whole, places = slab.read_bytes(), random.Random(1)
    with VectorCollection.open(folder, compression="int8", read_only=True) as collection:
        for place in [0, len(whole) - 1, *places.sample(range(len(whole)), 30)]:
            body = bytearray(whole)
            body[place] ^= 1 << places.randrange(8)
            slab.write_bytes(body)
            with pytest.raises(CorruptCollectionError, match=r"vectors\.bin: rows") as caught:
                collection.verify()
            words = str(caught.value).split("rows ")[1].split()
            assert int(words[0]) <= place // (4 * DIM) <= int(words[2])
        slab.write_bytes(whole)
        assert collection.verify() == []


@pytest.mark.parametrize("what", ["cut", "gone"])
def test_a_slab_that_goes_while_it_is_open(folder, what):
    """What is lost behind an open collection's back is told, by checking and by closing."""
    slab = folder / "vectors.bin"
    collection = VectorCollection.open(folder, compression="int8")
    if what == "cut":
        os.truncate(slab, slab.stat().st_size - 100)
    else:
        slab.rename(folder / "elsewhere")
    with pytest.raises(CorruptCollectionError, match=r"vectors\.bin"):
        collection.verify()
    with contextlib.suppress(CorruptCollectionError):  # the rows of `fresh` fill the cut
        collection.close()


@pytest.mark.parametrize(
    ("sql", "value", "words"),
    [
        ("DELETE FROM fresh WHERE slot = (SELECT max(slot) + ? FROM fresh)", 0, "1 recent rows"),
        ("UPDATE block SET sum = ? WHERE first = 0", b"0", "rows 0 to"),
        ("UPDATE block SET dead = ? WHERE first = 0", bytes([127, *[0] * 500]), "7 rows lie where"),
    ],
)
def test_rows_without_a_vector(folder, sql, value, words):
    """Rows whose vector is nowhere are counted."""
    change(folder, sql, value)
    with (
        VectorCollection.open(folder, compression="int8", read_only=True) as collection,
        pytest.raises(CorruptCollectionError, match=words),
    ):
        collection.verify()


@pytest.mark.parametrize("read_only", [False, True])
def test_vectors_of_another_length(folder, read_only):
    """A recent row whose vector is too short is told at the opening."""
    change(folder, "UPDATE fresh SET vector = x'00' WHERE slot % 2")
    with pytest.raises(CorruptCollectionError, match=f"not of {DIM} dimensions"):
        VectorCollection.open(folder, compression="int8", read_only=read_only)


def test_a_damaged_page_of_the_database(folder):
    """SQLite's own check is asked: an index that contradicts its table is told."""
    change(folder, "PRAGMA journal_mode = DELETE")
    change(folder, "PRAGMA writable_schema = 1")
    with contextlib.closing(sqlite3.connect(folder / "collection.sqlite")) as db:
        (root,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_doc_1'"
        ).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with (folder / "collection.sqlite").open("r+b") as file:
        file.seek((root - 1) * size + size - 40)
        file.write(bytes(40))
    with pytest.raises(CorruptCollectionError, match=r"collection\.sqlite"):
        verify(folder)


def test_damaged_codes_are_told_and_made_anew(folder):
    """Damage to what is derived is no error; the next opening makes it anew."""
    segment = folder / "segment.faiss"
    with VectorCollection.open(folder, compression="int8") as collection:
        stored = versions(collection)
        segment.write_bytes(segment.read_bytes()[:-1])
        (told,) = collection.verify()
        assert "segment.faiss" in told
    assert verify(folder) == []
    segment.write_bytes(b"no codes")
    with VectorCollection.open(folder, compression="int8") as collection:
        assert versions(collection) == stored


def test_a_collection_of_an_older_release(folder):
    """Without checksums a collection opens, and is summed from then on."""
    change(folder, "DROP TABLE block")
    change(folder, "DROP TABLE living")
    change(folder, "PRAGMA user_version = 1")
    with VectorCollection.open(folder, compression="int8", read_only=True) as follower:
        stored = versions(follower)
        assert follower.verify() == []
    with VectorCollection.open(folder, compression="int8") as collection:
        assert versions(collection) == stored
        put(collection, range(5000, 6500), 3)
        collection.delete([f"row-{row}" for row in range(5000, 6500)])
        collection.compact()
        assert collection.verify() == []
        assert versions(collection) == stored


def test_beside_writes(folder):
    """Checking does not keep writers out, and compactions meanwhile are no damage."""
    with VectorCollection.open(folder, compression="int8") as collection:
        stop, told = threading.Event(), []

        def check():
            while not stop.is_set():
                told.append(collection.verify())

        thread = threading.Thread(target=check)
        thread.start()
        for number in range(12):
            put(collection, range(number * 200, number * 200 + 1100), number)
            collection.compact()
        stop.set()
        thread.join()
        assert told
        assert not any(map(len, told))
        assert np.isfinite(collection.search(np.ones(DIM))[0][0].score)
