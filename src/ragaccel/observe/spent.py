"""What a stage uses of the machine: the difference of two readings."""

from __future__ import annotations

import os
import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Reading(NamedTuple):
    """How much was used up to one moment."""

    thread: int
    thread_ns: int
    process_ns: int
    rss_bytes: int | None
    disk_bytes: int | None
    network_bytes: int | None


class Spent(NamedTuple):
    """What was used between two moments.

    Attributes:
        cpu_ns: By the thread, or by the whole process if another thread ended the stage.
        rss_bytes: By which the process grew; None if it was not read.
        disk_bytes: Read from and written to disks by the process; None where it is not told.
        network_bytes: Received and sent by the whole machine, since no system tells it by process.
    """

    cpu_ns: int
    rss_bytes: int | None
    disk_bytes: int | None
    network_bytes: int | None


def read(*, everything: bool) -> Reading:
    """Read the CPU time, which takes about two microseconds.

    Args:
        everything: Memory, disks and network as well, about a hundred microseconds more.
    """
    cpu = threading.get_ident(), time.thread_time_ns(), time.process_time_ns()
    if not everything:
        return Reading(*cpu, None, None, None)
    return Reading(*cpu, _told(_rss_bytes), _told(_disk_bytes), _told(_network_bytes))


def spent(before: Reading, after: Reading) -> Spent:
    """Return what was used between two readings."""
    is_same_thread = before.thread == after.thread
    return Spent(
        after.thread_ns - before.thread_ns
        if is_same_thread
        else after.process_ns - before.process_ns,
        _grown(before.rss_bytes, after.rss_bytes),
        _grown(before.disk_bytes, after.disk_bytes),
        _grown(before.network_bytes, after.network_bytes),
    )


def memory() -> int | None:
    """Return the resident memory of this process, or None where the system does not tell it."""
    return _told(_rss_bytes)


def _rss_bytes() -> int:
    return int(_process(os.getpid()).memory_info().rss)


def _disk_bytes() -> int:
    used = _process(os.getpid()).io_counters()
    return int(used.read_bytes + used.write_bytes)


def _network_bytes() -> int:
    used = psutil.net_io_counters(nowrap=False)
    return int(used.bytes_recv + used.bytes_sent)


def _told(reads: Callable[[], T]) -> T | None:
    """Return a reading, or None where the system does not give it."""
    try:
        return reads()
    except (psutil.Error, OSError, AttributeError, NotImplementedError):
        return None


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


@lru_cache(maxsize=1)
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)
