"""`stage(name)`: one stage of a request, told to a tracer, to metrics and to listeners.

While none of them is there it is a shared object that does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from contextvars import ContextVar
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeter, _internal, get_meter

from ragaccel.telemetry import attributes, metrics

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.trace import Span, Tracer
    from typing_extensions import Self

    Attributes = Mapping[str, str | bool | int | float]

_NO_ATTRIBUTES: Attributes = {}
_NS: Final = 1e9
_current: ContextVar[Stage | None] = ContextVar("ragaccel_stage", default=None)
#: OpenTelemetry's context inside a stage that is not sampled, as long as nothing was added to it.
_sampled_out: ContextVar[Context | None] = ContextVar("ragaccel_sampled_out", default=None)
#: Providers that are known to do nothing, as a disabled SDK's; None stands for there being none.
_silent_tracers: object = None
_silent_meters: object = None
_log = logging.getLogger("ragaccel.telemetry")


class Place(NamedTuple):
    """Where a request is, for work that is done for several requests at once.

    Attributes:
        stage: The stage it is in, if any.
        span: The span it is in, if it is traced.
        since_ns: When it came there, by `time.perf_counter_ns`.
    """

    stage: Stage | None
    span: Span | None
    since_ns: int

    def served_by(self, batch: Stage) -> None:
        """Tell the request how long it waited for a batch, and link it there."""
        told = {
            attributes.BATCH_SIZE: len(batch.serves),
            attributes.BATCH_WAIT: (batch.began_ns - self.since_ns) / _NS,
        }
        if self.stage is not None:
            self.stage.set(told)
        if self.span is not None and batch.span is not None:
            self.span.add_link(batch.span.get_span_context(), told)


class Stage:
    """One stage of a request: a context manager, and what is known of it afterwards.

    Attributes:
        name: query, preprocess, cache.lookup, embed, retrieve, search, rerank, generate, batch or
            ingest.
        attributes: By the names of `telemetry.attributes`.
        start_ns: When it began, nanoseconds since the epoch.
        began_ns: When it began, by `time.perf_counter_ns`.
        duration_ns: How long it took, by a clock that never goes back; 0 while it is open.
        error: The name of the exception that ended it.
        parent: The stage it is part of.
        serves: The requests that it is for, if it is part of none.
        span: Its span, if the request is traced.
    """

    __slots__ = (
        "_context", "_is_out", "_outer", "_token", "_tracer", "attributes", "began_ns",
        "duration_ns", "error", "name", "parent", "serves", "span", "start_ns",
    )  # fmt: skip

    span: Span | None
    _outer: Token[Stage | None]
    _token: Token[Context] | None

    def __init__(
        self,
        name: str,
        values: Attributes,
        context: Context | None,
        serves: Sequence[Place],
        tracer: Tracer | None,
    ) -> None:
        self.name = name
        fixed = attributes.OF_STAGE.get(name, _NO_ATTRIBUTES)
        self.attributes: dict[str, Any] = {**fixed, **values}
        self.serves = serves
        self.parent = None if serves else _current.get()
        self.start_ns = self.began_ns = self.duration_ns = 0
        self.error: str | None = None
        self.span = self._token = None
        self._context, self._tracer, self._is_out = context, tracer, False

    @property
    def is_inner(self) -> bool:
        """Whether it is right inside one of its own name, which stands for both in figures."""
        return self.parent is not None and self.parent.name == self.name

    def set(self, values: Attributes) -> None:
        """Set attributes, named by the constants of `telemetry.attributes`."""
        self.attributes.update(values)
        if self.span is not None:
            # The SDK takes longer for a mapping, even an empty one, than for three by themselves.
            for name, value in values.items():
                self.span.set_attribute(name, value)

    def __enter__(self) -> Stage:  # noqa: PYI034 - nobody hears of one that is not sampled
        self._begin(time.time_ns(), time.perf_counter_ns())
        self._attach()
        return OFF if self._is_out else self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._is_out:
            self.end(error)
        self._detach()

    def begin(self) -> Self:
        """Begin without being current, for work that takes turns with others, such as a stream.

        To be followed by any number of `turn` and one `end`.
        """
        self._begin(time.time_ns(), time.perf_counter_ns())
        return self

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Be current: what begins inside is part of this stage."""
        self._attach()
        try:
            yield
        finally:
            self._detach()

    def end(self, error: BaseException | None = None) -> None:
        """End, with an exception or without; a cancellation is no error."""
        self.duration_ns = time.perf_counter_ns() - self.began_ns
        if isinstance(error, Exception):
            self.error = type(error).__qualname__
        self._end()

    def past(self, start_ns: int, duration_ns: int) -> None:
        """Tell of a stage that is over already."""
        self._begin(start_ns, time.perf_counter_ns() - (time.time_ns() - start_ns))
        self.duration_ns = duration_ns
        self._end()

    def _attach(self) -> None:
        if self.span is not None:
            inside = trace.set_span_in_context(self.span, self._context)
            self._token = otel_context.attach(inside)
            if self._is_out:
                _sampled_out.set(inside)
                return
        self._outer = _current.set(self)

    def _detach(self) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
        if not self._is_out:
            _current.reset(self._outer)

    def _begin(self, start_ns: int, began_ns: int) -> None:
        self.start_ns, self.began_ns = start_ns, began_ns
        if self._tracer is not None:
            self.span = self._tracer.start_span(
                self.name, context=self._context, attributes=self.attributes,
                start_time=start_ns, links=self._links() if self.serves else None,
            )  # fmt: skip
            if not self.span.is_recording() and not _is_told(self.name):
                self._is_out = True
                return
        for place in self.serves:
            place.served_by(self)
        for listener in _listeners:
            _tell(listener.started, self)

    def _links(self) -> list[trace.Link]:
        spans = [one.span for one in self.serves if one.span is not None]
        return [trace.Link(span.get_span_context()) for span in spans]

    def _end(self) -> None:
        for listener in _listeners:
            _tell(listener.ended, self)
        if _has_meters() and not self.is_inner:
            _tell(metrics.record, self)
        span = self.span
        if span is None:
            return
        if self.error is not None:
            # Messages and stack traces may hold what was asked and found: the type says enough.
            span.add_event("exception", {"exception.type": self.error})
            span.set_status(trace.StatusCode.ERROR, self.error)
            span.set_attribute("error.type", self.error)
        span.end(self.start_ns + self.duration_ns)


