"""The search: settings race over more and more queries, until it is sure which is best.

1. What is known without a query (memory) leaves out settings that cannot keep a bound.
2. All that are left, or a share of them that Optuna proposes, answer a few queries, family by
   family. Of a family whose knobs are monotone the middle goes first: what misses a quality takes
   all smaller ones with it, what is too slow all larger ones.
3. Those that may keep all bounds and are fastest answer more queries, ever fewer of them.
4. The last ones are measured anew in turn, on the same queries, until their intervals part.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification", 2016 (successive halving).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from ragaccel.tuning import certain
from ragaccel.tuning.certain import LIKELY, SURE, Interval
from ragaccel.tuning.goals import Goal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from ragaccel.tuning.study import Samples, Setting, Space, Study

#: The most of what is left of the budget that a rung may take.
_SHARE: Final = 0.5
#: Queries of each rung, and how many settings go on from it.
_RUNGS: Final = ((24, 64), (64, 24), (160, 10))
_FINALISTS: Final = 8
_ROUNDS: Final = 64
_LEAST_ROUNDS: Final = 4
#: Into how many parts queries go, so that a round is short and there are many.
_PARTS: Final = 4
_MOST_LISTED: Final = 20_000
_TOO_SLOW: Final = 1.5
_CLOSE: Final = 0.03
_FAILED: Final = "error_rate"
#: How much slower a setting may look, and still be a finalist.
_NOISE: Final = 0.5


class Measure(Protocol):
    """What the search asks of whoever can turn the knobs."""

    def known(self, setting: Setting) -> Mapping[str, float]:
        """Return the metrics of a setting that take no query, such as "memory_mb"."""
        ...

    def measure(self, setting: Setting, queries: NDArray[np.int64]) -> Samples:
        """Return the values of each series for each query, in their order."""
        ...


@dataclass
class Measured:
    """What is known of a setting.

    Attributes:
        setting: The setting.
        known: Its metrics that take no query.
        queries: Those that it was measured on.
        samples: Values for each of them.
    """

    setting: Setting
    known: Mapping[str, float]
    queries: list[int] = field(default_factory=list)
    samples: Samples = field(default_factory=dict)
    _intervals: dict[tuple[Goal, float], Interval] = field(default_factory=dict, repr=False)

    def add(self, queries: Iterable[int], samples: Samples) -> None:
        """Take in a measurement."""
        self.queries.extend(queries)
        self._intervals.clear()
        for name, values in samples.items():
            before = self.samples.get(name)
            self.samples[name] = values if before is None else np.concatenate((before, values))

    def interval(self, goal: Goal, z: float = LIKELY) -> Interval:
        """Return a metric and its bounds."""
        if goal.metric in self.known:
            return Interval(*(float(self.known[goal.metric]),) * 3)
        if (goal, z) not in self._intervals:
            values = self.samples[goal.series]
            if goal.is_share:  # asked twice, a query tells no more than once
                _, places = np.unique(self.queries, return_inverse=True)
                values = np.bincount(places, values) / np.bincount(places)
            self._intervals[goal, z] = certain.interval(goal, values, z)
        return self._intervals[goal, z]

    def value(self, goal: Goal) -> float:
        """Return a metric as it was measured."""
        if goal.metric in self.known:
            return float(self.known[goal.metric])
        return float(goal.of(self.samples[goal.series]))

    def excess(self, goal: Goal, z: float = 0.0) -> float:
        """Return by how much a bound is missed at most: with its limit of confidence.

        Args:
            goal: A bound.
            z: How sure; a negative one gives by how much it is missed at least.
        """
        _, low, high = self.interval(goal, abs(z))
        return goal.excess(high if (goal.sign > 0) is (z >= 0) else low)

    def misses(self, bounds: Iterable[Goal]) -> list[float]:
        """Return by which share each bound is missed, as measured; 0 where it is kept."""
        return [max(0.0, self.excess(one)) / (abs(one.bound or 0) or 1.0) for one in bounds]

    def keeps(self, bounds: Iterable[Goal], z: float = 0.0) -> bool:
        """Tell whether all bounds are kept, so surely."""
        return all(self.excess(goal, z) <= 0 for goal in bounds)

    def fails_more_than(self, other: Measured) -> bool:
        """Tell whether its queries surely fail more often than those of another setting."""
        if _FAILED not in self.samples or _FAILED not in other.samples:
            return False
        rate = float(other.samples[_FAILED].mean())
        return self.excess(Goal.at_most(_FAILED, rate), -LIKELY) > 0


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        ranked: Settings that surely keep all bounds, best first; empty if there is none.
        measured: All that were measured.
        left_out: How many were left out by what is known without a query.
        spent: Queries that were asked.
        is_sure: Whether the best one's interval is apart from that of the next, or they are equal
            within 3%.
    """

    ranked: list[Measured]
    measured: list[Measured]
    left_out: int
    spent: int
    is_sure: bool

    def nearest(self, bounds: Sequence[Goal]) -> Measured | None:
        """Return the setting that misses the bounds the least, counted in shares of them."""
        return min(self.measured, key=lambda one: sum(one.misses(bounds)), default=None)


