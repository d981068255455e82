"""One thread writes while others search: every answer is whole, and nobody waits for ever."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.errors import CollectionClosedError, DimensionMismatchError
from ragaccel.vectors import Field, find_open, watch
from tests.vectors.data import clustered, names

ROWS, EXTRA, VERSIONS, DIM, K = 1200, 200, 40, 32, 10
TABLE = clustered(VERSIONS * (ROWS + EXTRA), seed=1, dim=DIM).reshape(VERSIONS, ROWS + EXTRA, DIM)
QUERIES = clustered(64, seed=2, dim=DIM)


def put(collection, places, version):
    """Write rows whose texts tell which vectors they have."""
    collection.upsert(
        [f"row-{place}" for place in places],
        TABLE[version, places],
        texts=[f"row-{place} in version {version}" for place in places],
        metadata=[{"place": int(place), "version": version} for place in places],
    )


def check(query, hits):
    """Check that an answer is whole: `k` rows, each as it was put, in the order of their scores."""
    assert len({hit.id for hit in hits}) == len(hits) == K
    for hit in hits:
        place, version = hit.metadata["place"], hit.metadata["version"]
        assert hit.id == f"row-{place}"
        assert hit.text == f"row-{place} in version {version}"
        vector = TABLE[version, place]
        assert hit.vector.tobytes() == vector.tobytes()
        cosine = query @ vector / np.linalg.norm(query) / np.linalg.norm(vector)
        assert hit.score == pytest.approx(cosine, abs=1e-5)
    assert [(-hit.score, hit.slot) for hit in hits] == sorted(
        (-hit.score, hit.slot) for hit in hits
    )


def in_threads(*calls):
    """Make calls in a thread each; raise what any of them raised."""
    with ThreadPoolExecutor(len(calls)) as threads:
        for done in [threads.submit(call) for call in calls]:
            done.result()


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize(
    "compression", ["float32", CompressionSpec("pq", oversample=20)], ids=["exact", "pq"]
)
def test_searches_beside_a_writer(tmp_path, on_disk, compression):
    """Beside upserts, deletes, checkpoints and compactions every search finds `k` whole rows."""
    written = threading.Event()
    with VectorCollection.open(
        tmp_path if on_disk else None, compression=compression
    ) as collection:
        put(collection, np.arange(ROWS), 0)

        def write():
            generator = np.random.default_rng(3)
            try:
                for version in range(1, VERSIONS):
                    put(
                        collection,
                        generator.permutation(ROWS)[: generator.integers(1, 60)],
                        version,
                    )
                    extra = ROWS + generator.permutation(EXTRA)[:20]
                    put(collection, extra, version)
                    collection.delete([f"row-{place}" for place in extra[::2]])
                    collection.delete_where(Field("place", "ge", ROWS + EXTRA // 2))
                    if version % 10 == 0:
                        collection.flush()
                    if version % 15 == 0:
                        collection.compact()
            finally:
                written.set()

        def search(reader):
            at = reader
            while not written.is_set() or at < reader + 20:
                query = QUERIES[at % len(QUERIES)]
                where = Field("place", "lt", ROWS // 2) if at % 3 == 0 else None
                (hits,) = collection.search(query, K, where=where, vectors=True)
                check(query, hits)
                if where is not None:
                    assert all(hit.metadata["place"] < ROWS // 2 for hit in hits)
                if at % 7 == 0:
                    assert len(collection.get(names(ROWS, "row")[::100])) == ROWS // 100
                    assert len(collection) >= collection.count(Field("place", "lt", ROWS)) == ROWS
                at += 1

        in_threads(write, *(lambda reader=reader: search(reader) for reader in range(6)))

        final = {}
        for record in collection.select(vectors=True):
            place, version = record.metadata["place"], record.metadata["version"]
            assert record.vector.tobytes() == TABLE[version, place].tobytes()
            final[place] = version
        wanted = replayed()
        assert final == wanted
        assert len(collection) == len(wanted)


def replayed():
    """Return the version of each row after all that the writer of the test above wrote."""
    generator = np.random.default_rng(3)
    stored = dict.fromkeys(range(ROWS), 0)
    for version in range(1, VERSIONS):
        stored |= dict.fromkeys(
            generator.permutation(ROWS)[: generator.integers(1, 60)].tolist(), version
        )
        extra = (ROWS + generator.permutation(EXTRA)[:20]).tolist()
        stored |= dict.fromkeys(extra, version)
        for place in extra[::2]:
            del stored[place]
        stored = {place: at for place, at in stored.items() if place < ROWS + EXTRA // 2}
    return stored


def test_a_busy_writer_lets_searches_through():
    """A thread that writes without a pause does not keep searches waiting for many writes."""
    done, calls = threading.Event(), 3000
    searched = [0] * 4
    with VectorCollection.open() as collection:
        put(collection, np.arange(ROWS), 0)

        def write():
            for _ in range(calls):
                collection.upsert(["row-0"], TABLE[0, :1])
            done.set()

        def search(reader):
            while not done.is_set():
                collection.search(QUERIES[reader], K)
                searched[reader] += 1

        in_threads(write, *(lambda reader=reader: search(reader) for reader in range(4)))

    assert min(searched) >= calls // 100


def test_busy_searches_let_a_writer_through():
    """Threads that search without a pause do not keep a writer waiting."""
    done = threading.Event()
    with VectorCollection.open() as collection:
        put(collection, np.arange(ROWS), 0)

        def write():
            try:
                for version in range(1, VERSIONS):
                    put(collection, [version], version)
                    assert collection.get([f"row-{version}"])[0].metadata["version"] == version
            finally:
                done.set()

        def search():
            while not done.is_set():
                collection.search(QUERIES, K)

        in_threads(write, *[search] * 4)


def test_writers_take_turns():
    """Threads that write at the same time lose no row of each other."""
    with VectorCollection.open() as collection:

        def write(thread):
            for at in range(30):
                collection.upsert([f"{thread}-{at}", "shared"], TABLE[0, [at, at]])
                collection.delete([f"{thread}-{at - 1}"] if at % 3 == 1 else [])

        in_threads(*(lambda thread=thread: write(thread) for thread in range(5)))

        kept = {f"{thread}-{at}" for thread in range(5) for at in range(30) if at % 3}
        assert {record.id for record in collection.select()} == kept | {"shared"}
        assert len(collection) == len(kept) + 1


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_the_first_rows_decide_the_dimension_once(tmp_path, on_disk):
    """Of two threads that write the first rows in two dimensions, one is refused."""
    begun, other_wrote = threading.Event(), threading.Event()

    class Slow:
        """An array that takes its time to be made."""

        def __array__(self, dtype=None, copy=None):
            begun.set()
            assert other_wrote.wait(60)
            return np.ones((1, 3), dtype=dtype)

    path = tmp_path if on_disk else None
    with VectorCollection.open(path) as collection:

        def first():
            with pytest.raises(DimensionMismatchError):
                collection.upsert(["slow"], Slow())

        def second():
            begun.wait(60)
            collection.upsert(["fast"], np.ones((1, 4)))
            other_wrote.set()

        in_threads(first, second)
        assert [record.id for record in collection.select()] == ["fast"]
        assert [hit.id for hit in collection.search(np.ones(4))[0]] == ["fast"]
    if on_disk:
        with VectorCollection.open(tmp_path) as collection:
            assert (collection.dim, len(collection)) == (4, 1)


@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "follower"])
def test_closing_beside_searches(tmp_path, read_only):
    """A search beside `close` gives its answer, or tells that the collection is closed."""
    with VectorCollection.open(tmp_path) as collection:
        put(collection, np.arange(ROWS), 0)
    for _ in range(10):
        collection = VectorCollection.open(tmp_path, read_only=read_only)
        begun = threading.Barrier(5)

        def search(collection=collection, begun=begun):
            check(QUERIES[0], collection.search(QUERIES[0], K, vectors=True)[0])
            begun.wait()
            try:
                while True:
                    check(QUERIES[0], collection.search(QUERIES[0], K, vectors=True)[0])
            except CollectionClosedError:
                assert collection.closed

        def close(collection=collection, begun=begun):
            begun.wait()
            collection.close()

        in_threads(close, *[search] * 4)


def test_statistics_beside_a_writer(tmp_path):
    """The numbers of a collection can be asked for while another object replaces its files."""
    written = threading.Event()
    with VectorCollection.open(tmp_path, compression="int8") as collection:
        put(collection, np.arange(ROWS), 0)

        def write():
            try:
                for version in range(1, VERSIONS):
                    put(collection, [0], version)
                    for _ in range(5):
                        collection.flush()
            finally:
                written.set()

        def look():
            with VectorCollection.open(tmp_path, compression="int8", read_only=True) as follower:
                while not written.is_set():
                    stats = follower.stats()
                    assert stats.rows == ROWS
                    assert stats.bytes_on_disk > TABLE[0, :ROWS].nbytes

        in_threads(write, look)


def test_collections_are_found_while_others_are_opened():
    """An open collection is found by its id while other threads open and forget collections."""
    opened = threading.Event()
    with VectorCollection.open(dim=2) as collection:

        def open_many():
            try:
                for _ in range(1000):
                    VectorCollection.open(dim=2)
            finally:
                opened.set()

        def find():
            while not opened.is_set():
                assert find_open(collection.id) is collection

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            in_threads(open_many, find)
        finally:
            sys.setswitchinterval(interval)


def open_files():
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_threads_that_end_leave_no_files_open(tmp_path):
    """A server may search from a new thread per request: files do not pile up."""
    with VectorCollection.open(tmp_path) as collection:
        put(collection, np.arange(ROWS), 0)
        before = open_files()
        for _ in range(100):
            in_threads(lambda: collection.search(QUERIES[0], K))

        assert open_files() < before + 30


@pytest.mark.parametrize("moment", range(60))
def test_a_write_at_any_moment_of_a_search_is_in_the_answer_or_after_it(moment):
    """What a search tells its watcher it saw, it saw: or a cached answer would be stale for good.

    The write is made in another thread, as early as the search lets it, when a function of the
    collection's returns for the so many-th time.
    """
    collection = VectorCollection.open(dim=2)
    collection.upsert(["far"], [[0.0, 1.0]])
    returned = 0
    writes = []

    def hook(frame, event, arg):
        nonlocal returned
        if event == "return" and "ragaccel/vectors" in frame.f_code.co_filename:
            returned += 1
            if returned == moment + 1:
                write = threading.Thread(
                    target=collection.upsert, args=(["near"], [[1.0, 0.0]]), daemon=True
                )
                write.start()
                writes.append(write)
                write.join(0.1)  # it waits for the search, where that holds the lock

    with watch() as traces:
        sys.setprofile(hook)
        try:
            (hits,) = collection.search([1.0, 0.0], 1)
        finally:
            sys.setprofile(None)
    for write in writes:
        write.join(10)
    (trace,) = traces
    is_in_it = hits[0].id == "near"
    changes = collection.changes_since(trace.seq, mark=trace.mark)
    assert is_in_it or not writes or len(changes.upserted) == 1
