"""What the demo found: a table for the terminal, a page with plots for the browser."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.table import Table

from ragaccel.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from ragaccel.cli.demo.replay import Measured
    from ragaccel.vectors import CollectionStats

_STAGES: Final = ("preprocess", "cache.lookup", "embed", "search")
_SPEED_BAR: Final = 20
_RECALL_BAR: Final = 0.98
_MEMORY_BAR: Final = 8
_FLOAT_BYTES: Final = 4
_STYLE: Final = (
    "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;"
    "padding:.25rem .6rem;text-align:left}svg{max-width:100%;height:auto}</style>"
)


@dataclass(frozen=True)
class Comparison:
    """One framework, plain beside accelerated.

    Attributes:
        name: The framework.
        plain: The plain application.
        fast: The accelerated one.
        restarted: The accelerated one again, after a restart with an empty memory level.
        stages: Seconds by outcome ("hit", "miss") and stage, from the spans of `fast`.
        stats: The compressed collection at the end.
    """

    name: str
    plain: Measured
    fast: Measured
    restarted: Measured
    stages: Mapping[str, Mapping[str, Sequence[float]]]
    stats: CollectionStats

    @property
    def speed_up(self) -> float:
        """How many times faster a warm hit is than the plain retriever, at the median."""
        return self.plain.quantiles()[0] / self.fast.quantiles(hit=True)[0]

    @property
    def compression(self) -> float:
        """How many times less memory a vector takes than as float32."""
        return _FLOAT_BYTES * self.stats.dim / self.stats.bytes_per_vector

    @property
    def stale(self) -> int:
        """Answers that a new search would not have given."""
        return self.fast.stale + self.restarted.stale


@dataclass(frozen=True)
class Summary:
    """Everything the demo measured."""

    model: str
    dim: int
    passages: int
    profile: str
    requests: int
    ceiling: float
    comparisons: Sequence[Comparison]

    @property
    def headline(self) -> str:
        """What was measured, in one sentence."""
        return (
            f"{self.requests:,} requests with the repeats of a "
            f"{'help desk (Zipf law)' if self.profile == 'helpdesk' else 'web search log'}, "
            f"{self.comparisons[0].fast.writes} writes among them, over {self.passages:,} passages "
            f"embedded with {self.model} ({self.dim} dimensions)"
        )

    @property
    def ceiling_note(self) -> str:
        """What hit rate is possible."""
        return (
            f"{self.ceiling:.1%} of the requests repeat an earlier one exactly: no exact cache can "
            "have a higher hit rate."
        )

    def promises(self) -> list[tuple[str, str, bool]]:
        """Return what must hold, what was measured, and whether it held."""
        rows = []
        for one in self.comparisons:
            recall = float(np.mean(one.fast.recall))
            rows += [
                (
                    f"{one.name}: warm hit at least {_SPEED_BAR}x faster than the plain retriever",
                    f"{one.speed_up:,.0f}x",
                    one.speed_up >= _SPEED_BAR,
                ),
                (
                    f"{one.name}: recall@10 against exact search at least {_RECALL_BAR}",
                    f"{recall:.4f}",
                    recall >= _RECALL_BAR,
                ),
                (
                    f"{one.name}: at most 1/{_MEMORY_BAR} of the float32 vector memory",
                    f"1/{one.compression:.1f}",
                    one.compression >= _MEMORY_BAR,
                ),
                (f"{one.name}: no stale answer", str(one.stale), one.stale == 0),
            ]
        return rows


def show(summary: Summary, console: Console) -> None:
    """Print the results."""
    console.print(f"\n[bold]{summary.headline}[/bold]")
    console.print(f"{summary.ceiling_note}\n")
    for one in summary.comparisons:
        console.print(_table(latency_rows(one), f"{one.name}: milliseconds, p50 / p95"))
        console.print(_table(quality_rows(one), f"{one.name}: answers and memory"))
    promises = Table("promise", "measured", "kept", title="Promises", title_justify="left")
    for text, measured, kept in summary.promises():
        promises.add_row(text, measured, "[green]yes[/green]" if kept else "[red]NO[/red]")
    console.print(promises)


def latency_rows(one: Comparison) -> list[tuple[str, ...]]:
    """Return the latency table, head first.

    Of the plain application, search is what a call takes besides embedding.
    """
    rows: list[tuple[str, ...]] = [("stage", "plain", "accelerated, miss", "accelerated, hit")]
    plain = {
        "embed": one.plain.embedding,
        "search": list(np.subtract(one.plain.seconds, one.plain.embedding)),
    }
    for stage in _STAGES:
        cells = [_span_cell(one.stages[outcome].get(stage)) for outcome in ("miss", "hit")]
        rows.append((stage, _span_cell(plain.get(stage)), *cells))
    rows.append(
        (
            "whole call",
            _cell(one.plain.quantiles()),
            _cell(one.fast.quantiles(hit=False)),
            _cell(one.fast.quantiles(hit=True)),
        )
    )
    rows.append(
        ("after a restart", "", _cell(one.restarted.quantiles(hit=False)),
         _cell(one.restarted.quantiles(hit=True)))
    )  # fmt: skip
    return rows


def quality_rows(one: Comparison) -> list[tuple[str, ...]]:
    """Return the table of hit rates, quality and memory, head first."""
    levels = sorted({level for level in one.fast.levels + one.restarted.levels if level})
    rows: list[tuple[str, ...]] = [("", "plain", "accelerated", "after a restart")]
    rows += [
        (
            f"hit rate, {level} level",
            "",
            f"{one.fast.hit_rate(level):.1%}",
            f"{one.restarted.hit_rate(level):.1%}",
        )
        for level in levels
    ]
    runs = (one.plain, one.fast, one.restarted)
    rows += [
        ("hit rate in all", "", *(f"{run.hit_rate():.1%}" for run in runs[1:])),
        ("recall@10 against exact search", *(f"{np.mean(run.recall):.4f}" for run in runs)),
        (
            "own paragraph in the top 10",
            f"{np.mean(one.fast.answerable):.1%} (exact search)",
            *(f"{np.mean(run.answered):.1%}" for run in runs[1:]),
        ),
        ("stale answers", *(str(run.stale) for run in runs)),
        ("requests measured", *(f"{len(run.seconds):,}" for run in runs)),
        (
            "bytes per vector in memory",
            f"{_FLOAT_BYTES * one.stats.dim} (float32)",
            f"{one.stats.bytes_per_vector:.0f} ({one.stats.compression.codec})",
            "",
        ),
    ]
    return rows


def write_html(summary: Summary, file: Path) -> None:
    """Write one page with the tables and plots, which needs nothing from elsewhere.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    parts = [
        "<!doctype html><meta charset='utf-8'><title>ragaccel demo</title>",
        _STYLE,
        f"<h1>ragaccel demo</h1><p>{html.escape(summary.headline)}.</p>",
        f"<p>{html.escape(summary.ceiling_note)}</p>",
        _html_table([("promise", "measured", "kept")]
                    + [(text, found, "yes" if kept else "NO")
                       for text, found, kept in summary.promises()]),
    ]  # fmt: skip
    for one in summary.comparisons:
        parts += [
            f"<h2>{html.escape(one.name)}</h2>",
            "<p>Milliseconds, p50 / p95.</p>",
            _html_table(latency_rows(one)),
            _html_table(quality_rows(one)),
            _plots(one, summary.ceiling),
        ]
    file.write_text("\n".join(parts), encoding="utf-8")


