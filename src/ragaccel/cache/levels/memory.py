"""The memory level: encoded entries, bounded by bytes, the worthiest kept."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from ragaccel.cache.ledger import ProcessLedger
from ragaccel.cache.levels import Usage
from ragaccel.cache.levels.eviction import Entry, TinyLFU
from ragaccel.errors import ConfigurationError
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ragaccel.cache.levels import Stored

# Key, entry, numbers, places in the queues and counters in the sketch; measured with tracemalloc.
_OVERHEAD_BYTES = 550
_SHARE_OVERHEAD_BYTES = 90  # the place in the queue of a namespace
_LEAST_BYTES = 1 << 20  # the worthiest entries are little to hold, and answer the most
_STEP_BYTES = 1 << 20  # that go at a time, so that who wants the lock need not wait long


class MemoryLevel(Forkable):
    """Keeps entries in this process.

    Entries stay encoded, so every hit hands out a fresh value that nobody can change for others.
    Which stay when room is short: see `eviction`.

    Args:
        max_bytes: The most that keys, entries and their bookkeeping may take, beside some 16 KB
            that an empty level takes.
        namespace_bytes: The most that the entries of one namespace may take of it: past that, they
            make room for each other and for no others. None for no such bound.
    """

    name = "memory"
    compress = False
    leases = None

    def __init__(
        self, max_bytes: int = 256 * 1024 * 1024, *, namespace_bytes: int | None = None
    ) -> None:
        if max_bytes <= 0:
            raise ConfigurationError(f"max_bytes must be positive, got {max_bytes}.")
        if namespace_bytes is not None and namespace_bytes <= 0:
            raise ConfigurationError(f"namespace_bytes must be positive, got {namespace_bytes}.")
        self.max_bytes = max_bytes
        self.namespace_bytes = namespace_bytes
        self.ledger = ProcessLedger()
        self._overhead = _OVERHEAD_BYTES + (_SHARE_OVERHEAD_BYTES if namespace_bytes else 0)
        self._lock = threading.Lock()
        self._evictions = 0
        self._bound = max_bytes
        self._begin()
        self.follow_forks()

    @property
    def bytes_used(self) -> int:
        """Bytes that the entries take now, bookkeeping included."""
        return self._policy.bytes_used

    def __len__(self) -> int:
        return len(self._policy)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the blobs of those keys that are here and have not expired."""
        found = ((key, self.look(key)) for key in keys)
        return {key: entry.blob for key, entry in found if entry is not None}

    def look(self, key: bytes) -> Entry | None:
        """Return the entry of a key as it lies here, which a reader may leave `opened`."""
        # No lock: looking up in a dictionary is one step, and entries never change.
        entry = self._window.get(key) or self._main.get(key)
        if entry is not None:
            if entry.expires <= time.time():
                self._expire(entry)
                return None
            entry.hits += 1
        return entry

    def put_many(self, entries: Sequence[Stored]) -> None:
        """Keep the entries; one that can never fit is passed over."""
        now = time.time()
        with self._lock:
            for entry in entries:
                self._put(entry, now)

    def exchange(self, old: Entry, new: Stored) -> None:
        """Keep an entry in the place of another, unless that one is no longer here."""
        with self._lock:
            if old in (self._window.get(old.key), self._main.get(old.key)):
                self._put(new, time.time())

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys."""
        with self._lock:
            for key in keys:
                self._policy.remove(key)

    def forget(self, keys: Sequence[bytes]) -> None:
        """Do what `delete_many` does."""
        self.delete_many(keys)

    def scan(self, namespace: bytes) -> list[tuple[bytes, bytes]]:
        """Return the keys and blobs that a namespace has now."""
        now = time.time()
        with self._lock:
            entries = [*self._window.values(), *self._main.values()]
        return [
            (entry.key, entry.blob)
            for entry in entries
            if entry.namespace == namespace and entry.expires > now
        ]

    def usage(self) -> Usage:
        """Return what the level holds now."""
        with self._lock:
            return Usage(len(self._policy), self._policy.bytes_used, self._evictions)

    def relieve(self, needed_bytes: int) -> int:
        """Let so many bytes of the least worthy entries go, and do not grow until `restore`.

        At most half of them go at a time, and a mebibyte may stay in any case.

        Returns:
            How many bytes went.
        """
        before = self.bytes_used
        bound = max(before - needed_bytes, before // 2, min(_LEAST_BYTES, self.max_bytes))
        for step in range(before - _STEP_BYTES, bound, -_STEP_BYTES):
            self._resize(step)
        self._resize(bound)
        return max(0, before - self.bytes_used)

    def restore(self) -> None:
        """Hold up to `max_bytes` again."""
        self._resize(self.max_bytes)

    def resize(self, max_bytes: int) -> None:
        """Hold up to another number of bytes from now on; what is too much goes at once.

        Raises:
            ConfigurationError: It is not positive.
        """
        if max_bytes <= 0:
            raise ConfigurationError(f"max_bytes must be positive, got {max_bytes}.")
        self.max_bytes = max_bytes
        self._resize(max_bytes)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._begin()

    def forget_all(self) -> None:
        """Do what `clear` does."""
        self.clear()

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

    def after_fork_in_child(self) -> None:
        """Begin empty: another thread may have been in the middle of a change."""
        self._lock = threading.Lock()
        self._bound = self.max_bytes
        self._begin()

    def __reduce__(self) -> tuple[Callable[[int], MemoryLevel], tuple[int]]:
        return partial(MemoryLevel, namespace_bytes=self.namespace_bytes), (self.max_bytes,)

    def _put(self, stored: Stored, now: float) -> None:
        key, blob, expires, cost, namespace = stored
        size = len(blob) + self._overhead
        entry = Entry(key, blob, expires, cost, namespace, size)
        self._evictions += self._policy.put(entry, now)

    def _begin(self) -> None:
        self._policy = TinyLFU(self._bound, self.namespace_bytes)
        self._window, self._main = self._policy.window, self._policy.main

    def _resize(self, bound: int) -> None:
        with self._lock:
            self._bound = bound
            self._evictions += self._policy.resize(bound, time.time())

    def _expire(self, entry: Entry) -> None:
        with self._lock:
            if entry in (self._window.get(entry.key), self._main.get(entry.key)):
                self._policy.remove(entry.key)
