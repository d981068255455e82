"""What of a cache can be turned while it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ragaccel.cache.levels.memory import MemoryLevel
from ragaccel.knobs import Knob

if TYPE_CHECKING:
    from ragaccel.cache.multilevel import MultiLevelCache

_MIB: Final = 1024 * 1024
_SIZES: Final = tuple(mebibytes * _MIB for mebibytes in (1, 4, 16, 64, 256, 1024))
_TTLS: Final = (60.0, 600.0, 3600.0, 86_400.0)


def knobs(cache: MultiLevelCache) -> tuple[Knob, ...]:
    """Return the knobs of a cache; a TTL that is a function, or none, is left alone."""
    found = []
    memory = next((one for one in cache.levels if isinstance(one, MemoryLevel)), None)
    if memory is not None:
        sizes = sorted({*_SIZES, memory.max_bytes})
        found.append(Knob("cache.memory_bytes", sizes, lambda: memory.max_bytes, memory.resize))
    ttl = cache.ttl
    if isinstance(ttl, float):
        found.append(
            Knob(
                "cache.ttl",
                sorted({*_TTLS, ttl}),
                lambda: cache.ttl,
                lambda value: setattr(cache, "ttl", value),
            )
        )
    return tuple(found)
