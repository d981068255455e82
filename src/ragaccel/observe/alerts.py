"""Rules that tell what is out of the ordinary, and alerts that do not flap."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple

import msgspec

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = logging.getLogger("ragaccel.observe")


class Metric(NamedTuple):
    """Something that a rule can watch.

    Attributes:
        unit: "s", "share" (0 to 1), "/s" or "bytes".
        of_stage: Whether each stage has its own.
        is_good: Whether more of it is better.
    """

    unit: Literal["s", "share", "/s", "bytes"]
    of_stage: bool = False
    is_good: bool = False


METRICS: Final[dict[str, Metric]] = {
    "latency_p50": Metric("s", of_stage=True),
    "latency_p95": Metric("s", of_stage=True),
    "latency_p99": Metric("s", of_stage=True),
    "error_rate": Metric("share", of_stage=True),
    "throughput": Metric("/s", of_stage=True, is_good=True),
    "hit_rate": Metric("share", is_good=True),
    "rss_bytes": Metric("bytes"),
    "memory_share": Metric("share"),
    "cpu": Metric("share"),
}

_SLACK: Final = 0.1  # how much better than the level that fires the one is that clears
_SIGMA: Final = 1.4826  # a normal distribution's standard deviation by its MAD


class Levels(NamedTuple):
    """Beyond `fires` a window is bad; one that is not beyond `clears` is good again."""

    fires: float
    clears: float


class Threshold(msgspec.Struct, frozen=True, tag=True):
    """A metric must not go over, or under, a level.

    Args:
        metric: latency_p50, latency_p95, latency_p99 (seconds), error_rate, hit_rate (0 to 1),
            throughput (per second), rss_bytes, memory_share (of what the container may use, 0 to
            1) or cpu (of the cores that it may use, 0 to 1).
        above: The level that it must not go over; or
        below: The level that it must not go under.
        stage: Whose latency, errors or throughput; None for "query".
        for_: Windows in a row that are bad before it fires.
        clear_after: Windows in a row that are good before it clears.
        clear_at: The level within which a window is good again; None for one that is 10% better.

    Raises:
        ConfigurationError: An unknown metric, or levels that make no sense.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    stage: str | None = None
    for_: int = 2
    clear_after: int = 2
    clear_at: float | None = None

    past: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _check(self)
        if (self.above is None) == (self.below is None):
            raise ConfigurationError(
                f"a Threshold has either above= or below=, got above={self.above!r} and "
                f"below={self.below!r}."
            )
        for name in ("above", "below", "clear_at"):
            level = getattr(self, name)
            if level is not None and not 0 <= level < math.inf:
                raise ConfigurationError(f"{name} must be zero or more, got {level!r}.")
        fires, clears = self.levels(())
        if (clears > fires) if self.rises else (clears < fires):
            raise ConfigurationError(
                f"clear_at must be on the good side of {fires:g}, got {clears:g}."
            )

    @property
    def rises(self) -> bool:
        """Whether more of it is worse."""
        return self.above is not None

    def levels(self, history: Sequence[float]) -> Levels:  # noqa: ARG002 - as of `Change`
        """Return the levels, which do not depend on what was before."""
        if self.above is not None:
            fires, clears = self.above, self.above * (1 - _SLACK)
        else:
            assert self.below is not None  # noqa: S101 - checked above
            fires = self.below
            better = fires * (1 + _SLACK)
            # A share comes to one at most, so it clears half-way there at the latest.
            is_share = METRICS[self.metric].unit == "share"
            clears = min(better, max(fires, (fires + 1) / 2)) if is_share else better
        return Levels(fires, clears if self.clear_at is None else self.clear_at)


