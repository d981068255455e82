"""A cache of several levels that never breaks the caller: memory, disk, Redis."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ragaccel.cache.keys import Digest, Uncacheable, digest
from ragaccel.cache.levels import Level, Stored, Usage
from ragaccel.cache.levels.disk import DiskLevel
from ragaccel.cache.levels.memory import MemoryLevel
from ragaccel.cache.multilevel import MISSING, MultiLevelCache
from ragaccel.cache.stats import CacheStats, Prices
from ragaccel.cache.ttl import TIME_SENSITIVE, adaptive_ttl, jittered
from ragaccel.cache.values import PLAIN, Kind, Stale

if TYPE_CHECKING:
    from ragaccel.cache.levels.redis import RedisLevel
    from ragaccel.cache.warming import WarmReport, awarm, warm

__all__ = [
    "MISSING",
    "PLAIN",
    "TIME_SENSITIVE",
    "CacheStats",
    "Digest",
    "DiskLevel",
    "Kind",
    "Level",
    "MemoryLevel",
    "MultiLevelCache",
    "Prices",
    "RedisLevel",
    "Stale",
    "Stored",
    "Uncacheable",
    "Usage",
    "WarmReport",
    "adaptive_ttl",
    "awarm",
    "digest",
    "jittered",
    "warm",
]


#: Loaded when they are asked for: who needs none of them need not wait.
_HOME = {
    "RedisLevel": "levels.redis",
    "WarmReport": "warming",
    "awarm": "warming",
    "warm": "warming",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ragaccel.cache' has no attribute {name!r}")
    return getattr(import_module(f"ragaccel.cache.{_HOME[name]}"), name)
