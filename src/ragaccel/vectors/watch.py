"""Watching reads: what a cached result depends on, seen while it is computed."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ragaccel import telemetry
    from ragaccel.vectors.collection import VectorCollection
    from ragaccel.vectors.database import Position
    from ragaccel.vectors.filters import Filter
    from ragaccel.vectors.metric import Found
    from ragaccel.vectors.search import Answers, Search


@dataclass(frozen=True, slots=True)
class SearchTrace:
    """One search, told so that its answer can be checked against later changes.

    Attributes:
        collection: The collection's own id.
        seq: Position of its change log when the search ran.
        mark: A random number that this log alone has at that position: a restored backup that was
            written to since has another.
        query: The raw query vector, float32 of shape (dim,).
        floor: Score that a new row must reach to enter the answer; minus infinity where the answer
            held fewer rows than were asked for.
        slots: Rows of the answer, nearest first, and the spare ones after them.
        scores: Of the slots; empty where the rows were not found by their scores.
        k: Rows that were asked for; 0 where all that pass the filter were.
        spare: Rows that were looked for beyond them, by which an answer outlives deletes.
        where: The filter that rows had to pass; None for none.
    """

    collection: str
    seq: int
    mark: int
    query: NDArray[np.float32]
    floor: float
    slots: tuple[int, ...]
    scores: tuple[float, ...] = ()
    k: int = 0
    spare: int = 0
    where: Filter | None = None


class Shortcut(Protocol):
    """Answers a search by what earlier ones found, or has it made."""

    def __call__(
        self,
        collection: VectorCollection,
        search: Search,
        make: Callable[[Search], Answers],
        span: telemetry.Stage,
    ) -> Answers:
        """Return the answers.

        Args:
            collection: What is searched.
            search: What is asked; one query.
            make: Makes a search, this or another one.
            span: The stage of the search.
        """


_traces: ContextVar[list[SearchTrace] | None] = ContextVar("ragaccel_traces", default=None)


_spare: ContextVar[int] = ContextVar("ragaccel_spare", default=0)
_shortcut: ContextVar[Shortcut | None] = ContextVar("ragaccel_shortcut", default=None)


class watch:  # noqa: N801 - a context manager, as those of contextlib
    """Collect the searches that happen inside, also in threads that copy this context.

    Args:
        spare: Rows that each search looks for beyond those it returns.
        shortcut: What searches are put to first; None for nothing.
    """

    __slots__ = ("_shortcut", "_shortcut_token", "_spare", "_spare_token", "_token")

    def __init__(self, spare: int = 0, shortcut: Shortcut | None = None) -> None:
        self._spare, self._shortcut = spare, shortcut

    def __enter__(self) -> list[SearchTrace]:
        traces: list[SearchTrace] = []
        self._token, self._spare_token = _traces.set(traces), _spare.set(self._spare)
        self._shortcut_token = _shortcut.set(self._shortcut)
        return traces

    def __exit__(self, *exit_: object) -> None:
        _traces.reset(self._token)
        _spare.reset(self._spare_token)
        _shortcut.reset(self._shortcut_token)


def watched() -> list[SearchTrace] | None:
    """Return the list that searches are told to, or None."""
    return _traces.get()


def tell(
    collection: str,
    search: Search,
    found: Sequence[Found],
    position: Position,
    floor: float | None = None,
) -> None:
    """Tell the watcher, if there is one, what was found.

    Args:
        collection: The collection's own id.
        search: What was asked.
        found: Scores and slots of each query, the spare ones included.
        position: Of the change log, when it was found.
        floor: See `SearchTrace`; that of the last row by default.
    """
    traces = _traces.get()
    if traces is None:
        return
    for query, (scores, slots) in zip(search.queries, found, strict=True):
        is_full = scores and len(slots) == search.reach
        least = scores[-1] if is_full else search.min_score
        traces.append(
            SearchTrace(
                collection, *position, query.copy(), least if floor is None else floor,
                tuple(slots), tuple(scores), search.k, search.spare, search.where,
            )
        )  # fmt: skip


def spare() -> int:
    """Return how many rows a search is to look for beyond those it returns."""
    return _spare.get()


def shortcut() -> Shortcut | None:
    """Return what searches are to be put to first, or None."""
    return _shortcut.get()
