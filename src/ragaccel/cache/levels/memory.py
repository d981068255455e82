"""The memory level: encoded entries, bounded by bytes, least recently used out first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from ragaccel.errors import ConfigurationError
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache.levels import Stored

_OVERHEAD_BYTES = 270  # dict slot, key, tuple and float of one entry, measured with tracemalloc


class MemoryLevel(Forkable):
    """Keeps entries in this process.

    Entries stay encoded, so every hit hands out a fresh value that nobody can change for others.

    Args:
        max_bytes: The most that keys, entries and their bookkeeping may take.
    """

    name = "memory"
    compress = False

    def __init__(self, max_bytes: int = 256 * 1024 * 1024) -> None:
        if max_bytes <= 0:
            raise ConfigurationError(f"max_bytes must be positive, got {max_bytes}.")
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0
        self.follow_forks()

    @property
    def bytes_used(self) -> int:
        """Bytes that the entries take now, bookkeeping included."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the blobs of those keys that are here and have not expired."""
        now = time.time()
        found = {}
        with self._lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is None:
                    continue
                if entry[1] <= now:
                    self._drop(key)
                    continue
                self._entries.move_to_end(key)
                found[key] = entry[0]
        return found

    def put_many(self, entries: Sequence[Stored]) -> None:
        """Keep the entries; one larger than the whole level is passed over."""
        with self._lock:
            for key, blob, expires in entries:
                self._drop(key)
                size = _size(blob)
                if size > self.max_bytes:
                    continue
                self._entries[key] = (blob, expires)
                self._bytes += size
                while self._bytes > self.max_bytes:
                    self._drop(next(iter(self._entries)))

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def close(self) -> None:
        """Forget everything."""
        self.clear()

    async def aget_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what `get_many` does."""
        return self.get_many(keys)

    async def aput_many(self, entries: Sequence[Stored]) -> None:
        """Do what `put_many` does."""
        self.put_many(entries)

    async def adelete_many(self, keys: Sequence[bytes]) -> None:
        """Do what `delete_many` does."""
        self.delete_many(keys)

    async def aclear(self) -> None:
        """Do what `clear` does."""
        self.clear()

    async def aclose(self) -> None:
        """Do what `close` does."""
        self.close()

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= _size(entry[0])

    def after_fork_in_child(self) -> None:
        """Begin empty: another thread may have been in the middle of a change."""
        self._lock = threading.Lock()
        self.clear()

    def __reduce__(self) -> tuple[type[MemoryLevel], tuple[int]]:
        return MemoryLevel, (self.max_bytes,)


def _size(blob: bytes) -> int:
    return len(blob) + _OVERHEAD_BYTES
