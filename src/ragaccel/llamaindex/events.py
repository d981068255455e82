"""LlamaIndex's own events as stages: embedding happens inside a retriever, out of our reach."""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index_instrumentation import get_dispatcher

from ragaccel.telemetry import attributes
from ragaccel.telemetry.stage import past_stage, recording

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_index.core.instrumentation.events import BaseEvent

_started: ContextVar[dict[str | None, tuple[int, str]] | None] = ContextVar(
    "ragaccel_embeddings", default=None
)


class _EmbedStages(BaseEventHandler):
    """Turns the start and the end of an embedding into an `embed` span of our request."""

    @classmethod
    def class_name(cls) -> str:
        return "RagaccelEmbedStages"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        started = _started.get()
        if started is None:
            return
        if isinstance(event, EmbeddingStartEvent):
            model = str(event.model_dict.get("model_name", "unknown"))
            started[event.span_id] = (time.time_ns(), model)
        elif isinstance(event, EmbeddingEndEvent) and event.span_id in started:
            start_ns, model = started.pop(event.span_id)
            past_stage("embed", start_ns, time.time_ns(), {attributes.MODEL: model})


@contextlib.contextmanager
def embed_stages() -> Iterator[None]:
    """Show the embeddings that happen inside as stages of the current span."""
    if not recording():
        yield
        return
    _listen()
    token = _started.set({})
    try:
        yield
    finally:
        _started.reset(token)


def leave_out() -> None:
    """Show no stage for the embedding that has just begun: its model shows one itself."""
    started = _started.get()
    if started:
        started.popitem()


def _listen() -> None:
    """Hear LlamaIndex's events, unless that is so already."""
    dispatcher = get_dispatcher()
    if not any(isinstance(handler, _EmbedStages) for handler in dispatcher.event_handlers):
        dispatcher.add_event_handler(_EmbedStages())
