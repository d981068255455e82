"""Watching reads: what a cached result depends on, seen while it is computed."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
        slots: Rows of the answer.
    """

    collection: str
    seq: int
    mark: int
    query: NDArray[np.float32]
    floor: float
    slots: tuple[int, ...]


_traces: ContextVar[list[SearchTrace] | None] = ContextVar("ragaccel_traces", default=None)


class watch:  # noqa: N801 - a context manager, as those of contextlib
    """Collect the searches that happen inside, also in threads that copy this context."""

    __slots__ = ("_token",)

    def __enter__(self) -> list[SearchTrace]:
        traces: list[SearchTrace] = []
        self._token = _traces.set(traces)
        return traces

    def __exit__(self, *exit_: object) -> None:
        _traces.reset(self._token)


def watched() -> list[SearchTrace] | None:
    """Return the list that searches are to be told to, or None."""
    return _traces.get()
