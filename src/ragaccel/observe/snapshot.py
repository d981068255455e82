"""What a monitor sees: figures of one window, and the report that is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from ragaccel.observe.alerts import METRICS, Alert

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from rich.console import Group

    from ragaccel.observe.windows import Slot, Tally


class StageFigures(msgspec.Struct, frozen=True):
    """The stages of one name that ended in a window.

    Attributes:
        name: Of the stages.
        count: How many there were.
        throughput: How many there were a second.
        latency_p50: Seconds that half of them took at most; these three are right within 2%.
        latency_p95: Seconds that 95% of them took at most.
        latency_p99: Seconds that 99% of them took at most.
        error_rate: The share that an exception ended.
        hit_rate: The share that a cache served, of those that asked one; None if none did.
        batch_mean: Requests that one of them was for on average, if they were batches.
    """

    name: str
    count: int
    throughput: float
    latency_p50: float
    latency_p95: float
    latency_p99: float
    error_rate: float
    hit_rate: float | None
    batch_mean: float | None

    @classmethod
    def of(cls, name: str, tally: Tally, seconds: float) -> StageFigures:
        """Sum up what happened in so many seconds."""
        durations, lookups = tally.durations, tally.lookups
        count = durations.count
        return cls(
            name=name,
            count=count,
            throughput=count / seconds if seconds else 0.0,
            latency_p50=durations.quantile(0.5),
            latency_p95=durations.quantile(0.95),
            latency_p99=durations.quantile(0.99),
            error_rate=tally.errors / count,
            hit_rate=1 - lookups[None] / lookups.total() if lookups else None,
            batch_mean=tally.served / count if tally.served else None,
        )


class CollectionFigures(msgspec.Struct, frozen=True):
    """A vector collection; see `CollectionStats`."""

    name: str
    rows: int
    bytes_in_memory: int
    bytes_on_disk: int
    recall: float


class Resources(msgspec.Struct, frozen=True):
    """What the process and its children take, and what they may take.

    Attributes:
        cpu: Cores that they kept busy in the window.
        cpu_limit: Cores that they may keep busy; see `resources.cpu_limit`.
        cpu_seconds: Processor time so far.
        rss_bytes: Memory that is not swapped out.
        memory_used_bytes: Used by all who share the limit; see `resources.memory_used_bytes`.
        memory_limit_bytes: The container's limit, or the host's memory.
        processes: How many they are.
        threads: Threads.
        open_files: Files and sockets.
        disk_read_bytes: Read from disks so far.
        disk_written_bytes: Written to disks so far.
    """

    cpu: float
    cpu_limit: float
    cpu_seconds: float
    rss_bytes: int
    memory_used_bytes: int
    memory_limit_bytes: int
    processes: int
    threads: int
    open_files: int
    disk_read_bytes: int
    disk_written_bytes: int


class Snapshot(msgspec.Struct, frozen=True):
    """One window, and the process at its end. `rich.print` draws it as a table.

    Attributes:
        pid: The process.
        at: When the window ends, seconds since the epoch.
        seconds: How long it is.
        stages: By name, those that had any.
        lookups: Look-ups that the cache was asked for.
        hits: Those that it served, by level.
        resources: What the process took.
        collections: The vector collections.
        alerts: Those that fire.
    """

    pid: int
    at: float
    seconds: float
    stages: dict[str, StageFigures]
    lookups: int
    hits: dict[str, int]
    resources: Resources
    collections: tuple[CollectionFigures, ...] = ()
    alerts: tuple[Alert, ...] = ()

    @property
    def hit_rate(self) -> float | None:
        """The share of look-ups that a level served; None without any."""
        return sum(self.hits.values()) / self.lookups if self.lookups else None

    @property
    def hit_rates(self) -> dict[str, float]:
        """The share of all look-ups that each level served."""
        return {level: count / self.lookups for level, count in self.hits.items()}

    def metric(self, name: str, stage: str | None = None) -> float | None:
        """Return one of the metrics that rules watch, or None if nothing tells it.

        Args:
            name: See `Threshold`.
            stage: See `Threshold`.
        """
        if METRICS[name].of_stage:
            figures = self.stages.get(stage or "query")
            if figures is not None:
                return float(getattr(figures, name))
            return 0.0 if name == "throughput" else None
        used = self.resources
        if name == "memory_share":
            return used.memory_used_bytes / max(1, used.memory_limit_bytes)
        if name == "cpu":
            return used.cpu / used.cpu_limit
        return self.hit_rate if name == "hit_rate" else float(getattr(used, name))

    def figures(self) -> dict[str, float | None]:
        """Return the figures that goals are set for, by the names of `observe.targets`."""
        found: dict[str, float | None] = {
            "query.throughput": self.metric("throughput"),
            "query.error_rate": self.metric("error_rate"),
            "cache.hit_rate": self.hit_rate,
            "process.memory": float(self.resources.rss_bytes),
        }
        for share in ("p50", "p95", "p99"):
            found[f"query.{share}"] = self.metric(f"latency_{share}")
            for stage in self.stages:
                found[f"stages.{stage}.{share}"] = self.metric(f"latency_{share}", stage)
        return found

    def __rich__(self) -> Group:
        from ragaccel.observe.screen import draw

        return draw(self)


class MonitorReport(msgspec.Struct, frozen=True):
    """The last window, and the windows before it. `rich.print` draws the last one as a table.

    Attributes:
        last: The last window.
        history: The windows that ended at each tick, the oldest first.
    """

    last: Snapshot
    history: tuple[Snapshot, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def plot(self, path: str | Path, *, stage: str | None = None) -> None:
        """Draw response time, memory, processor and hit rate over time, in two by two plots.

        Args:
            path: The file to write; its ending says the format, such as .png or .svg.
            stage: Whose response time; None for "query", or without any for the slowest stage.

        Raises:
            MissingExtraError: matplotlib is not installed.
            ConfigurationError: There is no such stage or no such format.
        """
        from ragaccel.observe.plots import plot

        plot(self, path, stage)

    def __rich__(self) -> Group:
        return self.last.__rich__()


def figures_of(slot: Slot, seconds: float) -> dict[str, StageFigures]:
    """Return the figures of a window's stages, by name."""
    return {
        name: StageFigures.of(name, tally, seconds) for name, tally in sorted(slot.stages.items())
    }


def hits_of(lookups: Counter[str | None]) -> dict[str, int]:
    """Return the look-ups that a level served, by level."""
    return {level: lookups[level] for level in sorted(filter(None, lookups))}
