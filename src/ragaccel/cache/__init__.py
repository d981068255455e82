"""A cache of several levels that never breaks the caller: memory, disk, Redis."""

from typing import TYPE_CHECKING, Any

from ragaccel.cache.keys import Digest, Uncacheable, digest
from ragaccel.cache.levels import Level, Stored, Usage
from ragaccel.cache.levels.disk import DiskLevel
from ragaccel.cache.levels.memory import MemoryLevel
from ragaccel.cache.multilevel import MISSING, MultiLevelCache
from ragaccel.cache.stats import CacheStats, Prices
from ragaccel.cache.ttl import TIME_SENSITIVE, adaptive_ttl, jittered
from ragaccel.cache.values import PLAIN, Kind, Stale
from ragaccel.cache.warming import WarmReport, awarm, warm

if TYPE_CHECKING:
    from ragaccel.cache.levels.redis import RedisLevel

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


def __getattr__(name: str) -> Any:
    if name == "RedisLevel":
        from ragaccel.cache.levels.redis import RedisLevel

        return RedisLevel
    raise AttributeError(f"module 'ragaccel.cache' has no attribute {name!r}")
