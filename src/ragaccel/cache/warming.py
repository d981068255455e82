"""Warming: every query is asked once, so that the cache behind holds the answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import csv
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ragaccel.cache.keys import Uncacheable, digest
from ragaccel.errors import ConfigurationError
from ragaccel.io import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

# `query` comes first: LlamaIndex query engines have a `retrieve` too, which most of them refuse.
_METHODS: Final = ("query", "retrieve", "invoke")
_ENDINGS: Final = (".txt", ".jsonl", ".csv", ".tsv")
_ERRORS_KEPT: Final = 1000
_REMEMBERED: Final = 1_000_000


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
        queries: Strings, or whatever `through` takes; read as they are needed. Or the path of a
            UTF-8 file: `.txt` with one query in a line; `.jsonl` with objects that have a "query",
            as recorded traffic has, or with strings; `.csv` or `.tsv` with a column named "query",
            or without a header and with the queries in the first column. Plain values (see
            `MultiLevelCache.set` on keys) that came among the last half million different ones are
            not asked again, and neither are blank lines.
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
    source, size = _source(queries)
    _check(concurrency, rate)
    workers = _Threads(_blocking(through), concurrency)
    with _bar(size, shown=progress) as tell:
        return run(_warm(workers, source, _Tally(tell), concurrency, rate))


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
    source, size = _source(queries)
    _check(concurrency, rate)
    workers = _Tasks(_awaiting(through))
    with _bar(size, shown=progress) as tell:
        return await _warm(workers, source, _Tally(tell), concurrency, rate)


class _Workers(Protocol):
    """What asks queries, in threads or tasks; only these methods are awaited by the flow."""

    async def down_to(self, count: int, tally: _Tally) -> None:
        """Wait until no more than `count` queries are under way, and note those that ended."""

    async def sleep(self, seconds: float) -> None:
        """Wait, and let others run."""

    def start(self, query: Any) -> None:
        """Begin to ask a query."""

    async def stop(self) -> None:
        """End what is under way."""


async def _warm(
    workers: _Workers,
    source: Iterator[Any],
    tally: _Tally,
    concurrency: int,
    rate: float | None,
) -> WarmReport:
    started = slot = time.monotonic()
    seen = _Seen()
    try:
        for query in source:
            await workers.sleep(0)
            if isinstance(query, _Unreadable):
                tally.ended(query.text, query.error)
            elif query in seen:
                tally.passed_over()
            else:
                await workers.down_to(concurrency - 1, tally)
                await workers.sleep(slot - time.monotonic())
                slot = max(slot, time.monotonic()) + (1 / rate if rate else 0)
                workers.start(query)
        await workers.down_to(0, tally)
    finally:
        await workers.stop()
    return WarmReport(
        tally.asked, tally.failed, time.monotonic() - started, errors=tuple(tally.errors)
    )


class _Threads:
    """Asks in a pool of threads; no method suspends."""

    def __init__(self, ask: Callable[[Any], Any], concurrency: int) -> None:
        self._ask = ask
        self._pool = concurrent.futures.ThreadPoolExecutor(concurrency, "ragaccel-warm")
        self._running: dict[concurrent.futures.Future[Exception | None], Any] = {}

    async def down_to(self, count: int, tally: _Tally) -> None:
        while len(self._running) > count:
            ended, _ = concurrent.futures.wait(self._running, return_when="FIRST_COMPLETED")
            for one in ended:
                tally.ended(self._running.pop(one), one.result())

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)  # noqa: ASYNC251 - `run` drives this, no event loop

    def start(self, query: Any) -> None:
        context = contextvars.copy_context()
        self._running[self._pool.submit(context.run, self._outcome, query)] = query

    async def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _outcome(self, query: Any) -> Exception | None:
        try:
            answer = self._ask(query)
            if inspect.iscoroutine(answer):
                answer.close()
                return _asynchronous(self._ask)
        except Exception as error:  # noqa: BLE001 - errors are the report's
            return error
        return None


class _Tasks:
    """Asks in tasks of the running event loop."""

    def __init__(self, ask: Callable[[Any], Awaitable[Any]]) -> None:
        self._ask = ask
        self._running: dict[asyncio.Task[Exception | None], Any] = {}

    async def down_to(self, count: int, tally: _Tally) -> None:
        while len(self._running) > count:
            ended, _ = await asyncio.wait(self._running, return_when="FIRST_COMPLETED")
            for one in ended:
                tally.ended(self._running.pop(one), one.result())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def start(self, query: Any) -> None:
        self._running[asyncio.create_task(self._outcome(query))] = query

    async def stop(self) -> None:
        for one in self._running:
            one.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _outcome(self, query: Any) -> Exception | None:
        try:
            await self._ask(query)
        except Exception as error:  # noqa: BLE001 - errors are the report's
            return error
        return None


class _Tally:
    """Counts what came of the queries."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.asked = 0
        self.failed = 0
        self.errors: list[tuple[Any, Exception]] = []
        self._tell = tell
        self._read = 0

    def ended(self, query: Any, error: Exception | None) -> None:
        self.asked += 1
        if error is not None:
            self.failed += 1
            if len(self.errors) < _ERRORS_KEPT:
                self.errors.append((query, error))
        self.passed_over()

    def passed_over(self) -> None:
        self._read += 1
        self._tell(self._read)


