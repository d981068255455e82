"""What helps against the collector's pauses and for memory, and what does not.

    python -m tests.benchmarks.memory

Requests that each make 300 documents, and put one in the place of another, are answered beside
500,000 cached ones, in a process of its own for each way to deal with the collector. Documents are
dictionaries. Processes take turns, and requests are timed by the processor time of their
thread. Then pools of arrays and reused buffers beside the allocator, ways to assemble a batch, what
it costs to hold a lease of a `Lazy` and to check memory, and what `malloc_trim` gives back.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ragaccel.resources import Lazy, MemoryGuard, anonymous_bytes, tame_gc
from ragaccel.resources.heap import give_back
from tests.benchmarks.ratios import compare, per_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

DOCUMENTS, REQUESTS, ROUNDS = 500_000, 20_000, 3
MADE = 300  # by a request, all in use at once
FORCED_EVERY = 100
MB = 1 << 20
console = Console(width=110)


def document(number: int) -> dict[str, Any]:
    """Return a document as a framework holds it: several containers."""
    return {"id": str(number), "metadata": {"page": number}, "scores": [number / 7], "links": []}


class Freezing:
    """`gc.freeze` alone."""

    def __enter__(self) -> None:
        gc.collect()
        gc.freeze()

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()


class Threshold:
    """A higher threshold alone."""

    def __enter__(self) -> None:
        gc.set_threshold(50_000, 10, 10)

    def __exit__(self, *_: object) -> None:
        gc.set_threshold(700, 10, 10)


WAYS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "nothing": nullcontext,
    "gc.freeze": Freezing,
    "higher threshold": Threshold,
    "tame_gc()": tame_gc,
    f"gc.collect() every {FORCED_EVERY}": nullcontext,
}


def answer(way: str) -> dict[str, float]:
    """Answer requests; return what they took in microseconds."""
    forced = way.startswith("gc.collect")
    requests = REQUESTS // 20 if forced else REQUESTS
    gc.disable()  # while it is loaded; the collection after that is not a request's
    cached = {number: document(number) for number in range(DOCUMENTS)}
    gc.enable()
    gc.collect()
    seconds = np.empty(requests)
    with WAYS[way]():
        for number in range(requests):
            started = time.thread_time()
            made = [document(near) for near in range(MADE)]
            cached[number % DOCUMENTS] = made[0]
            if forced and not number % FORCED_EVERY:
                gc.collect()
            del made
            seconds[number] = time.thread_time() - started
    p50, p99, worst = np.quantile(seconds, [0.5, 0.99, 1.0])
    return {"mean": seconds.mean() * 1e6, "p50": p50 * 1e6, "p99": p99 * 1e6, "worst": worst * 1e6}


def pauses() -> None:
    """Compare the ways to deal with the collector."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, rounds in found.items():
            done = subprocess.run(
                [sys.executable, "-m", __spec__.name, way],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            rounds.append(json.loads(done.stdout))
    table = Table(
        "collector", "mean µs", "p50 µs", "p99 µs", "worst ms",
        title=f"{REQUESTS:,} requests beside {DOCUMENTS:,} cached documents, medians of {ROUNDS}",
    )  # fmt: skip
    for way, rounds in found.items():
        mean, p50, p99, worst = (
            statistics.median(one[key] for one in rounds) for key in ("mean", "p50", "p99", "worst")
        )
        table.add_row(way, f"{mean:,.1f}", f"{p50:.1f}", f"{p99:,.1f}", f"{worst / 1e3:.1f}")
    console.print(table)


class Pool:
    """Arrays of one size that are taken and put back under a lock."""

    def __init__(self, like: np.ndarray) -> None:
        self._lock, self._free = threading.Lock(), [np.empty_like(like)]

    def copy(self, array: np.ndarray) -> None:
        """Copy an array to one of the pool, and put that back."""
        with self._lock:
            taken = self._free.pop()
        np.copyto(taken, array)
        with self._lock:
            self._free.append(taken)


def arrays() -> Iterator[tuple[str, str, tuple[float, float, float]]]:
    """Compare pools and buffers with the allocator, and ways to assemble a batch."""
    for dim in (384, 1536):
        vector = np.ones(dim, np.float32)
        pooled = partial(Pool(vector).copy, vector)
        yield f"copy {dim} floats: pool", "allocator", compare(pooled, vector.copy, times=2_000)
    for size in (4, 10, 50):
        block = np.ones(size * MB // 4, np.float32)
        buffered = partial(np.copyto, np.empty_like(block), block)
        yield f"copy {size} MiB: one buffer", "allocator", compare(buffered, block.copy, times=5)
    rows = list(np.ones((256, 384), np.float32))
    lists, slab = [row.tolist() for row in rows], np.empty((256, 384), np.float32)

    def fill() -> None:
        for at, row in enumerate(rows):
            slab[at] = row

    stack, of_lists = partial(np.stack, rows), partial(np.array, lists, np.float32)
    yield "256 vectors: one buffer", "np.stack", compare(fill, stack, times=50)
    yield "256 vectors: of lists", "np.stack", compare(of_lists, stack, times=20)


def costs() -> Iterator[tuple[str, str]]:
    """Return what the parts of this room cost by themselves."""
    lazy = Lazy(lambda: 1)

    def use() -> None:
        with lazy:
            pass

    guard = MemoryGuard()
    use()
    guard.check()
    yield "a lease of a Lazy", f"{per_call(use, 100_000) * 1e6:.2f} µs"
    yield "a check of a MemoryGuard", f"{per_call(guard.check, 50) * 1e3:.2f} ms"
    before = anonymous_bytes()
    kept = [bytes(1_000) for _ in range(200_000)]
    full = anonymous_bytes()
    holes = kept[::100]
    del kept
    freed = anonymous_bytes()
    started = time.perf_counter()
    give_back()
    took = time.perf_counter() - started
    left = anonymous_bytes()
    yield (
        f"resident after freeing all but {len(holes):,} of 200,000 blobs of 1 kB, in MiB",
        f"{(freed - before) / MB:.0f} of {(full - before) / MB:.0f}",
    )
    yield "after malloc_trim(0)", f"{(left - before) / MB:.0f} (took {took * 1e3:.0f} ms)"


def main() -> None:
    """Measure one way, as a process of its own, or all."""
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(answer(sys.argv[1])))
        return
    pauses()
    table = Table("arrays", "µs", "", "µs", "ratio")
    for what, bare, (mine, other, ratio) in arrays():
        table.add_row(what, f"{mine:,.2f}", f"beside {bare}", f"{other:,.2f}", f"{ratio:.2f}")
    console.print(table)
    table = Table("cost", "")
    for row in costs():
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
