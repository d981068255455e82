"""The state of a collection as metrics, read without waiting for those who search and write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragaccel.telemetry import Figure, metrics

if TYPE_CHECKING:
    from pathlib import Path

    from ragaccel.vectors.index import Index


def figures(path: Path | None, index: Index | None, extra_bytes: int) -> list[Figure]:
    """Return what an index holds; its recall only when that is known.

    Args:
        path: The collection's folder, whose name tells it from others; None for memory.
        index: None before the first vectors.
        extra_bytes: What is in memory besides the index.
    """
    if index is None:
        return []
    of = {metrics.INDEX: "memory" if path is None else path.absolute().name}
    found = [
        Figure("ragaccel.index.vectors", index.live_count, of),
        Figure("ragaccel.index.memory", index.bytes_used + extra_bytes, of),
    ]
    if index.estimated_recall:
        found.append(Figure("ragaccel.index.recall", index.estimated_recall, of))
    return found
