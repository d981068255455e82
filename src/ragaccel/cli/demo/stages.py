"""Stage durations of the demo's requests, read from the spans themselves."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Mapping

_NS = 1e9


class StageTimes:
    """Keeps seconds per stage of whole requests; `listen` is told of every span.

    Attributes:
        seconds: By outcome ("hit" or "miss"), then by stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {
            outcome: defaultdict(list) for outcome in ("hit", "miss")
        }
        self._open: dict[int, dict[str, float]] = defaultdict(dict)
        self._hit: set[int] = set()

    def clear(self) -> None:
        """Forget what was seen so far."""
        for stages in self.seconds.values():
            stages.clear()

    def listen(self, span: Any) -> None:
        """Take in a span; a `query` span ends its request."""
        values: Mapping[str, Any] = span.attributes or {}
        stage, trace = values.get(attributes.STAGE), span.context.trace_id
        if stage is None:
            return
        stages = self._open[trace]
        stages[stage] = stages.get(stage, 0.0) + (span.end_time - span.start_time) / _NS
        if values.get(attributes.CACHE_HIT):
            self._hit.add(trace)
        if stage == "query":
            outcome = "hit" if trace in self._hit else "miss"
            for name, seconds in self._open.pop(trace).items():
                self.seconds[outcome][name].append(seconds)
            self._hit.discard(trace)
