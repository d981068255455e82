"""Make an existing LlamaIndex or LangChain RAG application faster, smaller and observable."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragaccel import errors, langchain, llamaindex, telemetry, testing
    from ragaccel.batching import MicroBatcher
    from ragaccel.cache import DiskLevel, MemoryLevel, MultiLevelCache, RedisLevel
    from ragaccel.dispatch import accelerate, unwrap
    from ragaccel.errors import RagaccelError
    from ragaccel.knobs import Knob
    from ragaccel.observe import Monitor, Profiler
    from ragaccel.tuning import AutoTuner, Goal
    from ragaccel.vectors import CompressionSpec, VectorCollection

__all__ = [
    "AutoTuner",
    "CompressionSpec",
    "DiskLevel",
    "Goal",
    "Knob",
    "MemoryLevel",
    "MicroBatcher",
    "Monitor",
    "MultiLevelCache",
    "Profiler",
    "RagaccelError",
    "RedisLevel",
    "VectorCollection",
    "accelerate",
    "errors",
    "langchain",
    "llamaindex",
    "telemetry",
    "testing",
    "unwrap",
]

_HOME = {
    "AutoTuner": "tuning",
    "CompressionSpec": "vectors",
    "DiskLevel": "cache",
    "Goal": "tuning",
    "Knob": "knobs",
    "MemoryLevel": "cache",
    "MicroBatcher": "batching",
    "Monitor": "observe",
    "MultiLevelCache": "cache",
    "Profiler": "observe",
    "RagaccelError": "errors",
    "RedisLevel": "cache",
    "VectorCollection": "vectors",
    "accelerate": "dispatch",
    "unwrap": "dispatch",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"ragaccel.{_HOME[name]}"), name)
    elif name in __all__:
        value = import_module(f"ragaccel.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("ragaccel")
    else:
        raise AttributeError(f"module 'ragaccel' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
