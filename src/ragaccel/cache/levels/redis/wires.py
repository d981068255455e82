"""Commands to nodes and back, blocking or not: the one difference between our two faces."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from ragaccel.cache.levels.redis.connect import aclient, client
from ragaccel.cache.levels.redis.link import Link

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragaccel.cache.levels.redis.connect import Node, Target

Command = tuple[Any, ...]
"""A command and its arguments, as redis-py's `execute_command` takes them."""


class Wire(Protocol):
    """Carries commands."""

    async def send(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        """Send a node commands in one round trip.

        Returns:
            The replies in order; an error that the server replied is one of them.

        Raises:
            Exception: The node cannot be reached.
        """

    async def spread(self, batches: Mapping[Node, Sequence[Command]]) -> dict[Node, list[Any]]:
        """Send several nodes their commands; see `send`."""
        return {node: await self.send(node, commands) for node, commands in batches.items()}


class SyncWire(Wire):
    """Blocks, on connections of its own."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: dict[Node, deque[Link]] = {}

    async def send(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        """Send a node commands; see `Wire`."""
        idle = self._idle.get(node)
        if idle is None:
            idle = self._idle.setdefault(node, deque())
        link = self._take(idle) or Link(self._target, node)
        try:
            replies = link.exchange(commands)
        except BaseException:
            link.close()
            raise
        idle.append(link)
        return replies

    @staticmethod
    def _take(idle: deque[Link]) -> Link | None:
        """Return a connection that nobody uses and that the server has not closed."""
        while True:
            try:
                link = idle.pop()
            except IndexError:
                return None
            if not link.is_stale():
                return link
            link.close()

    def after_fork(self) -> None:
        """Leave alone what the parent's connections say."""
        self._idle = {}

    def close(self) -> None:
        """Close the connections; the next command opens new ones."""
        known, self._idle = self._idle, {}
        for idle in known.values():
            while idle:
                idle.pop().close()


class ClientWire(Wire):
    """Blocks, on the connections of the caller's own client, which stay open."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._clients: dict[Node, Any] = {}

    async def send(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        """Send a node commands; see `Wire`."""
        from redis import ResponseError

        to = self._clients.get(node)
        if to is None:
            to = self._clients[node] = client(self._target, node)
        if len(commands) == 1:
            try:
                return [to.execute_command(*commands[0])]
            except ResponseError as error:
                return [error]
        replies: list[Any] = _fill(to, commands).execute(raise_on_error=False)
        return replies

    def after_fork(self) -> None:
        """Do nothing: redis-py's pools leave the parent's connections alone."""

    def close(self) -> None:
        """Forget the clients of single nodes."""
        self._clients = {}


class AsyncWire(Wire):
    """Waits on the event loop that it was made in, and on no other."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._clients: dict[Node, Any] = {}

    async def spread(self, batches: Mapping[Node, Sequence[Command]]) -> dict[Node, list[Any]]:
        """Send all nodes their commands at once."""
        replies = await asyncio.gather(*(self.send(*batch) for batch in batches.items()))
        return dict(zip(batches, replies, strict=True))

    async def send(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        """Send a node commands; see `Wire`."""
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
