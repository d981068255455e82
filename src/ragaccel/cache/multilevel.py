"""`MultiLevelCache`: levels in order, fastest first, behind one face."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ragaccel.cache import flow
from ragaccel.cache.flight import Flights
from ragaccel.cache.keys import Digest, Uncacheable, digest
from ragaccel.cache.levels.disk import DiskLevel
from ragaccel.cache.levels.memory import MemoryLevel
from ragaccel.cache.stats import CacheStats, Recorder
from ragaccel.cache.values import PLAIN, Entry, Kind
from ragaccel.errors import CacheClosedError, ConfigurationError
from ragaccel.io import run

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from typing_extensions import Self

    from ragaccel.cache.levels import Level

T = TypeVar("T")
Seconds = float | timedelta

_FLIGHT_TIMEOUT: Final = 60.0


class _Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MISSING"


#: What `get` returns where nothing is stored (None is a value like any other).
MISSING: Final = _Missing()


class MultiLevelCache:
    """A cache of several levels: a hit is written back to the faster ones, a miss is computed once.

    A fault of a level is counted and warned about once; it is never raised into a look-up.

    Args:
        levels: Fastest first, such as `[MemoryLevel(), DiskLevel("cache.sqlite")]`.
        namespace: The tenant or application. Nothing is shared between two namespaces.
        ttl: Seconds (or a timedelta) that an entry is served for unless it says otherwise; None
            for no limit.

    Example:
        >>> cache = MultiLevelCache.open()
        >>> cache.get_or_compute("answer", lambda: 42)
        42
        >>> cache.get("answer")
        42
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        namespace: str = "default",
        ttl: Seconds | None = 3600,
    ) -> None:
        if not isinstance(levels, (list, tuple)) or not levels:
            raise ConfigurationError(f"a cache needs a list of levels, got {levels!r}.")
        for level in levels:
            if not hasattr(level, "aget_many"):
                raise ConfigurationError(f"{level!r} is no level, such as MemoryLevel() is.")
        self.levels = tuple(levels)
        self.namespace = namespace
        self._ttl = seconds(ttl)
        self._store = flow.Store(self.levels, Flights(), Recorder(), _FLIGHT_TIMEOUT)
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        redis: str | None = None,
        namespace: str = "default",
        ttl: Seconds | None = 3600,
        memory_bytes: int = 256 * 1024 * 1024,
        disk_bytes: int = 4 * 1024**3,
    ) -> Self:
        """Make the usual cache: memory, then a file, then a Redis or Valkey server.

        Args:
            path: A folder for the disk level; None for no disk level.
            redis: The URL of a server, such as `redis://localhost:6379`; None for no Redis level.
            namespace: See the class.
            ttl: See the class.
            memory_bytes: Size bound of the memory level.
            disk_bytes: Size bound of the disk level.

        Raises:
            MissingExtraError: `redis` is given and redis-py is not installed.
        """
        levels: list[Level] = [MemoryLevel(memory_bytes)]
        if path is not None:
            levels.append(DiskLevel(Path(path) / "cache.sqlite", disk_bytes))
        if redis is not None:
            from ragaccel.cache.levels.redis import RedisLevel

            levels.append(RedisLevel(redis))
        return cls(levels, namespace=namespace, ttl=ttl)

    def get(self, key: Any) -> Any:
        """Return a fresh copy of the value under the key, or `MISSING`."""
        return _value(run(flow.find(flow.SYNC, self._open_store(), self._key(key), PLAIN)))

    async def aget(self, key: Any) -> Any:
        """Return what `get` does, without blocking the event loop."""
        return _value(await flow.find(flow.ASYNC, self._open_store(), self._key(key), PLAIN))

    def set(self, key: Any, value: Any, *, ttl: Seconds | None = None) -> None:
        """Store a value on every level.

        Args:
            key: Numbers, strings, bytes, None, and lists, tuples and dicts of them.
            value: Strings, bytes, numbers, None, lists, dicts with string keys, numpy arrays.
            ttl: Seconds (or a timedelta) to serve it for; the cache's own by default.

        Raises:
            ConfigurationError: The key or the value cannot be stored faithfully.
        """
        found, entry = self._key(key), self._entry(value, ttl)
        run(flow.write(flow.SYNC, self._open_store(), self.levels, found, entry))

    async def aset(self, key: Any, value: Any, *, ttl: Seconds | None = None) -> None:
        """Do what `set` does, without blocking the event loop."""
        found, entry = self._key(key), self._entry(value, ttl)
        await flow.write(flow.ASYNC, self._open_store(), self.levels, found, entry)

    def delete(self, key: Any) -> None:
        """Forget a key on every level."""
        run(flow.remove(flow.SYNC, self._open_store(), self._key(key)))

    async def adelete(self, key: Any) -> None:
        """Do what `delete` does, without blocking the event loop."""
        await flow.remove(flow.ASYNC, self._open_store(), self._key(key))

    def get_or_compute(
        self,
        key: Any,
        compute: Callable[[], T],
        *,
        ttl: Seconds | None = None,
        kind: Kind[T] = PLAIN,
    ) -> T:
        """Return the value under the key, computing it where no level has it.

        Of all threads and tasks of this process that miss the key at the same time one computes
        and the others get its result, or its error.

        Args:
            key: See `set`; or a digest of `cache.keys`.
            compute: Called without arguments on a miss.
            ttl: See `set`.
            kind: How the value is stored; plain values by default.

        Raises:
            ConfigurationError: The key cannot be stored faithfully.
        """

        async def compute_now() -> T:
            return compute()

        return run(self.find_or_compute(flow.SYNC, key, compute_now, ttl=ttl, kind=kind))

    async def aget_or_compute(
        self,
        key: Any,
        compute: Callable[[], Awaitable[T]],
        *,
        ttl: Seconds | None = None,
        kind: Kind[T] = PLAIN,
    ) -> T:
        """Return what `get_or_compute` does; `compute` is awaited."""
        return await self.find_or_compute(flow.ASYNC, key, compute, ttl=ttl, kind=kind)

    def find_or_compute(
        self,
        io: flow.IO,
        key: Any,
        compute: Callable[[], Awaitable[T]],
        *,
        ttl: Seconds | None = None,
        kind: Kind[T] = PLAIN,
    ) -> Coroutine[Any, Any, T]:
        """Return the flow behind `get_or_compute`, for adapters that are flows themselves."""
        store, lifetime = self._open_store(), self._lifetime(ttl)
        return flow.find_or_compute(io, store, self._key(key), kind, compute, lifetime)

    def bypass(self, reason: str) -> None:
        """Count a call that had to go past the cache, under a reason."""
        self._store.recorder.bypass(reason)

    def clear(self) -> None:
        """Forget everything on every level, in all namespaces.

        Raises:
            Exception: Whatever a level raises: that something is still there must be known.
        """
        self._open_store()
        failed = []
        for level in self.levels:
            try:
                level.clear()
            except Exception as error:  # noqa: BLE001 - the other levels are cleared first
                failed.append(error)
        if failed:
            raise failed[0]

    async def aclear(self) -> None:
        """Do what `clear` does, without blocking the event loop."""
        self._open_store()
        failed = []
        for level in self.levels:
            try:
                await level.aclear()
            except Exception as error:  # noqa: BLE001 - the other levels are cleared first
                failed.append(error)
        if failed:
            raise failed[0]

    def stats(self) -> CacheStats:
        """Return what the cache did since it was made."""
        return self._store.recorder.snapshot()

    def close(self) -> None:
        """Close every level; the cache cannot be used afterwards."""
        self._closed = True
        for level in self.levels:
            level.close()

    async def aclose(self) -> None:
        """Do what `close` does, and close the running event loop's connections too."""
        self._closed = True
        for level in self.levels:
            await level.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.levels, self.namespace, self._ttl)

    def _open_store(self) -> flow.Store:
        if self._closed:
            raise CacheClosedError("the cache is closed; open a new one.")
        return self._store

    def _key(self, key: Any) -> bytes:
        if type(key) is Digest:
            return key
        try:
            return digest(self.namespace, PLAIN.name, key)
        except Uncacheable as error:
            raise ConfigurationError(
                "a key is made of numbers, strings, bytes, None, lists and dicts: "
                f"{error.__cause__}"
            ) from error

    def _entry(self, value: Any, ttl: Seconds | None) -> Entry:
        try:
            body = PLAIN.pack(value)
        except Uncacheable as error:
            raise ConfigurationError(
                f"{type(value).__name__} cannot be stored faithfully; store strings, bytes, "
                "numbers, None, lists, dicts with string keys, or numpy arrays."
            ) from error
        now = time.time()
        return Entry(body, now, now + self._lifetime(ttl), 0.0)

    def _lifetime(self, ttl: Seconds | None) -> float:
        return self._ttl if ttl is None else seconds(ttl)


def _rebuild(
    cls: type[MultiLevelCache], levels: Sequence[Level], namespace: str, ttl: float
) -> MultiLevelCache:
    return cls(levels, namespace=namespace, ttl=ttl)


def _value(found: flow.Found[Any] | None) -> Any:
    return MISSING if found is None else found.value


def seconds(ttl: Seconds | None) -> float:
    """Return a lifetime in seconds; None is none, and lasts for ever.

    Raises:
        ConfigurationError: It is not positive, or no time at all.
    """
    if ttl is None:
        return math.inf
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    given: Any = seconds
    if not isinstance(given, (int, float)) or not given > 0:
        raise ConfigurationError(f"ttl must be positive seconds or a timedelta, got {ttl!r}.")
    return float(seconds)