class _Off(Stage):
    """What is opened while nobody looks, or inside a request that is not sampled."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def set(self, values: Attributes) -> None:
        pass

    def begin(self) -> Self:
        return self

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def end(self, error: BaseException | None = None) -> None:
        pass


OFF: Final[Stage] = _Off()
# Builtins that give it and a false value whatever they are given, at half the cost of methods: most
# of what a stage costs while nobody looks is `with` itself.
_Off.__enter__ = staticmethod(partial(next, repeat(OFF)))  # type: ignore[method-assign]
_Off.__exit__ = "".format  # type: ignore[method-assign, assignment]


class _Brief(Stage):
    """A stage for those alone who hear that it begins and how it ends; it takes in nothing else."""

    __slots__ = ("_told",)

    def __init__(self, name: str, values: Attributes) -> None:
        self.name, self.attributes = name, values  # type: ignore[assignment]
        self.error = self.parent = self.span = None
        self.serves, self._told = (), _listeners

    def __enter__(self) -> Stage:
        self.begin()
        return OFF

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.end(error)

    def set(self, values: Attributes) -> None:
        pass

    def begin(self) -> Self:
        for listener in self._told:
            _tell(listener.started, self)
        return self

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def end(self, error: BaseException | None = None) -> None:
        if isinstance(error, Exception):
            self.error = type(error).__qualname__
        for listener in self._told:
            _tell(listener.ended, self)


class Listener(Protocol):
    """Hears of every stage of this process, sampled or not, in the thread that is in it.

    An exception that it raises is logged and goes no further.
    """

    def started(self, stage: Stage) -> None:
        """Hear that a stage begins."""

    def ended(self, stage: Stage) -> None:
        """Hear that a stage is over; nothing of it changes any more."""


class _Every:
    """The names of all stages."""

    def __contains__(self, name: object) -> bool:
        return True


_listening: tuple[tuple[Listener, frozenset[str] | None, bool], ...] = ()
_listeners: tuple[Listener, ...] = ()
_heard: Container[str] = ()
#: Whether all listeners are `brief`.
_is_brief = True


def listen(listener: Listener, stages: Iterable[str] | None = None, *, brief: bool = False) -> None:
    """Tell a listener of stages from now on.

    Args:
        listener: The listener.
        stages: The names of those that it needs, so that others cost nothing for its sake; it may
            be told of others all the same. None for all.
        brief: It needs no more of a stage than its name, the attributes known at its start, and
            the error. Where nobody needs more, a stage costs less.
    """
    names = None if stages is None else frozenset(stages)
    _set_listening((*_listening, (listener, names, brief)))


def unlisten(listener: Listener) -> None:
    """Tell it no more."""
    _set_listening(tuple(one for one in _listening if one[0] is not listener))


def _set_listening(listening: tuple[tuple[Listener, frozenset[str] | None, bool], ...]) -> None:
    global _listening, _listeners, _heard, _is_brief  # noqa: PLW0603 - as there is one provider
    names = [stages for _, stages, _ in listening if stages is not None]
    _is_brief = all(brief for *_, brief in listening)
    hears_all = len(names) < len(listening)
    _heard = _Every() if hears_all else frozenset[str]().union(*names)
    _listeners = tuple(listener for listener, *_ in listening)
    _listening = listening


def recording() -> bool:
    """Tell whether a stage opened now would be heard of."""
    if _internal._METER_PROVIDER is _silent_meters and trace._TRACER_PROVIDER is _silent_tracers:
        return bool(_listeners)
    return bool(_listeners) or _has_meters() or _tracer(None) is not None


def _is_told(name: str) -> bool:
    """Tell whether a stage of a name is told of without being traced."""
    return name in _heard or _has_meters()


def _has_meters() -> bool:
    """Tell whether anything is done with what is measured."""
    global _silent_meters  # noqa: PLW0603 - as there is one meter provider in a process
    provider = _internal._METER_PROVIDER
    if provider is not _silent_meters and _meters_are_silent(provider):
        _silent_meters = provider
    return provider is not _silent_meters


def _tracer(context: Context | None) -> Tracer | None:
    """Return our tracer if the request that a context is part of is sampled, or may be."""
    global _silent_tracers  # noqa: PLW0603
    provider = trace._TRACER_PROVIDER
    if provider is _silent_tracers:
        return None
    tracer = _tracer_of(provider)
    if tracer is None:
        _silent_tracers = provider
        return None
    if not (otel_context.get_current() if context is None else context):
        return tracer
    around = trace.get_current_span(context).get_span_context()
    return None if around.is_valid and not around.trace_flags.sampled else tracer


def here() -> Place | None:
    """Return where a request is now, or None while nobody listens."""
    if not recording():
        return None
    span = trace.get_current_span()
    is_sampled = span.get_span_context().trace_flags.sampled
    return Place(_current.get(), span if is_sampled else None, time.perf_counter_ns())


def stage(
    name: str,
    values: Attributes = _NO_ATTRIBUTES,
    parent: Span | None = None,
    serves: Sequence[Place] = (),
) -> Stage:
    """Open one stage of a request.

    Args:
        name: See `Stage`.
        values: Attributes known at the start, named by the constants of `telemetry.attributes`.
        parent: A span to nest under instead of the current one.
        serves: Places of several requests that the stage is for, which are no parents of it: it
            begins a trace of its own that is linked to them; see `here`.

    Returns:
        A context manager. Without a tracer provider, a meter provider and listeners, or inside a
        request that is not sampled, it is a shared no-op.
    """
    if name not in _heard and _internal._METER_PROVIDER is _silent_meters:
        if trace._TRACER_PROVIDER is _silent_tracers:
            return OFF
        if _sampled_out.get() is otel_context.get_current() and parent is None and not serves:
            return OFF
    context = Context() if serves else _under(parent)
    tracer = _tracer(context)
    if tracer is None and not _is_told(name):
        return OFF
    if _is_brief and tracer is None and not serves and not _has_meters():
        return _Brief(name, values)
    return Stage(name, values, context, serves, tracer)


def _under(parent: Span | None) -> Context | None:
    return None if parent is None else trace.set_span_in_context(parent)


@contextlib.contextmanager
def below(span: Span | None) -> Iterator[None]:
    """Let stages begin below a span that whoever made it has not made current."""
    if span is None:
        yield
        return
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        otel_context.detach(token)


def past_stage(name: str, start_ns: int, end_ns: int, values: Attributes = _NO_ATTRIBUTES) -> None:
    """Record a stage that has already ended, under the current one.

    For stages that a framework reports only by events. Times are nanoseconds since the epoch.
    """
    told = stage(name, values)
    if told is not OFF:
        told.past(start_ns, end_ns - start_ns)


def _tell(hear: Any, stage: Stage) -> None:
    try:
        hear(stage)
    except Exception:  # noqa: BLE001 - telemetry never breaks a request
        _log.exception("What listens to stages failed")


@lru_cache(maxsize=1)
def _tracer_of(provider: object) -> Tracer | None:
    """Return a provider's tracer; for each that it makes, the SDK resets what was warned about."""
    made = None if provider is None else trace.get_tracer("ragaccel", version("ragaccel"))
    return None if isinstance(made, trace.NoOpTracer) else made


@lru_cache(maxsize=1)
def _meters_are_silent(provider: object) -> bool:
    return provider is None or isinstance(get_meter("ragaccel"), NoOpMeter)
