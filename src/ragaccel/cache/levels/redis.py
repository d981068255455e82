"""The Redis level: a Redis or Valkey server that machines share; no server modules needed."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from ragaccel.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache.levels import Stored

_SCAN_BATCH = 500
_FOREVER = 10 * 365 * 86_400.0


class Unavailable(Exception):  # noqa: N818 - raised to the flow, never to a caller
    """The breaker is open: the server failed a moment ago and is not asked again yet."""


class RedisLevel:
    """Keeps entries on a server.

    The server is never waited for longer than `timeout`; after a failure it is left alone for
    `retry_after` seconds, so that a dead server costs one time-out and not one per request.

    Args:
        url: Such as `redis://localhost:6379/0`, `rediss://` for TLS or `unix://`.
        prefix: Put before every key, to share a server with others.
        timeout: Seconds to wait for a connection or an answer.
        retry_after: Seconds without a request to the server after a failure.

    Raises:
        MissingExtraError: redis-py is not installed.
        ConfigurationError: The URL is none that redis-py understands.
    """

    name = "redis"
    compress = True

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "ragaccel:",
        timeout: float = 0.2,
        retry_after: float = 1.0,
    ) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise MissingExtraError("redis", "redis") from error
        self._url, self._prefix = url, prefix.encode()
        self._timeout, self._retry_after = timeout, retry_after
        self._options: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            self._client: Any = redis.Redis.from_url(url, **self._options)
        except ValueError as error:
            raise ConfigurationError(f"the Redis URL cannot be used: {error}") from error
        self._aclients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()
        self._closed_until = 0.0

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the blobs of those keys that the server has, with one MGET."""
        if not keys:
            return {}
        with self._breaker():
            return _pair(keys, self._client.mget(self._names(keys)))

    def put_many(self, entries: Sequence[Stored]) -> None:
        """Keep the entries until they expire, in one round trip."""
        with self._breaker():
            self._fill(self._client.pipeline(transaction=False), entries).execute()

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys."""
        if keys:
            with self._breaker():
                self._client.unlink(*self._names(keys))

    def clear(self) -> None:
        """Forget every key with this level's prefix."""
        with self._breaker():
            batch = []
            for name in self._client.scan_iter(self._pattern(), count=_SCAN_BATCH):
                batch.append(name)
                if len(batch) == _SCAN_BATCH:
                    self._client.unlink(*batch)
                    batch = []
            if batch:
                self._client.unlink(*batch)

    def close(self) -> None:
        """Close the connections of sync callers; those of an event loop close with `aclose`."""
        self._client.close()

    async def aget_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what `get_many` does."""
        if not keys:
            return {}
        with self._breaker():
            return _pair(keys, await self._aclient().mget(self._names(keys)))

    async def aput_many(self, entries: Sequence[Stored]) -> None:
        """Do what `put_many` does."""
        with self._breaker():
            await self._fill(self._aclient().pipeline(transaction=False), entries).execute()

    async def adelete_many(self, keys: Sequence[bytes]) -> None:
        """Do what `delete_many` does."""
        if keys:
            with self._breaker():
                await self._aclient().unlink(*self._names(keys))

    async def aclear(self) -> None:
        """Do what `clear` does, in a worker thread."""
        await asyncio.to_thread(self.clear)

    async def aclose(self) -> None:
        """Close the connections of sync callers and of the running event loop."""
        client = self._aclients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
        self.close()

    def _aclient(self) -> Any:
        """Return the running loop's client: its connections belong to that loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            client = self._aclients.get(loop)
            if client is None:
                from redis.asyncio import Redis
                from redis.asyncio.retry import Retry
                from redis.backoff import NoBackoff

                options = {**self._options, "retry": Retry(NoBackoff(), 0)}
                client = self._aclients[loop] = Redis.from_url(self._url, **options)
            return client

    def _names(self, keys: Sequence[bytes]) -> list[bytes]:
        return [self._prefix + key.hex().encode() for key in keys]

    def _pattern(self) -> bytes:
        return re.sub(rb"([\\*?\[\]])", rb"\\\1", self._prefix) + b"*"

    def _fill(self, pipeline: Any, entries: Sequence[Stored]) -> Any:
        now = time.time()
        for key, blob, expires in entries:
            milliseconds = int(min(expires - now, _FOREVER) * 1000)
            if milliseconds > 0:
                pipeline.set(self._names((key,))[0], blob, px=milliseconds)
        return pipeline

    def _breaker(self) -> _Breaker:
        if time.monotonic() < self._closed_until:
            raise Unavailable(f"not asked again for {self._retry_after} s after a failure")
        return _Breaker(self)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _reopen, (self._url, self._prefix.decode(), self._timeout, self._retry_after)


class _Breaker:
    """Leaves the server alone for a while after a failure inside."""

    __slots__ = ("_level",)

    def __init__(self, level: RedisLevel) -> None:
        self._level = level

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            self._level._closed_until = time.monotonic() + self._level._retry_after


def _reopen(url: str, prefix: str, timeout: float, retry_after: float) -> RedisLevel:
    return RedisLevel(url, prefix=prefix, timeout=timeout, retry_after=retry_after)


def _pair(keys: Sequence[bytes], blobs: Sequence[bytes | None]) -> dict[bytes, bytes]:
    return {key: blob for key, blob in zip(keys, blobs, strict=True) if blob is not None}
