"""What an answer out of a store with a change log depends on, and whether it still holds.

An answer is the rows of one search. It holds as long as none of them is replaced or goes, and no
new row scores as high as the last of them: a row below that cannot be among them, whatever filter
stands in between. Where scores are not known every new row is one that may; where a search is more
than the nearest rows (hybrid, maximal marginal relevance, keywords), every change may.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np

from ragaccel.cache import Stale
from ragaccel.reuse.changes import Position, open_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ragaccel.reuse.changes import Change

Metric = Literal["cosine", "dot"]

#: Scores of the same vectors, computed here in double precision from float32, and by a store.
_ROUNDING: Final = 1e-5
#: Scores that are this near have no order that a later search has to keep.
_TIE: Final = 1e-9


class Read(msgspec.Struct, array_like=True, frozen=True):
    """A search in a store with a change log.

    Attributes:
        log: The log's id; empty where it is not known what the answer depends on.
        seq: Where the log stood before the search; see `Position`.
        mark: See there.
        rows: Ids of the rows found; None where any change may change the answer.
        documents: Ids of the documents they belong to; None where that is not known.
        query: The query's vector, float32.
        floor: Score of the last row; minus infinity where any new row may be found.
        metric: Of the scores; None where they are not known.
    """

    log: str
    seq: int = 0
    mark: int = 0
    rows: tuple[str, ...] | None = None
    documents: tuple[str, ...] | None = None
    query: bytes = b""
    floor: float = -math.inf
    metric: Metric | None = None

    @property
    def position(self) -> Position:
        """Where the log stood."""
        return Position(self.seq, self.mark)


#: Stands for a search that nobody knows anything about.
UNSURE: Final = Read("")


def follow(read: Read) -> Read:
    """Return a search as one at the log's present place; raise `Stale` if its answer may differ."""
    log = open_log(read.log)
    news = None if log is None else log.since(read.position)
    if news is None:
        raise Stale
    position, changes = news
    if not all(_is_harmless(one, read) for one in changes):
        raise Stale
    if position == read.position:
        return read
    return msgspec.structs.replace(read, seq=position.seq, mark=position.mark)


def _is_harmless(change: Change, read: Read) -> bool:
    if change.sort == "everything" or read.rows is None:
        return False
    if change.sort == "documents":
        return read.documents is not None and set(change.ids).isdisjoint(read.documents)
    if not set(change.ids).isdisjoint(read.rows):
        return False
    return change.sort == "delete" or _is_below(change, read)


def _is_below(change: Change, read: Read) -> bool:
    """Tell whether all rows that a change puts in score for sure below the last one found."""
    if not change.ids:
        return True
    query = np.frombuffer(read.query, np.float32)
    if read.metric is None or len(change.vectors) != len(read.query) * len(change.ids):
        return False
    reached = scores(query, np.frombuffer(change.vectors, np.float32), read.metric)
    return bool((reached < read.floor - _ROUNDING * (1 + abs(read.floor))).all())


def scores(
    query: NDArray[np.float32], vectors: NDArray[np.float32], metric: Metric
) -> NDArray[np.float64]:
    """Return the scores of rows of vectors; not a number for one without a length."""
    exact = query.astype(np.float64)
    rows = vectors.astype(np.float64).reshape(-1, len(exact))
    products = rows @ exact
    if metric == "dot":
        return products
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines: NDArray[np.float64] = products / (
            np.linalg.norm(rows, axis=1) * np.linalg.norm(exact)
        )
    return cosines


def are_alike(one: float, other: float) -> bool:
    """Tell whether two scores are the same but for rounding."""
    return abs(one - other) <= _ROUNDING * (1 + abs(one))


def have_order(found: Sequence[float]) -> bool:
    """Tell whether scores are numbers of which no two are so near that their order is chance."""
    array = np.sort(np.asarray(found, np.float64))
    return bool(np.isfinite(array).all() and (np.diff(array) > _TIE).all())


_reads: ContextVar[list[Read] | None] = ContextVar("ragaccel_reads", default=None)


class reading:  # noqa: N801 - a context manager, as those of contextlib
    """Collect the searches that happen inside, also in threads that copy this context."""

    __slots__ = ("_token",)

    def __enter__(self) -> list[Read]:
        reads: list[Read] = []
        self._token = _reads.set(reads)
        return reads

    def __exit__(self, *exit_: object) -> None:
        _reads.reset(self._token)


def reads() -> list[Read] | None:
    """Return the list that searches are to be told to, or None."""
    return _reads.get()
