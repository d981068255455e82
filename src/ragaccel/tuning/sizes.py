"""The size of caches from one pass over the traffic: no trial is spent on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ragaccel.cache import MemoryLevel, MultiLevelCache
from ragaccel.tuning import distances
from ragaccel.tuning.parts import parts, tunables

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

_MB: Final = 1e6
_ENTRY_BYTES: Final = 4096
_CLOSE: Final = 0.005
#: Knobs that are decided here, or that asking queries again tells nothing about.
APART: Final = ("cache.memory_bytes", "cache.ttl")


@dataclass(frozen=True)
class CacheSize:
    """What a memory level should hold.

    Attributes:
        level: The level.
        name: Of its knob.
        was: Bytes it may hold now.
        size: Bytes it should.
        rate: The hit rate that an LRU cache of that size would have had on the traffic.
        entry_bytes: What an entry takes.
        is_guessed: Whether that is a guess, as the level is empty.
    """

    level: MemoryLevel
    name: str
    was: int
    size: int
    rate: float
    entry_bytes: int
    is_guessed: bool

    def __str__(self) -> str:
        told = "a guess" if self.is_guessed else "as it holds them now"
        done = "kept" if self.size == self.was else f"set, from {self.was / _MB:,.1f}"
        return (
            f"{self.name}: {self.size / _MB:,.1f} MB {done}; an LRU cache of it hits "
            f"{self.rate:.1%} of this traffic, with entries of {self.entry_bytes:,} bytes "
            f"({told}). By one pass of stack distances."
        )


def best_sizes(
    components: Sequence[Any], keys: Sequence[Hashable], limit_mb: float | None
) -> list[CacheSize]:
    """Return for each cache the least size whose hit rate is about the highest.

    What there is stays, unless it hits less than that or takes more than there may be.

    Args:
        components: Those that hold the caches.
        keys: Of the traffic, in order.
        limit_mb: What a memory level may take; None for any.
    """
    found = []
    apart = distances.stack_distances(keys)
    for cache in (one for one in parts(list(components)) if isinstance(one, MultiLevelCache)):
        level = next((one for one in cache.levels if isinstance(one, MemoryLevel)), None)
        if level is None:
            continue
        entry = level.bytes_used // len(level) if len(level) else _ENTRY_BYTES
        knob = next(one for one in tunables(cache) if one.name == APART[0])
        allowed = [one for one in knob.values if limit_mb is None or one <= limit_mb * _MB]
        rates = {one: distances.hit_rate(apart, one // entry) for one in allowed}
        was = level.max_bytes
        size = was
        if rates:
            most = max(rates.values())
            if was not in rates or rates[was] < most - _CLOSE:
                size = min(one for one, rate in rates.items() if rate >= most - _CLOSE)
        rate = distances.hit_rate(apart, size // entry)
        found.append(CacheSize(level, knob.name, was, size, rate, entry, not len(level)))
    return found
