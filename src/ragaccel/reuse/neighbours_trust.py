"""How far rows outside of the lists are trusted not to reach, learned for one corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ragaccel.reuse.neighbours_bound import ROUNDING
from ragaccel.reuse.neighbours_index import MOST_CHANGES
from ragaccel.reuse.verified_bound import NEVER, chance_of_at_least
from ragaccel.reuse.verified_labels import Label, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

#: On 123,000 passages and two sets of questions at most 0.05% of what it served was not exact.
START: Final = 0.5
_MOST_LABELS: Final = 20_000
_FIRST_LABELS: Final = 500


class Trust:
    """The need (see `neighbours_bound.need`) from which an answer is served.

    It starts at `START`, which labels may refute, and is then the lowest that labels prove. Labels
    are a fair sample of all questions, served or not: each is taken with the same probability. They
    are forgotten where audits show that the bound is broken, and after a bulk load.

    Args:
        error: The share of served answers that may be below the recall.
        doubt: Probability that what was learned allows more.
        audit: The share of questions that is labelled in the end.
    """

    def __init__(self, error: float, doubt: float, audit: float) -> None:
        self._error, self._doubt, self._audit = error, doubt, audit
        self._table = Table(error, doubt, _MOST_LABELS)
        self._seq: int | None = None

    def follow(self, seq: int) -> None:
        """Hear where the collection's change log is."""
        if self._seq is not None and seq - self._seq > MOST_CHANGES:
            self._table = Table(self._error, self._doubt, _MOST_LABELS)
        self._seq = seq

    @property
    def need(self) -> float:
        """What is served from; infinity where nothing is."""
        table = self._table
        if table.is_proven or table.was_broken:
            return table.threshold
        trials, mistakes = table.above(START)
        refuted = chance_of_at_least(mistakes, trials, self._error) <= self._doubt
        return NEVER if refuted else START

    @property
    def share(self) -> float:
        """The share of questions to take a label of: of the first 500 all, then fewer and fewer."""
        return max(self._audit, min(1.0, _FIRST_LABELS / (len(self._table.labels) + 1)))

    def add(self, need: float, *, wrong: bool, audit: bool) -> None:
        """Take a label: whether what had such a need was, or would have been, below the recall."""
        self._table.add(Label(need, wrong, audit))


def recall(served: Sequence[float], found: Sequence[float]) -> float:
    """Return the recall of rows that were served, by their scores; equal scores are as right.

    Args:
        served: Scores of the rows.
        found: Scores of the rows that a search finds.
    """
    if not found:
        return 1.0
    least = found[-1] - ROUNDING * (1 + abs(found[-1]))
    return min(1.0, sum(score >= least for score in served) / len(found))
