"""A snapshot as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ragaccel.observe.latency import spelled
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from ragaccel.observe.snapshot import Snapshot, StageFigures

_HEADINGS: Final = ("/s", "p50", "p95", "p99", "errors", "hit", "batch")
_ORDER: Final = tuple(attributes.OF_STAGE)


def draw(snapshot: Snapshot) -> Group:
    """Draw a row per stage, then the cache, the process, the collections and what fires."""
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("stage")
    for heading in _HEADINGS:
        drawn.add_column(heading, justify="right")
    for stage in sorted(snapshot.stages.values(), key=_place):
        drawn.add_row(Text(stage.name), *_cells(stage))
    title = Text(f"process {snapshot.pid}, the last {snapshot.seconds:.0f} s")
    return Group(title, drawn, *map(Text, _lines(snapshot)), *_alerts(snapshot))


def _place(stage: StageFigures) -> tuple[int, str]:
    return _ORDER.index(stage.name) if stage.name in _ORDER else len(_ORDER), stage.name


def _cells(stage: StageFigures) -> list[str]:
    latencies = (stage.latency_p50, stage.latency_p95, stage.latency_p99)
    return [
        f"{stage.throughput:,.1f}",
        *map(spelled, latencies),
        f"{stage.error_rate:.1%}",
        "" if stage.hit_rate is None else f"{stage.hit_rate:.1%}",
        "" if stage.batch_mean is None else f"{stage.batch_mean:.1f}",
    ]


def _lines(snapshot: Snapshot) -> list[str]:
    used, lines = snapshot.resources, []
    if snapshot.hit_rate is not None:
        levels = [f"{level} {rate:.1%}" for level, rate in snapshot.hit_rates.items()]
        told = ", ".join([f"hit rate {snapshot.hit_rate:.1%}", *levels])
        lines.append(f"cache: {told} of {snapshot.lookups:,} look-ups")
    lines.append(
        f"memory: {_megabytes(used.rss_bytes)} of {_megabytes(used.memory_limit_bytes)} "
        f"({snapshot.metric('memory_share'):.1%} in use by all who share it)"
    )
    lines.append(
        f"cpu: {used.cpu:.2f} of {used.cpu_limit:g} cores; processes: {used.processes}, threads: "
        f"{used.threads}, open files: {used.open_files}"
    )
    for one in snapshot.collections:
        held, stored = _megabytes(one.bytes_in_memory), _megabytes(one.bytes_on_disk)
        lines.append(
            f"{one.name}: {one.rows:,} rows, {held} in memory, {stored} on disk, "
            f"recall {one.recall:.3f}"
        )
    return lines


def _alerts(snapshot: Snapshot) -> list[Text]:
    return [
        Text(f"firing for {snapshot.at - one.since:.0f} s: {one.text}", style="bold red")
        for one in snapshot.alerts
    ]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
