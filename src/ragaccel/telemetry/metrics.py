"""Metrics: figures that are read when an exporter asks for them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions


class Figure(NamedTuple):
    """One reading; `name` is one of `FIGURES`."""

    name: str
    value: float
    attributes: dict[str, str]


class Measured(Protocol):
    """Something that can be read."""

    def figures(self) -> Iterable[Figure]:
        """Return what it reads now."""


#: Name -> unit and description. Names that end in `.size` or `.entries` rise and fall.
FIGURES: Final[dict[str, tuple[str, str]]] = {
    "ragaccel.cache.hits": ("{lookup}", "Look-ups that a level of the cache served"),
    "ragaccel.cache.misses": ("{lookup}", "Look-ups that no level served"),
    "ragaccel.cache.coalesced": ("{lookup}", "Look-ups served by another call's computation"),
    "ragaccel.cache.refused": ("{entry}", "Entries found and not served, by reason"),
    "ragaccel.cache.bypasses": ("{call}", "Calls that went past the cache, by reason"),
    "ragaccel.cache.faults": ("{fault}", "Faults of a level that the request survived"),
    "ragaccel.cache.saved": ("s", "Time that served values had taken to compute"),
    "ragaccel.cache.saved_tokens": ("{token}", "Tokens that served values had taken"),
    "ragaccel.cache.evictions": ("{entry}", "Entries that went for a size bound"),
    "ragaccel.cache.size": ("By", "Bytes that a level holds"),
    "ragaccel.cache.entries": ("{entry}", "Entries that a level holds"),
}

_measured: WeakSet[Measured] = WeakSet()
_lock = threading.Lock()
_instruments: list[object] = []


def measure(measured: Measured) -> None:
    """Read something whenever metrics are exported, as long as it lives.

    Nothing is read unless the application, or `configure`, has set up metrics.
    """
    with _lock:
        _measured.add(measured)
        if not _instruments:
            meter = metrics.get_meter("ragaccel")
            for name, (unit, description) in FIGURES.items():
                rises_and_falls = name.endswith((".size", ".entries"))
                create = (
                    meter.create_observable_up_down_counter
                    if rises_and_falls
                    else meter.create_observable_counter
                )
                instrument = create(
                    name, callbacks=[_reader(name)], unit=unit, description=description
                )
                _instruments.append(instrument)


def _reader(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        sums: dict[tuple[tuple[str, str], ...], float] = {}
        for measured in list(_measured):
            for figure in measured.figures():
                if figure.name == name:
                    labels = tuple(sorted(figure.attributes.items()))
                    sums[labels] = sums.get(labels, 0) + figure.value
        return [Observation(value, dict(labels)) for labels, value in sums.items()]

    return read
