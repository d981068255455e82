"""What is thought of a canary: requests with a changed setting, beside those without it."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ragaccel.errors import ConfigurationError
from ragaccel.tuning.evidence import Evidence, are_sure

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTROLS: Final = 400  # that the tail is known from
_LEAST_CONTROLS: Final = 100
_TAIL: Final = 0.05
_TAILS: Final = (0.2, _TAIL, 0.01)
_LONG_TAIL: Final = 0.08
_SLOWER: Final = 0.55  # of two requests alike, how often the canary may be the slower one
_OF_TAIL: Final = 0.8  # what of alpha is for the tail, the rest is for pairs
_FIRST: Final = 20
_MOST_FAILURES: Final = 3
_LEAST_MISSED: Final = 0.005
_USUAL_FAILURES: Final = 0.01  # of controls: where more fail, failures are not the canary's


class Limit(NamedTuple):
    """No more than a share of the requests may take longer.

    Attributes:
        name: As the user knows it, such as "latency_p95".
        seconds: The limit.
        share: Of the requests, such as 0.05.
    """

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Terms:
    """How a canary is tried.

    Args:
        shares: The shares of the traffic that see it, one after another; after the last one it is
            for all.
        alpha: The chance that one that changes nothing is rolled back.
        doubt: The chance, at each share, that one that is worse comes through to the next.
        slack: How much slower than usual a request may be; 1.1 for a tenth.
        regret: Seconds that canaries may take longer, all in all, than the requests beside them.
        warm_up: The first canaries, whose latency does not count: caches may be cold.
        one_in: Of so many answers of canaries one is compared with exact search, beside the
            requests, where recall is a goal.

    Raises:
        ConfigurationError: A number that makes no sense.
    """

    shares: Sequence[float] = (0.01, 0.05, 0.25)
    alpha: float = 0.01
    doubt: float = 0.05
    slack: float = 1.1
    regret: float = 600.0
    warm_up: int = 0
    one_in: int = 10

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ConfigurationError(
                f"shares must be one or more numbers over 0 and under 1, got {self.shares!r}."
            )
        if any(
            before >= after for before, after in zip(self.shares, self.shares[1:], strict=False)
        ):
            raise ConfigurationError(f"shares must grow, got {self.shares!r}.")
        for name in ("alpha", "doubt"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be over 0 and under 1, got {getattr(self, name)!r}."
                )
        if not self.slack >= 1:
            raise ConfigurationError(f"slack must be 1 or more, got {self.slack!r}.")
        if not self.regret > 0:
            raise ConfigurationError(f"regret must be over zero seconds, got {self.regret!r}.")
        if self.warm_up < 0:
            raise ConfigurationError(f"warm_up must be 0 or more, got {self.warm_up!r}.")
        if self.one_in < 1:
            raise ConfigurationError(f"one_in must be 1 or more, got {self.one_in!r}.")


class Canary:
    """Judges a canary by how long its requests take; it knows no clock and changes no setting.

    Slower is what takes longer by more than the slack; a failed request is the slowest. It is bad
    if more than 20%, 5% or 1% of its requests are slower than the other 80%, 95% or 99% of the last
    400 others; if of pairs that came one after the other, it is the slower one in more than 55%,
    which holds however the load changes for both; if it breaks a limit that the others keep; or by
    its failures and its regret. It comes through to the next share if it is sure that it is the
    slower one in less than 55%, and slower than nearly all others in less than 8%. An equal one
    needs some 300 requests for that.
    Where recall is a goal, it must be sure as well that it misses less than twice what it may.
    (To be sure that it is less than 3% slower it would need 12,000.)

    Attributes:
        share: The share of the traffic that is to see it now; 0 until what is usual is known.
        step: How many shares it has come through.
        fault: Why it is bad, if it is.
        regret: Seconds that it took longer than the requests beside it, so far.
        controls: How many requests without it were heard of.
        canaries: How many requests with it were heard of.

    Args:
        terms: How it is tried.
        limits: What the user wants of latency.
        recall: What the user wants of recall, 0 to 1; None where that is no goal.
    """

    def __init__(
        self, terms: Terms, limits: Sequence[Limit] = (), recall: float | None = None
    ) -> None:
        self._terms, self._limits, self._recall = terms, limits, recall
        self._recent: deque[float] = deque()
        self._ordered: list[float] = []
        self._last: float | None = None
        self._failures = 0
        self.controls = self.canaries = 0
        self.regret = 0.0
        self.step = -1
        self.fault: str | None = None
        self.share = 0.0
        self._next_step()

    @property
    def is_bad(self) -> bool:
        """Whether it is to be taken back; `fault` says why."""
        return self.fault is not None

    @property
    def is_through(self) -> bool:
        """Whether it is good enough for all."""
        return not self.is_bad and self.step == len(self._terms.shares)

    def hear_control(self, seconds: float) -> None:
        """Hear of a request without the change.

        Args:
            seconds: How long it took; infinity if it failed.
        """
        self.controls += 1
        self._last = seconds
        self._recent.append(seconds)
        insort(self._ordered, seconds)
        if len(self._recent) > _CONTROLS:
            del self._ordered[bisect_left(self._ordered, self._recent.popleft())]
        elif self.controls == _LEAST_CONTROLS:
            self.share = self._terms.shares[0]

    def hear_canary(self, seconds: float) -> None:
        """Hear of a request with the change; `fault` or `step` may be another afterwards.

        Args:
            seconds: How long it took; infinity if it failed.
        """
        self.canaries += 1
        if math.isinf(seconds):
            self._failures += 1
        if self._fails_at_once():
            self.fault = f"{self._failures} of its first {self.canaries} requests failed"
        if self.is_bad or self.is_through or self.canaries <= self._terms.warm_up:
            return
        self._hear_tails(seconds)
        self._hear_limits(seconds)
        if self._last is not None:
            self._hear_pair(seconds, self._last)
            self._last = None
        self._may_step()

    def hear_recall(self, recall: float) -> None:
        """Hear of an answer of a canary; `fault` or `step` may be another afterwards.

        Args:
            recall: Against exact search, 0 to 1.
        """
        if self._recall is None or self.is_bad or self.is_through:
            return
        may_miss = min(max(1 - self._recall, _LEAST_MISSED), 0.49)
        self._right.hear(recall, 1 - 2 * may_miss)
        if self._missed.hear(1 - recall, may_miss):
            self.fault = f"its recall is under {self._recall:g}"
        self._may_step()

    def _may_step(self) -> None:
        is_right = self._recall is None or self._right.is_sure
        if self._good.is_sure and self._short.is_sure and is_right and not self.is_bad:
            self._next_step()

    def _fails_at_once(self) -> bool:
        if self._failures < _MOST_FAILURES or self.canaries > _FIRST:
            return False
        failed = len(self._ordered) - bisect_left(self._ordered, math.inf)
        return failed <= _USUAL_FAILURES * len(self._ordered)

    def _hear_tails(self, seconds: float) -> None:
        for share, evidence in zip(_TAILS, self._tails, strict=True):
            is_long = self._is_long(seconds, share)
            evidence.hear(is_long, share)
            if share == _TAIL:
                self._short.hear(not is_long, 1 - _LONG_TAIL)
        if are_sure(self._tails):
            self.fault = "too many of its requests are slower than nearly all others"

    def _is_long(self, seconds: float, share: float) -> bool:
        """Tell whether a request takes longer than all but a share of the others."""
        rank = max(1, int(share * (len(self._ordered) + 1)))
        return seconds > self._terms.slack * self._ordered[-rank]

    def _hear_limits(self, seconds: float) -> None:
        for limit, evidence in zip(self._limits, self._broken, strict=True):
            over = len(self._ordered) - bisect_left(self._ordered, limit.seconds)
            if over > limit.share * len(self._ordered):
                continue  # the others break it, too
            if evidence.hear(seconds > limit.seconds, limit.share):
                self.fault = f"it breaks {limit.name} <= {limit.seconds:g}"

    def _hear_pair(self, seconds: float, beside: float) -> None:
        if math.isfinite(seconds) and math.isfinite(beside):
            self.regret += seconds - beside
        is_slower = seconds > self._terms.slack * beside
        self._good.hear(not is_slower, 1 - _SLOWER)
        if self._pairs.hear(is_slower, _SLOWER):
            self.fault = "it is slower than the requests beside it"
        elif self.regret > self._terms.regret:
            self.fault = f"it took {self.regret:.1f} s longer, all in all"

    def _next_step(self) -> None:
        """Begin anew with the evidence: what holds at a small share may not at a larger one."""
        self.step += 1
        if self.step:
            self.share = 1.0 if self.is_through else self._terms.shares[self.step]
        alpha = self._terms.alpha / 2 ** (self.step + 1)
        tails = _OF_TAIL * alpha / (1 + len(self._limits) + (self._recall is not None))
        self._tails = [Evidence(tails) for _ in _TAILS]
        self._broken = [Evidence(tails) for _ in self._limits]
        self._pairs = Evidence((1 - _OF_TAIL) * alpha)
        self._missed = Evidence(tails)
        doubt = self._terms.doubt
        self._good, self._short, self._right = Evidence(doubt), Evidence(doubt), Evidence(doubt)
