"""One thread, interleaved rounds, and what a process keeps for itself."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import threadpoolctl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROUNDS = 9
SECONDS = 0.12
_MOST = 400


def hold_one_thread() -> None:
    """Hold this process to one core and one thread of every pool that can be told."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    faiss.omp_set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


def per_call(call: Callable[[Any], Any], arguments: Sequence[Any], times: int, first: int) -> float:
    """Return seconds per call, over arguments in turn."""
    count = len(arguments)
    started = time.perf_counter()
    for at in range(first, first + times):
        call(arguments[at % count])
    return (time.perf_counter() - started) / times


def times_for(call: Callable[[Any], Any], arguments: Sequence[Any], most: int = _MOST) -> int:
    """Return how many calls make a round long enough to be timed."""
    call(arguments[0])
    return max(1, min(most, int(SECONDS / per_call(call, arguments, 2, 1))))


def against(
    ours: Callable[[Any], Any],
    our_arguments: Sequence[Any],
    base: Callable[[Any], Any],
    base_arguments: Sequence[Any],
    rounds: int = ROUNDS,
) -> tuple[float, float]:
    """Return the median seconds of a call, and how many times as fast as `base` it is.

    Rounds measure both in turn; what each does in a round is done a little before it is timed, so
    that neither pays for what the other drove out of the processor's caches.
    """
    mine, theirs = times_for(ours, our_arguments), times_for(base, base_arguments)
    seconds, ratios = [], []
    for one in range(rounds):
        per_call(base, base_arguments, 1, one)
        slow = per_call(base, base_arguments, theirs, one * theirs)
        per_call(ours, our_arguments, min(4, mine), one)
        fast = per_call(ours, our_arguments, mine, one * mine)
        seconds.append(fast)
        ratios.append(slow / fast)
    return statistics.median(seconds), statistics.median(ratios)


def private_bytes() -> int:
    """Return the memory that is this process's own and no file's."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell what memory a process has")


def folder_bytes(folder: Path) -> int:
    """Return the size of all files under a folder."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
