"""What happened in the last window: tallies of stages in slots of time, in bounded memory."""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ragaccel.telemetry import Stage

#: Slots of a window. The time of a window is told to a slot.
SLOTS: Final = 12
#: By how much a quantile may differ from the true one, as a share of it.
RELATIVE_ERROR: Final = 0.02

_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG: Final = 1 / math.log(_GAMMA)
_MOST_NAMES: Final = 100
_OTHERS: Final = "other"


class Sketch:
    """A histogram of durations whose buckets grow by a constant factor; sketches can be merged.

    Source: Masson, Rim and Lee, DDSketch: A Fast and Fully-Mergeable Quantile Sketch with
    Relative-Error Guarantees, 2019.
    """

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: defaultdict[int, int] = defaultdict(int)

    def add(self, duration_ns: int) -> None:
        """Count a duration; the shortest that is told apart is a nanosecond."""
        self._buckets[math.ceil(math.log(duration_ns) * _PER_LOG) if duration_ns > 1 else 0] += 1

    def merge(self, other: Sketch) -> None:
        """Count what another has counted."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] += count

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self._buckets.values())

    def quantile(self, share: float) -> float:
        """Return a duration in seconds that this share of all does not exceed; of none NaN."""
        rank, seen = share * (self.count - 1), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen > rank:
                return 2 * _GAMMA**bucket / (_GAMMA + 1) / 1e9
        return math.nan


class Tally:
    """What happened to the stages of one name.

    Attributes:
        durations: How long they took.
        errors: Those that an exception ended.
        lookups: Those that asked a cache, by the level that had it; None where none had.
        served: Requests that they were for, if they were batches.
    """

    __slots__ = ("durations", "errors", "lookups", "served")

    def __init__(self) -> None:
        self.durations = Sketch()
        self.errors = self.served = 0
        self.lookups: Counter[str | None] = Counter()

    def add(self, stage: Stage) -> None:
        """Count a stage that is over."""
        self.durations.add(stage.duration_ns)
        if stage.error is not None:
            self.errors += 1
        if stage.serves:
            self.served += len(stage.serves)
        hit = stage.attributes.get(attributes.CACHE_HIT)
        if hit is not None:
            level = str(stage.attributes.get(attributes.CACHE_LEVEL, "")) if hit else None
            self.lookups[level] += 1

    def merge(self, other: Tally) -> None:
        """Count what another has counted."""
        self.durations.merge(other.durations)
        self.errors += other.errors
        self.served += other.served
        self.lookups.update(other.lookups)


class Slot:
    """A stretch of time.

    Attributes:
        stages: Tallies by the stages' names.
        lookups: What a cache itself has counted, as in `Tally`.
    """

    __slots__ = ("lookups", "stages")

    def __init__(self) -> None:
        self.stages: dict[str, Tally] = {}
        self.lookups: Counter[str | None] = Counter()

    def of(self, name: str) -> Tally:
        """Return the tally of a name; those of too many names share one."""
        if name not in self.stages and len(self.stages) >= _MOST_NAMES:
            name = _OTHERS
        return self.stages.setdefault(name, Tally())

    def merge(self, other: Slot) -> None:
        """Count what another has counted."""
        self.lookups.update(other.lookups)
        for name, tally in other.stages.items():
            self.of(name).merge(tally)


class Windows:
    """Slots of time, the last two windows of them.

    Args:
        seconds: Length of a window.
        start: When the first begins, by the clock whose times the methods are given.
    """

    def __init__(self, seconds: float, start: float) -> None:
        self._per_second, self._start = SLOTS / seconds, start
        # Reentrant, because the collector may end a dropped stream's stage at any allocation.
        self._lock = threading.RLock()
        self._slots: dict[int, Slot] = {}

    def number(self, at: float) -> int:
        """Return the number of the slot that a time is in."""
        return int((at - self._start) * self._per_second)

    def begins(self, number: int) -> float:
        """Return when a slot begins."""
        return self._start + number / self._per_second

    def add(self, stage: Stage, at: float) -> None:
        """Count a stage that ended at a time."""
        with self._lock:
            slot = self._slot(self.number(at))
            (slot.stages.get(stage.name) or slot.of(stage.name)).add(stage)

    def add_lookups(self, lookups: Counter[str | None], at: float) -> None:
        """Count look-ups that a cache tells of itself."""
        with self._lock:
            self._slot(self.number(at)).lookups.update(lookups)

    def window(self, end: int) -> Slot:
        """Return the sum of the slots of the window that ends before the slot of this number."""
        whole = Slot()
        for slot in self._kept(range(end - SLOTS, end)):
            whole.merge(slot)
        return whole

    def _slot(self, number: int) -> Slot:
        slot = self._slots.get(number)
        if slot is None:
            for old in [one for one in self._slots if one < number - 2 * SLOTS]:
                del self._slots[old]
            slot = self._slots[number] = Slot()
        return slot

    def _kept(self, numbers: Iterable[int]) -> Iterator[Slot]:
        """Return slots that do not change meanwhile, without keeping others waiting for long."""
        for number in numbers:
            with self._lock:
                slot = self._slots.get(number)
                if slot is None:
                    continue
                copied = Slot()
                copied.merge(slot)
            yield copied
