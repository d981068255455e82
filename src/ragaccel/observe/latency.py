"""How long something takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Self

_NS: Final = 1e9
_SECOND: Final = 1000  # milliseconds


@dataclass(frozen=True)
class Latency:
    """A distribution of durations, in seconds; zeros if there was none."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, durations_ns: ArrayLike) -> Self:
        """Sum up durations in nanoseconds, interpolating between neighbours."""
        durations = np.asarray(durations_ns, dtype=np.float64) / _NS
        if not durations.size:
            return cls()
        return cls(float(durations.mean()), *np.percentile(durations, (50, 95, 99)).tolist())


def spelled(seconds: float) -> str:
    """Return a duration as a person reads it."""
    milliseconds = seconds * 1e3
    if milliseconds >= _SECOND:
        return f"{seconds:,.2f} s"
    return f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{seconds * 1e6:.0f} µs"
