"""`stage(name)`: one span of a request, or a shared no-op while nobody listens."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context

from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.trace import Span
    from typing_extensions import Self

    Attributes = Mapping[str, str | bool | int | float]
    Place = trace.SpanContext

_NO_ATTRIBUTES: Attributes = {}


class Stage(Protocol):
    """What `stage()` gives: a context manager that takes attributes while it is open."""

    def set(self, values: Attributes) -> None:
        """Set attributes, named by the constants of `telemetry.attributes`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class _Off:
    """The stage of a process that traces nothing, or of a request that is not sampled."""

    __slots__ = ()

    def set(self, values: Attributes) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        pass


class _On:
    """A recording stage: a span that is current from enter to exit."""

    __slots__ = ("_links", "_name", "_parent", "_span", "_token", "_values")

    _span: Span
    _token: Token[Context]

    def __init__(
        self, name: str, values: Attributes, parent: Span | None, serves: Iterable[Place]
    ) -> None:
        self._name = name
        self._values = values
        self._links = [trace.Link(one) for one in serves]
        self._parent = None if parent is None else trace.set_span_in_context(parent)
        if self._links:
            self._parent = Context()

    def set(self, values: Attributes) -> None:
        self._span.set_attributes(values)

    def __enter__(self) -> Self:
        self._span = _start(self._name, self._values, self._parent, links=self._links)
        self._token = otel_context.attach(trace.set_span_in_context(self._span, self._parent))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        otel_context.detach(self._token)
        if isinstance(error, Exception):
            # Messages and stack traces may hold what was asked and found: the type says enough.
            name = type(error).__qualname__
            self._span.add_event("exception", {"exception.type": name})
            self._span.set_status(trace.StatusCode.ERROR, name)
            self._span.set_attribute("error.type", name)
        self._span.end()


OFF: Stage = _Off()


def recording() -> bool:
    """Tell whether a stage opened now would reach a tracer."""
    if trace._TRACER_PROVIDER is None:
        return False
    current = trace.get_current_span().get_span_context()
    return current.trace_flags.sampled or not current.is_valid


def here() -> Place | None:
    """Return the place in a trace where a request is now, or None while nobody listens."""
    if not recording():
        return None
    place = trace.get_current_span().get_span_context()
    return place if place.is_valid else None


def stage(
    name: str,
    values: Attributes = _NO_ATTRIBUTES,
    *,
    parent: Span | None = None,
    serves: Iterable[Place] = (),
) -> Stage:
    """Open a span for one stage of a request.

    Args:
        name: The stage: query, preprocess, cache.lookup, embed, retrieve, search or ingest.
        values: Attributes known at the start, named by the constants of `telemetry.attributes`.
        parent: A span to nest under instead of the current one.
        serves: Places of several requests that the stage is for, which are no parents of it: it
            begins a trace of its own that is linked to them; see `here`.

    Returns:
        A context manager. Without a tracer provider, or inside a request that is not sampled, it is
        a shared no-op.
    """
    return _On(name, values, parent, serves) if serves or recording() else OFF


def past_stage(name: str, start_ns: int, end_ns: int, values: Attributes = _NO_ATTRIBUTES) -> None:
    """Record a stage that has already ended, under the current span.

    For stages that a framework reports only by events. Times are nanoseconds since the epoch.
    """
    if recording():
        _start(name, values, None, start_ns).end(end_ns)


def _start(
    name: str,
    values: Attributes,
    parent: Context | None,
    start_ns: int | None = None,
    links: Sequence[trace.Link] = (),
) -> Span:
    known = {attributes.STAGE: name, **attributes.OF_STAGE.get(name, {}), **values}
    return _tracer(trace._TRACER_PROVIDER).start_span(
        name, context=parent, attributes=known, start_time=start_ns, links=links
    )


@lru_cache(maxsize=1)
def _tracer(_: object) -> trace.Tracer:
    """Return a provider's tracer; for each that it makes, the SDK resets what was warned about."""
    return trace.get_tracer("ragaccel", version("ragaccel"))
