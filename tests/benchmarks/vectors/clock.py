"""One thread, interleaved rounds, and what a process keeps for itself."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import faiss
import threadpoolctl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROUNDS = 9
SECONDS = 0.12
_MOST = 400


def hold_one_thread(core: int | None = None) -> None:
    """Hold this process to one core and one thread of every pool that can be told."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if core is None else core})
    faiss.omp_set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


class Took(NamedTuple):
    """Seconds per call: by the clock, and of a processor in any thread of the process."""

    wall: float
    cpu: float


class Speed(NamedTuple):
    """Median seconds of a call, and how many times as fast as the base it is.

    `cpu_ratio` counts processor time only: other processes on the core do not disturb it, but it
    does not see what was waited for.
    """

    seconds: float
    ratio: float
    cpu_ratio: float


def per_call(call: Callable[[Any], Any], arguments: Sequence[Any], times: int, first: int) -> Took:
    """Return seconds per call, over arguments in turn."""
    count = len(arguments)
    started, working = time.perf_counter(), time.process_time()
    for at in range(first, first + times):
        call(arguments[at % count])
    worked = time.process_time() - working
    return Took((time.perf_counter() - started) / times, worked / times)


def times_for(call: Callable[[Any], Any], arguments: Sequence[Any], most: int = _MOST) -> int:
    """Return how many calls make a round long enough to be timed."""
    call(arguments[0])
    return max(1, min(most, int(SECONDS / per_call(call, arguments, 2, 1).wall)))


def against(
    ours: Callable[[Any], Any],
    our_arguments: Sequence[Any],
    base: Callable[[Any], Any],
    base_arguments: Sequence[Any],
    rounds: int = ROUNDS,
) -> Speed:
    """Return how fast a call is beside another one.

    Rounds measure both in turn; what each does in a round is done a little before it is timed, so
    that neither pays for what the other drove out of the processor's caches.
    """
    mine, theirs = times_for(ours, our_arguments), times_for(base, base_arguments)
    both: list[tuple[Took, Took]] = []
    for one in range(rounds):
        per_call(base, base_arguments, 1, one)
        slow = per_call(base, base_arguments, theirs, one * theirs)
        per_call(ours, our_arguments, min(4, mine), one)
        fast = per_call(ours, our_arguments, mine, one * mine)
        both.append((fast, slow))
    return Speed(
        statistics.median(fast.wall for fast, _ in both),
        statistics.median(slow.wall / fast.wall for fast, slow in both),
        statistics.median(slow.cpu / max(fast.cpu, 1e-9) for fast, slow in both),
    )


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
