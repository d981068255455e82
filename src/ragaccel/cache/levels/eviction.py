"""Which entries stay: bounded by bytes, by how often they are asked for and what they cost.

New entries pass through a small window in the order they came. What leaves the window stays only
if it is worth more than the least worthy of some others that have been here long; worth is how
often the key was asked for of late, times the seconds the entry took to compute, by the byte. So a
scan of one-off requests passes through and leaves the rest as it was, and what was popular last
week loses its place. Keys that went are remembered in a sketch, and begin with what they had.

A hit moves nothing: it adds one to the entry's own `hits`, without a lock, and what was added is
taken into account when the entry's turn comes to be compared.

Source: W-TinyLFU (Einziger, Friedman, Manes, 2017), by bytes as in Einziger et al., Lightweight
Robust Size Aware Cache Management, 2021, with victims chosen from a moving sample.
"""

from __future__ import annotations

from collections import OrderedDict
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW_SHARE: Final = 0.01
_SAMPLE: Final = 5  # how many are compared when one has to go
_GRACE: Final = 8  # how many a new entry may drive out without being worth as much
_LEAST_COST: Final = 0.001  # seconds; what costs less is counted so
_MAX_COUNT: Final = 15
_COUNTERS_PER_KEY: Final = 16
_REQUESTS_PER_KEY: Final = 16  # after so many, counts halve
_MIN_KEYS: Final = 256
_HALVES: Final = bytes(count >> 1 for count in range(256))
_places: Final[Callable[[bytes], tuple[int, int, int, int]]] = Struct("<4I").unpack_from


class Entry:
    """One entry and what is known of its use.

    Attributes:
        hits: How often it was found since it was last compared. Anyone may add to it without a
            lock: one that gets lost is no harm.
        opened: What a reader made of the blob, for the next reader; it holds no bytes of its own.
    """

    __slots__ = (
        "blob", "cost", "count", "expires", "halvings", "hits", "key", "namespace", "opened",
        "size",
    )  # fmt: skip

    def __init__(
        self, key: bytes, blob: bytes, expires: float, cost: float, namespace: bytes, size: int
    ) -> None:
        self.key, self.blob, self.expires = key, blob, expires
        self.cost, self.namespace, self.size = max(_LEAST_COST, cost), namespace, size
        self.hits = self.count = self.halvings = 0
        self.opened: Any = None


class Sketch:
    """About how often keys that are not here any more were asked for.

    Each key has a counter in each of four rows, shared by chance with others; the least of the four
    is its count, or a little more.
    """

    def __init__(self) -> None:
        self._rows = [bytearray(_MIN_KEYS * _COUNTERS_PER_KEY) for _ in range(4)]

    def grow(self, keys: int) -> None:
        """Make room for so many keys; the counts stay."""
        while len(self._rows[0]) < keys * _COUNTERS_PER_KEY:
            self._rows = [row + row for row in self._rows]

    def count(self, key: bytes) -> int:
        """Return how often a key was asked for."""
        first, second, third, fourth = self._rows
        mask = len(first) - 1
        # Keys are digests: each four bytes are a hash of their own.
        a, b, c, d = _places(key)
        return min(first[a & mask], second[b & mask], third[c & mask], fourth[d & mask])

    def note(self, key: bytes, count: int) -> None:
        """Remember how often a key was asked for."""
        mask = len(self._rows[0]) - 1
        for row, place in zip(self._rows, _places(key), strict=True):
            at = place & mask
            row[at] = max(row[at], count)

    def halve(self) -> None:
        """Halve all counts."""
        self._rows = [row.translate(_HALVES) for row in self._rows]


class Queue(OrderedDict[bytes, Entry]):
    """Entries in an order, and the sum of their sizes."""

    bytes_used = 0

    def add(self, entry: Entry) -> None:
        """Take in an entry, in the place of one with the same key or else as the last."""
        old = self.get(entry.key)
        self.bytes_used += entry.size - (0 if old is None else old.size)
        self[entry.key] = entry

    def drop(self, key: bytes) -> None:
        """Let an entry go that may be here."""
        entry = self.pop(key, None)
        if entry is not None:
            self.bytes_used -= entry.size


