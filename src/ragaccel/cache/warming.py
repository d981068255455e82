"""Warming: every query is asked once, so that the cache behind holds the answers."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragaccel.batching.gathering import agather, gather
from ragaccel.batching.progress import bar, on_terminal
from ragaccel.cache.queries import ERRORS_KEPT, Queries

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from ragaccel.batching.outcome import Outcome


@dataclass(frozen=True)
class WarmReport:
    """What a warming did.

    Attributes:
        asked: Distinct queries, those that failed included.
        failed: Those of them that raised an error or could not be read from the source.
        seconds: How long it took.
        errors: The first 1,000 failed queries, each with what was raised. The query is the line of
            a file that cannot be understood, and None where the source itself broke off.
    """

    asked: int
    failed: int
    seconds: float
    errors: tuple[tuple[Any, Exception], ...] = ()

    def __str__(self) -> str:
        text = f"{self.asked:,} queries asked in {self.seconds:.1f} s, {self.failed:,} failed"
        if not self.errors:
            return text
        query, error = self.errors[0]
        return f"{text}; the first is {query!r}: {type(error).__name__}: {error}"


def warm(
    queries: Iterable[Any] | str | os.PathLike[str],
    through: Any,
    *,
    concurrency: int = 4,
    rate: float | None = None,
    progress: bool = True,
) -> WarmReport:
    """Ask every query once, in threads that see the caller's context variables.

    Args:
        queries: Strings, or whatever `through` takes; read as they are needed, at most twice
            `concurrency` ahead. Or the path of a UTF-8 file: `.txt` with one query in a line;
            `.jsonl` with objects that have a "query", as recorded traffic has, or with strings;
            `.csv` or `.tsv` with a column named "query", or without a header and with the queries
            in the first column. Plain values (see `MultiLevelCache.set` on keys) that came among
            the last half million different ones are not asked again, and neither are blank lines.
        through: A function of one query, or an object with `query`, `retrieve` or `invoke`: a query
            engine, retriever, model or chain whose cache is to be filled.
        concurrency: The most queries under way at a time.
        rate: The most queries started in a second, evenly spaced; None for no limit.
        progress: Show a bar with rate and remaining time on stderr if that is a terminal.

    Returns:
        The report. Errors of single queries are in it and are never raised; KeyboardInterrupt is,
        after the queries under way have ended.

    Raises:
        ConfigurationError: An argument cannot be used.
    """
    asked = Queries(queries)
    outcomes = gather(asked.read(), through, concurrency=concurrency, ordered=False, rate=rate)
    tally = _Tally(asked)
    with _bar(asked, shown=progress) as tell:
        for outcome in outcomes:
            tell(tally.hear(outcome))
        tell(tally.done)
    return tally.report()


async def awarm(
    queries: Iterable[Any] | str | os.PathLike[str],
    through: Any,
    *,
    concurrency: int = 4,
    rate: float | None = None,
    progress: bool = True,
) -> WarmReport:
    """Do what `warm` does, without blocking the event loop.

    `through` is asked by `aquery`, `aretrieve` or `ainvoke`, or is a coroutine function; what has
    no asynchronous form is asked in threads. A cancellation cancels the queries under way.
    """
    asked = Queries(queries)
    flow = agather(asked.read(), through, concurrency=concurrency, ordered=False, rate=rate)
    tally = _Tally(asked)
    with _bar(asked, shown=progress) as tell:
        async with contextlib.aclosing(flow) as outcomes:
            async for outcome in outcomes:
                tell(tally.hear(outcome))
        tell(tally.done)
    return tally.report()


class _Tally:
    """Counts what came of the queries."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._started = time.monotonic()
        self._asked = self._failed = 0
        self._errors: list[tuple[Any, Exception]] = []

    @property
    def done(self) -> int:
        return self._asked + self._queries.passed_over

    def hear(self, outcome: Outcome) -> int:
        """Take one in; return how many are done."""
        self._asked += 1
        if outcome.error is not None:
            self._failed += 1
            if len(self._errors) < ERRORS_KEPT:
                self._errors.append((outcome.item, outcome.error))
        return self.done

    def report(self) -> WarmReport:
        unreadable = self._queries.unreadable
        return WarmReport(
            self._asked + unreadable,
            self._failed + unreadable,
            time.monotonic() - self._started,
            tuple([*self._queries.errors, *self._errors][:ERRORS_KEPT]),
        )


def _bar(queries: Queries, *, shown: bool) -> contextlib.AbstractContextManager[Any]:
    shown = shown and on_terminal()
    return bar("warming", queries.size() if shown else None, shown=shown)
