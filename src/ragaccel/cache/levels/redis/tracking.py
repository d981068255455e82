"""Hearing from the servers which keys were changed: one thread and one socket per node.

The sockets are connected and authenticated by redis-py; what comes after is read here, as the
parsers of its versions differ in what they do with invalidations.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from ragaccel.cache.levels.redis.connect import connection
from ragaccel.cache.levels.redis.frames import Frame, Frames
from ragaccel.io import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache.levels.redis.connect import Node
    from ragaccel.cache.levels.redis.server import Server

_log = logging.getLogger("ragaccel.cache")

_ASK_EVERY = 1.0  # seconds between two signs of life from a quiet node
_ANSWER_WITHIN = 0.9
_CHUNK = 1 << 18


class Listener(Protocol):
    """Is told what a tracker hears, on the tracker's thread."""

    def gained(self) -> None:
        """Every change is heard from now on; a fault means that this is not so."""

    def lost(self) -> None:
        """Changes are not heard any more."""

    def heard(self, names: Sequence[bytes]) -> None:
        """Keys were changed."""

    def flushed(self) -> None:
        """A node was emptied."""

    def tick(self) -> None:
        """A second or so has passed."""


class Tracker:
    """Listens to every node that keeps data until it is stopped or its listener is gone.

    Args:
        server: Where to listen.
        prefixes: With what the keys begin whose changes are of interest.
        listener: Whom to tell; held weakly.

    Attributes:
        settled: Set once there is contact, or the first try has failed.
    """

    def __init__(self, server: Server, prefixes: Sequence[bytes], listener: Listener) -> None:
        self.settled = threading.Event()
        self._server, self._prefixes = server, prefixes
        self._listener = weakref.ref(listener)
        self._stopped, self._failures = False, 0
        self._woken, self._waker = socket.socketpair()
        self._finalizer = weakref.finalize(listener, self.stop)
        self._thread = threading.Thread(target=self._run, name="ragaccel-redis", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end."""
        self._stopped = True
        self._finalizer.detach()
        with contextlib.suppress(OSError):
            self._waker.send(b"!")

    def left_behind(self) -> None:
        """Take note, in a fork's child, that the thread is the parent's."""
        self._stopped = True
        self._finalizer.detach()

    def _run(self) -> None:
        try:
            while not self._over():
                began = time.monotonic()
                try:
                    self._follow()
                except Exception as error:  # noqa: BLE001 - whatever it is, there is no contact
                    self._failed(error)
                self.settled.set()
                if time.monotonic() - began < self._server.retry_after or self._failures:
                    self._pause()
        finally:
            self.settled.set()
            self._woken.close()
            self._waker.close()

    def _pause(self) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._woken, selectors.EVENT_READ)
            waiting.select(self._server.retry_after)

    def _over(self) -> bool:
        return self._stopped or self._listener() is None

    def _failed(self, error: Exception) -> None:
        """Keep callers away from a server that is away; say once what it refuses."""
        breaker = self._server.breaker
        if isinstance(error, self._server.faults):
            if not self._failures or breaker.state != "closed":
                breaker.trip(error)
        elif not self._failures:
            _log.warning(
                "%s does not tell of changes (%s); what others strike is noticed late",
                self._server.target.name,
                type(error).__name__,
            )
        self._failures += 1

    def _follow(self) -> None:
        """Listen until contact is lost; raise if it could not be had at all."""
        server = self._server
        nodes = run(server.routes.find(server.wire, now=True))
        with contextlib.ExitStack() as closing:
            ears = []
            for node in nodes:
                ears.append(_Ear(server, node))
                closing.callback(ears[-1].close)
                ears[-1].listen(self._prefixes)
            closing.callback(self._tell, "lost")
            self._tell("gained")
            self._failures = 0
            self.settled.set()
            with contextlib.suppress(Exception), selectors.DefaultSelector() as waiting:
                self._hear(ears, waiting)  # once it is lost, the next try tells what is the matter

    def _hear(self, ears: Sequence[_Ear], waiting: selectors.BaseSelector) -> None:
        """Pass on what is heard, for as long as every node gives signs of life."""
        nodes, ticked = {ear.node for ear in ears}, time.monotonic()
        waiting.register(self._woken, selectors.EVENT_READ)
        for ear in ears:
            waiting.register(ear.socket, selectors.EVENT_READ, ear)
        while not self._over():
            for ready, _ in waiting.select(_ASK_EVERY / 2):
                if ready.data is None:
                    return
                self._pass_on(ready.data.read())
            now = time.monotonic()
            for ear in ears:
                ear.check(now)
            if now - ticked >= _ASK_EVERY:
                ticked = now
                self._tell("tick")
                if set(self._server.routes.primaries) != nodes:
                    return

    def _pass_on(self, frames: Sequence[Any]) -> None:
        names: list[bytes] = []
        for sort, value in frames:
            if sort != b">" or value[0] != b"invalidate":
                continue
            if value[1] is None:
                self._tell("flushed")
            else:
                names += value[1]
        if names:
            self._tell("heard", names)

    def _tell(self, what: str, *told: Any) -> None:
        listener = self._listener()
        if listener is not None:
            getattr(listener, what)(*told)


class _Ear:
    """A connection to one node that is told of changes."""

    def __init__(self, server: Server, node: Node) -> None:
        self.node = node
        self._connection = connection(server.target, node, protocol=3)
        self._connection.connect()
        self.socket = self._connection._sock
        self._frames = Frames()
        self._heard = time.monotonic()
        self._asked = False

    def listen(self, prefixes: Sequence[bytes]) -> None:
        """Ask to be told of keys with these prefixes."""
        from redis.exceptions import ResponseError

        wanted = [part for prefix in prefixes for part in (b"PREFIX", prefix)]
        self._send(b"CLIENT", b"TRACKING", b"ON", b"BCAST", *wanted)
        frames = self.read()
        while not frames:
            frames = self.read()
        if frames[0].sort == b"-":
            raise ResponseError("the server refuses to track keys")

    def read(self) -> list[Frame]:
        """Return the frames that have come, waiting for bytes but not for a whole frame."""
        data = self.socket.recv(_CHUNK)
        while data and getattr(self.socket, "pending", int)():
            data += self.socket.recv(_CHUNK)
        if not data:
            raise ConnectionResetError("the node closed the connection")
        self._heard, self._asked = time.monotonic(), False
        return list(self._frames.feed(data))

    def check(self, now: float) -> None:
        """Ask a quiet node for a sign of life; raise if it gives none."""
        if self._asked and now - self._heard > _ANSWER_WITHIN:
            raise TimeoutError("the node gives no sign of life")
        if not self._asked and now - self._heard > _ASK_EVERY / 2:
            self._send(b"PING")
            self._heard, self._asked = now, True

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def _send(self, *words: bytes) -> None:
        lines = [b"*%d" % len(words)]
        for word in words:
            lines += [b"$%d" % len(word), word]
        self.socket.sendall(b"\r\n".join([*lines, b""]))
