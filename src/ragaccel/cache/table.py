"""The statistics of a cache as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ragaccel.cache.stats import CacheStats, Counts


def table(stats: CacheStats) -> Table:
    """Draw a row per namespace, the sum below, and what the levels hold in the caption."""
    names = list(dict.fromkeys([*stats.levels, *stats.hits]))
    drawn = Table(title="cache", caption=_caption(stats), caption_justify="left")
    drawn.add_column("namespace")
    headings = (
        "look-ups", "hit rate", *(f"{name} hits" for name in names),
        "coalesced", "misses", "stale", "invalidated", "saved s", "saved tokens",
    )  # fmt: skip
    for heading in headings:
        drawn.add_column(heading, justify="right")
    for namespace, counts in sorted(stats.namespaces.items()):
        drawn.add_row(namespace, *_cells(counts, names))
    if len(stats.namespaces) != 1:
        drawn.add_section()
        drawn.add_row("all", *_cells(stats, names))
    return drawn


def _cells(counts: Counts, levels: list[str]) -> list[str]:
    tokens = counts.saved_tokens_read + counts.saved_tokens_written
    return [
        f"{counts.lookups:,}",
        f"{counts.hit_rate:.1%}",
        *(f"{counts.hits.get(level, 0):,}" for level in levels),
        f"{counts.coalesced:,}",
        f"{counts.misses:,}",
        f"{counts.stale:,}",
        f"{counts.invalidated:,}",
        f"{counts.saved_seconds:,.1f}",
        f"{tokens:,}",
    ]


def _caption(stats: CacheStats) -> str:
    lines = []
    for name, usage in stats.levels.items():
        if usage.entries >= 0:
            size = f"{usage.bytes / 1e6:,.1f} MB" if usage.bytes >= 0 else "?"
            lines.append(f"{name}: {usage.entries:,} entries, {size}, {usage.evictions:,} evicted")
    for title, counts in (("faults survived", stats.errors), ("bypassed", stats.bypasses)):
        if counts:
            lines.append(f"{title}: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
    return "\n".join(lines)