class Change(msgspec.Struct, frozen=True, tag=True):
    """A metric must not get worse than it usually is.

    A window is bad if it is worse than the median of the windows before it by more than `by`, and
    by more than `deviations` of their robust standard deviations (their median absolute deviation
    times 1.4826); good again when it is worse by less than half of that. A level that stays becomes
    usual in the end.

    Args:
        metric: See `Threshold`. Hit rates and throughput get worse when they fall, others when they
            rise.
        by: The smallest change that matters: of shares (rates, memory, cpu) in points, so that
            0.1 is from 0.9 to 0.8; of others relative, so that 0.5 is half as much again.
        stage: See `Threshold`.
        deviations: How unusual it must be.
        least: Windows that must have been before it says anything.
        past: Windows that it looks back at.
        for_: See `Threshold`.
        clear_after: See `Threshold`.

    Raises:
        ConfigurationError: An unknown metric, or numbers that make no sense.

    Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993 (3.5 deviations).
    """

    metric: str
    by: float
    stage: str | None = None
    deviations: float = 3.5
    least: int = 10
    past: int = 60
    for_: int = 2
    clear_after: int = 2

    def __post_init__(self) -> None:
        _check(self)
        for name in ("by", "deviations"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be over zero, got {getattr(self, name)!r}.")
        if not 1 <= self.least <= self.past:
            raise ConfigurationError(
                f"least must be from 1 to past={self.past}, got {self.least!r}."
            )

    @property
    def rises(self) -> bool:
        """Whether more of it is worse."""
        return not METRICS[self.metric].is_good

    def levels(self, history: Sequence[float]) -> Levels | None:
        """Return the levels after these windows, or None while they are too few."""
        if len(history) < self.least:
            return None
        usual = median(history)
        spread = _SIGMA * median(abs(value - usual) for value in history)
        least = self.by if METRICS[self.metric].unit == "share" else self.by * usual
        worse = max(self.deviations * spread, least) * (1 if self.rises else -1)
        return Levels(usual + worse, usual + worse / 2)


Rule = Threshold | Change


def _check(rule: Rule) -> None:
    metric = METRICS.get(rule.metric)
    if metric is None:
        raise ConfigurationError(
            f"there is no metric {rule.metric!r}; write one of {', '.join(METRICS)}."
        )
    if rule.stage is not None and not metric.of_stage:
        raise ConfigurationError(
            f"{rule.metric} is not of a stage; leave out stage={rule.stage!r}."
        )
    for name in ("for_", "clear_after"):
        if getattr(rule, name) < 1:
            raise ConfigurationError(f"{name} must be 1 or more, got {getattr(rule, name)!r}.")


class Alert(msgspec.Struct, frozen=True):
    """A rule that fires, or that has cleared.

    Attributes:
        rule: The rule.
        state: "firing" or "resolved".
        value: What the metric was in the last window.
        level: What it was compared with in that window: to fire, or to clear.
        since: When it began to fire, seconds since the epoch.
        at: When this was told, seconds since the epoch.
    """

    rule: Rule
    state: Literal["firing", "resolved"]
    value: float
    level: float
    since: float
    at: float

    @property
    def text(self) -> str:
        """What happened, in one line."""
        rule, unit = self.rule, METRICS[self.rule.metric].unit
        name = rule.metric
        if METRICS[name].of_stage:
            name += f" of {rule.stage or 'query'}"
        is_above = rule.rises == (self.state == "firing")
        side = "above" if is_above else "below"
        return f"{name} is {_told(self.value, unit)}, {side} {_told(self.level, unit)}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {**found, "text": self.text}


def _told(value: float, unit: str) -> str:
    if unit == "share":
        return f"{value:.1%}"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    return f"{value:.3g} s" if unit == "s" else f"{value:.3g}/s"


class Alarm:
    """Watches one rule, window after window.

    Args:
        rule: The rule.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.firing: Alert | None = None
        self._history: deque[float] = deque(maxlen=rule.past)
        self._streak = 0

    def hear(self, value: float, at: float) -> Alert | None:
        """Hear what the metric was in the next window, and tell if the state changes.

        Args:
            value: Of the metric.
            at: When, seconds since the epoch.
        """
        levels = self.rule.levels(tuple(self._history))
        self._history.append(value)
        if levels is None:
            return None
        is_firing = self.firing is not None
        level = levels.clears if is_firing else levels.fires
        is_bad = value > level if self.rule.rises else value < level
        self._streak = self._streak + 1 if is_bad != is_firing else 0
        if self._streak < (self.rule.clear_after if is_firing else self.rule.for_):
            return None
        self._streak = 0
        since = at if self.firing is None else self.firing.since
        state: Literal["firing", "resolved"] = "resolved" if is_firing else "firing"
        alert = Alert(self.rule, state, value, level, since, at)
        self.firing = None if is_firing else alert
        return alert


def log_alerts(logger: logging.Logger = _log) -> Callable[[Alert], None]:
    """Return a callback that logs: what fires as a warning, what has cleared as information.

    Args:
        logger: Where to.
    """

    def log(alert: Alert) -> None:
        level = logging.WARNING if alert.state == "firing" else logging.INFO
        logger.log(level, "%s: %s", alert.state, alert.text)

    return log
