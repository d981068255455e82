"""The lists of questions that were searched for, and the nearest of them, right under writes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ragaccel.reuse.neighbours_bound import ROUNDING
from ragaccel.vectors.metric import prepare

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from ragaccel.vectors import VectorCollection
    from ragaccel.vectors.filters import Filter

    Vector = NDArray[np.float32]

    Position = tuple[int, int]

#: More changes than these are a bulk load: lists are made anew.
MOST_CHANGES: Final = 1000
_FIRST_ROOM: Final = 16
_SAME: Final = 1 - 1e-6
#: A list that grew to so many times what was looked for is let go.
_GROWTH: Final = 2


class Near(NamedTuple):
    """The nearest questions that have lists, nearest first.

    Attributes:
        vectors: float64 of shape (n, dim).
        cosines: float64 of shape (n,).
        floors: Of their lists, float64 of shape (n,).
        rows: The union of their lists, int64, ascending; some may be gone.
        position: Of the collection's change log at which the lists are right.
    """

    vectors: NDArray[np.float64]
    cosines: NDArray[np.float64]
    floors: NDArray[np.float64]
    rows: NDArray[np.int64]
    position: Position


class Lists:
    """Lists of one partition, in a growing matrix of the questions they were made for.

    A list holds every row above its floor, at the partition's position of the change log. A row
    that is written joins the lists whose floor it may reach. One that is gone stays, and is passed
    over when rows are scored: the floor remains true.

    Args:
        where: The filter that rows pass.
        position: Of the change log when the first list was made.
        dim: Dimensions of the vectors.
    """

    def __init__(self, where: Filter | None, position: Position, dim: int) -> None:
        self._where, self.position = where, position
        self._vectors = np.empty((_FIRST_ROOM, dim), np.float32)
        self._floors = np.empty(_FIRST_ROOM, np.float32)
        self._rows: list[NDArray[np.int64]] = []
        self._oldest = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        return self._vectors.shape[1]

    def follow(self, collection: VectorCollection, most_rows: int) -> bool:
        """Take in what was written; return False where that was too much, and lists are void.

        Args:
            collection: Whose rows these are.
            most_rows: How many a list was made of at most.
        """
        if collection.position == self.position:
            return True
        changes = collection.changes_since(
            self.position[0], mark=self.position[1], limit=MOST_CHANGES, where=self._where
        )
        if changes is None:
            return False
        if len(changes.upserted):
            count = len(self)
            reached = self._vectors[:count] @ prepare(changes.vectors, "cosine").T
            joins = reached >= self._floors[:count, None] - ROUNDING
            for at in np.flatnonzero(joins.any(axis=1)).tolist():
                self._rows[at] = np.concatenate((self._rows[at], changes.upserted[joins[at]]))
            for at in range(count - 1, -1, -1):
                if len(self._rows[at]) > _GROWTH * most_rows:
                    self._remove(at)
        self.position = (changes.seq, changes.mark)
        return True

    def nearest(self, vector: Vector, most: int) -> Near | None:
        """Return the nearest questions, at most so many, or None where there is none."""
        count = len(self)
        if not count:
            return None
        cosines = self._vectors[:count] @ vector
        at = np.argpartition(-cosines, most - 1)[:most] if count > most else np.arange(count)
        at = at[np.argsort(-cosines[at])]
        return Near(
            self._vectors[at].astype(np.float64),
            np.clip(cosines[at].astype(np.float64), -1, 1),
            self._floors[at].astype(np.float64),
            _union([self._rows[one] for one in at.tolist()]),
            self.position,
        )

    def put(self, vector: Vector, rows: NDArray[np.int64], floor: float, *, room: bool) -> None:
        """Keep a list; where there is no room, instead of the oldest.

        Args:
            vector: Of the question, of unit length.
            rows: Every row above the floor.
            floor: Minus infinity where these are all the rows there are.
            room: Whether there may be one more.
        """
        count = len(self)
        cosines = self._vectors[:count] @ vector
        same = int(cosines.argmax()) if count else 0
        if count and cosines[same] >= _SAME:
            at = same
        elif room or not count:
            at = count
            self._grow()
            self._rows.append(rows)
        else:
            at = self._oldest % count
            self._oldest = at + 1
        self._vectors[at], self._floors[at], self._rows[at] = vector, floor, rows

    def _remove(self, at: int) -> None:
        last = len(self) - 1
        self._vectors[at], self._floors[at] = self._vectors[last], self._floors[last]
        self._rows[at] = self._rows[last]
        self._rows.pop()

    def _grow(self) -> None:
        if len(self) == len(self._vectors):
            self._vectors = np.concatenate((self._vectors, np.empty_like(self._vectors)))
            self._floors = np.concatenate((self._floors, np.empty_like(self._floors)))


def _union(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return what `np.unique` does, ten times as fast for some thousand numbers."""
    rows = np.sort(np.concatenate(lists))
    return rows[np.concatenate(([True], rows[1:] != rows[:-1]))] if len(rows) else rows


class Index:
    """Partitions of lists; nothing is found across two of them.

    Args:
        max_entries: How many lists are kept in all. Where there are more, the partition that was
            asked longest ago goes, or the oldest list of the only one.
        most_rows: How many rows a list is made of.
        most_near: How many lists are united.
    """

    def __init__(self, max_entries: int, most_rows: int, most_near: int) -> None:
        self._max_entries, self._most_rows, self._most_near = max_entries, most_rows, most_near
        self._partitions: OrderedDict[Hashable, Lists] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._partitions.values()))

    def nearest(
        self, partition: Hashable, collection: VectorCollection, vector: Vector
    ) -> Near | None:
        """Return the nearest questions of a partition, with lists that are right now.

        Args:
            partition: What else must be equal.
            collection: Whose rows these are.
            vector: Of the question, of unit length.
        """
        found = self._partitions.get(partition)
        if found is None:
            return None
        self._partitions.move_to_end(partition)
        if found.dim != len(vector) or not found.follow(collection, self._most_rows):
            del self._partitions[partition]
            return None
        return found.nearest(vector, self._most_near)

    def put(
        self,
        partition: Hashable,
        where: Filter | None,
        position: Position,
        vector: Vector,
        rows: NDArray[np.int64],
        floor: float,
    ) -> None:
        """Keep a list; see `Lists`.

        One that is older than the partition is not kept: changes in between have passed it by. One
        that is newer hears of some twice, which does no harm.
        """
        found = self._partitions.get(partition)
        if found is None or found.dim != len(vector):
            found = self._partitions[partition] = Lists(where, position, len(vector))
        elif position[0] < found.position[0]:
            return
        self._partitions.move_to_end(partition)
        while len(self) >= self._max_entries and len(self._partitions) > 1:
            self._partitions.popitem(last=False)
        found.put(vector, rows, floor, room=len(self) < self._max_entries)
