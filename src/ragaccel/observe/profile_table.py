"""A profile for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ragaccel.observe.latency import Latency, spelled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ragaccel.observe.profile import Profile
    from ragaccel.observe.stages import StageProfile

_NONE: Final = ""
_COMPARED: Final = (
    "calls", "after", "p50", "after", "times", "p95", "after", "times", "path", "after",
)  # fmt: skip


def summary(profile: Profile) -> Group:
    """Draw a row per stage, the requests below, and what would help."""
    headings, *rows = columns(profile)
    drawn = _table("profile", headings)
    for row in rows:
        drawn.add_row(*map(Text, row))
    advice = [Padding(Text(f"- {one}"), (0, 0, 0, 1)) for one in profile.advice]
    return Group(drawn, *map(Text, headlines(profile)), *advice)


def columns(profile: Profile) -> list[list[str]]:
    """Return headings and a row per stage as texts, without the columns that nothing fills."""
    stages = list(profile.stages.values())
    filled = {
        heading: cells
        for heading, cells in _columns(stages).items()
        if any(cell != _NONE for cell in cells)
    }
    return [list(filled), *(list(row) for row in zip(*filled.values(), strict=True))]


def headlines(profile: Profile) -> list[str]:
    """Return what is to be known of the requests, a sentence each."""
    latency = profile.latency
    whole = (
        f"{len(profile.requests):,} requests, {profile.errors:,} with an error: "
        f"p50 {spelled(latency.p50)}, p95 {spelled(latency.p95)}, p99 {spelled(latency.p99)}, "
        f"{profile.throughput:,.1f} per second."
    )
    lines = [whole]
    if profile.dropped:
        lines.append(f"{profile.dropped:,} more were heard and not kept.")
    for told, name, share in (
        ("typical requests (p25 to p75)", profile.bottleneck, "typical_share"),
        ("the slowest ones (p95 and above)", profile.tail_bottleneck, "tail_share"),
    ):
        if name is not None:
            spent = getattr(profile.stages[name], share)
            lines.append(f"Bottleneck of {told}: {name}, {spent:.0%} of the critical path.")
    for stage in profile.stages.values():
        if stage.levels:
            levels = ", ".join(f"{name} {count:,}" for name, count in sorted(stage.levels.items()))
            lines.append(f"Hits of {stage.name} by level: {levels}.")
    for told, request in (("p50", profile.p50_request), ("p99", profile.p99_request)):
        if request is not None and request.trace_id is not None:
            lines.append(f"Trace of the {told} request: {request.trace_id}")
    lines.append(f"The profiler itself took {spelled(profile.overhead_seconds)} per stage.")
    return lines


def comparison(before: Profile, after: Profile) -> Table:
    """Draw the requests and each stage, before and after."""
    drawn = _table("before and after", ("stage", *_COMPARED))
    drawn.add_row("all requests", *_compared(_whole(before), _whole(after)))
    drawn.add_section()
    for name in dict.fromkeys((*before.stages, *after.stages)):
        both = [_part(one.stages.get(name)) for one in (before, after)]
        drawn.add_row(Text(name), *_compared(*both))
    return drawn


_Compared = tuple[int, Latency, float]


def _whole(profile: Profile) -> _Compared:
    return len(profile.requests), profile.latency, 1.0


def _part(stage: StageProfile | None) -> _Compared:
    return (0, Latency(), 0.0) if stage is None else (stage.count, stage.latency, stage.share)


def _compared(before: _Compared, after: _Compared) -> list[str]:
    (count, was, share), (new_count, now, new_share) = before, after
    cells = [f"{count:,}", f"{new_count:,}"]
    for name in ("p50", "p95"):
        old, new = getattr(was, name), getattr(now, name)
        times = f"{new / old:.2f}" if old and new else _NONE
        cells += [_time(old if count else None), _time(new if new_count else None), times]
    return [*cells, f"{share:.1%}", f"{new_share:.1%}"]


def _table(title: str, headings: Iterable[str]) -> Table:
    drawn = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for at, heading in enumerate(headings):
        drawn.add_column(heading, justify="right" if at else "left", no_wrap=not at)
    return drawn


def _columns(stages: list[StageProfile]) -> dict[str, list[str]]:
    return {
        "stage": [one.name for one in stages],
        "calls": [f"{one.count:,}" for one in stages],
        "errors": [f"{one.errors:,}" if one.errors else _NONE for one in stages],
        "p50": [_time(one.latency.p50) for one in stages],
        "p95": [_time(one.latency.p95) for one in stages],
        "p99": [_time(one.latency.p99) for one in stages],
        "path": [_share(one.share) for one in stages],
        "tail": [_share(one.tail_share) for one in stages],
        "cpu": [_time(one.cpu_seconds) for one in stages],
        "memory": [_size(one.rss_bytes) for one in stages],
        "disk": [_size(one.disk_bytes) for one in stages],
        "network": [_size(one.network_bytes) for one in stages],
        "hits": [_NONE if one.hit_rate is None else f"{one.hit_rate:.1%}" for one in stages],
        "batch": [_NONE if one.batch_size is None else f"{one.batch_size:.1f}" for one in stages],
        "wait p50": [_NONE if one.wait is None else _time(one.wait.p50) for one in stages],
    }


def _time(seconds: float | None) -> str:
    return _NONE if seconds is None else spelled(seconds)


def _share(share: float) -> str:
    return f"{share:.1%}" if share else _NONE


def _size(count: float | None) -> str:
    return _NONE if count is None else f"{count / 1e3:,.1f} kB"
