"""How sure a measurement is: intervals of a metric, and of the difference of two settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ragaccel.tuning.goals import Goal

    Pair = tuple[NDArray[np.float64], NDArray[np.float64]]

#: Normal quantile of a bound that is right in 95 of 100 cases, on its side.
LIKELY: Final = 1.645
#: Of one that is right in 99 of 100: what is applied must keep its goals with that.
SURE: Final = 2.326
_DRAWS: Final = 400
_SEED: Final = 0


class Interval(NamedTuple):
    """A metric and its bounds.

    Attributes:
        value: As measured.
        low: What it is at least.
        high: What it is at most.
    """

    value: float
    low: float
    high: float


def interval(goal: Goal, values: NDArray[np.float64], z: float = LIKELY) -> Interval:
    """Return a metric of requests with its bounds.

    Shares get Wilson's interval on the number of independent answers that spread as much as the
    requests do: the misses of one request come together. Others get the bootstrap's.

    Args:
        goal: Whose metric.
        values: One for each request, shape (n,).
        z: How sure the bounds are, as a normal quantile.

    Source: Wilson, "Probable inference", 1927; Efron, "Bootstrap methods", 1979; Kish, "Survey
    Sampling", 1965 (design effect).
    """
    if goal.is_share:
        return _wilson(values, z)
    value = float(goal.of(values))
    drawn = goal.of(values[_draws(len(values))])
    error = z * float(drawn.std())
    return Interval(value, value - error, value + error)


def gain(goal: Goal, rounds: Sequence[Pair], z: float = LIKELY) -> Interval:
    """Return by which share one setting is better than another.

    It is rounds that are counted, not requests: a machine that is slow is so for all requests of a
    round, and many of them make nothing surer. Of one round there is no telling.

    Args:
        goal: What is to be best.
        rounds: Of each round the values of the one, and those of the other for the same requests.
        z: How sure the bounds are.

    Source: Student's t for the logarithm of the ratios; its quantile by the expansion of
    Abramowitz and Stegun, 26.7.5.
    """
    ratios = np.log([float(goal.of(one)) / float(goal.of(other)) for one, other in rounds])
    middle, free = float(ratios.mean()), len(ratios) - 1
    error = np.inf
    if free:
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        t = z + first / free + second / free**2
        error = t * float(ratios.std(ddof=1)) / np.sqrt(free + 1)
    value, *ends = (
        goal.sign * (1 - float(np.exp(at))) for at in (middle, middle - error, middle + error)
    )
    return Interval(value, min(ends), max(ends))


def _draws(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(_SEED).integers(0, count, (_DRAWS, count))


def _wilson(values: NDArray[np.float64], z: float) -> Interval:
    share, spread, count = float(values.mean()), float(values.var()), float(len(values))
    if spread > 0:
        count *= min(share * (1 - share) / spread, count)
    middle = share + z * z / (2 * count)
    error = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return Interval(share, float((middle - error) / scale), float((middle + error) / scale))
