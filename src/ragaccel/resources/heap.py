"""The memory that only this process can free: how much it is, and giving back what is free of it.

Pages of files that are mapped into memory, such as those of a collection, count as resident too,
but the system takes them back by itself; so only anonymous pages are counted.
Source: Linux, proc_pid_status(5), RssAnon; glibc, malloc_trim(3).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable


def anonymous_bytes() -> int:
    """Return the anonymous resident bytes of this process and of all that descend from it.

    Pages that a forked process still shares with its parent count for each of them. Where the
    system does not tell how much is shared with files, all resident bytes count.
    """
    this = psutil.Process()
    return sum(_anonymous(process) for process in (this, *this.children(recursive=True)))


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc)."""
    trim = _trim()
    if trim is not None:
        trim(0)


def _anonymous(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.Error:  # it has ended
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no C library to be had by that name, as on Windows
        return None
