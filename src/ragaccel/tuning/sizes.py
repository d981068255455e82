"""The size of caches from one pass over the traffic: no trial is spent on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from ragaccel.cache import MemoryLevel, MultiLevelCache
from ragaccel.cache.levels.eviction import Entry, TinyLFU
from ragaccel.tuning import distances
from ragaccel.tuning.parts import parts, tunables
from ragaccel.tuning.replay import memory_mb

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
        rate: The hit rate that it would have had with that size, had the traffic found it empty.
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
            f"{self.name}: {self.size / _MB:,.1f} MB {done}; empty at first, it hits "
            f"{self.rate:.1%} of this traffic, with entries of {self.entry_bytes:,} bytes "
            f"({told}). The size is by one pass of stack distances."
        )


def best_sizes(
    components: Sequence[Any],
    keys: Sequence[Hashable],
    limit_mb: float | None,
    more_mb: float = 0.0,
) -> list[CacheSize]:
    """Return for each cache the least size whose hit rate is about the highest, were it LRU.

    What there is stays, unless it hits less than that or takes more than there may be.

    Args:
        components: Those that hold the caches.
        keys: Of the traffic, in order.
        limit_mb: What all components may take; None for any.
        more_mb: What others take at least, beside what they take now.
    """
    found = []
    caches = {
        cache: level
        for cache in parts(list(components))
        if isinstance(cache, MultiLevelCache) and (level := _memory_level(cache)) is not None
    }
    apart = distances.stack_distances(keys)
    room = math.inf
    if limit_mb is not None:
        others = memory_mb(components, dict.fromkeys(caches.values(), 0))
        room = (limit_mb - others - more_mb) * _MB
    for cache, level in caches.items():
        entry = level.bytes_used // len(level) if len(level) else _ENTRY_BYTES
        knob = next(one for one in tunables(cache) if one.name == APART[0])
        allowed = [one for one in knob.values if one <= room]
        rates = {one: distances.hit_rate(apart, one // entry) for one in allowed}
        was = level.max_bytes
        size = was
        if rates:
            most = max(rates.values())
            if was not in rates or rates[was] < most - _CLOSE:
                size = min(one for one, rate in rates.items() if rate >= most - _CLOSE)
        room -= size
        rate = own_rate(keys, size, entry)
        found.append(CacheSize(level, knob.name, was, size, rate, entry, not len(level)))
    return found


def own_rate(keys: Sequence[Hashable], size: int, entry_bytes: int) -> float:
    """Return the hit rate of a memory level that is empty at first, by its own rules.

    Args:
        keys: Of the traffic, in order.
        size: Bytes that it may hold.
        entry_bytes: What an entry takes.
    """
    policy, hits = TinyLFU(size), 0
    for key in keys:
        digest = blake2b(repr(key).encode(errors="surrogatepass"), digest_size=16).digest()
        entry = policy.window.get(digest) or policy.main.get(digest)
        if entry is None:
            policy.put(Entry(digest, b"", math.inf, 0.0, b"", entry_bytes), 0.0)
        else:
            entry.hits += 1
            hits += 1
    return hits / len(keys) if keys else 0.0


def _memory_level(cache: MultiLevelCache) -> MemoryLevel | None:
    return next((one for one in cache.levels if isinstance(one, MemoryLevel)), None)
