"""`Duel`: the best settings beside what was, on queries that the search did not see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from ragaccel.tuning import certain
from ragaccel.tuning.certain import Interval
from ragaccel.tuning.goals import SECONDS
from ragaccel.tuning.search import Measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ragaccel.tuning.goals import Goal
    from ragaccel.tuning.replay import Replay
    from ragaccel.tuning.search import Found
    from ragaccel.tuning.study import Setting

_LEAST_GAIN: Final = 0.03
_ROUNDS: Final = 12
_LEAST_ROUNDS: Final = 4


class Duel:
    """Compares the best settings with what was, in turn, on queries that the search did not see.

    Attributes:
        gain: By which share the winner is better, or the last one that was compared.
        noise: By which share the same settings differ between rounds.
        reason: Why what was stays or goes.
    """

    def __init__(
        self, replay: Replay, incumbent: Setting, best: Goal, bounds: Sequence[Goal]
    ) -> None:
        self._replay, self._incumbent, self._best, self._bounds = replay, incumbent, best, bounds
        self.gain: Interval | None = None
        self.noise = 0.0
        self.reason = "what was is as good as anything that was found; it stays."

    def run(self, found: Found, queries: NDArray[np.int64]) -> Measured | None:
        """Return who is surely better and keeps the bounds on these queries too, if anybody."""
        for one in found.ranked:
            if one.setting == self._incumbent:
                return None
            challenger, incumbent, self.gain = self._rounds(one.setting, queries)
            if challenger.fails_more_than(incumbent):
                self.reason = "the best settings fail on held-out queries; what was stays."
                continue
            if not challenger.keeps(self._bounds, certain.LIKELY):
                self.reason = "the best settings miss a goal on held-out queries; what was stays."
                continue
            if not incumbent.keeps(self._bounds):
                self.reason = "what was misses a goal on held-out queries, and this keeps all."
                return challenger
            if self.gain.low > 0 and self.gain.value > _LEAST_GAIN:
                self.reason = (
                    f"{self._best.metric} is better by {self.gain.value:.1%} ({self.gain.low:.1%} "
                    f"to {self.gain.high:.1%}) on held-out queries, and all goals are kept."
                )
                return challenger
            self.reason = (
                f"the best other settings are better by {self.gain.value:.1%} "
                f"({self.gain.low:.1%} to {self.gain.high:.1%}) on held-out queries, which is not "
                "surely more than 3%; what was stays."
            )
            return None
        return None

    def _rounds(
        self, setting: Setting, queries: NDArray[np.int64]
    ) -> tuple[Measured, Measured, Interval]:
        """Measure a setting and what was in turn, until it is sure which is better."""
        both = [Measured(who, self._replay.known(who)) for who in (setting, self._incumbent)]
        rounds: list[list[NDArray[np.float64]]] = []
        means = []
        gain = Interval(0.0, -np.inf, np.inf)
        while len(rounds) < _ROUNDS:
            rounds.append([np.ones(1), np.ones(1)])
            for which in (0, 1) if len(rounds) % 2 else (1, 0):
                who = both[which]
                samples = self._replay.measure(who.setting, queries)
                who.add(queries.tolist(), samples)
                known = np.full(1, who.known.get(self._best.metric, 0.0))
                rounds[-1][which] = samples.get(self._best.series, known)
            means.append(float(both[1].samples[SECONDS][-len(queries) :].mean()))
            gain = certain.gain(self._best, [(one, other) for one, other in rounds])
            if len(rounds) >= _LEAST_ROUNDS and (gain.low > _LEAST_GAIN or gain.high < 0):
                break
        self.noise = float(np.std(means) / np.mean(means))
        return both[0], both[1], gain
