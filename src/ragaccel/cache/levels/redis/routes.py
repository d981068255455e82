"""Which node has which key: known of itself, told by sentinels, or by the nodes of a cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache.levels.redis.connect import Node, Target
    from ragaccel.cache.levels.redis.wires import Command, Wire

_SCRIPTS = frozenset(("EVALSHA", "EVAL"))


class Routes:
    """The map from keys to nodes; found out at the first command, and again when it proves wrong.

    Args:
        target: What is known of the servers.
        timeout: Seconds to look for a node that tells.
        pause: Seconds for which a map is trusted although something seemed wrong with it.
    """

    def __init__(self, target: Target, timeout: float, pause: float) -> None:
        self._target, self._timeout, self._pause = target, timeout, min(pause, 1.0)
        self._seeds = list(target.seeds)
        self._slots: dict[int, Node] = {}
        self._found, self._doubtful = 0.0, False
        self.primaries: tuple[Node, ...] = target.seeds if target.mode == "standalone" else ()

    def doubt(self) -> None:
        """Ask anew before one of the next commands."""
        self._doubtful = True

    async def find(self, wire: Wire, *, now: bool = False) -> tuple[Node, ...]:
        """Return the nodes that keep data, asking who they are if need be."""
        if self._target.mode == "standalone":
            return self.primaries
        old = time.monotonic() - self._found > self._pause
        if not self.primaries or now or (self._doubtful and old):
            await self._ask(wire)
            self._found, self._doubtful = time.monotonic(), False
        return self.primaries

    def node(self, command: Command) -> Node:
        """Return the node of a cluster that has the key of a command."""
        from redis.exceptions import ClusterDownError

        node = self._slots.get(_slot(command))
        if node is None:
            self.doubt()
            raise ClusterDownError("no node of the cluster has this slot")
        return node

    def move(self, command: Command, node: Node) -> None:
        """Take note that a key's slot is at another node."""
        self._slots[_slot(command)] = node
        self.doubt()

    async def _ask(self, wire: Wire) -> None:
        """Ask one node after the other until one tells; the next time begin with that one."""
        from redis.exceptions import ConnectionError as Unconnected
        from redis.exceptions import ResponseError
        from redis.exceptions import TimeoutError as TooLate

        end = time.monotonic() + self._timeout * 0.9
        for _ in range(len(self._seeds)):
            seed = self._seeds[0]
            try:
                await self._ask_one(wire, seed)
            except (Unconnected, TooLate, ResponseError, OSError):
                self._seeds = [*self._seeds[1:], seed]
                if time.monotonic() >= end:
                    raise
            else:
                return
        raise Unconnected("no node tells where the data is")

    async def _ask_one(self, wire: Wire, seed: Node) -> None:
        if self._target.mode == "sentinel":
            ask: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._target.service)
        else:
            ask = ("CLUSTER", "SLOTS")
        (reply,) = await wire.send(seed, [ask])
        if isinstance(reply, Exception):
            raise reply
        if self._target.mode == "sentinel":
            self._take_master(reply)
        else:
            self._take_slots(reply, seed)

    def _take_master(self, reply: Any) -> None:
        from redis.exceptions import ConnectionError as Unconnected

        if not reply:
            raise Unconnected("the sentinel knows no such service")
        host, port = reply
        self.primaries = ((_text(host), int(port)),)

    def _take_slots(self, reply: Sequence[Any], seed: Node) -> None:
        slots: dict[int, Node] = {}
        for first, last, (host, port, *_), *_replicas in reply:
            node = (_text(host) or seed[0], int(port))
            slots.update(dict.fromkeys(range(int(first), int(last) + 1), node))
        self._slots = slots
        self.primaries = tuple(sorted(set(slots.values())))
        self._seeds += [node for node in self.primaries if node not in self._seeds]


def redirected(error: Any, asked: Node) -> tuple[bool, Node] | None:
    """Understand a cluster's word that a key is elsewhere.

    Args:
        error: A reply.
        asked: The node that replied.

    Returns:
        Whether the key is there for this time only, and where; None if it says something else.
    """
    from redis.exceptions import AskError, MovedError

    if isinstance(error, AskError):  # redis-py's parsers differ in what they know
        once, place = not isinstance(error, MovedError), error.node_addr
        return once, (place[0] or asked[0], int(place[1]))
    word, _, rest = str(error).partition(" ")
    if word not in {"MOVED", "ASK"}:
        return None
    host, _, port = rest.split(" ")[1].rpartition(":")
    return word == "ASK", (host or asked[0], int(port))


def _slot(command: Command) -> int:
    from redis.crc import key_slot

    return key_slot(command[3 if command[0] in _SCRIPTS else 1])


def _text(host: Any) -> str:
    return host.decode() if isinstance(host, bytes) else str(host or "")
