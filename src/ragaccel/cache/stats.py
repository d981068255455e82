"""What a cache did: counters, and the snapshot a user sees."""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from ragaccel.cache.figures import figures
from ragaccel.cache.levels.breaker import Unavailable
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from ragaccel.cache.levels import Usage
    from ragaccel.cache.values import Entry
    from ragaccel.telemetry import Figure

_log = logging.getLogger("ragaccel.cache")

_SAVED: Final = slice(3, 6)  # an entry's cost and tokens
_MOST_PENDING: Final = 1000

Work = Literal["reads", "writes", "leases"]


@dataclass(frozen=True)
class Prices:
    """What a model costs, in any currency, per million tokens.

    Attributes:
        read: Of tokens that the model reads (prompt, input).
        written: Of tokens that the model writes (completion, output).
    """

    read: float
    written: float


@dataclass(frozen=True)
class Counts:
    """What happened to look-ups of this process since the cache was made.

    Attributes:
        hits: Served look-ups by level name.
        misses: Look-ups that no level could serve.
        coalesced: Look-ups that were served by another call's computation.
        stale: Entries found that were no longer right and were not served.
        invalidated: Entries found that had been invalidated and were not served.
        damaged: Entries found whose bytes were damaged or of another version.
        refreshed: Values computed anew in the background.
        refresh_errors: Background computations that failed; the old value had been served.
        saved_seconds: Time that the served computations had taken when they were made.
        saved_tokens_read: Tokens that models had read for what was served.
        saved_tokens_written: Tokens that models had written for what was served.
    """

    hits: dict[str, int] = field(default_factory=dict)
    misses: int = 0
    coalesced: int = 0
    stale: int = 0
    invalidated: int = 0
    damaged: int = 0
    refreshed: int = 0
    refresh_errors: int = 0
    saved_seconds: float = 0.0
    saved_tokens_read: int = 0
    saved_tokens_written: int = 0

    @property
    def lookups(self) -> int:
        """Look-ups in all; bypasses are none."""
        return sum(self.hits.values()) + self.misses + self.coalesced

    @property
    def hit_rate(self) -> float:
        """Share of the look-ups that a level served, 0 to 1."""
        return sum(self.hits.values()) / self.lookups if self.lookups else 0.0

    def saved_money(self, prices: Prices) -> float:
        """Return what the saved tokens would have cost."""
        tokens = self.saved_tokens_read * prices.read + self.saved_tokens_written * prices.written
        return tokens / 1e6


@dataclass(frozen=True)
class CacheStats(Counts):
    """Counts of all namespaces together, and what belongs to none.

    `rich.print(cache.stats())` draws it as a table.

    Attributes:
        bypasses: Calls that went past the cache, by reason: "key", "value", "component".
        errors: Faults of a level that the request survived, by level name.
        levels: What each level holds, by level name.
        namespaces: The counts of each namespace.
    """

    bypasses: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    levels: dict[str, Usage] = field(default_factory=dict)
    namespaces: dict[str, Counts] = field(default_factory=dict)

    def __rich__(self) -> Table:
        from ragaccel.cache.table import table

        return table(self)


class Recorder(Forkable):
    """Counters that threads share, by namespace; and what is known to be failing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._namespaces: defaultdict[str, _Tally] = defaultdict(_Tally)
        self._hits: deque[tuple[str, str, Any]] = deque()
        self._bypasses: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._failing: set[tuple[str, Work]] = set()
        self.follow_forks()

    def hit(self, namespace: str, level: str, entry: Entry) -> None:
        """Count a hit of a level, and what it saved."""
        # No lock, which would take as long as all the rest: appending is one step.
        self._hits.append((namespace, level, entry[_SAVED]))
        if len(self._hits) > _MOST_PENDING:
            with self._lock:
                self._settle()

    def _settle(self) -> None:
        """Add up the pending hits; with the lock held."""
        for _ in range(len(self._hits)):
            namespace, level, (cost, read, written) = self._hits.popleft()
            tally = self._namespaces[namespace]
            tally.hits[level] += 1
            tally.seconds += cost
            tally.read += read
            tally.written += written

    def count(self, namespace: str, name: str, times: int = 1) -> None:
        """Count one of the plain counters of `Counts`, such as misses."""
        with self._lock:
            self._namespaces[namespace].counts[name] += times

    def bypass(self, reason: str) -> None:
        """Count a call that went past the cache."""
        with self._lock:
            self._bypasses[reason] += 1

    def fault(self, level: str, work: Work, error: Exception) -> None:
        """Count a fault of a level, and log it unless the level is known to be failing.

        A level whose breaker is open has logged that itself.
        """
        with self._lock:
            self._errors[level] += 1
            new = not isinstance(error, Unavailable) and (level, work) not in self._failing
            if new:
                self._failing.add((level, work))
        if new:
            _log.warning(
                "%s of the cache's %s level fail and are passed over while they do: %s: %s",
                work.capitalize(),
                level,
                type(error).__name__,
                error,
            )

    def works(self, level: str, work: Work) -> None:
        """Log that a level works which was known to be failing."""
        if not self._failing or (level, work) not in self._failing:
            return
        with self._lock:
            self._failing.discard((level, work))
        _log.warning("%s of the cache's %s level work again", work.capitalize(), level)

    def snapshot(self, levels: Mapping[str, Usage]) -> CacheStats:
        """Return the counts so far, and with them what the levels hold."""
        with self._lock:
            self._settle()
            namespaces = {name: tally.snapshot() for name, tally in self._namespaces.items()}
            bypasses, errors = dict(self._bypasses), dict(self._errors)
        total = _Tally()
        for counts in namespaces.values():
            total.add(counts)
        return CacheStats(
            **vars(total.snapshot()),
            bypasses=bypasses,
            errors=errors,
            levels=dict(levels),
            namespaces=namespaces,
        )

    def figures(self) -> list[Figure]:
        """Return the counts so far as metrics."""
        return figures(self.snapshot({}))

    def after_fork_in_child(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Recorder], tuple[()]]:
        return Recorder, ()


class _Tally:
    """The counters of one namespace."""

    __slots__ = ("counts", "hits", "read", "seconds", "written")

    def __init__(self) -> None:
        self.hits: defaultdict[str, int] = defaultdict(int)
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.read = self.written = 0

    def add(self, counts: Counts) -> None:
        for level, number in counts.hits.items():
            self.hits[level] += number
        for name in _PLAIN:
            self.counts[name] += getattr(counts, name)
        self.seconds += counts.saved_seconds
        self.read += counts.saved_tokens_read
        self.written += counts.saved_tokens_written

    def snapshot(self) -> Counts:
        return Counts(
            hits=dict(self.hits),
            saved_seconds=self.seconds,
            saved_tokens_read=self.read,
            saved_tokens_written=self.written,
            **{name: self.counts[name] for name in _PLAIN},
        )


_PLAIN = (
    "misses", "coalesced", "stale", "invalidated", "damaged", "refreshed", "refresh_errors",
)  # fmt: skip
