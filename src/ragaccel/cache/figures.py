"""The statistics of a cache as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ragaccel.cache.levels.breaker import STATES
from ragaccel.telemetry import Figure, attributes, metrics

if TYPE_CHECKING:
    from ragaccel.cache.levels import Usage
    from ragaccel.cache.stats import CacheStats, Counts

_NO_LEVEL: Final = "none"


def figures(stats: CacheStats) -> list[Figure]:
    """Return one figure per counter, namespace and level."""
    found = []
    for namespace, counts in stats.namespaces.items():
        found += _of_namespace(counts, {metrics.NAMESPACE: namespace})
    for reason, number in stats.bypasses.items():
        found.append(Figure("ragaccel.cache.bypasses", number, {metrics.REASON: reason}))
    for level, number in stats.errors.items():
        found.append(Figure("ragaccel.cache.faults", number, {attributes.CACHE_LEVEL: level}))
    for level, usage in stats.levels.items():
        found += _of_level(usage, {attributes.CACHE_LEVEL: level})
    return found


def _of_namespace(counts: Counts, of: dict[str, str]) -> list[Figure]:
    found = [_lookups(number, of, level, "hit") for level, number in counts.hits.items()]
    found.append(_lookups(counts.misses, of, _NO_LEVEL, "miss"))
    found.append(_lookups(counts.coalesced, of, _NO_LEVEL, "coalesced"))
    for reason in ("stale", "invalidated", "damaged"):
        labels = {**of, metrics.REASON: reason}
        found.append(Figure("ragaccel.cache.refused", getattr(counts, reason), labels))
    for outcome, number in (("done", counts.refreshed), ("failed", counts.refresh_errors)):
        labels = {**of, metrics.OUTCOME: outcome}
        found.append(Figure("ragaccel.cache.refreshes", number, labels))
    found.append(Figure("ragaccel.cache.saved", counts.saved_seconds, of))
    tokens = {"input": counts.saved_tokens_read, "output": counts.saved_tokens_written}
    for kind, number in tokens.items():
        labels = {**of, metrics.TOKENS: kind}
        found.append(Figure("ragaccel.cache.saved_tokens", number, labels))
    return found


def _lookups(number: int, of: dict[str, str], level: str, result: str) -> Figure:
    labels = {**of, attributes.CACHE_LEVEL: level, metrics.RESULT: result}
    return Figure("ragaccel.cache.lookups", number, labels)


def _of_level(usage: Usage, of: dict[str, str]) -> list[Figure]:
    held = {"evictions": usage.evictions, "size": usage.bytes, "entries": usage.entries}
    found = [
        Figure(f"ragaccel.cache.{name}", value, of) for name, value in held.items() if value >= 0
    ]
    if usage.breaker is not None:
        for state in STATES:
            labels = {**of, metrics.BREAKER: state}
            found.append(Figure("ragaccel.cache.breakers", int(usage.breaker == state), labels))
    return found