class _Seen:
    """The digests of the last queries: at least half of `_REMEMBERED`, and no more than that."""

    def __init__(self) -> None:
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, query: Any) -> bool:
        """Tell whether a query came before, and remember it; objects never did."""
        try:
            mark = digest("", "warm", query)
        except Uncacheable:
            return False
        if mark in self._new or mark in self._old:
            return True
        if len(self._new) >= _REMEMBERED // 2:
            self._new, self._old = set(), self._new
        self._new.add(mark)
        return False


def _check(concurrency: int, rate: float | None) -> None:
    given: Any = concurrency
    if not isinstance(given, int) or given < 1:
        raise ConfigurationError(f"concurrency must be 1 or more, got {concurrency!r}.")
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigurationError(
            f"rate must be queries per second above 0, or None for no limit, got {rate!r}."
        )


def _blocking(through: Any) -> Callable[[Any], Any]:
    found = [getattr(through, name, None) for name in _METHODS]
    ask = next(filter(callable, [*found, through]), None)
    if _is_async(ask) or (
        ask is None and any(callable(getattr(through, f"a{name}", None)) for name in _METHODS)
    ):
        raise _asynchronous(through)
    if ask is None:
        raise _nothing_to_ask(through)
    return ask


def _awaiting(through: Any) -> Callable[[Any], Awaitable[Any]]:
    for name in _METHODS:
        for method in (getattr(through, f"a{name}", None), getattr(through, name, None)):
            if callable(method):
                return method if _is_async(method) else _in_thread(method)
    if not callable(through):
        raise _nothing_to_ask(through)
    return through if _is_async(through) else _in_thread(through)


def _in_thread(ask: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
    def outcome(query: Any) -> tuple[Any, Exception | None]:
        # Returned and not raised: asyncio cannot carry a StopIteration out of a thread.
        try:
            return ask(query), None
        except Exception as error:  # noqa: BLE001 - raised below
            return None, error

    async def asked(query: Any) -> None:
        answer, error = await asyncio.to_thread(outcome, query)
        if error is not None:
            raise error
        if inspect.isawaitable(answer):
            await answer

    return asked


def _is_async(ask: Any) -> bool:
    call = getattr(ask, "__call__", None)  # noqa: B004 - asked of objects whose call is `async def`
    return inspect.iscoroutinefunction(ask) or inspect.iscoroutinefunction(call)


def _asynchronous(through: Any) -> ConfigurationError:
    return ConfigurationError(f"{through!r} is asynchronous; write `await awarm(...)`.")


def _nothing_to_ask(through: Any) -> ConfigurationError:
    return ConfigurationError(
        f"{type(through).__name__} cannot be asked: `through` is a function of one query, or an "
        "object with `retrieve`, `invoke` or `query`."
    )


@dataclass(frozen=True)
class _Unreadable:
    """A query that the source should have had."""

    text: str | None
    error: Exception


def _source(queries: Any) -> tuple[Iterator[Any], Callable[[], int | None]]:
    """Return the queries, and a function that tells how many there are, repeated ones included."""
    if isinstance(queries, (str, os.PathLike)):
        path = Path(queries)
        if not path.is_file():
            raise ConfigurationError(
                f"{str(path)!r} is no file; write [{str(path)!r}] to ask it as a query."
            )
        if path.suffix.lower() not in _ENDINGS:
            raise ConfigurationError(
                f"{str(path)!r} ends in none of {', '.join(_ENDINGS)}; name it so, or give a list "
                "of queries."
            )
        return _safely(_lines(path)), lambda: _count(path)
    if isinstance(queries, bytes) or not isinstance(queries, Iterable):
        raise ConfigurationError(f"queries is a list of queries or a path, got {queries!r}.")
    size = len(queries) if isinstance(queries, Sized) else None
    return _safely(queries), lambda: size


def _safely(queries: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from queries
    except Exception as error:  # noqa: BLE001 - errors are the report's
        yield _Unreadable(None, error)


def _lines(path: Path) -> Iterator[Any]:
    suffix = path.suffix.lower()
    found: Iterator[Any]
    with path.open(encoding="utf-8-sig", newline="") as file:
        if suffix in (".csv", ".tsv"):
            found = _column(csv.reader(file, delimiter="\t" if suffix == ".tsv" else ","))
        elif suffix == ".jsonl":
            found = (_recorded(line.strip()) for line in file if line.strip())
        else:
            found = (line.strip() for line in file)
        yield from (query for query in found if not isinstance(query, str) or query.strip())


def _column(rows: Iterator[list[str]]) -> Iterator[str]:
    first = next(rows, [])
    names = [name.strip().lower() for name in first]
    place = names.index("query") if "query" in names else 0
    if "query" not in names:
        yield from first[:1]
    for row in rows:
        yield from row[place : place + 1]


def _recorded(line: str) -> Any:
    try:
        record = json.loads(line)
        return record["query"] if isinstance(record, dict) else _text(record)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        wrong = ConfigurationError('the line is neither a JSON object with a "query" nor a string.')
        wrong.__cause__ = error
        return _Unreadable(line, wrong)


def _text(record: Any) -> str:
    if isinstance(record, str):
        return record
    raise TypeError(f"a {type(record).__name__}")


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


@contextlib.contextmanager
def _bar(size: Callable[[], int | None], *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show how many queries are done, if there is a terminal to show it on."""
    stderr: Any = sys.stderr  # None in a program without a console
    if not (shown and stderr and stderr.isatty()):
        yield lambda _: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("warming"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
    )
    started = time.monotonic()
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("warming", total=size(), rate="")

        def tell(done: int) -> None:
            per_second = done / max(time.monotonic() - started, 1e-3)
            bar.update(task, completed=done, rate=f"{per_second:,.1f}/s")

        yield tell
