"""What reuse counts, as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ragaccel import telemetry
from ragaccel.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOOKUPS: Final = "ragaccel.reuse.lookups", metrics.RESULT
_LABELS: Final = "ragaccel.reuse.labels", metrics.OUTCOME
#: What is counted -> the metric, and the label that says which it was.
FIGURES: Final = {
    **dict.fromkeys(("hit", "certified", "calibrated", "miss", "audit"), _LOOKUPS),
    **dict.fromkeys(("right", "wrong"), _LABELS),
}


def figures(counted: Iterable[tuple[tuple[str, str], int]]) -> list[telemetry.Figure]:
    """Return counts as metrics.

    Args:
        counted: How often, by namespace and by what it was.
    """
    found = []
    for (namespace, what), number in counted:
        name, label = FIGURES[what]
        found.append(telemetry.Figure(name, number, {metrics.NAMESPACE: namespace, label: what}))
    return found
