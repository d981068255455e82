"""The Redis level: Redis or Valkey servers that machines share; no server modules needed."""

from ragaccel.cache.levels.breaker import Unavailable
from ragaccel.cache.levels.redis.level import RedisLevel

__all__ = ["RedisLevel", "Unavailable"]
