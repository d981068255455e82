"""The Redis level: entries on servers that machines share."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

from ragaccel.cache.levels import Usage
from ragaccel.cache.levels.redis.describe import describe
from ragaccel.cache.levels.redis.followers import Followers
from ragaccel.cache.levels.redis.leases import RedisLeases
from ragaccel.cache.levels.redis.ledger import RedisLedger
from ragaccel.cache.levels.redis.merge import Merger
from ragaccel.cache.levels.redis.server import Server
from ragaccel.errors import ConfigurationError
from ragaccel.io import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragaccel.cache.levels import Stored
    from ragaccel.cache.levels.redis.connect import Node
    from ragaccel.cache.levels.redis.followers import Follower
    from ragaccel.cache.levels.redis.wires import Command, Wire

_SCAN_BATCH = 500
_FOREVER = 10 * 365 * 86_400.0
_MARK_BYTES = 8


class RedisLevel:
    """Keeps entries on a Redis or Valkey server, a cluster, or a master that sentinels name.

    The server is never waited for longer than `timeout`; after a failure it is left alone for
    `retry_after` seconds, so that a dead server costs one time-out and not one per request.

    Args:
        server: A URL, or a sync client of redis-py (`redis.Redis`, `redis.RedisCluster`), which
            keeps its own time-outs and retries. URLs begin with `redis://`, `rediss://` for TLS or
            `unix://`; a cluster is `redis+cluster://host:port,host:port`, sentinels are
            `redis+sentinel://host:port,host:port/service/db` (options `sentinel_username` and
            `sentinel_password` log in to the sentinels).
        prefix: Put before every key, to share a server with others.
        timeout: Seconds to wait for a connection or an answer.
        retry_after: Seconds without a request to the server after a failure.
        grace: Seconds for which entries are still served after contact to the server was lost, when
            what others invalidate is no longer heard.

    Attributes:
        ledger: What was invalidated, shared by all that use the server with this prefix.
        leases: Rights to compute, shared by the same.

    Raises:
        MissingExtraError: redis-py is not installed.
        ConfigurationError: The URL is none that redis-py understands.
    """

    name = "redis"
    compress = True

    def __init__(
        self,
        server: Any,
        *,
        prefix: str = "ragaccel:",
        timeout: float = 0.2,
        retry_after: float = 1.0,
        grace: float = 60.0,
    ) -> None:
        self._how = (server, prefix, timeout, retry_after, grace)
        self._server = Server(server, timeout, retry_after)
        self._entries = prefix.encode() + b"e:"
        self._followers = Followers()
        self._merger = Merger()
        self.ledger = RedisLedger(self._server, prefix.encode(), self._followers, grace)
        self.leases = RedisLeases(self._server, prefix.encode())

    # ---- entries ---------------------------------------------------------------------------------

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the blobs of those keys that the server has, with one MGET."""
        if not keys:
            return {}
        with self._server.calling():
            return run(self._get(self._server.wire, keys))

    def put_many(self, entries: Sequence[Stored]) -> None:
        """Keep the entries until they expire, in one round trip."""
        commands = self._sets(entries)
        if commands:
            with self._server.calling():
                run(self._all(self._server.wire, commands))

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys."""
        if keys:
            with self._server.calling():
                run(self._all(self._server.wire, self._unlinks(self._names(keys))))

    def scan(self, namespace: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and blobs of a namespace, with one look at every key of the level."""
        start = len(self._entries)
        for names in self._pages():
            with self._server.calling():
                values = run(self._values(self._server.wire, names))
            for name, value in zip(names, values, strict=True):
                if value is not None and value[:_MARK_BYTES] == namespace:
                    yield bytes.fromhex(name[start:].decode()), value[_MARK_BYTES:]

    def clear(self) -> None:
        """Forget every entry with this level's prefix; what was invalidated stays written down."""
        for names in self._pages():
            with self._server.calling():
                run(self._all(self._server.wire, self._unlinks(names)))

    async def aget_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return what `get_many` does; calls of one turn of the event loop share a MGET."""
        return await self._merger.get(keys, self._afetch) if keys else {}

    async def aput_many(self, entries: Sequence[Stored]) -> None:
        """Do what `put_many` does."""
        if self._server.blocking:
            await asyncio.to_thread(self.put_many, entries)
            return
        commands = self._sets(entries)
        if commands:
            with self._server.calling():
                await self._all(self._server.awire(), commands)

    async def adelete_many(self, keys: Sequence[bytes]) -> None:
        """Do what `delete_many` does."""
        if self._server.blocking:
            await asyncio.to_thread(self.delete_many, keys)
        elif keys:
            with self._server.calling():
                await self._all(self._server.awire(), self._unlinks(self._names(keys)))

    async def aclear(self) -> None:
        """Do what `clear` does, in a worker thread."""
        await asyncio.to_thread(self.clear)

    # ---- the level -------------------------------------------------------------------------------

    def follow(self, follower: Follower) -> None:
        """Tell somebody who keeps copies when others change entries, for as long as he exists."""
        self._followers.add(follower)

    def usage(self) -> Usage:
        """Return that it is not known here: the servers tell, see `describe`."""
        return Usage(-1, -1, -1, self._server.breaker.state)

    def describe(self) -> dict[str, Any]:
        """Ask the servers what they are and how full; for people to read.

        Raises:
            Exception: They cannot be reached.
        """
        with self._server.calling():
            return describe(self._server, self.ledger)

    def close(self) -> None:
        """Close the connections of sync callers; those of an event loop close with `aclose`."""
        self.leases.close()
        self.ledger.close()
        self._server.close()

    async def aclose(self) -> None:
        """Close the connections of sync callers and of the running event loop."""
        await asyncio.to_thread(self.leases.close)
        self.ledger.close()
        await self._server.aclose()

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self._server.target.given is not None:
            raise ConfigurationError(
                "a Redis level that was given a client cannot be sent to another process; give it "
                "a URL."
            )
        return _reopen, self._how

    # ---- commands --------------------------------------------------------------------------------

    async def _afetch(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        if self._server.blocking:
            return await asyncio.to_thread(self.get_many, keys)
        with self._server.calling():
            return await self._get(self._server.awire(), keys)

    async def _get(self, wire: Wire, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        values = await self._values(wire, self._names(keys))
        return {
            key: value[_MARK_BYTES:]
            for key, value in zip(keys, values, strict=True)
            if value is not None and len(value) >= _MARK_BYTES
        }

    async def _values(self, wire: Wire, names: Sequence[bytes]) -> list[bytes | None]:
        """Read values; a key that holds something else than a string is as if absent."""
        if self._server.target.mode != "cluster":
            values: list[bytes | None] = await self._server.call(wire, "MGET", *names)
            return values
        replies = await self._server.send(wire, [("GET", name) for name in names])
        for at, reply in enumerate(replies):
            if isinstance(reply, Exception):
                if not str(reply).startswith("WRONGTYPE"):
                    raise reply
                replies[at] = None
        return replies

    async def _all(self, wire: Wire, commands: Sequence[Command]) -> None:
        for reply in await self._server.send(wire, commands):
            if isinstance(reply, Exception):
                raise reply

    def _names(self, keys: Sequence[bytes]) -> list[bytes]:
        return [self._entries + key.hex().encode() for key in keys]

    def _sets(self, entries: Sequence[Stored]) -> list[Command]:
        now = time.time()
        commands: list[Command] = []
        written = []
        for entry in entries:
            milliseconds = int(min(entry.expires - now, _FOREVER) * 1000)
            if milliseconds > 0:
                (name,) = self._names((entry.key,))
                value = entry.namespace + entry.blob
                commands.append(("SET", name, value, "PX", milliseconds))
                written.append(entry.key)
        self._followers.wrote(written)
        return commands

    def _unlinks(self, names: Sequence[bytes]) -> list[Command]:
        if self._server.target.mode == "cluster":
            return [("UNLINK", name) for name in names]
        return [("UNLINK", *names)]

    def _pages(self) -> Iterator[list[bytes]]:
        """Yield the names of all entries, some hundred at a time, from every node."""
        pattern = re.sub(rb"([\\*?\[\]])", rb"\\\1", self._entries) + b"*"
        with self._server.calling():
            nodes = run(self._server.routes.find(self._server.wire))
        for node in nodes:
            cursor = 0
            while True:
                with self._server.calling():
                    cursor, names = self._scan(node, cursor, pattern)
                if names:
                    yield names
                if not cursor:
                    break

    def _scan(self, node: Node, cursor: int, pattern: bytes) -> tuple[int, list[bytes]]:
        command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_BATCH)
        (reply,) = run(self._server.wire.send(node, [command]))
        if isinstance(reply, Exception):
            raise reply
        following, names = reply
        return int(following), [name for name in names if len(name) == len(self._entries) + 40]


def _reopen(
    server: str, prefix: str, timeout: float, retry_after: float, grace: float
) -> RedisLevel:
    return RedisLevel(server, prefix=prefix, timeout=timeout, retry_after=retry_after, grace=grace)
