"""A Redis server, or several that act as one, as the parts of a level use it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from ragaccel.cache.levels.breaker import Breaker, Unavailable
from ragaccel.cache.levels.redis.connect import target
from ragaccel.cache.levels.redis.routes import Routes, redirected
from ragaccel.cache.levels.redis.wires import AsyncWire, ClientWire, SyncWire
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ragaccel.cache.levels.redis.connect import Node
    from ragaccel.cache.levels.redis.wires import Command, Wire


class Script(NamedTuple):
    """A program for the server.

    Attributes:
        code: Lua.
        digest: The SHA-1 under which servers remember it.
    """

    code: str
    digest: str


def script(code: str) -> Script:
    """Return a script with the digest that servers know it by."""
    return Script(code, hashlib.sha1(code.encode(), usedforsecurity=False).hexdigest())


class SlowAnswerError(TimeoutError):
    """A call was answered, but later than servers are waited for."""


class Calling:
    """A context in which a server is called; see `Server.calling`."""

    __slots__ = ("_began", "_probe", "_server", "_worked")

    def __init__(self, server: Server) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._probe = self._server.breaker.enter()
        self._began, self._worked = time.monotonic(), time.thread_time()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        server, took = self._server, time.monotonic() - self._began
        busy = time.thread_time() - self._worked if took > server.timeout / 2 else 0.0
        if _late(error) and busy > server.timeout / 2:
            # This thread was busy with something else: that is no fault of the server.
            unseen = Unavailable("the answer was not looked at in time")
            server.breaker.leave(unseen, probe=self._probe)
            raise unseen from error
        if error is None and took - busy > server.timeout:
            with contextlib.suppress(Unavailable):
                server.breaker.leave(SlowAnswerError(), probe=self._probe)
        else:
            server.breaker.leave(error, probe=self._probe)


class Server(Forkable):
    """Sends commands where their keys are, behind one circuit breaker.

    Args:
        where: A URL or a sync redis-py client.
        timeout: Seconds to wait for a connection or an answer.
        retry_after: Seconds without a call after a fault.
    """

    def __init__(self, where: Any, timeout: float, retry_after: float) -> None:
        self.target = target(where, timeout)
        self.timeout, self.retry_after = timeout, retry_after
        self.routes = Routes(self.target, timeout, retry_after)
        self.faults = _faults()
        self.breaker = Breaker(self.target.name, self.faults, retry_after, _refusals())
        given = self.target.given is not None
        self.wire = ClientWire(self.target) if given else SyncWire(self.target)
        self._awires: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncWire] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()
        self.follow_forks()

    @property
    def blocking(self) -> bool:
        """Whether there is no way but the sync one: the caller gave a sync client."""
        return self.target.given is not None

    def awire(self) -> AsyncWire:
        """Return the running loop's wire: its connections belong to that loop."""
        loop = asyncio.get_running_loop()
        wire = self._awires.get(loop)
        if wire is None:
            with self._lock:
                wire = self._awires.setdefault(loop, AsyncWire(self.target))
        return wire

    def calling(self) -> Calling:
        """Watch a call; one that succeeds too late is a fault that only the next calls notice.

        Raises:
            Unavailable: The server is not to be asked now, or the call found that out.
        """
        return Calling(self)

    async def send(self, wire: Wire, commands: Sequence[Command]) -> list[Any]:
        """Send each command to the node that has its key.

        Returns:
            The replies in order; errors that a server replied are among them.

        Raises:
            Exception: A node cannot be reached, or the cluster is down.
        """
        try:
            await self.routes.find(wire)
            if self.target.mode == "cluster":
                nodes = tuple(map(self.routes.node, commands))
                replies = await self._scatter(wire, commands, nodes)
            else:
                nodes = self.routes.primaries[:1] * len(commands)
                replies = await wire.send(nodes[0], commands)
            errors = [at for at, reply in enumerate(replies) if isinstance(reply, Exception)]
            if errors:
                await self._mend(wire, commands, replies, {at: nodes[at] for at in errors})
        except self.faults:
            self.routes.doubt()
            raise
        return replies

    @staticmethod
    async def _scatter(wire: Wire, commands: Sequence[Command], nodes: Sequence[Node]) -> list[Any]:
        """Send each command to its node, and return the replies in the order of the commands."""
        placed: dict[Node, list[int]] = {}
        for at, node in enumerate(nodes):
            placed.setdefault(node, []).append(at)
        answered = await wire.spread(
            {node: [commands[at] for at in places] for node, places in placed.items()}
        )
        replies: list[Any] = [None] * len(commands)
        for node, places in placed.items():
            for at, reply in zip(places, answered[node], strict=True):
                replies[at] = reply
        return replies

    async def call(self, wire: Wire, *command: Any) -> Any:
        """Send one command and return its reply; an error of the server is raised."""
        (reply,) = await self.send(wire, [command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def run(
        self, wire: Wire, script: Script, keys: Sequence[bytes], args: Sequence[Any] = ()
    ) -> Any:
        """Run a script, which the server is told in full only if it does not know it."""
        from redis.exceptions import NoScriptError

        try:
            return await self.call(wire, "EVALSHA", script.digest, len(keys), *keys, *args)
        except NoScriptError:
            return await self.call(wire, "EVAL", script.code, len(keys), *keys, *args)

    async def everywhere(self, wire: Wire, *commands: Command) -> dict[Node, list[Any]]:
        """Send the same commands to every node that keeps data."""
        nodes = await self.routes.find(wire)
        return await wire.spread(dict.fromkeys(nodes, commands))

    async def _mend(
        self,
        wire: Wire,
        commands: Sequence[Command],
        replies: list[Any],
        errors: Mapping[int, Node],
    ) -> None:
        """Follow the cluster's redirections, once; raise what says that all of it is down."""
        from redis.exceptions import ClusterDownError, ReadOnlyError

        again: dict[Node, list[Command]] = {}
        places: dict[Node, list[int | None]] = {}
        for at, node in errors.items():
            error = replies[at]
            if isinstance(error, ClusterDownError) or str(error).startswith("CLUSTERDOWN"):
                raise ClusterDownError("the cluster is down") from None
            if isinstance(error, ReadOnlyError):
                self.routes.doubt()
            elsewhere = redirected(error, node)
            if elsewhere is None:
                continue
            once, there = elsewhere
            if once:
                again.setdefault(there, []).append(("ASKING",))
                places.setdefault(there, []).append(None)
            else:
                self.routes.move(commands[at], there)
            again.setdefault(there, []).append(commands[at])
            places.setdefault(there, []).append(at)
        for node, answers in (await wire.spread(again)).items():
            for place, answer in zip(places[node], answers, strict=True):
                if place is not None:
                    replies[place] = answer

    def close(self) -> None:
        """Close the connections of sync callers; those of an event loop close with `aclose`."""
        self.wire.close()

    async def aclose(self) -> None:
        """Close the connections of sync callers and of the running event loop."""
        wire = self._awires.pop(asyncio.get_running_loop(), None)
        if wire is not None:
            await wire.aclose()
        self.close()

    def after_fork_in_child(self) -> None:
        """Take locks that no thread of the parent holds."""
        self._lock = threading.Lock()
        self.wire.after_fork()


def _faults() -> tuple[type[Exception], ...]:
    """Return what means that the server cannot be reached, and not that it refused something."""
    from redis.exceptions import ClusterDownError
    from redis.exceptions import ConnectionError as Unconnected
    from redis.exceptions import TimeoutError as TooLate

    return Unconnected, TooLate, ClusterDownError, OSError, asyncio.TimeoutError


def _refusals() -> tuple[type[Exception], ...]:
    """Return what means that the server answered, although not what was asked for."""
    from redis.exceptions import ResponseError

    return (ResponseError,)


def _late(error: BaseException | None) -> bool:
    if error is None:
        return False
    from redis.exceptions import TimeoutError as TooLate

    return isinstance(error, (TooLate, TimeoutError, asyncio.TimeoutError))
