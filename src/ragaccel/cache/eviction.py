"""Which entries stay: W-TinyLFU by bytes, weighing what an entry costs to make again.

New entries pass through a small window in the order of use. What leaves the window enters the main
part only if it is worth more than what would have to go for it: worth is how often the key was
asked for of late (a sketch that forgets), times the seconds it took to compute. So a scan of
one-off requests passes through the window and leaves the main part as it was, and what was popular
last week loses its place.

Source: Einziger, Friedman, Manes, TinyLFU, 2017; Einziger et al., Lightweight Robust Size Aware
Cache Management, 2021 (candidates are compared with all the victims their bytes need).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

_WINDOW_SHARE: Final = 0.01
_PROTECTED_SHARE: Final = 0.8
_ROWS: Final = 4
_MAX_COUNT: Final = 15
_COUNTERS_PER_KEY: Final = 16
_SAMPLES_PER_KEY: Final = 16
_MIN_KEYS: Final = 256


class _Item(NamedTuple):
    size: int
    cost: float


class Sketch:
    """How often keys were asked for of late: a count-min sketch whose counts halve now and then.

    Args:
        keys: How many keys it is to tell apart; more with `grow`.
    """

    def __init__(self, keys: int) -> None:
        self._table = [bytearray(1) for _ in range(_ROWS)]
        self._samples = 0
        self.grow(keys)

    def grow(self, keys: int) -> None:
        """Make room for so many keys; the counts stay."""
        while len(self._table[0]) < keys * _COUNTERS_PER_KEY:
            self._table = [row + row for row in self._table]
        self._mask = len(self._table[0]) - 1
        self._sample = keys * _SAMPLES_PER_KEY

    def add(self, key: bytes) -> None:
        """Count a request."""
        for row, at in zip(self._table, self._places(key), strict=True):
            if row[at] < _MAX_COUNT:
                row[at] += 1
        self._samples += 1
        if self._samples >= self._sample:
            self._halve()

    def count(self, key: bytes) -> int:
        """Return how often a key was asked for, or a little more."""
        return min(row[at] for row, at in zip(self._table, self._places(key), strict=True))

    def _places(self, key: bytes) -> tuple[int, ...]:
        mask = self._mask
        # Keys are digests: each four bytes are a hash of their own.
        return (
            int.from_bytes(key[0:4], "little") & mask,
            int.from_bytes(key[4:8], "little") & mask,
            int.from_bytes(key[8:12], "little") & mask,
            int.from_bytes(key[12:16], "little") & mask,
        )

    def _halve(self) -> None:
        halves = bytes(count >> 1 for count in range(256))
        self._table = [row.translate(halves) for row in self._table]
        self._samples //= 2


class TinyLFU:
    """Decides which keys stay within a number of bytes; it holds no values.

    Args:
        max_bytes: The most that the sizes of all keys add up to.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes_used = 0
        self._window: OrderedDict[bytes, _Item] = OrderedDict()
        self._probation: OrderedDict[bytes, _Item] = OrderedDict()
        self._protected: OrderedDict[bytes, _Item] = OrderedDict()
        self._window_bytes = 0
        self._protected_bytes = 0
        self._sketch = Sketch(_MIN_KEYS)

    def __len__(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def seek(self, key: bytes) -> None:
        """Take note that a key was asked for, whether it is here or not."""
        self._sketch.add(key)
        if key in self._window:
            self._window.move_to_end(key)
        elif key in self._protected:
            self._protected.move_to_end(key)
        elif key in self._probation:
            item = self._protected[key] = self._probation.pop(key)
            self._protected_bytes += item.size
            while self._protected_bytes > self.max_bytes * _PROTECTED_SHARE:
                oldest, demoted = self._protected.popitem(last=False)
                self._protected_bytes -= demoted.size
                self._probation[oldest] = demoted

    def put(self, key: bytes, size: int, cost: float) -> list[bytes]:
        """Take in a key and return the keys that have to go; that may be the key itself."""
        self.remove(key)
        if size > self.max_bytes:
            return [key]
        self._sketch.grow(max(len(self), _MIN_KEYS))
        self._window[key] = _Item(size, cost)
        self._window_bytes += size
        self.bytes_used += size
        gone: list[bytes] = []
        limit = max(self.max_bytes * _WINDOW_SHARE, 1)
        while self._window and self._window_bytes > limit and self.bytes_used > 0:
            candidate, item = self._window.popitem(last=False)
            self._window_bytes -= item.size
            gone += self._admit(candidate, item)
        return gone

    def remove(self, key: bytes) -> None:
        """Forget a key."""
        item = self._window.pop(key, None)
        if item is not None:
            self._window_bytes -= item.size
        else:
            item = self._protected.pop(key, None)
            if item is not None:
                self._protected_bytes -= item.size
            else:
                item = self._probation.pop(key, None)
        if item is not None:
            self.bytes_used -= item.size

    def clear(self) -> None:
        """Forget every key and every count."""
        self.__dict__.update(TinyLFU(self.max_bytes).__dict__)

    def _admit(self, candidate: bytes, item: _Item) -> list[bytes]:
        """Move a candidate into the main part, or drop it; return what goes."""
        victims: list[bytes] = []
        freed, worth = 0, 0.0
        needed = self.bytes_used - self.max_bytes
        mine = self._worth(candidate, item)
        for part in (self._probation, self._protected):
            for victim, other in part.items():
                if freed >= needed:
                    break
                freed += other.size
                worth += self._worth(victim, other)
                victims.append(victim)
                if worth > mine:
                    break
        if freed < needed or (victims and worth >= mine):
            self.bytes_used -= item.size
            return [candidate]
        for victim in victims:
            self.remove(victim)
        self._probation[candidate] = item
        return victims

    def _worth(self, key: bytes, item: _Item) -> float:
        return self._sketch.count(key) * item.cost
