"""Metrics: figures that are read when an exporter asks for them."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from weakref import ref

from opentelemetry import metrics
from opentelemetry.metrics import Observation, _internal

from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.metrics import CallbackOptions, Histogram

    from ragaccel.telemetry.stage import Stage


_NS: Final = 1e9


class Figure(NamedTuple):
    """One reading; `name` is one of `FIGURES`."""

    name: str
    value: float
    attributes: dict[str, str]


class Measured(Protocol):
    """Something that can be read."""

    def figures(self) -> Iterable[Figure]:
        """Return what it reads now."""


def _doubled(first: float, count: int) -> list[float]:
    return [first * 2**power for power in range(count)]


_Series = tuple[str, tuple[tuple[str, str], ...]]  # a name, and its labels in order

#: Name -> unit and description. Names that end in `.size` or `.entries` rise and fall.
FIGURES: Final[dict[str, tuple[str, str]]] = {
    "ragaccel.cache.hits": ("{lookup}", "Look-ups that a level of the cache served"),
    "ragaccel.cache.misses": ("{lookup}", "Look-ups that no level served"),
    "ragaccel.cache.coalesced": ("{lookup}", "Look-ups served by another call's computation"),
    "ragaccel.cache.refused": ("{entry}", "Entries found and not served, by reason"),
    "ragaccel.cache.bypasses": ("{call}", "Calls that went past the cache, by reason"),
    "ragaccel.cache.faults": ("{fault}", "Faults of a level that the request survived"),
    "ragaccel.cache.refreshes": ("{value}", "Values computed anew in the background, by outcome"),
    "ragaccel.cache.saved": ("s", "Time that served values had taken to compute"),
    "ragaccel.cache.saved_tokens": ("{token}", "Tokens that served values had taken"),
    "ragaccel.cache.evictions": ("{entry}", "Entries that went for a size bound"),
    "ragaccel.cache.size": ("By", "Bytes that a level holds"),
    "ragaccel.cache.entries": ("{entry}", "Entries that a level holds"),
}


#: Name -> unit, description and bounds of the buckets: a search takes well under a millisecond.
DISTRIBUTIONS: Final[dict[str, tuple[str, str, Sequence[float]]]] = {
    "ragaccel.stage.duration": ("s", "How long stages take", _doubled(5e-5, 20)),
    "ragaccel.batch.size": ("{item}", "Items of one call", _doubled(1, 10)),
    "ragaccel.batch.wait": (
        "s",
        "How long requests wait for the call that serves them",
        _doubled(5e-5, 16),
    ),
}


class _Source:
    """Something measured, and what it has counted even when it is no more."""

    def __init__(self, measured: Measured, counted: Callable[[], Iterable[Figure]]) -> None:
        self._measured, self._counted = ref(measured), counted
        self._counters: dict[_Series, float] = {}

    @property
    def has_ended(self) -> bool:
        return self._measured() is None

    def read(self) -> dict[_Series, float]:
        """Return the sum of each series; a counter that is not told any more stays as it was."""
        measured = self._measured()
        read: defaultdict[_Series, float] = defaultdict(float)
        for name, value, labels in self._counted() if measured is None else measured.figures():
            read[name, tuple(sorted(labels.items()))] += value
        counters = {series: read[series] for series in read if not _rises_and_falls(series[0])}
        self._counters = {**self._counters, **counters}
        return {**self._counters, **read}


_sources: list[_Source] = []
_ended: dict[_Series, float] = {}
_instruments: list[object] = []
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def measure(measured: Measured, counted: Callable[[], Iterable[Figure]]) -> None:
    """Read something whenever metrics are exported; what it counted outlives it.

    Nothing is read unless the application, or `configure`, has set up metrics.

    Args:
        measured: What to read as long as it lives.
        counted: Returns its counters when it is no more, so it must not hold it.
    """
    with _lock:
        _add_up_ended()
        _sources.append(_Source(measured, counted))
        if not _instruments:
            _instruments.extend(_made())


def is_on() -> bool:
    """Tell whether the application, or `configure`, has set up metrics."""
    return _internal._METER_PROVIDER is not None


def record(stage: Stage) -> None:
    """Add a stage that is over to the distributions; the current span becomes their exemplar."""
    if not is_on():
        return
    labels = {attributes.STAGE: stage.name}
    if stage.error is not None:
        labels["error.type"] = stage.error
    _distribution("ragaccel.stage.duration").record(stage.duration_ns / _NS, labels)
    if stage.serves:
        _distribution("ragaccel.batch.size").record(len(stage.serves), labels)
        for place in stage.serves:
            waited = (stage.began_ns - place.since_ns) / _NS
            _distribution("ragaccel.batch.wait").record(waited, labels)


@cache
def _distribution(name: str) -> Histogram:
    unit, description, bounds = DISTRIBUTIONS[name]
    return metrics.get_meter("ragaccel").create_histogram(
        name, unit, description, explicit_bucket_boundaries_advisory=bounds
    )


def _made() -> Iterable[object]:
    meter = metrics.get_meter("ragaccel")
    for name, (unit, description) in FIGURES.items():
        create = (
            meter.create_observable_up_down_counter
            if _rises_and_falls(name)
            else meter.create_observable_counter
        )
        yield create(name, callbacks=[_reader(name)], unit=unit, description=description)


def _rises_and_falls(name: str) -> bool:
    return name.endswith((".size", ".entries"))


def _add_up_ended() -> None:
    """Keep of what is no more only the sums; with the lock held."""
    for source in [source for source in _sources if source.has_ended]:
        _add(_ended, source.read())
        _sources.remove(source)


def _add(sums: dict[_Series, float], read: dict[_Series, float]) -> None:
    for series, value in read.items():
        sums[series] = sums.get(series, 0) + value


def _reader(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        with _lock:
            _add_up_ended()
            sources, sums = list(_sources), dict(_ended)
        for source in sources:
            _add(sums, source.read())
        return [
            Observation(value, dict(labels))
            for (told, labels), value in sums.items()
            if told == name
        ]

    return read
