"""What was acknowledged is there: after closing, after a kill, after damage, for other processes.

Processes are real and are really killed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.errors import (
    CollectionError,
    CollectionLockedError,
    CollectionNotFoundError,
    CorruptCollectionError,
)
from ragaccel.vectors import Field
from tests.vectors.children import DIM, ROWS, put, row_vector
from tests.vectors.data import clustered, names
from tests.vectors.processes import child
from tests.vectors.states import QUERY, replay, versions

# -- closing and reopening -------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["float32", "int8", "pq", "auto"])
@pytest.mark.parametrize("ending", ["close", "flush", "compact"])
def test_reopening(tmp_path, compression, ending):
    """A reopened collection gives the same answers, with the same compression."""
    rows, queries = clustered(2500, seed=1), clustered(10, seed=2)
    with VectorCollection.open(tmp_path, compression=compression) as collection:
        for start in range(0, 2500, 500):
            ids = names(2500)[start : start + 500]
            collection.upsert(ids, rows[start : start + 500], [f"text of {one}" for one in ids])
        collection.delete(names(2500)[::7])
        collection.upsert(names(2500)[::50], rows[::50], ["rewritten"] * 50)
        if ending != "close":
            getattr(collection, ending)()
        before = collection.select(), collection.search(queries), collection.seq
        spec = collection.stats().compression.codec

    with VectorCollection.open(tmp_path, compression=compression) as collection:
        assert (collection.select(), collection.search(queries), collection.seq) == before
        assert collection.stats().compression.codec == spec
        assert collection.stats().bytes_on_disk > rows.nbytes
        collection.upsert(["later"], rows[:1])
        assert collection.select()[-1].slot > before[0][-1].slot


@pytest.mark.parametrize("change", [None, "write", "calibrate", "recall", "gone"])
def test_codes_are_stored_again_where_they_are_others(tmp_path, change):
    """Closing a large collection that was only read costs nothing."""
    with VectorCollection.open(tmp_path, compression="pq") as collection:
        collection.upsert(names(2500), clustered(2500, seed=1))
    file = tmp_path / "segment.faiss"
    before = file.stat().st_ino, file.stat().st_mtime_ns
    floor = 0.9 if change == "recall" else 0.99
    with VectorCollection.open(tmp_path, compression="pq", recall=floor) as collection:
        expected = collection.search(clustered(5, seed=2), exact=True)
        if change == "write":
            collection.upsert(["later"], clustered(1, seed=3) + 100)
        elif change == "calibrate":
            collection.calibrate(clustered(300, seed=4))
        elif change == "gone":
            file.unlink()
    assert ((file.stat().st_ino, file.stat().st_mtime_ns) == before) is (change is None)
    with VectorCollection.open(tmp_path, compression="pq", read_only=True) as collection:
        assert collection.search(clustered(5, seed=2), exact=True) == expected


def test_an_empty_collection_is_kept(tmp_path):
    """A collection without rows keeps its metric and its dimension."""
    VectorCollection.open(tmp_path, dim=5, metric="l2").close()

    with VectorCollection.open(tmp_path, metric="l2") as collection:
        assert (collection.dim, len(collection)) == (5, 0)


def test_after_clearing(tmp_path):
    """A cleared collection is empty for good, and takes new rows."""
    with VectorCollection.open(tmp_path, compression="int8") as collection:
        put(collection, range(1500), 1)
        collection.clear()
        assert versions(collection) == {}
    with VectorCollection.open(tmp_path, compression="int8") as collection:
        assert versions(collection) == {}
        put(collection, range(1200), 2)
        assert versions(collection) == dict.fromkeys(range(1200), 2)


# -- kills -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "seed"),
    [(6, 2026), *[pytest.param(25, seed, marks=pytest.mark.slow) for seed in range(8)]],
)
def test_a_killed_writer_loses_nothing(tmp_path, rounds, seed):
    """After a kill at any moment, all that was acknowledged is there, and no call by halves."""
    moments = random.Random(seed)
    first = 0
    for round_ in range(rounds):
        with child("write", tmp_path, first) as writer:
            told = [writer.stdout.readline() for _ in range(moments.randint(1, 25))]
            with contextlib.suppress(subprocess.TimeoutExpired):
                writer.wait(moments.random() / 20)
            writer.send_signal(signal.SIGKILL)
            told += writer.stdout.readlines()
        number, did = told[-1].split()
        number = int(number)
        with VectorCollection.open(
            tmp_path, compression="int8", read_only=round_ % 2 == 0
        ) as collection:
            found = versions(collection)
            collection.verify()  # codes may be missing or of before, the truth may not
        if did == "deleted":
            right = [replay(number, delete_only=True), replay(number)]
            if number == first:  # its rows were written before the kill of the round before
                right.append(replay(number, deleted_again=True))
            assert found in right
            first = number
        else:
            after = replay(number), replay(number + 1, delete_only=True), replay(number + 1)
            assert found in after
            first = number + 1
        # What the call in flight did is done again.


def test_a_kill_leaves_the_lock_free(tmp_path):
    """The right to write ends with the process that has it, whatever ends it."""
    with child("hold", tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CollectionLockedError, match=r"another writer.*read_only=True"):
            VectorCollection.open(tmp_path)
        with VectorCollection.open(tmp_path, read_only=True) as follower:
            assert [record.id for record in follower.select()] == ["held"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with VectorCollection.open(tmp_path) as collection:
            assert [record.id for record in collection.select()] == ["held"]


def test_one_writer_in_a_process(tmp_path):
    """A second writer is refused while the first is open, in the same process, too."""
    with VectorCollection.open(tmp_path) as collection:
        with pytest.raises(CollectionLockedError, match=str(tmp_path)):
            VectorCollection.open(tmp_path)
        with pytest.raises(TimeoutError):
            VectorCollection.open(tmp_path)
        collection.upsert(["a"], [[1, 2]])
    VectorCollection.open(tmp_path).close()


def test_a_failed_opening_leaves_the_lock_free(tmp_path):
    """To be refused for a wrong option does not keep others from writing."""
    VectorCollection.open(tmp_path, dim=2).close()
    for options in ({"metric": "l2"}, {"dim": 3}):
        with pytest.raises(ValueError, match="collection"):
            VectorCollection.open(tmp_path, **options)
    VectorCollection.open(tmp_path).close()


def test_a_forgotten_collection_leaves_the_lock_free(tmp_path):
    """A collection that nobody refers to any more does not keep others from writing."""
    VectorCollection.open(tmp_path).upsert(["a"], [[1, 2]])
    gc.collect()

    with VectorCollection.open(tmp_path) as collection:
        assert len(collection) == 1


def test_a_forked_child_does_not_write(tmp_path):
    """A fork of the writing process can search; the right to write stays with the parent."""
    with child("fork", tmp_path) as forking:
        told, _ = forking.communicate()

    assert told.splitlines() == [
        "child finds 2",
        "child is refused",
        "parent has ['row-0', 'row-1', 'row-3']",
    ]


# -- damage to what is derived ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A folder with a compressed collection, and a function that compares answers with it."""
    folder = tmp_path_factory.mktemp("compressed")
    with VectorCollection.open(folder, compression="int8") as collection:
        put(collection, range(1300), 1)
        collection.delete([f"row-{row}" for row in range(0, 1300, 9)])
        put(collection, range(1200, 1400), 2)
        collection.flush()
        wanted = collection.search(QUERY, k=2000), versions(collection)
    return folder, wanted


