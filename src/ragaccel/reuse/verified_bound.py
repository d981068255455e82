"""The threshold above which answers may be reused, from labels, and an alarm for when it breaks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: Nothing scores as high: no answer is reused.
NEVER: Final = math.inf
_GROWTH: Final = 1.1
_STARTS: Final = 4
_ALARM: Final = 1000.0
_WORSE: Final = 10.0
_MOST_WORSE: Final = 0.5
_PRECISION: Final = 1e-6


def threshold(
    scores: NDArray[np.float64], wrong: NDArray[np.bool_], delta: float, doubt: float
) -> float:
    """Return the lowest score from which on at most a share of `delta` is wrong.

    Candidates are the n highest scores, for a fixed sequence of log-spaced n that is chosen without
    a look at what was wrong. Each is tested by the exact binomial test, whose inversion is the
    bound of Clopper and Pearson (1934), and the sequence ends at the first that is not passed, so
    that testing many costs nothing (Angelopoulos et al. 2021, Learn then Test, 2110.01052). It may
    begin at several n, which share the doubt: a single wrong label among the best need not end it.

    Args:
        scores: Of the labels.
        wrong: Whether the answer was another one.
        delta: The share of wrong answers that is allowed.
        doubt: Probability that the threshold is too low.

    Returns:
        The threshold, or `NEVER` where the labels do not prove one.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, mistakes = scores[order], np.cumsum(wrong[order])
    each = doubt / _STARTS
    first = math.ceil(math.log(each) / math.log1p(-delta))
    lowest = NEVER
    for start in range(_STARTS):
        for n in _sizes(first * 2**start, len(ranked)):
            size = int(np.searchsorted(-ranked, -ranked[n - 1], side="right"))  # with all its ties
            if chance_of_at_most(int(mistakes[size - 1]), size, delta) > each:
                break
            lowest = min(lowest, float(ranked[size - 1]))
    return lowest


def _sizes(first: int, most: int) -> Iterator[int]:
    n = first
    while n <= most:
        yield n
        n = math.ceil(n * _GROWTH)


def chance_of_at_most(mistakes: int, trials: int, share: float) -> float:
    """Return the probability of so few mistakes if each trial has one with probability `share`."""
    if mistakes >= trials * share:
        return 1.0  # not the probability, but no doubt is as large
    return _at_most(mistakes, trials, share)


def chance_of_at_least(mistakes: int, trials: int, share: float) -> float:
    """Return the probability of so many mistakes if each trial has one with probability `share`."""
    if mistakes <= trials * share:
        return 1.0  # see chance_of_at_most
    return max(0.0, 1 - _at_most(mistakes - 1, trials, share))


def most_likely_at_most(mistakes: int, trials: int, doubt: float) -> float:
    """Return the share of mistakes that is not exceeded, but for a doubt (Clopper and Pearson).

    Args:
        mistakes: How many there were.
        trials: Among how many.
        doubt: Probability that the share is larger.
    """
    low, high = mistakes / trials if trials else 0.0, 1.0
    if low >= high or not trials:
        return 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        if chance_of_at_most(mistakes, trials, middle) > doubt:
            low = middle
        else:
            high = middle
    return high


def _at_most(mistakes: int, trials: int, share: float) -> float:
    count = np.arange(mistakes + 1)
    terms = np.concatenate(([0.0], np.log((trials - count[:-1]) / count[1:])))
    logs = np.cumsum(terms) + count * math.log(share) + (trials - count) * math.log1p(-share)
    return float(np.exp(logs).sum())


class Alarm:
    """Hears of audits, and tells when more of them are wrong than the bound allows.

    A cumulative sum test (Page, 1954): each audit multiplies the evidence by how much likelier it
    is if ten times as many were wrong. While the bound holds there are at least 1,000 audits
    between two false alarms on average.

    Args:
        delta: The share of wrong answers that is allowed.
    """

    def __init__(self, delta: float) -> None:
        worse = min(_MOST_WORSE, _WORSE * delta)
        self._if_wrong, self._if_right = worse / delta, (1 - worse) / (1 - delta)
        self._evidence = 1.0
        self.audits = 0

    def hear(self, *, wrong: bool) -> bool:
        """Take an audit, and tell whether the bound is broken.

        `audits` counts those since it began to be, as far as can be told.
        """
        self._evidence *= self._if_wrong if wrong else self._if_right
        self.audits += 1
        if self._evidence <= 1:
            self.reset()
        return self._evidence >= _ALARM

    def reset(self) -> None:
        """Forget what was heard."""
        self._evidence, self.audits = 1.0, 0
