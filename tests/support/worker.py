"""What a process of a pool does in a test: it has to be importable there."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from opentelemetry import context, propagate

from ragaccel import MultiLevelCache, accelerate, telemetry
from tests.langchain.stores import opened

if TYPE_CHECKING:
    from collections.abc import Mapping


@cache
def _store() -> Any:
    return opened()


def retrieve(endpoint: str, carrier: Mapping[str, str]) -> None:
    """Answer a question as a part of the trace that the carrier tells of, if it tells of one."""
    fast = accelerate(_store().as_retriever(), cache=MultiLevelCache.open())
    _configure(endpoint)
    token = context.attach(propagate.extract(carrier))
    try:
        fast.invoke("red tree")
    finally:
        context.detach(token)
        telemetry.flush()


@cache
def _configure(endpoint: str) -> None:
    """Set up tracing once: the process is asked several times."""
    telemetry.configure(endpoint, service_name="worker")
