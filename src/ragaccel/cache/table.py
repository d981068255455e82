"""The statistics of a cache as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ragaccel.cache.stats import CacheStats, Counts

_HEADINGS = (
    "look-ups", "hits", "rate", "coalesced", "misses", "refused", "saved s", "tokens",
)  # fmt: skip


def table(stats: CacheStats) -> Table:
    """Draw a row per namespace, the sum below, and what the levels did in the caption."""
    drawn = Table(
        title="cache",
        caption=Text(_caption(stats), style="table.caption"),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    drawn.add_column("namespace")
    for heading in _HEADINGS:
        drawn.add_column(heading, justify="right")
    for namespace, counts in sorted(stats.namespaces.items()):
        drawn.add_row(Text(namespace), *_cells(counts))
    if len(stats.namespaces) != 1:
        drawn.add_section()
        drawn.add_row("all", *_cells(stats))
    return drawn


def _cells(counts: Counts) -> list[str]:
    refused = counts.stale + counts.invalidated + counts.damaged
    tokens = counts.saved_tokens_read + counts.saved_tokens_written
    hits = f"{sum(counts.hits.values()):,}"
    rate, saved = f"{counts.hit_rate:.1%}", f"{counts.saved_seconds:,.1f}"
    plain = [f"{number:,}" for number in (counts.coalesced, counts.misses, refused)]
    return [f"{counts.lookups:,}", hits, rate, *plain, saved, f"{tokens:,}"]


def _caption(stats: CacheStats) -> str:
    lines = []
    for name, usage in stats.levels.items():
        parts = [f"{name}: {stats.hits.get(name, 0):,} hits"]
        if usage.entries >= 0:
            parts.append(f"{usage.entries:,} entries")
        if usage.bytes >= 0:
            parts.append(f"{usage.bytes / 1e6:,.1f} MB")
        if usage.evictions >= 0:
            parts.append(f"{usage.evictions:,} evicted")
        lines.append(", ".join(parts))
    for title, counts in (("faults survived", stats.errors), ("bypassed", stats.bypasses)):
        if counts:
            lines.append(f"{title}: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
    return "\n".join(lines)