class Search:
    """One search; `run` it once.

    Args:
        space: The settings.
        measure: Measures them.
        best: What is to be best.
        bounds: What must be kept.
        queries: How many queries there are; they are taken in a random order, equal for all.
        budget: The most that may be asked: a query of one setting counts as one.
        study: Where measurements are kept.
        incumbent: The setting there is; it is always in the race.
        seed: Of all that is random.
        told: Hears of each measurement, and how many queries were asked so far.
    """

    def __init__(
        self,
        space: Space,
        measure: Measure,
        best: Goal,
        bounds: Sequence[Goal],
        *,
        queries: int,
        budget: int,
        study: Study,
        incumbent: Setting | None = None,
        seed: int = 0,
        told: Callable[[Measured, int], object] = lambda *_: None,
    ) -> None:
        self._space, self._measure, self._best, self._bounds = space, measure, best, list(bounds)
        self._budget, self._study, self._incumbent, self._told = budget, study, incumbent, told
        self._random = np.random.default_rng(seed)
        self._order = self._random.permutation(queries)
        self._known: dict[Setting, Measured] = {}
        self._spent = 0

    def run(self) -> Found:
        """Search until it is sure, or the budget ends."""
        for setting, queries, samples in self._study.stored():
            self._at(setting).add(queries, samples)
        fitting, left_out = self._fitting()
        count = len(self._order)
        first = min(_RUNGS[0][0], count)
        if self._incumbent is not None:
            self._ask(self._at(self._incumbent), first)
        if fitting is not None and len(fitting) * first <= _SHARE * self._budget:
            self._try_families(fitting, first)
        else:
            self._try_proposed(first)
        for (before, kept), (asked, _) in pairwise(_RUNGS):
            more = max(1, min(asked, count) - before)
            affordable = max(1, int(_SHARE * (self._budget - self._spent) / more))
            for one in self._alive(min(kept, affordable)):
                self._ask(one, min(asked, count))
        finalists, is_sure = self._final()
        measured = [one for one in self._known.values() if one.queries]
        found = Found(finalists, measured, left_out, self._spent, is_sure)
        nearest = None if finalists else found.nearest(self._bounds)
        if nearest is not None:  # how close it came is worth the queries
            self._ask(nearest, count)
        return replace(found, spent=self._spent)

    # -- what is asked -----------------------------------------------------------------------------

    def _at(self, setting: Setting) -> Measured:
        if setting not in self._known:
            self._known[setting] = Measured(setting, self._measure.known(setting))
        return self._known[setting]

    def _fits(self, one: Measured) -> bool:
        known = [goal for goal in self._bounds if goal.metric in one.known]
        return one.keeps(known)

    def _fitting(self) -> tuple[list[Measured] | None, int]:
        """Return settings that may keep what is known, None where they are too many to list."""
        if len(self._space) > _MOST_LISTED:
            return None, 0
        every = [self._at(setting) for setting in self._space]
        fitting = [one for one in every if self._fits(one)]
        return fitting, len(every) - len(fitting)

    def _ask(self, one: Measured, upto: int) -> None:
        """Have a setting answer the first queries, those that it has not yet; budget allowing."""
        self._ask_these(one, self._order[len(one.queries) : upto])

    def _ask_these(self, one: Measured, queries: NDArray[np.int64]) -> Samples | None:
        if not len(queries) or self._spent + len(queries) > self._budget:
            return None
        samples = self._measure.measure(one.setting, queries)
        self._spent += len(queries)
        one.add(queries.tolist(), samples)
        excesses = {goal: one.excess(goal) for goal in self._bounds}
        self._study.add(
            one.setting, queries.tolist(), samples, self._loss(one), excesses,
            is_dropped=not self._may_do(one),
        )  # fmt: skip
        self._told(one, self._spent)
        return samples

    def _loss(self, one: Measured) -> float:
        return self._best.sign * one.value(self._best)

    def _may_do(self, one: Measured) -> bool:
        """Tell whether a setting may still keep all bounds, and answers as often as what was."""
        return one.keeps(self._bounds, -LIKELY) and not self._fails(one)

    def _fails(self, one: Measured) -> bool:
        """Tell whether a setting fails where what was answers: a failure takes no time."""
        was = None if self._incumbent is None else self._known.get(self._incumbent)
        return was is not None and one.fails_more_than(was)

    # -- the first rung ----------------------------------------------------------------------------

    def _try_families(self, fitting: Sequence[Measured], upto: int) -> None:
        families: dict[Setting, list[Measured]] = {}
        for one in fitting:
            families.setdefault(self._space.family(one.setting), []).append(one)
        names = list(families)
        for at in self._random.permutation(len(names)):
            self._try_family(families[names[at]], upto)

    def _try_family(self, family: Sequence[Measured], upto: int) -> None:
        left = sorted(family, key=lambda one: (sum(one.setting), one.setting))
        while left:
            one = left.pop(len(left) // 2)
            self._ask(one, upto)
            if not one.queries:
                return
            left = [other for other in left if not self._settles(one, other)]

    def _settles(self, one: Measured, other: Measured) -> bool:
        """Tell whether one measurement makes another one of its family needless."""
        pairs = list(zip(one.setting, other.setting, strict=True))
        if all(b <= a for a, b in pairs) and not self._may_do(one):
            missed = [goal for goal in self._bounds if one.excess(goal, -LIKELY) > 0]
            return any(goal.kind == "at_least" for goal in missed)
        if all(b >= a for a, b in pairs) and not self._fails(one):
            best = min((self._loss(done) for done in self._likely()), default=np.inf)
            too_slow = self._loss(one) > best + (_TOO_SLOW - 1) * abs(best)
            return too_slow or one.keeps(self._bounds, LIKELY)
        return False

    def _likely(self) -> list[Measured]:
        return [
            one
            for one in self._known.values()
            if one.queries and one.keeps(self._bounds) and not self._fails(one)
        ]

    def _try_proposed(self, upto: int) -> None:
        """Try what Optuna proposes, as long as half of the budget lasts."""
        seen = {
            setting for setting, one in self._known.items() if one.queries or not self._fits(one)
        }
        tried = dict.fromkeys(seen)
        while self._spent + upto <= _SHARE * self._budget:
            setting = self._study.ask(tried)
            if setting is None:
                return
            tried[setting] = None
            one = self._at(setting)
            if self._fits(one):
                self._ask(one, upto)

    # -- later rungs -------------------------------------------------------------------------------

    def _alive(self, kept: int) -> list[Measured]:
        """Return the best of those that may keep all bounds; half of them do as measured."""
        alive = [one for one in self._known.values() if one.queries and self._may_do(one)]
        alive.sort(key=self._loss)
        likely = [one for one in alive if one.keeps(self._bounds)][: -(-kept // 2)]
        rest = [one for one in alive if one not in likely]
        return sorted(likely + rest[: kept - len(likely)], key=self._loss)

    def _final(self) -> tuple[list[Measured], bool]:
        """Have the last ones answer all queries, and then in turn, until it is sure who is best."""
        count = len(self._order)
        sure: list[Measured] = []
        asked: set[Setting] = set()
        while len(sure) < _FINALISTS:
            best = min((self._loss(one) for one in sure), default=np.inf)
            waiting = [one for one in self._alive(len(self._known)) if one.setting not in asked]
            waiting = [one for one in waiting if self._loss(one) < best + _NOISE * abs(best)]
            if not waiting or self._spent + count - len(waiting[0].queries) > self._budget:
                break
            asked.add(waiting[0].setting)
            self._ask(waiting[0], count)
            if waiting[0].keeps(self._bounds, SURE):
                sure.append(waiting[0])
        if sure and self._best.metric in sure[0].known:
            return sorted(sure, key=self._loss), True
        return self._in_turn(sure)

    def _in_turn(self, finalists: list[Measured]) -> tuple[list[Measured], bool]:
        """Measure finalists anew, in turn and back, and drop who is surely worse.

        What they were chosen by does not count any more: it flatters who was lucky.
        """
        rounds: list[dict[int, Samples]] = []
        alive, dropped = list(range(len(finalists))), list[int]()
        is_sure = len(alive) == 1
        while len(alive) > 1 and not is_sure and len(rounds) < _ROUNDS:
            queries = self._random.permutation(self._order)[: -(-len(self._order) // _PARTS)]
            if self._spent + len(queries) * len(alive) > self._budget:
                break
            rounds.append({})
            for which in alive if len(rounds) % 2 else alive[::-1]:
                samples = self._ask_these(finalists[which], queries)
                if samples is not None:
                    rounds[-1][which] = samples
            if len(rounds) < _LEAST_ROUNDS:
                continue
            gains = {which: self._behind(rounds, alive[0], which) for which in alive}
            alive.sort(key=lambda which: gains[which].value)
            gains = {which: self._behind(rounds, alive[0], which) for which in alive[1:]}
            worse = [which for which, gain in gains.items() if gain.low > 0]
            alive = [which for which in alive if which not in worse]
            dropped[:0] = worse
            is_sure = all(gains[which].high < _CLOSE for which in alive[1:])
        ranked = [finalists[which] for which in (*alive, *dropped)]
        return ranked, is_sure or len(alive) == 1

    def _behind(self, rounds: Sequence[Mapping[int, Samples]], one: int, other: int) -> Interval:
        """Return by which share one finalist is better than another, from the same queries."""
        series = self._best.series
        return certain.gain(
            self._best, [(found[one][series], found[other][series]) for found in rounds], SURE
        )
