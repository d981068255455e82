"""Two sides measured in turn, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def per_call(call: Callable[[], Any], times: int) -> float:
    """Return seconds per call."""
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def compare(
    ours: Callable[[], Any],
    bare: Callable[[], Any],
    *,
    times: int = 300,
    bare_times: int | None = None,
    rounds: int = 31,
) -> tuple[float, float, float]:
    """Return both medians in microseconds and the median ratio."""
    theirs = times if bare_times is None else bare_times
    both = [(per_call(ours, times), per_call(bare, theirs)) for _ in range(rounds)]
    mine, other = (statistics.median(side) * 1e6 for side in zip(*both, strict=True))
    return mine, other, statistics.median(one / two for one, two in both)
