"""Metrics: one table of them; figures that are read at an export, and stages as they end."""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol
from weakref import ref

from opentelemetry import metrics, trace
from opentelemetry.metrics import Observation

from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Histogram
    from opentelemetry.trace import Span

    from ragaccel.telemetry.stage import Stage


NAMESPACE: Final = "ragaccel.cache.namespace"
RESULT: Final = "ragaccel.cache.result"
REASON: Final = "ragaccel.cache.reason"
OUTCOME: Final = "ragaccel.cache.outcome"
BREAKER: Final = "ragaccel.cache.breaker"
INDEX: Final = "ragaccel.index.name"
TOKENS: Final = "gen_ai.token.type"
ERROR: Final = "error.type"

_NS: Final = 1e9
_MOST_SERIES: Final = 500
#: The labels of what comes when a metric has its most series; the name is OpenTelemetry's.
_OVERFLOW: Final = (("otel.metric.overflow", "true"),)
_log = logging.getLogger("ragaccel.telemetry")


class Metric(NamedTuple):
    """What a metric is.

    Attributes:
        kind: Of several objects with the same labels counters and amounts are summed up, and of
            gauges the lowest is told. Histograms are recorded as stages end.
        unit: By UCUM.
        description: For people.
        labels: What tells its series apart.
        bounds: Of a histogram's buckets.
    """

    kind: Literal["counter", "amount", "gauge", "histogram"]
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    bounds: Sequence[float] = ()


def _doubled(first: float, count: int) -> list[float]:
    return [first * 2**power for power in range(count)]


_LEVEL: Final = attributes.CACHE_LEVEL

#: By name. A search takes well under a millisecond: buckets of seconds begin far below.
METRICS: Final[dict[str, Metric]] = {
    "ragaccel.stage.duration": Metric(
        "histogram", "s", "How long stages take", (attributes.STAGE, ERROR), _doubled(5e-5, 20)
    ),
    "ragaccel.cache.lookups": Metric(
        "counter",
        "{lookup}",
        "Look-ups, by the level that served them and by result: hit, miss, coalesced (served by "
        "another call's computation)",
        (NAMESPACE, _LEVEL, RESULT),
    ),
    "ragaccel.cache.refused": Metric(
        "counter", "{entry}", "Entries found and not served", (NAMESPACE, REASON)
    ),
    "ragaccel.cache.bypasses": Metric(
        "counter", "{call}", "Calls that went past the cache", (REASON,)
    ),
    "ragaccel.cache.faults": Metric(
        "counter", "{fault}", "Faults of a level that the request survived", (_LEVEL,)
    ),
    "ragaccel.cache.breakers": Metric(
        "amount", "{breaker}", "Circuit breakers of levels, by the state they are in",
        (_LEVEL, BREAKER),
    ),
    "ragaccel.cache.refreshes": Metric(
        "counter", "{value}", "Values computed anew in the background", (NAMESPACE, OUTCOME)
    ),
    "ragaccel.cache.saved": Metric(
        "counter", "s", "Time that served values had taken to compute", (NAMESPACE,)
    ),
    "ragaccel.cache.saved_tokens": Metric(
        "counter", "{token}", "Tokens that served values had taken", (NAMESPACE, TOKENS)
    ),
    "ragaccel.cache.evictions": Metric(
        "counter", "{entry}", "Entries that went for a size bound", (_LEVEL,)
    ),
    "ragaccel.cache.size": Metric("amount", "By", "Bytes that a level holds", (_LEVEL,)),
    "ragaccel.cache.entries": Metric("amount", "{entry}", "Entries that a level holds", (_LEVEL,)),
    "ragaccel.reuse.lookups": Metric(
        "counter",
        "{lookup}",
        "Calls looked up among similar ones, by result: hit, miss, audit (a hit that was asked "
        "of the model all the same); of searches put to neighbours: certified, calibrated, miss",
        (NAMESPACE, RESULT),
    ),
    "ragaccel.reuse.labels": Metric(
        "counter", "{label}", "Answers to similar calls that were judged, by outcome",
        (NAMESPACE, OUTCOME),
    ),
    "ragaccel.batch.size": Metric("histogram", "{item}", "Items of one call", (), _doubled(1, 10)),
    "ragaccel.batch.wait": Metric(
        "histogram", "s", "How long requests wait for the call that serves them", (),
        _doubled(5e-5, 16),
    ),
    "ragaccel.batch.queue_depth": Metric("amount", "{item}", "Items that wait for a call now"),
    "ragaccel.index.vectors": Metric(
        "amount", "{vector}", "Vectors that a search can find", (INDEX,)
    ),
    "ragaccel.index.memory": Metric(
        "amount", "By", "Memory of codes, row numbers and filters, without the page cache", (INDEX,)
    ),
    "ragaccel.index.recall": Metric(
        "gauge", "{recall}", "Recall@10 against exact search, as estimated at the last calibration",
        (INDEX,),
    ),
}  # fmt: skip