def answers(folder, compression="int8"):
    """Open a collection and return what its rows and a search of all of them give."""
    with VectorCollection.open(folder, compression=compression) as collection:
        assert collection.stats().compression.codec == compression
        return collection.search(QUERY, k=2000), versions(collection)


def rewritten(change):
    """Return damage that changes the bytes of the segment."""

    def damage(segment):
        segment.write_bytes(change(segment.read_bytes()))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Path.unlink, id="deleted"),
        pytest.param(rewritten(lambda body: b""), id="emptied"),
        pytest.param(rewritten(lambda body: body[:10]), id="magic cut"),
        pytest.param(rewritten(lambda body: body[:60]), id="head cut"),
        pytest.param(rewritten(lambda body: body[: len(body) // 2]), id="half"),
        pytest.param(rewritten(lambda body: body[:-1]), id="last byte cut"),
        pytest.param(rewritten(lambda body: body + b"\0"), id="a byte more"),
        pytest.param(rewritten(lambda body: bytes(len(body))), id="zeros"),
        pytest.param(
            rewritten(lambda body: body.replace(b"segment-1", b"segment-2")), id="version"
        ),
        pytest.param(rewritten(lambda body: body.replace(b"int8", b"int7")), id="codec"),
        pytest.param(rewritten(lambda body: os.urandom(len(body))), id="noise"),
    ],
)
def test_a_damaged_segment_is_rebuilt(tmp_path, compressed, damage):
    """Codes are derived: missing, damaged or foreign ones are made anew, with the same results."""
    folder, wanted = compressed
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy / "segment.faiss")

    assert answers(copy) == wanted

    whole = (copy / "segment.faiss").read_bytes()
    assert answers(copy) == wanted
    assert (copy / "segment.faiss").read_bytes() == whole


