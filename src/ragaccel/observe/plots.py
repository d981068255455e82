"""A monitor's report in two by two plots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ragaccel.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

    from ragaccel.observe.snapshot import MonitorReport, Snapshot

_LATENCIES: Final = ("latency_p50", "latency_p95", "latency_p99")
_MINUTE: Final = 60


def plot(report: MonitorReport, path: str | Path, stage: str | None) -> None:
    """Draw the plots of `MonitorReport.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("demo", "matplotlib") from error
    shots = [*report.history, report.last]
    minutes = [(one.at - report.last.at) / _MINUTE for one in shots]
    shown = _shown(shots, stage)
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes: Any = figure.subplots(2, 2, sharex=True)
    _latency_plot(axes[0][0], minutes, shots, shown)
    _memory_plot(axes[0][1], minutes, shots)
    _cpu_plot(axes[1][0], minutes, shots)
    _rate_plot(axes[1][1], minutes, shots, shown)
    for axis in axes[1]:
        axis.set_xlabel("minutes")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise ConfigurationError(f"{path} cannot be drawn: {error}.") from error


def _shown(shots: list[Snapshot], stage: str | None) -> str:
    """Return the stage whose response time is drawn."""
    slowest = {name: figures.latency_p50 for shot in shots for name, figures in shot.stages.items()}
    if stage is None:
        return (
            "query" if "query" in slowest or not slowest else max(slowest, key=slowest.__getitem__)
        )
    if stage not in slowest:
        raise ConfigurationError(
            f"there was no stage {stage!r}; there were {', '.join(sorted(slowest)) or 'none'}."
        )
    return stage


def _latency_plot(axis: Any, minutes: list[float], shots: list[Snapshot], stage: str) -> None:
    for name in _LATENCIES:
        axis.plot(minutes, _course(shots, name, stage), label=name.removeprefix("latency_"))
    axis.set(title=f"response time of {stage}, seconds", ylim=(0, None))
    axis.legend()


def _memory_plot(axis: Any, minutes: list[float], shots: list[Snapshot]) -> None:
    used = [one.resources for one in shots]
    limit = used[-1].memory_limit_bytes / 1e6
    shared = [one.memory_used_bytes / 1e6 for one in used]
    axis.plot(minutes, [one.rss_bytes / 1e6 for one in used], label="process")
    axis.plot(minutes, shared, label="all who share the limit")
    axis.axhline(limit, color="black", linestyle="--", label="limit")
    # A limit far away is told, not drawn: the course of what is used could not be seen.
    axis.set(title=f"memory, MB (limit {limit:,.0f})", ylim=(0, 1.1 * min(limit, 4 * max(shared))))
    axis.legend()


def _cpu_plot(axis: Any, minutes: list[float], shots: list[Snapshot]) -> None:
    axis.plot(minutes, [one.resources.cpu for one in shots], label="process")
    axis.plot(minutes, [one.resources.cpu_limit for one in shots], "k--", label="limit")
    axis.set(title="busy cores", ylim=(0, None))
    axis.legend()


def _rate_plot(axis: Any, minutes: list[float], shots: list[Snapshot], stage: str) -> None:
    axis.plot(minutes, _course(shots, "hit_rate"), color="tab:green", label="hit rate")
    axis.set(title=f"hit rate, and {stage} a second", ylim=(0, 1))
    beside = axis.twinx()
    beside.plot(minutes, _course(shots, "throughput", stage), color="tab:blue", label="a second")
    beside.set_ylim(0, None)
    axis.legend(handles=[*axis.get_lines(), *beside.get_lines()])


def _course(shots: list[Snapshot], metric: str, stage: str | None = None) -> list[float]:
    """Return a metric over time, with gaps where nothing tells it."""
    found = [one.metric(metric, stage) for one in shots]
    return [float("nan") if value is None else value for value in found]
