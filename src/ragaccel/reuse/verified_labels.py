"""Labels: what reuse would have got right and wrong, by namespace, and the threshold they allow."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ragaccel.reuse.verified_bound import NEVER, Alarm, threshold

if TYPE_CHECKING:
    from collections.abc import Iterable

_REFIT_SHARE: Final = 0.02
_REFIT_LEAST: Final = 20


class Label(NamedTuple):
    """What a judge said of an answer that was reused, or would have been.

    Attributes:
        score: See `Neighbour`.
        wrong: Whether it was another answer than the model's.
        audit: Whether the score was above the threshold.
    """

    score: float
    wrong: bool
    audit: bool


class Table:
    """The newest labels, and the threshold that they allow, found anew only when there are more.

    Args:
        delta: The share of wrong answers among reused ones that is allowed.
        doubt: Probability that the threshold is too low.
        max_labels: How many are kept.
    """

    def __init__(self, delta: float, doubt: float, max_labels: int) -> None:
        self._delta, self._doubt = delta, doubt
        self.labels: deque[Label] = deque(maxlen=max_labels)
        self.threshold = NEVER
        self.was_broken = False
        self._alarm = Alarm(delta)
        self._news = 0

    @property
    def is_proven(self) -> bool:
        """Whether the labels prove a threshold."""
        return self.threshold < NEVER

    def above(self, score: float) -> tuple[int, int]:
        """Return how many labels are at or above a score, and how many of them were wrong."""
        found = [one.wrong for one in self.labels if one.score >= score]
        return len(found), sum(found)

    def add(self, label: Label) -> bool:
        """Take a label, and tell whether the bound was broken: then only the newest are kept."""
        self.labels.append(label)
        self._news += 1
        if label.audit and self._alarm.hear(wrong=label.wrong):
            self.was_broken = True
            self._forget(self._alarm.audits)
            return True
        refutes = label.wrong and label.score >= self.threshold
        if refutes or self._news >= max(_REFIT_LEAST, _REFIT_SHARE * len(self.labels)):
            self.fit()
        return False

    def fill(self, labels: Iterable[Label]) -> None:
        """Take labels of an earlier process."""
        self.labels.extend(labels)
        self.fit()

    def fit(self) -> None:
        """Find the threshold."""
        scores = np.array([one.score for one in self.labels])
        wrong = np.array([one.wrong for one in self.labels], dtype=bool)
        self.threshold = threshold(scores, wrong, self._delta, self._doubt)
        self._news = 0

    def _forget(self, audits: int) -> None:
        """Keep what came since the first of the last audits."""
        kept: list[Label] = []
        for label in reversed(self.labels):
            if audits <= 0:
                break
            kept.append(label)
            audits -= label.audit
        self.labels.clear()
        self.labels.extend(reversed(kept))
        self._alarm.reset()
        self.fit()
