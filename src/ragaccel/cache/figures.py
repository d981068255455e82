"""The statistics of a cache as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragaccel.telemetry import Figure

if TYPE_CHECKING:
    from ragaccel.cache.stats import CacheStats, Counts


def figures(stats: CacheStats) -> list[Figure]:
    """Return one figure per counter, namespace and level."""
    found = []
    for namespace, counts in stats.namespaces.items():
        found += _of_namespace(counts, {"namespace": namespace})
    for reason, number in stats.bypasses.items():
        found.append(Figure("ragaccel.cache.bypasses", number, {"reason": reason}))
    for level, number in stats.errors.items():
        found.append(Figure("ragaccel.cache.faults", number, {"level": level}))
    for level, usage in stats.levels.items():
        held = {"evictions": usage.evictions, "size": usage.bytes, "entries": usage.entries}
        for name, value in held.items():
            if value >= 0:
                found.append(Figure(f"ragaccel.cache.{name}", value, {"level": level}))
    return found


def _of_namespace(counts: Counts, of: dict[str, str]) -> list[Figure]:
    found = [
        Figure("ragaccel.cache.hits", number, {**of, "level": level})
        for level, number in counts.hits.items()
    ]
    found += [
        Figure(f"ragaccel.cache.{name}", getattr(counts, name), of)
        for name in ("misses", "coalesced")
    ]
    for reason in ("stale", "invalidated", "damaged"):
        labels = {**of, "reason": reason}
        found.append(Figure("ragaccel.cache.refused", getattr(counts, reason), labels))
    for outcome, number in (("done", counts.refreshed), ("failed", counts.refresh_errors)):
        found.append(Figure("ragaccel.cache.refreshes", number, {**of, "outcome": outcome}))
    found.append(Figure("ragaccel.cache.saved", counts.saved_seconds, of))
    for direction in ("read", "written"):
        number = getattr(counts, f"saved_tokens_{direction}")
        labels = {**of, "direction": direction}
        found.append(Figure("ragaccel.cache.saved_tokens", number, labels))
    return found
