"""`AutoTuner`: finds settings from recorded traffic, and never makes them worse."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ragaccel.batching import pipelines
from ragaccel.errors import ConfigurationError
from ragaccel.knobs import Knob
from ragaccel.tuning import certain
from ragaccel.tuning.callbacks import Callbacks, Hooks
from ragaccel.tuning.duel import Duel
from ragaccel.tuning.goals import THROUGHPUT, Goal, checked
from ragaccel.tuning.guard import Guard
from ragaccel.tuning.parts import tunables, uncached
from ragaccel.tuning.replay import Knobs, Replay, answers
from ragaccel.tuning.report import Row, TuningReport
from ragaccel.tuning.search import Measured, Search
from ragaccel.tuning.sizes import APART, best_sizes
from ragaccel.tuning.study import Study
from ragaccel.tuning.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import ArrayLike

    from ragaccel.tuning.callbacks import Callback
    from ragaccel.tuning.replay import Metric
    from ragaccel.tuning.search import Found
    from ragaccel.tuning.sizes import CacheSize

Pace = Literal["fastest", "recorded"]

_SEARCHED: Final = 0.7
_LEAST_QUERIES: Final = 40
_BUDGET_EACH: Final = 40
_RECALL: Final = "recall@"
_BATCHES: Final = "batch."
_MB: Final = 1e6


class AutoTuner:
    """Finds settings that reach goals, and sets them if they are surely better than what was.

    It turns knobs of the components themselves, so nobody else should ask them meanwhile; whatever
    happens, they end as what was better. Caches are passed by while it measures.

    Args:
        components: What is tuned; the first that can be asked a query is asked.
        goals: What is to be best, and bounds; by default the lowest "latency_p95".
        knobs: Of the user's own, beside those that components have.
        metrics: Of the user's own: by name a function of a query and its result, for a number.
        ask: What answers a query, where that is none of the components.
        k: How many rows a collection is asked for, where a collection itself is asked.
        concurrency: The most queries that are under way at a time. Several numbers, what it is now
            first, are a knob "concurrency". With one, batches are not tuned.
        budget: The most queries that the search asks; by default 40 times those it is given.
        storage: A file where the study is kept and gone on with; see `Study`.
        seed: Of all that is random.
        progress: Whether to show progress on the terminal.
        on_trial: Hears of each setting measured, sync or async; what it raises is logged.
        on_improvement: Hears of each that is better than all before.
        on_apply: Hears of the report when settings were changed.
        on_rollback: Hears of the report when what was stays.

    Example:
        >>> tuner = AutoTuner([collection], goals=[Goal.at_least("recall@10", 0.95)])
        ... # doctest: +SKIP
        >>> print(tuner.run(vectors).to_toml())  # doctest: +SKIP
    """

    def __init__(
        self,
        components: Any,
        goals: Iterable[Goal] = (),
        *,
        knobs: Iterable[Knob] = (),
        metrics: Mapping[str, Metric] | None = None,
        ask: Callable[[Any], Any] | None = None,
        k: int = 10,
        concurrency: int | Sequence[int] = 1,
        budget: int | None = None,
        storage: Any = None,
        seed: int = 0,
        progress: bool = True,
        on_trial: Callback | None = None,
        on_improvement: Callback | None = None,
        on_apply: Callback | None = None,
        on_rollback: Callback | None = None,
    ) -> None:
        several = isinstance(components, (list, tuple))
        self._components = list(components) if several else [components]
        self._best, self._bounds = checked(goals)
        self._own_knobs, self._metrics = list(knobs), dict(metrics or {})
        self._k, self._budget = k, budget
        self._at_a_time = _counts(concurrency)
        self._concurrency = self._at_a_time[0]
        self._asked, self._storage, self._seed, self._shows = ask, storage, seed, progress
        self._hooks = Hooks(on_trial, on_improvement, on_apply, on_rollback)
        self._callbacks = Callbacks()
        self._notes: list[str] = []
        self._least = np.inf

    def run(
        self, queries: Traffic | Sequence[str] | ArrayLike, *, pace: Pace = "fastest"
    ) -> TuningReport:
        """Search, compare with what was on later queries, and set what is surely better.

        Args:
            queries: Recorded traffic, queries in their order, or, where a collection is asked,
                vectors of shape (n, dim). The last 30% are held out.
            pace: "fastest" asks the next query as soon as one is answered. "recorded" asks each
                as long after the one before it as it came in the traffic, answered or not, so that
                latency counts from there and has the wait for those before it, of which
                `concurrency` are answered at a time. The search asks queries in a random order, and
                what was held out in its own; it all takes as long as the traffic did, many times.

        Raises:
            ConfigurationError: No knob, too few queries, a metric that nobody measures, or a pace
                that the queries do not tell.
        """
        asked, keys = _queries(queries)
        arrivals = self._arrivals(queries, pace)
        self._notes, self._least = [], np.inf
        knobs, earlier = Knobs(self._knobs()), round(_SEARCHED * len(asked))
        limits = [one.bound for one in self._bounds if str(one).startswith("memory_mb at most")]
        least = knobs.least_more_bytes() / _MB
        sizes = best_sizes(self._components, keys, min(filter(None, limits), default=None), least)
        self._notes += map(str, sizes)
        study = self._study(knobs, keys, pace)
        with ExitStack() as stack:
            stack.enter_context(uncached(self._components))
            stack.callback(knobs.put_back)
            replay = self._replay(asked, arrivals, knobs, sizes)
            found = self._search(replay, knobs, study, earlier)
            duel = Duel(replay, knobs.incumbent, self._best, self._bounds)
            winner = duel.run(found, np.arange(earlier, len(asked)))
        report = self._report(knobs, found, study, duel, winner, sizes)
        if winner is not None:
            knobs.turn(winner.setting)
        for one in sizes:
            if one.size != one.was:
                one.level.resize(one.size)
        hooks = self._hooks
        self._callbacks.tell(hooks.on_apply if report.is_applied else hooks.on_rollback, report)
        self._callbacks.wait()
        return report

    def attach(self, changes: Mapping[str, Any], **options: Any) -> Guard:
        """Try settings, such as those of a report, on a share of the live traffic first.

        Args:
            changes: Values by the names of knobs.
            options: See `Guard.attach`.

        Raises:
            ConfigurationError: There is no knob of a name.
        """
        known = {one.name: one for one in (*tunables(self._components), *self._own_knobs)}
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise ConfigurationError(
                f"there is no knob {unknown[0]!r}; there are {', '.join(known) or 'none'}."
            )
        goals = [self._best, *self._bounds]
        told = {**self._hooks._asdict(), **options}
        turned = [(known[name], value) for name, value in changes.items()]
        turned.sort(key=lambda one: not one[0].rebuild)
        return Guard.attach(self._components, turned, goals, **told)

    # -- what is tuned -----------------------------------------------------------------------------

    def _knobs(self) -> list[Knob]:
        found = []
        for knob in tunables(self._components):
            if knob.name.startswith(APART):
                if knob.name.startswith("cache.ttl"):
                    self._notes.append(
                        f"{knob.name}: left alone; no traffic tells how long an answer stays right."
                    )
                continue
            if knob.name.startswith(_BATCHES) and max(self._at_a_time) == 1:
                self._notes.append(f"{knob.name}: not tried; one query at a time makes no batches.")
                continue
            found.append(knob)
        if len(self._at_a_time) > 1:
            turn = partial(setattr, self, "_concurrency")
            found.append(
                Knob("concurrency", sorted(self._at_a_time), lambda: self._concurrency, turn)
            )
        found += self._own_knobs
        names = [one.name for one in found]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"two knobs have the same name: {', '.join(names)}.")
        if not found:
            raise ConfigurationError(
                "the components have no knobs to turn; a collection has some once it is compressed "
                "(from 4,096 rows on), and knobs=[Knob(...)] adds your own."
            )
        return [_with_current(one) for one in found]

    def _replay(
        self,
        asked: Sequence[Any],
        arrivals: Sequence[float] | None,
        knobs: Knobs,
        sizes: Sequence[CacheSize],
    ) -> Replay:
        ask = self._ask()
        goals = [self._best, *self._bounds]
        depths = [_depth(one) for one in goals if one.metric.startswith(_RECALL)]
        truth = None
        if depths:
            truth, is_exact = answers(ask, asked, self._components)
            if not is_exact:
                self._notes.append(
                    "recall is counted against what was found before: the components hold no "
                    "collection that could be searched exactly."
                )
        known = {"hit_rate": max(one.rate for one in sizes)} if sizes else {}
        replay = Replay(
            ask, asked, knobs, self._components, metrics=self._metrics, truth=truth,
            depths=depths, sizes={one.level: one.size for one in sizes}, known=known,
            arrivals=arrivals, concurrency=lambda: self._concurrency,
        )  # fmt: skip
        one = Measured(knobs.incumbent, replay.known(knobs.incumbent))
        one.add([0], replay.measure(knobs.incumbent, np.arange(1)))
        missing = [x for x in goals if x.metric not in one.known and x.series not in one.samples]
        if missing:
            raise ConfigurationError(
                f"nobody measures {missing[0].metric!r}; give metrics={{{missing[0].series!r}: "
                "lambda query, result: ...}."
            )
        return replay

    def _ask(self) -> Callable[[Any], Any]:
        if self._asked is not None:
            return self._asked
        for one in self._components:
            if hasattr(one, "exactly"):
                return lambda vector: one.search(vector, self._k)[0]
            try:
                return pipelines.blocking(one)
            except ConfigurationError:
                continue
        raise ConfigurationError(
            "none of the components can be asked a query; give ask=, a function of a query."
        )

    def _arrivals(self, queries: Any, pace: Pace) -> list[float] | None:
        """Return when queries came, seconds; None where that does not matter."""
        if pace not in get_args(Pace):
            raise ConfigurationError(f'pace must be "fastest" or "recorded", got {pace!r}.')
        if pace == "fastest":
            return None
        if not isinstance(queries, Traffic) or not queries[-1].at:
            raise ConfigurationError(
                'pace="recorded" needs traffic with the times at which queries came, as a '
                "TrafficRecorder records it."
            )
        if any(one.metric == THROUGHPUT for one in (self._best, *self._bounds)):
            raise ConfigurationError(
                'at the recorded pace the throughput is that of the traffic; use pace="fastest".'
            )
        return [one.at for one in queries]

    def _study(self, knobs: Knobs, keys: Sequence[Any], pace: Pace) -> Study:
        told = [str(one) for one in (self._best, *self._bounds)]
        told += [f"{knob.name}{knob.values}" for knob in knobs.knobs]
        told += [pace, f"{self._at_a_time} at a time"]
        digest = hashlib.blake2b("|".join([*told, *map(repr, keys)]).encode(), digest_size=8)
        return Study(
            knobs.space, seed=self._seed, storage=self._storage, problem=digest.hexdigest()
        )

    # -- searching ---------------------------------------------------------------------------------

    def _search(self, replay: Replay, knobs: Knobs, study: Study, queries: int) -> Found:
        budget = self._budget or _BUDGET_EACH * queries
        with Progress(
            TextColumn("tuning"), BarColumn(), TextColumn("{task.completed:,} queries"),
            TextColumn("{task.fields[best]}", markup=False), TimeElapsedColumn(),
            disable=not self._shows, transient=True,
        ) as progress:  # fmt: skip
            task = progress.add_task("tuning", total=budget, best="")

            def told(one: Measured, spent: int) -> None:
                best = self._tell(one, knobs)
                progress.update(task, completed=spent)
                if best is not None:
                    progress.update(task, best=best)

            return Search(
                knobs.space, replay, self._best, self._bounds, queries=queries, budget=budget,
                study=study, incumbent=knobs.incumbent, seed=self._seed, told=told,
            ).run()  # fmt: skip

    def _tell(self, one: Measured, knobs: Knobs) -> str | None:
        """Tell callbacks of a measurement; return it in words if it is the best so far."""
        row = self._row(one, knobs)
        self._callbacks.tell(self._hooks.on_trial, row)
        loss = self._best.sign * one.value(self._best)
        if not row.is_kept or loss >= self._least:
            return None
        self._least = loss
        self._callbacks.tell(self._hooks.on_improvement, row)
        return f"best {self._best.metric} {one.value(self._best):.4g} at {row.settings}"

    # -- what is told ------------------------------------------------------------------------------

    def _report(
        self,
        knobs: Knobs,
        found: Found,
        study: Study,
        duel: Duel,
        winner: Measured | None,
        sizes: Sequence[CacheSize],
    ) -> TuningReport:
        settings = knobs.named(knobs.incumbent if winner is None else winner.setting)
        reason = duel.reason
        if not found.ranked:
            reason = self._missed(found)
        rows = [self._row(one, knobs) for one in found.measured]
        rows.sort(key=lambda row: self._best.sign * row.metrics[self._best.metric].value)
        rows.sort(key=lambda row: not row.is_kept)
        left_out = f"{found.left_out:,} settings were left out by arithmetic, and "
        untried = len(knobs.space) - found.left_out - len(rows)
        self._notes.append(
            f"{left_out if found.left_out else ''}{len(rows):,} of {len(knobs.space):,} were "
            f"measured; {untried:,} were not tried."
        )
        return TuningReport(
            goals=[self._best, *self._bounds],
            settings={**settings, **{one.name: one.size for one in sizes}},
            was={**knobs.named(knobs.incumbent), **{one.name: one.was for one in sizes}},
            is_applied=winner is not None or any(one.size != one.was for one in sizes),
            reason=reason, gain=duel.gain, rows=rows, importances=study.importances(),
            noise=duel.noise, spent=found.spent, notes=tuple(self._notes),
        )  # fmt: skip

    def _row(self, one: Measured, knobs: Knobs) -> Row:
        metrics = {goal.metric: one.interval(goal) for goal in (self._best, *self._bounds)}
        return Row(knobs.named(one.setting), len(one.queries), metrics, one.keeps(self._bounds))

    def _missed(self, found: Found) -> str:
        """Say which goal cannot be met, and how close it came."""
        nearest = found.nearest(self._bounds)
        if nearest is None or not self._bounds:
            return "no setting keeps the goals that take no query to know; what was stays."
        misses = nearest.misses(self._bounds)
        missed = self._bounds[int(np.argmax(misses))]
        value, low, high = nearest.interval(missed, certain.SURE)
        return (
            f"the goal {missed} cannot be met for sure: the nearest setting reached {value:.4g} "
            f"({low:.4g} to {high:.4g}, in 99 of 100 cases); what was stays."
        )


def _queries(queries: Any) -> tuple[Sequence[Any], list[Any]]:
    """Return what is asked, and keys that are equal for equal queries."""
    if isinstance(queries, Traffic):
        asked: Sequence[Any] = [one.query for one in queries]
        if None in asked:
            raise ConfigurationError(
                "the traffic was recorded without its queries (content=False), which cannot be "
                "asked again; record it with content."
            )
    elif isinstance(queries, Sequence) and all(isinstance(one, str) for one in queries):
        asked = list(queries)
    else:
        asked = np.asarray(queries, dtype=np.float32)  # type: ignore[assignment]
    if len(asked) < _LEAST_QUERIES:
        raise ConfigurationError(
            f"tuning needs at least {_LEAST_QUERIES} queries, got {len(asked)}; some hundreds make "
            "it sure."
        )
    keys = [one if isinstance(one, str) else one.tobytes() for one in asked]
    return asked, keys


def _counts(concurrency: int | Sequence[int]) -> list[int]:
    given: list[Any] = [concurrency] if isinstance(concurrency, int) else list(concurrency)
    if not given or any(not isinstance(one, int) or one < 1 for one in given):
        raise ConfigurationError(
            f"concurrency must be a whole number of at least 1, or several, got {concurrency!r}."
        )
    return given


def _with_current(knob: Knob) -> Knob:
    """Return a knob that has what it is at among its values."""
    current = knob.get()
    if current in knob.values:
        return knob
    values = [*knob.values, current]
    try:
        values.sort()
    except TypeError:
        return replace(knob, values=values, monotone=False)
    return replace(knob, values=values)


def _depth(goal: Goal) -> int:
    depth = goal.metric.removeprefix(_RECALL)
    if not depth.isdigit() or not int(depth):
        raise ConfigurationError(f'recall is told as "recall@10", got {goal.metric!r}.')
    return int(depth)
