"""How often the memory level has what is asked for, beside others and beside the best possible.

    python -m tests.benchmarks.eviction

Requests are replayed through the real `MemoryLevel`, with blobs and a byte bound such that it has
room for as many entries as the others. Belady's optimum knows all requests to come and may pass an
entry over; it is for entries of one size. theine is in the dependency group bench.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from ragaccel.cache import MemoryLevel, Stored
from ragaccel.cache.levels.memory import _OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Hits = NDArray[np.bool_]
    Contender = Callable[["Trace", int], Hits]

LOGS = Path(__file__).parents[3] / "shared" / "data" / "logs"
SEEDS = (0, 1, 2)
KEYS, REQUESTS = 20_000, 200_000
ONE_OFF = 0.2
SCAN = 2_000
PHASE = 10_000  # requests between two drifts
DRIFTING = KEYS // 10  # keys that change their rank then
SHARES = (0.01, 0.05, 0.10)  # of the keys, or of all their bytes
BAR = 0.85  # of Belady's optimum, on the drifting trace
BLOB_BYTES = 250
KINDS = np.array([(1_200, 1.2), (12_000, 0.015), (1_600, 0.008)])  # blob bytes and seconds
KIND_SHARES = (0.2, 0.4, 0.4)


@dataclass(frozen=True)
class Trace:
    """Requests, and what they ask for.

    Attributes:
        requests: Numbers of keys.
        keys: How many keys the shares are of: all but those asked for once by intent.
        sizes: Bytes of each key's entry, those of the level's bookkeeping included.
        costs: Seconds that each key's entry takes to compute.
    """

    requests: Numbers
    keys: int
    sizes: Numbers
    costs: NDArray[np.float64]

    def room(self, share: float) -> int:
        """Return the bytes of a share of the keys."""
        return int(self.keys * share) * int(self.sizes[: self.keys].mean())

    def entries(self, room: int) -> int:
        """Return how many entries of one size there is room for."""
        return room // int(self.sizes[0])


def alike(requests: Numbers, keys: int) -> Trace:
    """Return a trace whose entries are all of one size and cost."""
    every = int(requests.max()) + 1
    return Trace(requests, keys, np.full(every, BLOB_BYTES + _OVERHEAD_BYTES), np.ones(every))


def zipf(draw: np.random.Generator, *, drifts: bool = False, scans: bool = False) -> Numbers:
    """Draw requests by Zipf's law with exponent 1, a fifth of them for keys never seen again."""
    weights = 1 / np.arange(1, KEYS + 1)
    ranks = draw.choice(KEYS, REQUESTS, p=weights / weights.sum())
    by_rank, requests = draw.permutation(KEYS), np.empty(REQUESTS, dtype=np.int64)
    for start in range(0, REQUESTS, PHASE):
        if drifts and start:
            moved = draw.choice(KEYS, DRIFTING, replace=False)
            by_rank[moved] = by_rank[draw.permutation(moved)]
        requests[start : start + PHASE] = by_rank[ranks[start : start + PHASE]]
    width = SCAN if scans else 1
    once = np.repeat(draw.random(REQUESTS // width) < ONE_OFF, width)
    requests[once] = KEYS + np.arange(once.sum())
    return requests


def of_sizes(draw: np.random.Generator) -> Trace:
    """Return a trace of model answers, retrieval results and embeddings."""
    requests = zipf(draw)
    kinds = KINDS[draw.choice(len(KINDS), int(requests.max()) + 1, p=KIND_SHARES)]
    return Trace(requests, KEYS, kinds[:, 0].astype(np.int64) + _OVERHEAD_BYTES, kinds[:, 1])


def logged(file: Path) -> Trace:
    """Return the queries of a real log: the last column of each line."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        queries = [line.rstrip("\n").split("\t")[-1].casefold() for line in lines]
    if ".tsv" in file.suffixes:
        del queries[0]
    distinct, requests = np.unique(queries, return_inverse=True)
    return alike(requests, len(distinct))


def ours(trace: Trace, room: int) -> Hits:
    """Replay through a `MemoryLevel`."""
    level = MemoryLevel(room)
    blobs = {size: bytes(size - _OVERHEAD_BYTES) for size in np.unique(trace.sizes).tolist()}
    entries = [
        Stored(hashlib.blake2b(b"%d" % key, digest_size=20).digest(), blobs[size], math.inf, cost)
        for key, (size, cost) in enumerate(zip(trace.sizes.tolist(), trace.costs, strict=True))
    ]

    def found(key: int) -> bool:
        if level.get_many((entries[key].key,)):
            return True
        level.put_many((entries[key],))
        return False

    return np.array([found(key) for key in trace.requests.tolist()])


def ranked(rank: Callable[[int, int, float, float], float]) -> Contender:
    """Return a cache that lets go of what has the lowest rank, the oldest of equals first.

    Args:
        rank: From the number of the request, how often the key was asked for since it came in,
            seconds by the byte, and the rank of what went last.
    """

    def replay(trace: Trace, room: int) -> Hits:
        sizes, worths = trace.sizes.tolist(), (trace.costs / trace.sizes).tolist()
        counts: dict[int, int] = {}
        newest: dict[int, int] = {}
        heap: list[tuple[float, int, int]] = []
        used, gone, hits = 0, 0.0, []
        for now, key in enumerate(trace.requests.tolist()):
            hits.append(key in counts)
            used += 0 if key in counts else sizes[key]
            counts[key], newest[key] = counts.get(key, 0) + 1, now
            while used > room:
                lowest, at, oldest = heapq.heappop(heap)
                if newest.get(oldest) == at:
                    used -= sizes[oldest]
                    gone = lowest
                    del counts[oldest], newest[oldest]
            heapq.heappush(heap, (rank(now, counts[key], worths[key], gone), now, key))
        return np.array(hits)

    return replay


def theine(trace: Trace, room: int) -> Hits:
    """Replay through theine, which counts entries."""
    from theine import Cache

    cache: Cache[int, int] = Cache(trace.entries(room))

    def found(key: int) -> bool:
        if cache.get(key)[1]:
            return True
        cache.set(key, key)
        return False

    hits = np.array([found(key) for key in trace.requests.tolist()])
    cache.close()
    return hits


def belady(trace: Trace, room: int) -> Hits:
    """Keep what is asked for soonest; what would be asked for last does not come in."""
    requests, coming = trace.requests.tolist(), following(trace.requests)
    held: dict[int, int] = {}
    heap: list[tuple[int, int]] = []
    hits = []
    for key, after in zip(requests, coming, strict=True):
        hits.append(key in held)
        held[key] = after
        heapq.heappush(heap, (-after, key))
        while len(held) > trace.entries(room):
            last, farthest = heapq.heappop(heap)
            if held.get(farthest) == -last:
                del held[farthest]
    return np.array(hits)


def following(requests: Numbers) -> list[int]:
    """Return for each request when its key is asked for again; past the end if never."""
    again: dict[int, int] = {}
    coming = []
    for at in range(len(requests) - 1, -1, -1):
        key = int(requests[at])
        coming.append(again.get(key, 2 * len(requests)))
        again[key] = at
    return coming[::-1]


ALIKE: dict[str, Contender] = {
    "MemoryLevel": ours,
    "LRU": ranked(lambda now, count, worth, gone: now),
    "LFU": ranked(lambda now, count, worth, gone: count),
    "theine": theine,
    "Belady": belady,
}
SIZED: dict[str, Contender] = {
    **{name: ALIKE[name] for name in ("MemoryLevel", "LRU", "LFU")},
    "GDSF": ranked(lambda now, count, worth, gone: gone + count * worth),
}


def hit_rates(traces: Sequence[Trace], contenders: Iterable[str]) -> dict[str, list[float]]:
    """Return the mean hit rate over traces of each contender at each share of the keys."""
    return {
        name: [
            float(np.mean([ALIKE[name](trace, trace.room(share)).mean() for trace in traces]))
            for share in SHARES
        ]
        for name in contenders
    }


def drawn(title: str, trace: Trace, rates: dict[str, list[float]]) -> Table:
    """Draw hit rates, and in brackets their share of the best possible."""
    table = Table(title=f"{title}: hit rate % (share of Belady)")
    table.add_column("entries")
    for share in SHARES:
        table.add_column(f"{trace.entries(trace.room(share)):,}", justify="right")
    for name, row in rates.items():
        best = zip(row, rates["Belady"], strict=True)
        table.add_row(name, *(f"{100 * rate:.2f} ({rate / most:.3f})" for rate, most in best))
    return table


def by_budget(trace: Trace) -> Table:
    """Replay entries of different sizes within a share of the bytes of all."""
    table = Table(title="entries of three sizes: % of the time saved / bytes hit / requests hit")
    table.add_column("bytes")
    for share in SHARES:
        table.add_column(f"{trace.room(share) / 1e6:.1f} MB", justify="right")
    sizes, costs = trace.sizes[trace.requests], trace.costs[trace.requests]
    for name, contender in SIZED.items():
        cells = []
        for share in SHARES:
            hits = contender(trace, trace.room(share))
            saved, served = costs[hits].sum() / costs.sum(), sizes[hits].sum() / sizes.sum()
            cells.append(" / ".join(f"{100 * part:.1f}" for part in (saved, served, hits.mean())))
        table.add_row(name, *cells)
    return table


def verdict(bar: str, ours: Sequence[float], least: Sequence[float]) -> str:
    """Return a line that tells whether a bar is met at every size."""
    met = all(mine >= other for mine, other in zip(ours, least, strict=True))
    return f"{bar}: {'met' if met else 'MISSED'}"


def main() -> None:
    """Replay everything and print it with the bars."""
    console = Console()
    contenders = list(ALIKE)
    if find_spec("theine") is None:
        contenders.remove("theine")
        console.print("theine is not installed (dependency group bench) and is left out")
    draws = [np.random.default_rng(seed) for seed in SEEDS]
    drifting = [alike(zipf(draw, drifts=True), KEYS) for draw in draws]
    rates = hit_rates(drifting, contenders)
    console.print(drawn("drifting Zipf, mean of 3 seeds", drifting[0], rates))
    least = [BAR * most for most in rates["Belady"]]
    console.print(verdict(f"at least {BAR} of Belady when it drifts", rates["MemoryLevel"], least))
    scanned = alike(zipf(draws[0], scans=True), KEYS)
    console.print(drawn("Zipf with scans", scanned, hit_rates([scanned], contenders)))
    console.print(by_budget(of_sizes(draws[0])))
    if not LOGS.exists():
        console.print(f"the real logs are left out: there is no {LOGS}")
        return
    for file in sorted(LOGS.glob("*.gz")):
        trace = logged(file)
        rates = hit_rates([trace], contenders)
        console.print(drawn(file.name.partition(".")[0], trace, rates))
        if "terabyte05" in file.name and "theine" in rates:
            bar = "at least as good as theine on terabyte05"
            console.print(verdict(bar, rates["MemoryLevel"], rates["theine"]))


if __name__ == "__main__":
    main()
