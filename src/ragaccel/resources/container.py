"""How much memory and processor this process may use: its container's, not the host's.

Every group on the way to the process's own limits it, so the smallest limit counts. A group is
looked for in both versions of cgroups, each at its own mount, as hybrid systems have both.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; proc(5).
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNIFIED: Final = ""  # how /proc/self/cgroup names the hierarchy of version 2
_MOUNTED_AT: Final = slice(3, 5)  # of a line of mountinfo: the group at the mount, and the place


def memory_limit_bytes(root: str | Path = "/") -> int:
    """Return how much memory this process and those in its container may use together.

    Args:
        root: Where `proc` and `sys` are.

    Returns:
        The smallest limit on the way to the process's group; without one the host's memory.
    """
    return _memory(Path(root)).limit


def memory_used_bytes(root: str | Path = "/") -> int:
    """Return how much of `memory_limit_bytes` is in use, by all who share the limit.

    Of a container it is what Kubernetes calls the working set: the page cache counts unless it can
    be dropped at once. Of a host it is what is not available.

    Args:
        root: Where `proc` and `sys` are.
    """
    return _memory(Path(root)).used


def cpu_limit(root: str | Path = "/") -> float:
    """Return how many cores this process may keep busy.

    Args:
        root: Where `proc` and `sys` are.

    Returns:
        The smallest quota on the way to the process's group, and at most the cores that it may run
        on.
    """
    quotas = (_quota(group) for group in _groups(Path(root), "cpu"))
    return min([float(_cores()), *(quota for quota in quotas if quota is not None)])


class _Memory(NamedTuple):
    limit: int
    used: int


def _memory(root: Path) -> _Memory:
    """Return the tightest limit; of equal ones the outermost, which counts the most as used."""
    host = psutil.virtual_memory()
    found = [_Memory(host.total, host.total - host.available)]
    for group in _groups(root, "memory"):
        stat = _table(group / "memory.stat")
        limits = (
            _number(group / "memory.max"),
            _number(group / "memory.limit_in_bytes"),
            stat.get("hierarchical_memory_limit"),  # of groups outside what is mounted here
        )
        told = [limit for limit in limits if limit is not None]
        if told:
            found.append(_Memory(min(told), _used(group, stat)))
    return min(found, key=lambda one: one.limit)


def _used(group: Path, stat: dict[str, int]) -> int:
    used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
    droppable = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return max(0, used - droppable)


def _quota(group: Path) -> float | None:
    """Return how many cores a group may keep busy, or None for no limit."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not period:
        quota, period = (_read(group / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max", or no group
        return None
    return cores if cores > 0 else None


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


class _Mount(NamedTuple):
    group: PurePosixPath  # that is seen at the mount
    at: Path
    controllers: frozenset[str]


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Return the folders from the outermost group that can be seen to the process's own."""
    own = _own_groups(root)
    for mount in _mounts(root):
        for name in {_UNIFIED, controller} & mount.controllers & own.keys():
            yield from _way(mount, own[name])


def _own_groups(root: Path) -> dict[str, PurePosixPath]:
    """Return the group of this process by controller."""
    found = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = PurePosixPath(path)
    return found


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mounted, _, kind = line.partition(" - ")
        system, _, options = kind.split(" ", 2)
        if system in {"cgroup", "cgroup2"}:
            group, at = map(_unescaped, mounted.split(" ")[_MOUNTED_AT])
            of = {_UNIFIED} if system == "cgroup2" else options.split(",")
            yield _Mount(PurePosixPath(group), root / at.lstrip("/"), frozenset(of))


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def _way(mount: _Mount, own: PurePosixPath) -> Iterator[Path]:
    """Return the folders from a mount to a group; just the mount if the group is not below it."""
    folder = mount.at
    yield folder
    if own.is_relative_to(mount.group) and ".." not in own.parts:
        for part in own.relative_to(mount.group).parts:
            folder /= part
            yield folder


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: Path) -> int | None:
    """Return the number in a file, or None for "max" or no file."""
    text = _read(file)
    return int(text) if text.isdecimal() else None


def _table(file: Path) -> dict[str, int]:
    pairs = (line.partition(" ") for line in _read(file).splitlines())
    return {name: int(value) for name, _, value in pairs if value.isdecimal()}
