"""What LlamaIndex tells its listeners about a call: events, spans and legacy callbacks."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span import BaseSpan
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_index.core.instrumentation.events import BaseEvent

_UUID_PARTS = 5
Tree = tuple[tuple[str, "Tree"], ...]


class EventRecorder(BaseEventHandler):
    """Keeps every event."""

    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "EventRecorder"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self._events.append(event)


class SpanRecorder(BaseSpanHandler[BaseSpan]):
    """Keeps which span was opened inside which, and how they ended."""

    _parents: dict[str, str | None] = PrivateAttr(default_factory=dict)
    _left: list[str] = PrivateAttr(default_factory=list)
    _dropped: list[str] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "SpanRecorder"

    def new_span(self, id_, bound_args, instance=None, parent_span_id=None, tags=None, **_):
        self._parents[id_] = parent_span_id
        return BaseSpan(id_=id_, parent_id=parent_span_id)

    def prepare_to_exit_span(self, id_, bound_args, instance=None, result=None, **_):
        self._left.append(id_)
        return self.open_spans[id_]

    def prepare_to_drop_span(self, id_, bound_args, instance=None, err=None, **_):
        self._dropped.append(id_)
        return self.open_spans[id_]


class Recording:
    """What was told while it was on."""

    def __init__(self) -> None:
        self._events, self._spans = EventRecorder(), SpanRecorder()

    @property
    def events(self) -> list[BaseEvent]:
        return self._events._events

    @property
    def event_names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    @property
    def tree(self) -> Tree:
        """Names of the spans, each with those inside it, in the order of opening."""
        return self._below(None)

    @property
    def dropped(self) -> list[str]:
        """Names of the spans that ended with an error."""
        return [_name(id_) for id_ in self._spans._dropped]

    @property
    def open(self) -> list[str]:
        """Names of the spans that never ended."""
        ended = {*self._spans._left, *self._spans._dropped}
        return [_name(id_) for id_ in self._spans._parents if id_ not in ended]

    def _below(self, parent: str | None) -> Tree:
        parents = self._spans._parents
        known = parent if parent in parents else None
        return tuple(
            (_name(id_), self._below(id_))
            for id_, above in parents.items()
            if (above if above in parents else None) == known
        )


@contextlib.contextmanager
def recording() -> Iterator[Recording]:
    """Listen on the root dispatcher."""
    dispatcher, made = get_dispatcher(), Recording()
    dispatcher.add_event_handler(made._events)
    dispatcher.add_span_handler(made._spans)
    try:
        yield made
    finally:
        dispatcher.event_handlers.remove(made._events)
        dispatcher.span_handlers.remove(made._spans)


class CallbackRecorder(BaseCallbackHandler):
    """Keeps what the legacy callback manager tells."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.told: list[tuple[Any, ...]] = []

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **_):
        if event_type == CBEventType.RETRIEVE:
            self.told.append(("start", event_type, payload[EventPayload.QUERY_STR]))
        else:
            self.told.append(("start", event_type))
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **_):
        if event_type == CBEventType.RETRIEVE:
            nodes = [one.model_copy(deep=True) for one in payload[EventPayload.NODES]]
            self.told.append(("end", event_type, nodes))
        else:
            self.told.append(("end", event_type))

    def start_trace(self, trace_id=None):
        self.told.append(("start trace", trace_id))

    def end_trace(self, trace_id=None, trace_map=None):
        self.told.append(("end trace", trace_id))


def _name(id_: str) -> str:
    return id_.rsplit("-", _UUID_PARTS)[0]