class TinyLFU:
    """Entries within a number of bytes.

    All but reading `window` and `main`, in this order, wants a lock: an entry is never in neither
    of them on its way from one to the other.

    Args:
        max_bytes: The most that the sizes of all entries add up to.
        namespace_bytes: The same for the entries of each namespace; None for no such bound.

    Attributes:
        window: The entries that came last.
        main: The others.
    """

    def __init__(self, max_bytes: int, namespace_bytes: int | None = None) -> None:
        self._max_bytes, self._namespace_bytes = max_bytes, namespace_bytes
        self._window_bytes = max_bytes * _WINDOW_SHARE
        self.window, self.main = Queue(), Queue()
        self._shares: dict[bytes, Queue] = {}
        self._sketch = Sketch()
        self._requests = self._halvings = 0

    @property
    def bytes_used(self) -> int:
        """What the sizes of all entries add up to."""
        return self.window.bytes_used + self.main.bytes_used

    def __len__(self) -> int:
        return len(self.window) + len(self.main)

    def put(self, entry: Entry, now: float) -> int:
        """Take in an entry in the place of one with the same key.

        Returns:
            How many had to go for it. It is passed over itself if it can never fit, and dropped
            if many that are worth more would have to go.
        """
        largest = self._max_bytes
        if self._namespace_bytes is not None:
            largest = min(largest, self._namespace_bytes)
        old = self.window.get(entry.key) or self.main.get(entry.key)
        if old is not None and (entry.size > largest or old.namespace != entry.namespace):
            self.remove(entry.key)
        if entry.size > largest:
            return 0
        self._age()
        known = self._sketch.count(entry.key) if old is None else self._count(old)
        entry.count, entry.halvings = min(known + 1, _MAX_COUNT), self._halvings
        (self.main if entry.key in self.main else self.window).add(entry)
        gone = 0
        if self._namespace_bytes is not None:
            share = self._shares.setdefault(entry.namespace, Queue())
            share.add(entry)
            gone = self._fit(share, share.bytes_used - self._namespace_bytes, entry, [], now)
        left = self._leave_window()
        gone += self._fit(self.main, self.bytes_used - self._max_bytes, entry, left, now)
        # A replaced entry that grew may be all that the main part holds.
        return gone + self._fit(self.window, self.bytes_used - self._max_bytes, entry, [], now)

    def resize(self, max_bytes: int, now: float) -> int:
        """Change the bound; return how many entries had to go for it, the least worthy."""
        self._max_bytes, self._window_bytes = max_bytes, max_bytes * _WINDOW_SHARE
        self._leave_window()
        gone = self._fit(self.main, self.bytes_used - max_bytes, None, [], now)
        return gone + self._fit(self.window, self.bytes_used - max_bytes, None, [], now)

    def remove(self, key: bytes) -> None:
        """Let an entry go that may be here."""
        entry = self.window.get(key) or self.main.get(key)
        if entry is None:
            return
        self.window.drop(key)
        self.main.drop(key)
        share = self._shares.get(entry.namespace)
        if share is not None:
            share.drop(key)
            if not share:
                del self._shares[entry.namespace]

    def _age(self) -> None:
        self._sketch.grow(len(self))
        self._requests += 1
        if self._requests >= max(len(self), _MIN_KEYS) * _REQUESTS_PER_KEY:
            self._requests = 0
            self._halvings += 1
            self._sketch.halve()

    def _leave_window(self) -> list[Entry]:
        """Move to the main part what the window has no room for; it always holds the newest."""
        left = []
        while self.window.bytes_used > self._window_bytes and len(self.window) > 1:
            entry = next(iter(self.window.values()))
            self.main.add(entry)
            self.window.drop(entry.key)
            left.append(entry)
        return left

    def _fit(
        self, queue: Queue, needed: int, newest: Entry | None, left: list[Entry], now: float
    ) -> int:
        """Let go of so many bytes of a queue; return how many entries that were."""
        if needed <= 0:
            return 0
        sample = self._sample(queue, needed, newest, left)
        sample.sort(key=lambda entry: self._worth(entry, now))
        going = []
        for entry in sample:
            if needed <= 0:
                break
            going.append(entry)
            needed -= entry.size
        # Those that would be compared first the next time are the least worthy of these.
        for entry in sample[max(len(going), len(sample) - _SAMPLE // 2) :]:
            if entry.key in queue:
                queue.move_to_end(entry.key)
        if newest is not None and len(going) > _GRACE and newest.size > self._window_bytes:
            worth = sum(self._worth(entry, now) * entry.size for entry in going)
            if self._worth(newest, now) * newest.size < worth:
                going = [newest]
        for entry in going:
            self._sketch.note(entry.key, self._count(entry))
            self.remove(entry.key)
        return len(going)

    @staticmethod
    def _sample(queue: Queue, needed: int, newest: Entry | None, left: list[Entry]) -> list[Entry]:
        """Return those that left the window and the first of a queue."""
        sample = [entry for entry in left if entry is not newest]
        size = sum(entry.size for entry in sample)
        most = len(sample) + _SAMPLE
        for entry in queue.values():
            if len(sample) >= most and size >= 2 * needed:
                break
            if entry is not newest and entry not in left:
                sample.append(entry)
                size += entry.size
        return sample

    def _worth(self, entry: Entry, now: float) -> float:
        if entry.expires <= now:
            return 0.0
        return self._count(entry) * entry.cost / entry.size

    def _count(self, entry: Entry) -> int:
        """Return how often an entry was asked for of late."""
        hits = entry.hits
        if hits or entry.halvings != self._halvings:
            entry.hits = 0
            self._requests += hits
            count = (entry.count >> (self._halvings - entry.halvings)) + hits
            entry.count, entry.halvings = min(count, _MAX_COUNT), self._halvings
        return entry.count
