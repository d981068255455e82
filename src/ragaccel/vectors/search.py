"""What a search asks of a collection, and what it finds."""

from __future__ import annotations

import math
from bisect import bisect_right
from operator import neg
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ragaccel.errors import ConfigurationError
from ragaccel.telemetry import attributes
from ragaccel.vectors import database
from ragaccel.vectors.records import Hit

if TYPE_CHECKING:
    import sqlite3

    from numpy.typing import NDArray

    from ragaccel.vectors.database import Position
    from ragaccel.vectors.filters import Filter
    from ragaccel.vectors.index import Index
    from ragaccel.vectors.metric import Found
    from ragaccel.vectors.records import Document
    from ragaccel.vectors.rowset import RowSet
    from ragaccel.vectors.store import Store

ANY_SCORE: Final = -math.inf


class Search(NamedTuple):
    """What is asked.

    Attributes:
        queries: Raw, float32 of shape (m, dim).
        k: Rows per query.
        where: A filter that rows must pass.
        min_score: The least score of a row.
        exact: Whether to compare with every vector.
        vectors: Whether hits get their raw vectors.
        documents: Whether hits get what is stored of the rows.
        spare: Rows that are looked for beyond the k, for the watcher.
        among: Slots that are compared with and no others, int64 of shape (n,), ascending; None for
            all that there are.
    """

    queries: NDArray[np.float32]
    k: int
    where: Filter | None = None
    min_score: float = ANY_SCORE
    exact: bool = False
    vectors: bool = False
    documents: bool = True
    spare: int = 0
    among: NDArray[np.int64] | None = None

    @property
    def reach(self) -> int:
        """How many rows are looked for."""
        return self.k + self.spare

    def run(self, store: Store, db: sqlite3.Connection, allowed: RowSet | None) -> Answers:
        """Find the nearest rows, and read what is stored of them."""
        if store.index is None:
            return Answers([([], []) for _ in self.queries], {}, {}, 0, store.position, self.k)
        if self.among is None:
            found = store.index.search(self.queries, self.reach, allowed, exact=self.exact)
        else:
            found = store.index.best_among(self.queries, self.reach, self.among)
        if self.min_score > ANY_SCORE:
            found = [_at_least(one, self.min_score) for one in found]
        if len(found) == 1:
            wanted = found[0][1][: self.k]
        else:
            wanted = sorted({slot for _, slots in found for slot in slots[: self.k]})
        raw = store.raw(db, wanted) if self.vectors else {}
        searched = store.index.live_count if allowed is None else len(allowed)
        if self.among is not None:
            searched = len(self.among)
        documents = database.documents(db, wanted, whole=self.documents)
        return Answers(found, documents, raw, searched, store.position, self.k)


class Answers(NamedTuple):
    """What is found.

    Attributes:
        found: Exact scores and slots per query, nearest first, with the spare ones.
        documents: What is stored of the rows, by slot; a row that is gone meanwhile has none.
        raw: Raw vectors by slot, where they were asked for.
        searched: How many rows there were to find.
        position: Of the change log, when it was found.
        k: Rows per query that were asked for.
        floor: No row that is missing scores above it; None where that is the score of the last.
    """

    found: list[Found]
    documents: dict[int, Document]
    raw: dict[int, NDArray[np.float32]]
    searched: int
    position: Position
    k: int
    floor: float | None = None

    def hits(self) -> list[list[Hit]]:
        """Return the hits of each query, nearest first."""
        documents, raw = self.documents, self.raw
        return [
            [
                Hit.found(documents[slot], score, raw.get(slot))
                for score, slot in zip(scores[: self.k], slots[: self.k], strict=True)
                if slot in documents
            ]
            for scores, slots in self.found
        ]

    def told(self, search: Search, index: Index) -> dict[str, str | int | float]:
        """Return what the stage of a search tells of them; what is as usual is left out."""
        rows = index.live_count
        told: dict[str, str | int | float] = {
            attributes.CODEC: index.spec.codec,
            attributes.ROWS: rows,
            attributes.CANDIDATES: rows if search.exact else index.candidates(search.reach),
        }
        if self.floor is not None:
            return told | {attributes.CANDIDATES: self.searched}
        if self.searched < rows:
            told[attributes.SELECTIVITY] = self.searched / rows
        if len(search.queries) > 1:
            told[attributes.QUERIES] = len(search.queries)
        return told

    def recall(self, right: Answers) -> float | None:
        """Return the share of the right answers that are here; None where rows changed between."""
        wanted = [set(slots) for _, slots in right.found]
        if right.position != self.position or not any(wanted):
            return None
        found = sum(
            len(one.intersection(slots)) for one, (_, slots) in zip(wanted, self.found, strict=True)
        )
        return found / sum(map(len, wanted))


def check_k(k: Any) -> int:
    """Return how many rows are wanted.

    Raises:
        ConfigurationError: Not a whole number of at least 1.
    """
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise ConfigurationError(f"k must be at least 1 and whole, got {k!r}.")
    return int(k)


def check_score(score: Any) -> float:
    """Return the least score that is wanted; None stands for any.

    Raises:
        ConfigurationError: Not a number, or NaN.
    """
    if score is None:
        return ANY_SCORE
    if not isinstance(score, (int, float, np.number)) or math.isnan(score):
        raise ConfigurationError(f"min_score must be a number or None, got {score!r}.")
    return float(score)


def _at_least(found: Found, score: float) -> Found:
    scores, slots = found
    count = bisect_right(scores, -score, key=neg)
    return scores[:count], slots[:count]
