"""What was measured, as tables with the bars, as Markdown and as a plot of the frontier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from tests.benchmarks.vectors.contender import GROWN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.benchmarks.vectors.contender import Line

_FLOAT32 = 4
#: Recalls that differ by less are called equal.
_EQUAL = 0.001
#: Not peers: what ours is measured by, and the most that its own engine could do.
_YARDSTICKS = ("faiss Flat", "faiss recipe")
Bar = tuple[str, str, str, bool]


def lines_table(title: str, lines: Sequence[Line]) -> Table:
    """Return the lines of a group, best recall last."""
    table = Table(title=title)
    for heading in ("what", "setting", "recall@10", "x exact", "processor time", "ms", "B/vector",
                    "how known", "grown B/vector", "build s", "queries"):  # fmt: skip
        right = heading not in ("what", "setting", "how known")
        table.add_column(heading, justify="right" if right else "left")
    for line in lines:
        table.add_row(
            line.name, line.label, f"{line.recall:.4f}", f"{line.ratio:.2f}",
            f"{line.cpu_ratio:.2f}", f"{line.milliseconds:.3f}", f"{line.bytes_per_vector:,.0f}",
            line.how, f"{line.grown:,.0f}", f"{line.build_seconds:.1f}", str(line.asked),
        )  # fmt: skip
    return table


def bars_table(bars: Sequence[Bar]) -> Table:
    """Return what was asked and whether it is so."""
    table = Table(title="the bars")
    for heading in ("what", "measured", "bar", "met"):
        table.add_column(heading)
    for what, measured, bar, met in bars:
        table.add_row(what, measured, bar, "[green]yes[/]" if met else "[red]NO[/]")
    return table


def best(lines: Sequence[Line], recall: float, most_bytes: float = float("inf")) -> Line | None:
    """Return the fastest of our lines that keeps a recall within so many bytes per vector."""
    able = [
        one for one in lines
        if one.name == "ours" and one.recall >= recall and one.bytes_per_vector <= most_bytes
    ]  # fmt: skip
    return max(able, key=lambda one: one.ratio, default=None)


def floor_bar(
    lines: Sequence[Line], recall: float, times: float, dim: int, share: float = 0
) -> Bar:
    """Return the bar of a throughput at a recall, within a share of the float32 bytes."""
    most = dim * _FLOAT32 * share if share else float("inf")
    found = best(lines, recall, most)
    within = f" within {most:.0f} B/vector" if share else ""
    what = f"throughput at recall ≥ {recall}{within}"
    if found is None:
        return what, "no setting of ours is there", f"≥ {times:g}x", False
    told = (
        f"{found.ratio:.1f}x at {found.recall:.4f}, {found.bytes_per_vector:.0f} B, "
        f"by processor time {found.cpu_ratio:.1f}x ({found.label})"
    )
    return what, told, f"≥ {times:g}x", found.ratio >= times


def peer_bars(lines: Sequence[Line]) -> Iterator[Bar]:
    """Yield per peer and setting whether ours is faster and smaller at its recall."""
    for peer in lines:
        if peer.name == "ours" or peer.name in _YARDSTICKS:
            continue
        able = [one for one in lines if one.name == "ours" and one.recall >= peer.recall - _EQUAL]
        what = f"{peer.group}: {peer.name} {peer.label} at {peer.recall:.4f}"
        if not able:
            yield what, "no setting of ours has that recall", "ahead", False
            continue
        fast = max(able, key=lambda one: one.ratio)
        faster = fast.ratio > peer.ratio
        # Of a peer only the growth may be known: then ours is what the process grew by, too.
        small = min(one.grown if peer.how == GROWN else one.bytes_per_vector for one in able)
        smaller = small < peer.bytes_per_vector
        told = (
            f"{fast.ratio:.1f}x to {peer.ratio:.1f}x ({fast.ratio / peer.ratio:.2f}), "
            f"{small:,.0f} B to {peer.bytes_per_vector:,.0f} B"
        )
        yield what, told, "faster and smaller", faster and smaller


def filter_table(results: Sequence[dict[str, Any]]) -> Table:
    """Return filtered search by selectivity."""
    table = Table(title="filtered search")
    for heading in ("what", "filter", "selectivity", "recall@10", "ms", "x the unfiltered time"):
        table.add_column(heading)
    for one in results:
        table.add_row(
            f"{one['name']} {one['setting']}", one["filter"], f"{one['share']:.1%}",
            f"{one['recall']:.4f}", f"{one['milliseconds']:.2f}", f"{one['times']:.2f}",
        )  # fmt: skip
    return table


def filter_bars(results: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    """Yield the bars of our filtered search."""
    for one in results:
        if one["name"] == "ours":
            what = f"filter on {one['filter']} rows, {one['share']:.1%}"
            told = f"recall {one['recall']:.4f}, {one['times']:.2f}x the time"
            yield what, told, "≥ 0.99, ≤ 3x", one["recall"] >= 0.99 and one["times"] <= 3


def write_bars(results: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    """Yield the bars of writes and opening; lines without one are told in their table only."""
    for one in results:
        if one["bar"] is not None and "durable" not in one["what"]:
            unit = one["unit"]
            measured = f"{one['value']:.3f} {unit}"
            yield one["what"], measured, f"< {one['bar']:g} {unit}", one["value"] < one["bar"]


def write_table(results: Sequence[dict[str, Any]]) -> Table:
    """Return writes, opening and cold searches."""
    table = Table(title="writes, opening, cold file cache")
    for heading in ("what", "median", "more"):
        table.add_column(heading)
    for one in results:
        table.add_row(one["what"], f"{one['value']:.3f} {one['unit']}", one["more"])
    return table


def markdown(lines: Sequence[Line], bars: Sequence[Bar]) -> str:
    """Return tables for the README, by group."""
    parts = []
    for group in dict.fromkeys(line.group for line in lines):
        parts += [f"\n**{group}**\n", "| | setting | recall@10 | x exact | bytes per vector |",
                  "|---|---|---:|---:|---:|"]  # fmt: skip
        parts += [
            f"| {one.name} | {one.label} | {one.recall:.4f} | {one.ratio:.1f} | "
            f"{one.bytes_per_vector:,.0f} |"
            for one in lines
            if one.group == group
        ]
    parts += ["\n**bars**\n", "| | measured | bar | met |", "|---|---|---|---|"]
    parts += [f"| {w} | {m} | {b} | {'yes' if met else '**no**'} |" for w, m, b, met in bars]
    return "\n".join(parts) + "\n"


def plot(lines: Sequence[Line], file: Path, title: str) -> None:
    """Draw recall against throughput; the area of a mark stands for its bytes per vector."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 6.5))
    names = list(dict.fromkeys(line.name for line in lines))
    colours = plt.colormaps["tab20"]
    for at, name in enumerate(names):
        own = sorted((one for one in lines if one.name == name), key=lambda one: one.recall)
        lost = [max(1e-4, 1 - one.recall) for one in own]
        axes.plot(lost, [one.ratio for one in own], color=colours(at % 20), lw=0.8, alpha=0.7)
        axes.scatter(
            lost, [one.ratio for one in own], s=[one.bytes_per_vector / 4 for one in own],
            color=colours(at % 20), alpha=0.9 if name == "ours" else 0.55,
            edgecolors="black" if name == "ours" else "none",
            label=f"{name} ({min(one.bytes_per_vector for one in own):,.0f} B/vector)",
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="recall@10", ylabel="throughput, x exact search",
             title=f"{title}; area = bytes in memory per vector")  # fmt: skip
    axes.invert_xaxis()
    ticks = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 0.0001)
    axes.set_xticks(ticks, [f"{1 - tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=8, loc="lower left")
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    figure.tight_layout()
    figure.savefig(file, dpi=150)
