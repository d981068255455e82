"""Files that are not in the page cache: what is asked for, and what searches find meanwhile."""

from __future__ import annotations

import os
import resource
import threading
import time

import numpy as np
import pytest

from ragaccel import VectorCollection
from ragaccel.vectors.pages import Pages
from tests.vectors.data import clustered, names, places

ROWS = 20_000


def drop(file):
    """Put a file out of the page cache."""
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def wait_until_warm(pages, seconds=20.0):
    """Return the share of pages in memory, once it is all or the time is over."""
    deadline = time.monotonic() + seconds
    while pages.share_in_memory() < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    return pages.share_in_memory()


def faults_of_reading(rows):
    """Return how many pages the process had to look for while it read a component of all rows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rows[:, 0].max()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def cold(tmp_path):
    """Rows mapped from a file that is not in the page cache."""
    file = tmp_path / "rows"
    clustered(ROWS, seed=1).tofile(file)
    drop(file)
    rows = np.memmap(file, dtype=np.float32, mode="r", shape=(ROWS, 64))
    if Pages(rows).share_in_memory() > 0.5:
        pytest.skip("this file system keeps all of its files in memory")
    return rows


def test_rows_that_are_asked_for_are_read(cold):
    """Those that were asked for are in memory soon, without anybody reading them."""
    pages = Pages(cold)
    pages.ask_for(np.arange(ROWS, dtype=np.int64))
    assert wait_until_warm(pages) == 1


def test_pages_that_were_brought_in_are_not_looked_for_when_they_are_read(cold):
    """What the system calls a minor fault takes longer than reading the row."""
    read_at_once = faults_of_reading(cold)
    pages = Pages(np.memmap(cold.filename, dtype=np.float32, mode="r", shape=cold.shape))
    pages.bring_in(threading.Event())
    assert pages.share_in_memory() == 1
    assert faults_of_reading(pages._rows) < read_at_once / 2


def test_bringing_in_ends_when_it_is_not_wanted(cold):
    """Closing a collection does not wait for a cold disk."""
    stopping = threading.Event()
    stopping.set()
    Pages(cold).bring_in(stopping)
    assert Pages(cold).share_in_memory() < 0.5


def test_few_rows_do_not_bring_in_the_file(cold):
    """A row brings in its own pages, not the neighbours that the system would read ahead."""
    pages = Pages(cold)
    pages.ask_for(np.array([0, 7, ROWS // 2], dtype=np.int64))
    time.sleep(0.2)
    assert pages.share_in_memory() < 0.5


def test_what_is_not_mapped_is_in_memory():
    """An array of the process needs no asking."""
    pages = Pages(np.zeros((10, 4), dtype=np.float32))
    pages.ask_for(np.arange(10, dtype=np.int64))
    assert pages.share_in_memory() == 1.0


@pytest.mark.parametrize("warm", [False, True])
def test_a_cold_collection_finds_the_same(tmp_path, warm):
    """Asking for pages changes how soon an answer comes, and nothing else."""
    rows, queries = clustered(ROWS, seed=1), clustered(20, seed=2)
    with VectorCollection.open(tmp_path, compression="pq") as collection:
        collection.upsert(names(ROWS), rows)
        collection.flush()
        before = [places(hits) for hits in collection.search(queries)]
    for file in tmp_path.iterdir():
        drop(file)
    with VectorCollection.open(tmp_path, compression="pq", warm=warm) as collection:
        found = [places(collection.search(query)[0]) for query in queries]
        assert found == before
        if warm:
            collection._upkeep.wait()
            assert wait_until_warm(collection._store.index.slab._pages) == 1
