"""Commands to nodes and back, blocking or not: the one difference between our two faces."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Protocol

from ragaccel.cache.levels.redis.connect import aclient, client

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragaccel.cache.levels.redis.connect import Node, Target

Command = tuple[Any, ...]
"""A command and its arguments, as redis-py's `execute_command` takes them."""


class Wire(Protocol):
    """Carries commands."""

    async def send(self, batches: Mapping[Node, Sequence[Command]]) -> dict[Node, list[Any]]:
        """Send each node its commands in one round trip.

        Returns:
            The replies of every node, in order; an error that a server replied is one of them.

        Raises:
            Exception: A node cannot be reached.
        """


class SyncWire(Wire):
    """Blocks. The sockets of a fork's parent are left alone by redis-py's pools."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._clients: dict[Node, Any] = {}
        self._lock = threading.Lock()

    async def send(self, batches: Mapping[Node, Sequence[Command]]) -> dict[Node, list[Any]]:
        """Send one node after the other its commands."""
        return {node: self._send(node, commands) for node, commands in batches.items()}

    def _send(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        from redis import ResponseError

        to = self._clients.get(node) or self._open(node)
        if len(commands) == 1:
            try:
                return [to.execute_command(*commands[0])]
            except ResponseError as error:
                return [error]
        replies: list[Any] = _fill(to, commands).execute(raise_on_error=False)
        return replies

    def _open(self, node: Node) -> Any:
        with self._lock:
            if node not in self._clients:
                self._clients[node] = client(self._target, node)
            return self._clients[node]

    def after_fork(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections; the next command opens new ones."""
        clients, self._clients = self._clients, {}
        if self._target.given is None:
            for one in clients.values():
                one.connection_pool.disconnect()


class AsyncWire(Wire):
    """Waits on the event loop that it was made in, and on no other."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._clients: dict[Node, Any] = {}

    async def send(self, batches: Mapping[Node, Sequence[Command]]) -> dict[Node, list[Any]]:
        """Send all nodes their commands at once."""
        if len(batches) == 1:
            ((node, commands),) = batches.items()
            return {node: await self._send(node, commands)}
        replies = await asyncio.gather(*(self._send(*batch) for batch in batches.items()))
        return dict(zip(batches, replies, strict=True))

    async def _send(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        from redis import ResponseError

        to = self._clients.get(node)
        if to is None:
            to = self._clients[node] = aclient(self._target, node)
        if len(commands) == 1:
            try:
                return [await to.execute_command(*commands[0])]
            except ResponseError as error:
                return [error]
        replies: list[Any] = await _fill(to, commands).execute(raise_on_error=False)
        return replies

    async def aclose(self) -> None:
        """Close the connections."""
        clients, self._clients = self._clients, {}
        for one in clients.values():
            await one.connection_pool.disconnect()


def _fill(client: Any, commands: Sequence[Command]) -> Any:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline
