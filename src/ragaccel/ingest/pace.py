"""How much is handed to the workers at a time, learned from what came back."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.ingest.worker import Done

#: What an object costs beside its text.
OBJECT_BYTES: Final = 4096

_GROUP_SECONDS: Final = 0.1
_GROUP_DOCUMENTS: Final = 64
_GROUP_BYTES: Final = 1 << 20
_IN_FLIGHT_BYTES: Final = 16 << 20  # and more where there are many workers
_MEMORY: Final = 0.9


class Pace:
    """Keeps groups short enough to be shared out evenly, and all of them within a room of bytes.

    A document may be small and its chunks large, as where a path becomes a text: so bytes are
    counted as what will come of them. Until the first group is back, a group is one document.

    Args:
        workers: How many groups are transformed at a time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._documents = self._seconds = self._given = self._made = 0.0
        self._in_flight: deque[int] = deque()
        self._bytes = 0

    def cut(self, sizes: Sequence[int]) -> int:
        """Return how many of the next documents, of these sizes in bytes, are a group."""
        if not self._documents:
            return 1
        most = int(_GROUP_SECONDS * self._documents / max(self._seconds, 1e-9))
        most, count, made = max(1, min(most, _GROUP_DOCUMENTS)), 0, 0.0
        for size in sizes[:most]:
            made += size * self._growth
            if count and made > _GROUP_BYTES:
                break
            count += 1
        return count

    def has_room(self) -> bool:
        """Tell whether another group may be handed out."""
        if not self._documents:
            return len(self._in_flight) < self._workers
        room = max(_IN_FLIGHT_BYTES, 2 * self._workers * _GROUP_BYTES)
        return not self._in_flight or self._bytes * self._growth < room

    def began(self, size: int) -> None:
        """Note that a group of so many bytes was handed out."""
        self._in_flight.append(size)
        self._bytes += size

    def ended(self, done: Done) -> None:
        """Note what came of the group that was handed out first."""
        given = self._in_flight.popleft()
        self._bytes -= given
        chunks = [chunk.size + OBJECT_BYTES for one in done.outcomes for chunk in one.chunks]
        self._documents = self._documents * _MEMORY + len(done.outcomes)
        self._seconds = self._seconds * _MEMORY + done.seconds
        self._given = self._given * _MEMORY + given
        self._made = self._made * _MEMORY + sum(chunks)

    @property
    def _growth(self) -> float:
        return max(1.0, self._made / max(self._given, 1.0))
