"""The questions whose answers are kept, by what else must be equal, and the nearest of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ragaccel.reuse.verified_gate import Gate

    Vector = NDArray[np.float32]

_FIRST_ROOM: Final = 16
#: Of how many of the nearest entries the gates are asked.
_LOOKS: Final = 16
#: In a partition of fewer entries nothing is known of what else is near.
COLD: Final = 20
#: What it adds to the score if the question is the entry's with words added.
EXTENDED: Final = 0.25


class Neighbour(NamedTuple):
    """The nearest entry that a question may be compared with.

    Attributes:
        key: Of its answer in the cache.
        group: Entries whose answers were judged equal share one.
        similarity: The cosine.
        score: The similarity, how much nearer it is than the next entry of another answer, and
            `EXTENDED` where that is so.
    """

    key: bytes
    group: int
    similarity: float
    score: float


@dataclass(slots=True)
class _Entry:
    key: bytes
    group: int
    gate: Gate


@dataclass(slots=True)
class _Partition:
    """A growing matrix of vectors, and what belongs to each row."""

    vectors: NDArray[np.float32]
    groups: NDArray[np.int64] = field(default_factory=lambda: np.empty(_FIRST_ROOM, np.int64))
    entries: list[_Entry] = field(default_factory=list)
    places: dict[bytes, int] = field(default_factory=dict)
    next_group: int = 0

    def nearest(self, vector: Vector, gate: Gate, own: bytes) -> Neighbour | None:
        count = len(self.entries)
        if not count or len(vector) != self.vectors.shape[1]:
            return None
        near = self.vectors[:count] @ vector
        looks = min(_LOOKS, count)
        best = np.argpartition(-near, looks - 1)[:looks]
        for at in best[np.argsort(-near[best])]:
            entry = self.entries[at]
            if entry.key != own and entry.gate.lets(gate):
                similarity = float(near[at])
                score = similarity + self._agreement(near, entry.group, similarity)
                score += EXTENDED * gate.extends(entry.gate)
                return Neighbour(entry.key, entry.group, similarity, score)
        return None

    def _agreement(self, near: Vector, group: int, similarity: float) -> float:
        """Return how much nearer an entry is than the next of another answer, if that tells."""
        others = near[self.groups[: len(near)] != group]
        return similarity - float(others.max()) if len(near) >= COLD and len(others) else 0.0

    def put(self, vector: Vector, entry: _Entry) -> None:
        at = self.places.get(entry.key, len(self.entries))
        if at == len(self.entries):
            self._grow()
            self.entries.append(entry)
        self.entries[at], self.places[entry.key] = entry, at
        self.vectors[at], self.groups[at] = vector, entry.group
        self.next_group = max(self.next_group, entry.group + 1)

    def remove(self, key: bytes) -> None:
        at = self.places.pop(key, None)
        if at is None:
            return
        last = self.entries.pop()
        if at < len(self.entries):
            self.entries[at], self.places[last.key] = last, at
            self.vectors[at] = self.vectors[len(self.entries)]
            self.groups[at] = last.group

    def _grow(self) -> None:
        if len(self.entries) == len(self.vectors):
            self.vectors = np.concatenate((self.vectors, np.empty_like(self.vectors)))
            self.groups = np.concatenate((self.groups, np.empty_like(self.groups)))


class Index:
    """Partitions of entries; nothing is found across two of them.

    Args:
        max_entries: How many are kept in all. The oldest go first of the partition that was asked
            longest ago.
    """

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._partitions: OrderedDict[bytes, _Partition] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def nearest(self, partition: bytes, vector: Vector, gate: Gate, own: bytes) -> Neighbour | None:
        """Return the nearest entry that the gates let through, or None.

        Args:
            partition: What else must be equal.
            vector: Of the question, of unit length.
            gate: Of the question.
            own: The question's own key, which is no neighbour of itself.
        """
        found = self._partitions.get(partition)
        if found is None:
            return None
        self._partitions.move_to_end(partition)
        return found.nearest(vector, gate, own)

    def put(
        self, partition: bytes, key: bytes, vector: Vector, gate: Gate, group: int | None
    ) -> int:
        """Keep an entry, and return its group.

        Args:
            partition: See `nearest`.
            key: Of its answer in the cache; an entry with the key is replaced.
            vector: See `nearest`.
            gate: See `nearest`.
            group: Of equal answers; None for one of its own.
        """
        found = self._partitions.get(partition)
        if found is None or found.vectors.shape[1] != len(vector):
            self._count -= len(found.entries) if found is not None else 0
            found = _Partition(np.empty((_FIRST_ROOM, len(vector)), np.float32))
            self._partitions[partition] = found
        self._partitions.move_to_end(partition)
        before = len(found.entries)
        group = found.next_group if group is None else group
        found.put(vector, _Entry(key, group, gate))
        self._count += len(found.entries) - before
        while self._count > self._max_entries:
            self._drop_one()
        return group

    def remove(self, partition: bytes, key: bytes) -> None:
        """Forget an entry."""
        found = self._partitions.get(partition)
        if found is not None:
            before = len(found.entries)
            found.remove(key)
            self._count += len(found.entries) - before

    def _drop_one(self) -> None:
        partition, found = next(iter(self._partitions.items()))
        found.remove(next(iter(found.places)))
        self._count -= 1
        if not found.entries:
            del self._partitions[partition]
