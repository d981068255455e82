"""Spans that instrumentors make for a run of LangChain's without making them current."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from langchain_core.runnables.config import (
    ensure_config,
    get_callback_manager_for_config,
    var_child_runnable_config,
)

from ragaccel import telemetry

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from langchain_core.runnables import RunnableConfig

_HOUSES: Final = ("openinference.", "opentelemetry.")


def will_trace(config: RunnableConfig | None) -> bool:
    """Tell whether an instrumentor will make a span of its own for a run."""
    handlers = get_callback_manager_for_config(ensure_config(config)).handlers
    return any(type(one).__module__.startswith(_HOUSES) for one in handlers)


def below(run_manager: Any) -> AbstractContextManager[None]:
    """Let stages begin below the span that OpenInference or OpenLLMetry made for a run."""
    if not telemetry.recording():
        return contextlib.nullcontext()
    return telemetry.below(span_of(run_manager))


def span_of(run_manager: Any) -> Any:
    """Return the span that an instrumentor made for a run, or None.

    Streams are not told their run: for them it is that of the chain they are part of.
    """
    if run_manager is not None:
        return _span_of(run_manager, run_manager.run_id)
    chain = (var_child_runnable_config.get() or {}).get("callbacks")
    return _span_of(chain, getattr(chain, "parent_run_id", None))


def _span_of(manager: Any, run_id: Any) -> Any:
    for handler in getattr(manager, "handlers", ()):
        house = type(handler).__module__
        if house.startswith("openinference."):
            return handler.get_span(run_id)
        if house.startswith("opentelemetry.instrumentation.langchain."):
            holder = handler.spans.get(run_id)
            return None if holder is None else holder.span
    return None
