"""Joining what is asked at the same time, and asking much at the same time."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ragaccel.batching.micro import MicroBatcher

if TYPE_CHECKING:
    from ragaccel.batching.gathering import agather, gather
    from ragaccel.batching.outcome import Outcome
    from ragaccel.batching.streaming import StreamStage, stream

__all__ = ["MicroBatcher", "Outcome", "StreamStage", "agather", "gather", "stream"]

#: Loaded when they are asked for: who only joins calls needs none of what they need.
_HOME = {
    "Outcome": "outcome",
    "StreamStage": "streaming",
    "agather": "gathering",
    "gather": "gathering",
    "stream": "streaming",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ragaccel.batching' has no attribute {name!r}")
    value = getattr(import_module(f"ragaccel.batching.{_HOME[name]}"), name)
    globals()[name] = value
    return value