class Figure(NamedTuple):
    """One reading; `name` is one of `METRICS` that is no histogram."""

    name: str
    value: float
    attributes: dict[str, str]


class Measured(Protocol):
    """Something that can be read."""

    def figures(self) -> Iterable[Figure]:
        """Return what it reads now."""


_Series = tuple[str, tuple[tuple[str, str], ...]]  # a name, and its labels in order


class _Source:
    """Something measured, and what it has counted even when it is no more."""

    def __init__(self, measured: Measured, counted: Callable[[], Iterable[Figure]]) -> None:
        self._measured, self._counted = ref(measured), counted
        self._counters: dict[_Series, float] = {}

    @property
    def has_ended(self) -> bool:
        return self._measured() is None

    def read(self) -> dict[_Series, float]:
        """Return the value of each series; a counter that is not told any more stays as it was."""
        read: defaultdict[_Series, float] = defaultdict(float)
        for name, value, labels in self._told():
            read[name, tuple(sorted(labels.items()))] += value
        counters = {one: read[one] for one in read if METRICS[one[0]].kind == "counter"}
        self._counters = {**self._counters, **counters}
        return {**self._counters, **read}

    def _told(self) -> list[Figure]:
        measured = self._measured()
        try:
            return list(self._counted() if measured is None else measured.figures())
        except Exception:  # noqa: BLE001 - the figures of others are still wanted
            _log.exception("Figures could not be read")
            return []


_sources: list[_Source] = []
_ended: dict[_Series, float] = {}
_known: defaultdict[str, set[_Series]] = defaultdict(set)
_parts: dict[str, list[Observation]] = {}
_instruments: list[object] = []
_lock, _reading = threading.Lock(), threading.Lock()


def _begin_anew() -> None:
    """Put the locks in order in a child process, where no other thread of the parent runs."""
    global _reading  # noqa: PLW0603 - as there is one meter provider in a process
    _reading = threading.Lock()
    _parts.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_begin_anew
    )


def measure(measured: Measured, counted: Callable[[], Iterable[Figure]] = tuple) -> None:
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


def record(stage: Stage) -> None:
    """Add a stage that is over to the histograms, with its span as the exemplar."""
    labels = {attributes.STAGE: stage.name}
    if stage.error is not None:
        labels[ERROR] = stage.error
    context = _context(stage.span)
    _histogram("ragaccel.stage.duration").record(stage.duration_ns / _NS, labels, context)
    if stage.serves:
        _histogram("ragaccel.batch.size").record(len(stage.serves), None, context)
        for place in stage.serves:
            waited = (stage.began_ns - place.since_ns) / _NS
            _histogram("ragaccel.batch.wait").record(waited, None, _context(place.span))


def _context(span: Span | None) -> Context | None:
    return None if span is None else trace.set_span_in_context(span)


@cache
def _histogram(name: str) -> Histogram:
    metric = METRICS[name]
    return metrics.get_meter("ragaccel").create_histogram(
        name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=metric.bounds
    )


def _made() -> Iterable[object]:
    meter = metrics.get_meter("ragaccel")
    makers = {
        "counter": meter.create_observable_counter,
        "amount": meter.create_observable_up_down_counter,
        "gauge": meter.create_observable_gauge,
    }
    for name, metric in METRICS.items():
        if metric.kind != "histogram":
            make = makers[metric.kind]
            yield make(name, [_reader(name)], unit=metric.unit, description=metric.description)


def _add_up_ended() -> None:
    """Keep of what is no more only the sums; with the lock held."""
    for source in [source for source in _sources if source.has_ended]:
        _add(_ended, source.read())
        _sources.remove(source)


def _add(sums: dict[_Series, float], read: dict[_Series, float]) -> None:
    for series, value in read.items():
        one = _bounded(series)
        if METRICS[one[0]].kind == "gauge":
            sums[one] = min(value, sums.get(one, value))
        else:
            sums[one] = sums.get(one, 0) + value


def _bounded(series: _Series) -> _Series:
    """Return the series itself, or the one of all that are too many."""
    name, known = series[0], _known[series[0]]
    if len(known) < _MOST_SERIES:
        known.add(series)
    return series if series in known else (name, _OVERFLOW)


def _reader(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """Return what an instrument asks: an export asks for all of them, and reads once."""

    def read(_: CallbackOptions) -> Iterable[Observation]:
        with _reading:
            if name not in _parts:
                _read_all()
            return _parts.pop(name)

    return read


def _read_all() -> None:
    """Read everything that lives, and part it by instrument."""
    with _lock:
        _add_up_ended()
        sources, sums = list(_sources), dict(_ended)
    for source in sources:
        _add(sums, source.read())
    _parts.update((name, []) for name in METRICS)
    for (name, labels), value in sums.items():
        _parts[name].append(Observation(value, dict(labels)))
