"""What a cache did: counters, and the snapshot a user sees."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from ragaccel.resources import Forkable


@dataclass(frozen=True)
class CacheStats:
    """Counts since the cache was made, of this process.

    Attributes:
        hits: Served look-ups by level name.
        misses: Look-ups that no level could serve.
        coalesced: Misses that were served by another call's computation.
        stale: Entries found that were no longer right and were not served.
        damaged: Entries found whose bytes were damaged or of another version.
        bypasses: Calls that went past the cache, by reason: "key", "value", "component".
        errors: Faults of a level that the request survived, by level name.
        saved_seconds: Time that the served computations had taken when they were made.
    """

    hits: dict[str, int] = field(default_factory=dict)
    misses: int = 0
    coalesced: int = 0
    stale: int = 0
    damaged: int = 0
    bypasses: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    saved_seconds: float = 0.0

    @property
    def lookups(self) -> int:
        """Look-ups in all; bypasses are none."""
        return sum(self.hits.values()) + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of the look-ups that a level served, 0 to 1."""
        return sum(self.hits.values()) / self.lookups if self.lookups else 0.0


class Recorder(Forkable):
    """Counters that threads share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits: Counter[str] = Counter()
        self._bypasses: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._saved = 0.0
        self.follow_forks()

    def hit(self, level: str, cost: float) -> None:
        """Count a hit of a level that saved `cost` seconds."""
        with self._lock:
            self._hits[level] += 1
            self._saved += cost

    def count(self, name: str) -> None:
        """Count one of the plain counters: misses, coalesced, stale, damaged."""
        with self._lock:
            self._counts[name] += 1

    def bypass(self, reason: str) -> None:
        """Count a call that went past the cache."""
        with self._lock:
            self._bypasses[reason] += 1

    def error(self, level: str) -> int:
        """Count a fault of a level and return how many it has had."""
        with self._lock:
            self._errors[level] += 1
            return self._errors[level]

    def snapshot(self) -> CacheStats:
        """Return the counts so far."""
        with self._lock:
            return CacheStats(
                hits=dict(self._hits),
                bypasses=dict(self._bypasses),
                errors=dict(self._errors),
                saved_seconds=self._saved,
                **self._counts,
            )

    def after_fork_in_child(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Recorder], tuple[()]]:
        return Recorder, ()
