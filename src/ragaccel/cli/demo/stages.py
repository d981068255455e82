"""Stage durations of the demo's requests."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from ragaccel import telemetry

_NS = 1e9


class StageTimes:
    """Keeps seconds per stage of whole requests; a `telemetry.Listener`.

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

    def started(self, stage: telemetry.Stage) -> None:
        """Wait for its end."""

    def ended(self, stage: telemetry.Stage) -> None:
        """Take in a stage; that of a `query` ends its request."""
        request = stage
        while request.parent is not None:
            request = request.parent
        stages = self._open[id(request)]
        stages[stage.name] = stages.get(stage.name, 0.0) + stage.duration_ns / _NS
        if stage.attributes.get(attributes.CACHE_HIT):
            self._hit.add(id(request))
        if stage is request:
            outcome = "hit" if id(request) in self._hit else "miss"
            seconds = self._open.pop(id(request))
            self._hit.discard(id(request))
            if stage.name == "query":
                for name, took in seconds.items():
                    self.seconds[outcome][name].append(took)
