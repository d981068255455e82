"""What a process and its children take, told by psutil."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

#: A process that ends, is another user's, or a system that does not tell.
_UNTOLD: Final = (psutil.Error, OSError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class ProcessReading:
    """A process and all that descend from it, together.

    Attributes:
        processes: How many there are; 0 when the process has ended.
        cpu_seconds: Processor time so far, that of children that have ended included.
        cpu_percent: Processor time since the last reading, in percent of one core; 0 at first.
        rss_bytes: Memory that is not swapped out; pages that they share count for each.
        uss_bytes: Memory that would be free if they ended; None unless it was asked for.
        threads: Threads.
        open_files: Files and sockets.
        disk_read_bytes: Read from disks so far; 0 where the system does not tell.
        disk_written_bytes: Written to disks so far.
    """

    processes: int
    cpu_seconds: float
    cpu_percent: float
    rss_bytes: int
    uss_bytes: int | None
    threads: int
    open_files: int
    disk_read_bytes: int
    disk_written_bytes: int


class ProcessTree:
    """Reads a process and its children; what vanishes meanwhile counts as nothing.

    Args:
        pid: The process; None for this one.
        uss: Whether to tell `uss_bytes`, which takes the system about a hundred times as long.
        clock: Seconds by a clock that never goes back.
    """

    def __init__(
        self,
        pid: int | None = None,
        *,
        uss: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pid, self._uss, self._clock = pid, uss, clock
        self._process: psutil.Process | None = None
        self._last: tuple[float, float] | None = None  # when, and the processor time until then

    def read(self) -> ProcessReading:
        """Return what they take now."""
        rows = [row for one in self._tree() if (row := _row(one, uss=self._uss)) is not None]
        cpu, rss, uss, threads, files, read, written = (
            map(sum, zip(*rows, strict=True)) if rows else _Row(0.0)
        )
        cpu = round(cpu, 6)  # or the sum of the same ticks, added up otherwise, seems to go back
        return ProcessReading(
            len(rows), cpu, self._percent(cpu), rss, uss if self._uss else None, threads, files,
            read, written,
        )  # fmt: skip

    def _tree(self) -> list[psutil.Process]:
        try:
            if self._process is None:
                self._process = psutil.Process(self._pid)
            return [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return []

    def _percent(self, cpu: float) -> float:
        now, last = self._clock(), self._last
        self._last = (now, cpu)
        if last is None or now <= last[0]:
            return 0.0
        return max(0.0, 100 * (cpu - last[1]) / (now - last[0]))


class _Row(NamedTuple):
    """One process."""

    cpu: float
    rss: int = 0
    uss: int = 0
    threads: int = 0
    files: int = 0
    read: int = 0
    written: int = 0


def _row(process: psutil.Process, *, uss: bool) -> _Row | None:
    """Return what a process takes, or None if it is no more."""
    with process.oneshot():
        times = _ask(process, "cpu_times")
        if times is None:
            return None
        memory, disk = _ask(process, "memory_info"), _ask(process, "io_counters")
        full = _ask(process, "memory_full_info") if uss else None
        return _Row(
            # The times of children that were waited for are kept by those who waited.
            sum((times.user, times.system, times.children_user, times.children_system)),
            memory.rss if memory else 0,
            full.uss if full else 0,
            _ask(process, "num_threads") or 0,
            _ask(process, "num_fds") or 0,
            disk.read_bytes if disk else 0,
            disk.write_bytes if disk else 0,
        )


def _ask(process: psutil.Process, reading: str) -> Any | None:
    try:
        return getattr(process, reading)()
    except _UNTOLD:
        return None
