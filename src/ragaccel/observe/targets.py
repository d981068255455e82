"""Performance targets in a TOML file, checked against what a profile or a monitor measured.

[query]
p95 = "250ms"        # or seconds; p50 and p99 likewise: at most
throughput = 20      # requests per second, at least
error_rate = 0.01    # at most

[stages.embed]
p95 = "20ms"

[cache]
hit_rate = 0.4       # at least

[process]
memory = "2GiB"      # or bytes: at most

[tune]               # for `ragaccel tune` alone; any metric of `ragaccel.Goal`
minimize = "latency_p95"
at_least = {"recall@10" = 0.98}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.table import Table

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

_UNITS: Final = {
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0,
    "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
}  # fmt: skip
_TIMES: Final = ("ns", "us", "ms", "s", "min")
_AMOUNT: Final = re.compile(r"\s*([0-9.]+)\s*([a-z]+)\s*", re.IGNORECASE)
_LEAST: Final = ("throughput", "hit_rate")

_Amount = str | int | float | None


class _Latency(msgspec.Struct, forbid_unknown_fields=True):
    p50: _Amount = None
    p95: _Amount = None
    p99: _Amount = None


class _Query(_Latency, forbid_unknown_fields=True):
    throughput: float | None = None
    error_rate: float | None = None


class _Cache(msgspec.Struct, forbid_unknown_fields=True):
    hit_rate: float | None = None


class _Process(msgspec.Struct, forbid_unknown_fields=True):
    memory: _Amount = None


class Tuning(msgspec.Struct, forbid_unknown_fields=True):
    """What a tuner is asked for beside bounds; see `ragaccel.Goal`."""

    minimize: str | None = None
    maximize: str | None = None
    at_least: dict[str, float] = {}
    at_most: dict[str, float] = {}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    query: _Query = msgspec.field(default_factory=_Query)
    stages: dict[str, _Latency] = msgspec.field(default_factory=dict)
    cache: _Cache = msgspec.field(default_factory=_Cache)
    process: _Process = msgspec.field(default_factory=_Process)
    tune: Tuning = msgspec.field(default_factory=Tuning)


@dataclass(frozen=True)
class Target:
    """A bound that a figure is to keep.

    Attributes:
        figure: Its name, such as "query.p95" or "stages.embed.p95".
        bound: In seconds, bytes, requests per second, or a fraction.
        at_least: Whether the figure is to be at least that, and not at most.
    """

    figure: str
    bound: float
    at_least: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a target is met.

    Attributes:
        target: The target.
        measured: The figure; None if it was not measured, and then the target is missed.
    """

    target: Target
    measured: float | None

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps the bound."""
        if self.measured is None:
            return False
        if self.target.at_least:
            return self.measured >= self.target.bound
        return self.measured <= self.target.bound


def read_targets(path: str | os.PathLike[str]) -> list[Target]:
    """Read targets from a TOML file; see this module for its form.

    Raises:
        ConfigurationError: It cannot be read, has a name or unit that is unknown, or no target.
    """
    targets, _ = read_tuning(path)
    if not targets:
        raise ConfigurationError(
            f'there are no goals in {path}; write for example [query] and p95 = "250ms".'
        )
    return targets


def read_tuning(path: str | os.PathLike[str]) -> tuple[list[Target], Tuning]:
    """Read targets, and what a tuner is asked for beside them.

    Raises:
        ConfigurationError: It cannot be read, or has a name or unit that is unknown.
    """
    try:
        file = msgspec.toml.decode(Path(path).read_bytes(), type=_File)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"the goals in {path} cannot be read: {error}.") from error
    tables = msgspec.to_builtins(file)
    del tables["tune"]
    return list(_targets(tables, "")), file.tune


def check(targets: Iterable[Target], measured: Mapping[str, float | None]) -> list[Verdict]:
    """Compare targets with figures by name."""
    return [Verdict(target, measured.get(target.figure)) for target in targets]


def table(verdicts: Iterable[Verdict]) -> Table:
    """Return verdicts as a table for a terminal."""
    drawn = Table("goal", "bound", "measured", "")
    for one in verdicts:
        sign = "at least" if one.target.at_least else "at most"
        measured = "not measured" if one.measured is None else f"{one.measured:.4g}"
        verdict = "[green]met[/green]" if one.is_met else "[red]missed[/red]"
        drawn.add_row(one.target.figure, f"{sign} {one.target.bound:.4g}", measured, verdict)
    return drawn


def _targets(tables: dict[str, Any], prefix: str) -> Iterator[Target]:
    for name, value in tables.items():
        figure = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _targets(value, f"{figure}.")
        elif value is not None:
            bound = _amount(figure, value, is_time=name != "memory")
            yield Target(figure, bound, at_least=name in _LEAST)


def _amount(figure: str, value: str | float, *, is_time: bool) -> float:
    bound: float | None = None
    if isinstance(value, str):
        told = _AMOUNT.fullmatch(value)
        unit = "" if told is None else told[2].lower()
        if told is not None and unit in _UNITS and (unit in _TIMES) is is_time:
            bound = float(told[1]) * _UNITS[unit]
    else:
        bound = float(value)
    if bound is None or bound < 0:
        example = '"250ms" or 0.25' if is_time else '"2GiB" or 2147483648'
        raise ConfigurationError(f"the goal {figure} must be such as {example}, got {value!r}.")
    return bound
