"""What if: recorded requests with some stages taking another time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from ragaccel.observe.latency import Latency

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ragaccel.observe.calls import Call

    #: Gives the new duration of a stage with all that is inside, or None to look inside.
    Change = Callable[[Call], float | None]

_DRAWS: Final = 200
_SEED: Final = 0
_INTERVAL: Final = (2.5, 97.5)


@dataclass(frozen=True)
class Replay:
    """Requests as they were, and as they would be.

    Attributes:
        before: As they were.
        after: As they would be.
        low: Lower end of the 95% interval of `after`.
        high: Upper end of it.
    """

    before: Latency
    after: Latency
    low: Latency
    high: Latency

    @property
    def gains(self) -> dict[str, float]:
        """The share that is saved of the mean, of p50 and of p95."""
        return {
            name: 1 - getattr(self.after, name) / was
            if (was := getattr(self.before, name))
            else 0.0
            for name in ("mean", "p50", "p95")
        }


def replayed_ns(call: Call, change: Change) -> float:
    """Return how long a stage would take if stages inside took another time.

    A stage begins as long after the last one that had ended before it began as it did, and ends
    as long after the last one that it may have waited for.

    Args:
        call: The stage.
        change: Which ones are changed.
    """
    changed = change(call)
    if changed is not None:
        return changed
    inside = sorted(call.awaited, key=lambda one: (one.began_ns, one.ended_ns))
    ending = deque(sorted(inside, key=lambda one: (one.ended_ns, one.began_ns)))
    ends: dict[int, float] = {}
    was, now = call.began_ns, 0.0  # when the last of those that are over ended, and would end
    for child in inside:
        while ending[0] is not child and ending[0].ended_ns <= child.began_ns:
            was, now = ending[0].ended_ns, max(now, ends[id(ending.popleft())])
        ends[id(child)] = now + (child.began_ns - was) + replayed_ns(child, change)
    for child in ending:
        was, now = child.ended_ns, max(now, ends[id(child)])
    return now + (call.ended_ns - was)


def shortened(stage: str, factor: float) -> Change:
    """Return the change by which a stage takes a share of its time."""
    return lambda call: call.duration_ns * factor if call.name == stage else None


def cached(stage: str, hit_ns: float) -> Change:
    """Return the change by which a cache answers the calls of a stage that none has answered."""
    return lambda call: hit_ns if call.name == stage and not call.is_hit else None


def replay(calls: list[Call], change: Change, chance: float | NDArray[np.float64] = 1.0) -> Replay:
    """Return how requests would be if some of their stages took another time.

    Args:
        calls: The requests.
        change: Which stages are changed, and how; see `replayed_ns`.
        chance: The probability that a request is changed, one for all or one for each.

    Returns:
        The expectation, and its interval by the bootstrap over requests with a fixed seed.
        Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    was = np.array([one.duration_ns for one in calls], dtype=np.float64)
    changed = np.array([replayed_ns(one, change) for one in calls])
    random = np.random.default_rng(_SEED)
    expected, again = [], []
    for _ in range(_DRAWS):
        drawn = np.where(random.random(len(calls)) < chance, changed, was)
        expected.append(_figures(drawn))
        again.append(_figures(drawn[random.integers(0, len(calls), len(calls))]))
    low, high = np.percentile(again, _INTERVAL, axis=0)
    return Replay(
        Latency.of(was), Latency(*np.median(expected, axis=0).tolist()),
        Latency(*low.tolist()), Latency(*high.tolist()),
    )  # fmt: skip


def _figures(durations_ns: NDArray[np.float64]) -> tuple[float, float, float, float]:
    latency = Latency.of(durations_ns)
    return latency.mean, latency.p50, latency.p95, latency.p99
