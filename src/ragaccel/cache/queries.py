"""Queries to ask, read from whatever lists them: each once, and as they are needed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ragaccel.cache.keys import Uncacheable, digest
from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRORS_KEPT: Final = 1000
_ENDINGS: Final = (".txt", ".jsonl", ".csv", ".tsv")
_REMEMBERED: Final = 1_000_000


class Queries:
    """The distinct queries of a source, and what came of the rest of it.

    Attributes:
        passed_over: How many were repeated or could not be read.
        unreadable: How many could not be read.
        errors: The first 1,000 of those, each with what was raised.

    Args:
        source: An iterable of queries, or the path of a file; see `ragaccel.cache.warm`.

    Raises:
        ConfigurationError: It is neither.
    """

    def __init__(self, source: Any) -> None:
        self._items, self._size = _source(source)
        self.passed_over = self.unreadable = 0
        self.errors: list[tuple[Any, Exception]] = []

    def size(self) -> int | None:
        """Return how many there are, repeated ones included, if that can be known."""
        return self._size()

    def read(self) -> Iterator[Any]:
        """Yield each query once."""
        seen = _Seen()
        for query in self._items:
            if isinstance(query, _Unreadable):
                self.unreadable += 1
                if len(self.errors) < ERRORS_KEPT:
                    self.errors.append((query.text, query.error))
            elif query not in seen:
                yield query
                continue
            self.passed_over += 1


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