def test_a_flipped_bit_in_a_segment(tmp_path, compressed):
    """No flipped bit in a segment, be it in its head or in its codes, changes an answer."""
    folder, wanted = compressed
    copy = shutil.copytree(folder, tmp_path / "copy")
    whole = (copy / "segment.faiss").read_bytes()
    head = whole.index(b"\n", whole.index(b"{")) + 1
    digits = [place for place in range(head) if whole[place : place + 1].isdigit()]
    places = [*digits, *range(0, head, 15), *np.linspace(head, len(whole) - 1, 5).astype(int)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (copy / "segment.faiss").write_bytes(damaged)
        with VectorCollection.open(copy, compression="int8") as collection:
            found = collection.search(QUERY, k=2000)
        assert found == wanted[0], f"bit 0 of byte {place}: {damaged[max(0, place - 9) :][:20]}"


@pytest.mark.parametrize("whose", ["another collection", "a later state"])
def test_a_segment_that_is_not_of_these_rows(tmp_path, whose):
    """Codes that were made from other rows than the stored ones are not used."""
    folder, other = tmp_path / "one", tmp_path / "other"
    spec = CompressionSpec("int8", oversample=4)
    with VectorCollection.open(folder, compression=spec) as collection:
        collection.upsert(names(1500), clustered(1500, seed=1))
    shutil.copytree(folder, other)
    if whose == "another collection":
        shutil.rmtree(other)
    with VectorCollection.open(other, compression=spec) as collection:
        collection.upsert(names(1500, "later"), clustered(1500, seed=2))
    shutil.copy(other / "segment.faiss", folder / "segment.faiss")

    with VectorCollection.open(folder, compression=spec) as collection:
        collection.upsert(names(1500, "new"), clustered(1500, seed=3))
        queries = clustered(20, seed=4)
        found = collection.search(queries)
        assert [len({hit.id for hit in hits}) for hits in found] == [10] * 20
        exact = collection.search(queries, exact=True)
        assert [[hit.id for hit in hits] for hits in found] == [
            [hit.id for hit in hits] for hits in exact
        ]


def test_another_codec_at_reopening(tmp_path, compressed):
    """Any codec can be chosen anew: codes are made from the raw vectors."""
    folder, (_, stored) = compressed
    copy = shutil.copytree(folder, tmp_path / "copy")

    assert answers(copy, "float16")[1] == stored
    assert answers(copy, "float32")[1] == stored
    assert not (copy / "segment.faiss").exists()
    assert answers(copy, "pq")[1] == stored


# -- damage to the truth ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_truncated_slab(tmp_path, compressed, share, read_only):
    """Lost raw vectors are told at opening, with what helps, and never guessed."""
    folder, _ = compressed
    copy = shutil.copytree(folder, tmp_path / "copy")
    slab = copy / "vectors.bin"
    if share:
        os.truncate(slab, int(slab.stat().st_size * share))
    else:
        slab.unlink()

    with pytest.raises(CorruptCollectionError, match=r"vectors\.bin.*backup"):
        VectorCollection.open(copy, compression="int8", read_only=read_only)

    shutil.copy(folder / "vectors.bin", slab)
    assert len(answers(copy)[1]) == len(answers(folder)[1])


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(lambda body: b"this is not a database\n" * 1000, id="text"),
        pytest.param(lambda body: os.urandom(len(body)), id="noise"),
        pytest.param(lambda body: body[: len(body) // 3], id="truncated"),
        pytest.param(lambda body: b"", id="emptied"),
    ],
)
def test_a_damaged_database(tmp_path, compressed, garbage):
    """A database that is none is told at opening, named, and left as it is."""
    folder, _ = compressed
    copy = shutil.copytree(folder, tmp_path / "copy")
    database = copy / "collection.sqlite"
    database.write_bytes(garbage(database.read_bytes()))
    damaged = database.read_bytes()
    for read_only in (True, False):
        with pytest.raises(CorruptCollectionError, match=r"collection\.sqlite"):
            VectorCollection.open(copy, compression="int8", read_only=read_only)
    assert database.read_bytes() == damaged


@pytest.mark.parametrize("read_only", [False, True])
def test_a_later_format(tmp_path, compressed, read_only):
    """A collection of a later release is refused with its format and the remedy."""
    folder, wanted = compressed
    copy = shutil.copytree(folder, tmp_path / "copy")
    with contextlib.closing(sqlite3.connect(copy / "collection.sqlite")) as db:
        format_ = db.execute("PRAGMA user_version").fetchone()[0]
        db.execute("PRAGMA user_version = 99")

    with pytest.raises(CollectionError, match=r"later release.*99.*upgrade ragaccel"):
        VectorCollection.open(copy, compression="int8", read_only=read_only)

    with contextlib.closing(sqlite3.connect(copy / "collection.sqlite")) as db:
        db.execute(f"PRAGMA user_version = {format_}")
    assert answers(copy) == wanted


# -- following a writer ----------------------------------------------------------------------------


def test_nothing_to_follow(tmp_path):
    """A read-only collection must be there; looking for one makes nothing."""
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CollectionNotFoundError, match=str(path)):
            VectorCollection.open(path, read_only=True)
        with pytest.raises(FileNotFoundError):
            VectorCollection.open(path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def writes(writer):
    """Do what a writer can do, step by step: small and large calls, and house-keeping."""
    put(writer, [1, 2, 3], 1)
    yield "the first rows"
    put(writer, [2, 4], 2)
    yield "a replaced row"
    assert writer.delete(["row-1", "unknown"]) == 1
    yield "a deleted row"
    put(writer, range(2000, 3500), 3)
    yield "more rows than the log keeps vectors of"
    writer.delete_where(Field("row", "ge", 3000))
    yield "many deleted rows"
    writer.flush()
    yield "a checkpoint"
    put(writer, range(2100, 2200), 4)
    yield "rows after the checkpoint"
    writer.compact()
    yield "a compaction"
    put(writer, [1], 5)
    yield "a row after the compaction"
    writer.clear()
    yield "nothing left"
    put(writer, [7], 6)
    yield "a row after all was gone"


@pytest.mark.parametrize("compression", ["float32", "int8"])
def test_a_follower_in_the_process_sees_every_write(tmp_path, compression):
    """A read-only collection sees what the writer's object wrote, at its next look."""
    with VectorCollection.open(tmp_path, compression=compression) as writer:
        followers = [
            VectorCollection.open(tmp_path, compression=compression, read_only=True)
            for _ in range(2)
        ]
        for step, after in enumerate(writes(writer)):
            wanted = versions(writer)
            assert versions(followers[0]) == wanted, after
            assert followers[0].seq == writer.seq
            if step % 3 == 0:  # the other one has several steps to take in at once
                assert versions(followers[1]) == wanted, after
        for follower in followers:
            follower.close()


def test_a_follower_in_another_process_sees_every_write(tmp_path):
    """Another process sees each write at once, with no message but the files."""
    with VectorCollection.open(tmp_path, dim=DIM) as writer, child("follow", tmp_path) as other:
        assert other.stdout.readline() == "following\n"
        for after in writes(writer):
            wanted = {f"row-{row}": version for row, version in versions(writer).items()}
            other.stdin.write(json.dumps(QUERY.tolist()) + "\n")
            other.stdin.flush()
            told = json.loads(other.stdout.readline())
            assert told["found"] == wanted, after
            assert told["counts"] == [len(wanted)] * 3, after


def test_a_follower_in_several_threads(tmp_path):
    """Each thread that asks a read-only collection sees what was written before."""
    with VectorCollection.open(tmp_path) as writer:
        put(writer, [0], 1)
        with VectorCollection.open(tmp_path, read_only=True) as follower:
            for row in range(1, 6):
                put(writer, [row], 1)
                counts = []
                threads = [
                    threading.Thread(target=lambda counts=counts: counts.append(len(follower)))
                    for _ in range(3)
                ]
                for thread in threads:
                    thread.start()
                    thread.join()
                assert counts == [row + 1] * 3


def test_a_follower_outlives_the_writer(tmp_path):
    """A read-only collection stays usable when the writer closes, and follows the next one."""
    with VectorCollection.open(tmp_path) as writer:
        put(writer, range(10), 1)
    with VectorCollection.open(tmp_path, read_only=True) as follower:
        assert versions(follower) == dict.fromkeys(range(10), 1)
        with VectorCollection.open(tmp_path) as writer:
            put(writer, range(5), 2)
        assert versions(follower) == {row: 2 if row < 5 else 1 for row in range(10)}


@pytest.mark.parametrize("reopening", [False, True], ids=["kept open", "opened again and again"])
def test_a_follower_beside_a_busy_writer(tmp_path, reopening):
    """While another process rewrites rows, every answer is whole: `k` rows, each as it was put."""
    with VectorCollection.open(tmp_path) as collection:
        put(collection, range(ROWS), 1)
    with child("churn", tmp_path, 1000) as writer, contextlib.ExitStack() as stack:
        follower = stack.enter_context(VectorCollection.open(tmp_path, read_only=True))
        while writer.poll() is None:
            if reopening:
                follower.close()
                follower = stack.enter_context(VectorCollection.open(tmp_path, read_only=True))
            (hits,) = follower.search(QUERY, k=20, vectors=True)
            (low,) = follower.search(QUERY, k=20, where=Field("row", "lt", 20), vectors=True)
            records = follower.select(vectors=True)
            for found, wanted in ((hits, 20), (low, 20), (records, ROWS)):
                assert len({one.id for one in found}) == len(found) == wanted
                for one in found:
                    vector = row_vector(one.metadata["row"], one.metadata["version"])
                    assert one.vector.tobytes() == vector.tobytes()
            for hit in hits:
                cosine = QUERY @ hit.vector / np.linalg.norm(QUERY) / np.linalg.norm(hit.vector)
                assert hit.score == pytest.approx(cosine, abs=1e-5)
            assert len(follower) == ROWS
            changes = follower.changes_since(max(0, follower.seq - 50))
            assert changes is None or np.abs(changes.vectors).sum(axis=1).all()
        assert writer.returncode == 0
        with VectorCollection.open(tmp_path) as writer_after:
            assert versions(follower) == versions(writer_after)
