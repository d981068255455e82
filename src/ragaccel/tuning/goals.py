"""`Goal`: what settings are to reach, and what they must keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from ragaccel.errors import ConfigurationError
from ragaccel.observe import targets

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from typing_extensions import Self

Kind = Literal["minimize", "maximize", "at_least", "at_most"]

#: The series of seconds for each request.
SECONDS: Final = "seconds"
#: The series of what each request took of the time that all took together.
SECONDS_EACH: Final = "seconds_each"
_PERCENTILES: Final = {"latency_p50": 50, "latency_p95": 95, "latency_p99": 99}
THROUGHPUT: Final = "throughput"
_LATENCY_MEAN: Final = "latency_mean"
_COST: Final = "cost_per_1000"
_OF_TARGETS: Final = {
    "query.p50": "latency_p50", "query.p95": "latency_p95", "query.p99": "latency_p99",
    "query.throughput": THROUGHPUT, "query.error_rate": "error_rate",
    "cache.hit_rate": "hit_rate", "process.memory": "memory_mb",
}  # fmt: skip
_MB: Final = 1e6


@dataclass(frozen=True)
class Goal:
    """What a metric is to be; make one with `minimize`, `maximize`, `at_least` or `at_most`.

    Metrics are "latency_p50", "latency_p95", "latency_p99" and "latency_mean" (seconds),
    "throughput" (requests per second), "hit_rate", "error_rate", "recall@k" of any k, "memory_mb",
    "cost_per_1000" (of a metric "cost" of the user's), and the names of a user's own.

    Attributes:
        metric: Its name.
        kind: What is wanted of it.
        bound: What it must keep; None for what is minimized or maximized.

    Example:
        >>> print(Goal.at_least("recall@10", 0.98))
        recall@10 at least 0.98
    """

    metric: str
    kind: Kind
    bound: float | None = None

    @classmethod
    def minimize(cls, metric: str) -> Self:
        """Want a metric as low as the other goals allow."""
        return cls(metric, "minimize")

    @classmethod
    def maximize(cls, metric: str) -> Self:
        """Want a metric as high as the other goals allow."""
        return cls(metric, "maximize")

    @classmethod
    def at_least(cls, metric: str, bound: float) -> Self:
        """Have a metric kept from falling below a bound."""
        return cls(metric, "at_least", bound)

    @classmethod
    def at_most(cls, metric: str, bound: float) -> Self:
        """Have a metric kept from rising above a bound."""
        return cls(metric, "at_most", bound)

    def __post_init__(self) -> None:
        given: object = self.bound
        if self.is_bound and (not isinstance(given, (int, float)) or not np.isfinite(given)):
            raise ConfigurationError(
                f"the bound of {self.metric!r} must be a number, got {self.bound!r}."
            )
        if self.is_share and not 0 <= (self.bound or 0.0) <= 1:
            raise ConfigurationError(
                f"{self.metric!r} is a share between 0 and 1, such as 0.98, got {self.bound!r}."
            )
        if not self.metric:
            raise ConfigurationError('a goal needs a metric, such as "latency_p95".')

    def __str__(self) -> str:
        if self.bound is None:
            return f"{self.kind} {self.metric}"
        return f"{self.metric} {self.kind.replace('_', ' ')} {self.bound:g}"

    @property
    def is_bound(self) -> bool:
        """Whether it is a constraint, and not what is minimized or maximized."""
        return self.kind in {"at_least", "at_most"}

    @property
    def sign(self) -> int:
        """1 where less is better, else -1."""
        return 1 if self.kind in {"minimize", "at_most"} else -1

    @property
    def series(self) -> str:
        """The name of the values for each request that it is computed from."""
        if self.metric == _COST:
            return "cost"
        if self.metric == THROUGHPUT:
            return SECONDS_EACH
        return SECONDS if self.metric in {*_PERCENTILES, _LATENCY_MEAN} else self.metric

    @property
    def is_share(self) -> bool:
        """Whether it is the mean of values between 0 and 1."""
        shares = {"hit_rate", "error_rate"}
        return self.metric in shares or self.metric.startswith("recall@")

    def of(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the metric of the values of requests, shape (..., n), along the last axis."""
        if self.metric in _PERCENTILES:
            found: NDArray[np.float64] = np.percentile(values, _PERCENTILES[self.metric], axis=-1)
            return found
        mean: NDArray[np.float64] = np.mean(values, axis=-1)
        if self.metric == _COST:
            return 1000 * mean
        return 1 / mean if self.metric == THROUGHPUT else mean

    def excess(self, value: float) -> float:
        """Return by how much a value misses the bound; 0 or less where it keeps it."""
        return 0.0 if self.bound is None else self.sign * (value - self.bound)


def read_goals(path: str | os.PathLike[str]) -> list[Goal]:
    """Read goals from a TOML file, in the form that `ragaccel bench` reads.

    A table `[tune]` adds what is minimized or maximized, and bounds of any metric:

        [query]
        p95 = "250ms"

        [tune]
        minimize = "latency_p95"
        at_least = {"recall@10" = 0.98}

    Raises:
        ConfigurationError: It cannot be read, or has no goal of a tuner.
    """
    bounds, wanted = targets.read_tuning(path)
    goals = [_of_target(one) for one in bounds]
    goals += [Goal.minimize(wanted.minimize)] if wanted.minimize else []
    goals += [Goal.maximize(wanted.maximize)] if wanted.maximize else []
    goals += [Goal.at_least(name, bound) for name, bound in wanted.at_least.items()]
    goals += [Goal.at_most(name, bound) for name, bound in wanted.at_most.items()]
    if not goals:
        raise ConfigurationError(
            f'there are no goals in {path}; write [tune] and minimize = "latency_p95".'
        )
    return goals


def checked(given: Iterable[Goal] | Goal) -> tuple[Goal, list[Goal]]:
    """Return what is to be best, and what must be kept.

    Raises:
        ConfigurationError: Two goals are to be best; only one can be. Or they are no goals.
    """
    goals: list[Any] = [] if isinstance(given, Goal) else list(given)
    if isinstance(given, Goal) or not all(isinstance(one, Goal) for one in goals):
        raise ConfigurationError(
            f'goals are a list such as [Goal.minimize("latency_p95")], got {given!r}.'
        )
    best = [one for one in goals if not one.is_bound]
    if len(best) > 1:
        raise ConfigurationError(
            f"only one goal can be to minimize or maximize, got {', '.join(map(str, best))}; give "
            "the others a bound with at_least or at_most."
        )
    return (best or [Goal.minimize("latency_p95")])[0], [one for one in goals if one.is_bound]


def _of_target(target: targets.Target) -> Goal:
    metric = _OF_TARGETS.get(target.figure)
    if metric is None:
        raise ConfigurationError(
            f"the goal {target.figure} is one of `ragaccel bench`, not of a tuner; a tuner knows "
            f"{', '.join(_OF_TARGETS)} and the table [tune]."
        )
    bound = target.bound / _MB if metric == "memory_mb" else target.bound
    return Goal(metric, "at_least" if target.at_least else "at_most", bound)
