"""A socket to one server: commands go out, replies come in, all of them within one time-out.

redis-py connects it and logs in. What comes after is written and read here: redis-py bounds the
wait for each piece of an answer and not for the whole, and takes longer than the server does.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any

from ragaccel.cache.levels.redis.connect import connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache.levels.redis.connect import Node, Target
    from ragaccel.cache.levels.redis.wires import Command

_CHUNK = 1 << 16


class Link:
    """A blocking connection to one server, for one thread at a time. It is made connected.

    Args:
        target: How to connect.
        node: Where to.

    Raises:
        Exception: The server cannot be reached.
    """

    def __init__(self, target: Target, node: Node) -> None:
        import hiredis
        from redis.exceptions import ConnectionError as Unconnected
        from redis.exceptions import InvalidResponse

        self._connection = connection(target, node)
        self._connection.connect()
        self._socket = self._connection._sock
        self._timeout: float = self._socket.gettimeout()
        self._pack = hiredis.pack_command
        self._reader = hiredis.Reader(InvalidResponse, self._connection._parser.parse_error)
        self._fatal = Unconnected
        self._pending = select.poll()
        self._pending.register(self._socket, select.POLLIN)

    def is_stale(self) -> bool:
        """Tell whether the server has closed the connection, or says what nobody asked for."""
        return self._reader.has_data() or bool(self._pending.poll(0))

    def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip and return their replies; see `Wire.send`.

        After any exception the link is of no use.
        """
        end = time.monotonic() + self._timeout
        self._socket.sendall(b"".join(map(self._pack, commands)))
        self._reader.feed(self._socket.recv(_CHUNK))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is False:
                self._read_more(end)
            elif isinstance(reply, self._fatal):
                raise reply
            else:
                replies.append(reply)
        return replies

    def _read_more(self, end: float) -> None:
        """Wait for the next piece of an answer for what is left of its time."""
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer is not complete")
        self._socket.settimeout(left)
        data = self._socket.recv(_CHUNK)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._reader.feed(data)
        self._socket.settimeout(self._timeout)

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