def _plots(one: Comparison, ceiling: float) -> str:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("demo", "matplotlib") from error
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes: Any = figure.subplots(2, 2)
    _latency_plot(axes[0][0], one)
    levels = [level or "miss" for level in one.fast.levels]
    names = sorted(set(levels) - {"miss"})
    axes[0][1].bar(names, [levels.count(name) / len(levels) for name in names], color="tab:green")
    axes[0][1].axhline(ceiling, color="black", linestyle="--", label="exact repeats")
    axes[0][1].set(title="hit rate per level", ylim=(0, 1))
    axes[0][1].legend()
    sizes = (_FLOAT_BYTES * one.stats.dim, one.stats.bytes_per_vector)
    axes[1][0].bar(["float32", one.stats.compression.codec], sizes, color="tab:blue")
    axes[1][0].set(title="bytes per vector in memory")
    _course_plot(axes[1][1], one)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _latency_plot(axis: Any, one: Comparison) -> None:
    names = ("plain", "miss", "hit")
    found = (one.plain.quantiles(), one.fast.quantiles(hit=False), one.fast.quantiles(hit=True))
    places = np.arange(len(names))
    for shift, label, at in ((-0.2, "p50", 0), (0.2, "p95", 1)):
        axis.bar(places + shift, [1000 * one[at] for one in found], width=0.4, label=label)
    axis.set(title="whole call, milliseconds", yscale="log")
    axis.set_xticks(places, names)
    axis.legend()


def _course_plot(axis: Any, one: Comparison) -> None:
    for hit, colour in ((False, "tab:orange"), (True, "tab:green")):
        chosen = [at for at, level in enumerate(one.fast.levels) if (level is not None) == hit]
        axis.scatter(chosen, [1000 * one.fast.seconds[at] for at in chosen], s=4, color=colour,
                     label="hit" if hit else "miss")  # fmt: skip
    axis.set(title="each request, milliseconds", yscale="log", xlabel="request")
    axis.legend()


def _table(rows: Sequence[tuple[str, ...]], title: str) -> Table:
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _html_table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        lines.append("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _span_cell(seconds: Sequence[float] | None) -> str:
    if not seconds:
        return ""
    p50, p95 = np.percentile(seconds, [50, 95])
    return _cell((float(p50), float(p95)))


def _cell(quantiles: tuple[float, float]) -> str:
    if np.isnan(quantiles[0]):
        return ""
    return " / ".join(f"{1000 * seconds:.3f}" for seconds in quantiles)
