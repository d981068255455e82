"""Single writes, opening, and the first searches on a cold file cache."""

from __future__ import annotations

import inspect
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ragaccel.vectors import VectorCollection
from tests.benchmarks.vectors import ours
from tests.benchmarks.vectors.clock import private_bytes
from tests.benchmarks.vectors.data import K, unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.benchmarks.vectors.data import Data

_WRITES = 400
_FIRST = 20
_SLAB = "vectors*"


def run(data: Data, work: Path, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield median milliseconds of single upserts and deletes; the collection is made if need be.

    The new rows are real ones with a little noise, under new ids, each with a text and metadata.
    """
    place, setting = work / "writes", job["settings"][0]
    with ours.opened(place, data.base.shape[1], setting) as collection:
        if not len(collection):
            ours.fill(collection, data)
    for durable in (False, True):
        known = "durable" in inspect.signature(VectorCollection.open).parameters
        if durable and not known:
            continue
        chosen = {**ours.options(setting), **({"durable": durable} if known else {})}
        with VectorCollection.open(place, **chosen) as collection:
            yield from _writes(collection, data, durable=durable)


def _writes(collection: VectorCollection, data: Data, *, durable: bool) -> Iterator[dict[str, Any]]:
    draw = np.random.default_rng(3)
    noise = draw.standard_normal((_WRITES, data.base.shape[1]), dtype=np.float32)
    fresh = unit(data.base[draw.integers(len(data.base), size=_WRITES)] + 0.01 * noise)
    mode = ", durable" if durable else ""
    new, old = [f"new{at}" for at in range(_WRITES)], _spread(len(data.base))

    def upsert(at: int, key: str) -> None:
        about = {"n": at, "source": "bench"}
        collection.upsert([key], fresh[at : at + 1], texts=[ours.text(at)], metadata=[about])

    yield _timed(f"upsert, new id{mode}", lambda at: upsert(at, new[at]), 1.0)
    yield _timed(f"upsert, replacing a sealed row{mode}", lambda at: upsert(at, old[at]), 1.0)
    yield _timed(f"delete, fresh row{mode}", lambda at: collection.delete([new[at]]), 0.2)
    sealed = [str(int(one) + 1) for one in old]
    yield _timed(f"delete, sealed row{mode}", lambda at: collection.delete([sealed[at]]), 0.2)
    for at in range(_WRITES):  # put back, so that the collection is as it was
        row = int(sealed[at])
        collection.upsert(
            [sealed[at], old[at]], np.asarray(data.base[[row, int(old[at])]]),
            texts=[ours.text(row), ours.text(int(old[at]))],
        )  # fmt: skip


def _spread(rows: int) -> list[str]:
    return [str(at) for at in np.linspace(0, rows - 2, _WRITES).astype(int)]


def _timed(what: str, call: Callable[[int], Any], bar: float) -> dict[str, Any]:
    taken, worked = [], []
    for at in range(_WRITES):
        started, working = time.perf_counter(), time.thread_time()
        call(at)
        worked.append((time.thread_time() - working) * 1e3)
        taken.append((time.perf_counter() - started) * 1e3)
    return {
        "what": what,
        "value": statistics.median(taken),
        "unit": "ms",
        "more": f"p95 {np.quantile(taken, 0.95):.2f} ms, longest {max(taken):.1f} ms; "
        f"processor time {statistics.median(worked):.3f} ms",
        "bar": bar,
    }


def opening(data: Data, work: Path, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield how long a stored collection takes to open, and its first searches warm and cold.

    A process of its own does this, so that the collection is mapped nowhere and can be put out of
    the file cache.
    """
    place = work / job["place"]
    rows = f"{len(data.base):,} rows"
    named = ours.options(job["settings"][0])
    with VectorCollection.open(place, **named) as collection:
        collection.flush()  # whatever it was closed with
    for cold in ("nothing", "the raw vectors", "every file"):
        dropped = _drop(place, {"nothing": "", "the raw vectors": _SLAB, "every file": "*"}[cold])
        before = private_bytes()
        started = time.perf_counter()
        collection = VectorCollection.open(place, **named)
        opened = (time.perf_counter() - started) * 1e3
        taken = []
        for query in data.queries[: 10 * _FIRST]:
            started = time.perf_counter()
            collection.search(query, K)
            taken.append((time.perf_counter() - started) * 1e3)
        state = "warm" if cold == "nothing" else f"{cold} cold, {dropped >> 20} MiB"
        yield {
            "what": f"open {rows}, {state}", "value": opened, "unit": "ms",
            "more": f"then queries: first {taken[0]:.1f} ms, median of the first {_FIRST} "
            f"{statistics.median(taken[:_FIRST]):.1f} ms, of queries {9 * _FIRST} to "
            f"{10 * _FIRST} {statistics.median(taken[-_FIRST:]):.2f} ms; the process grew by "
            f"{(private_bytes() - before) / len(data.base):.0f} B/vector",
            "bar": 1000.0 if cold == "nothing" else None,
        }  # fmt: skip
        collection.close()


def _drop(folder: Path, pattern: str) -> int:
    """Put files out of the file cache; return their bytes."""
    size = 0
    for file in sorted(folder.rglob(pattern)) if pattern else ():
        if not file.is_file():
            continue
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        size += os.fstat(handle).st_size
        os.close(handle)
    return size
