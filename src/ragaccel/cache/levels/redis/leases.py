"""Leases on the server: keys that only one process can make, and that end with it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from ragaccel.cache.levels.redis.server import script
from ragaccel.io import run
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from ragaccel.cache.levels.redis.server import Server

_MILLISECONDS = 2_000
_RENEW_SECONDS = 0.7
_RENEW = script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")
_RELEASE = script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")


class RedisLeases(Forkable):
    """Leases that all users of a server share; see `cache.leases.Leases`.

    A held lease is renewed by a thread, so it lasts as long as its holder computes, and runs out
    two seconds after its holder was killed.

    Args:
        server: Where they are.
        prefix: What the level's keys begin with.
    """

    def __init__(self, server: Server, prefix: bytes) -> None:
        self._server, self._prefix = server, prefix + b"l:"
        self._renewer: threading.Thread | None = None
        self._held: dict[bytes, str] = {}
        self._begin()
        self.follow_forks()

    def acquire(self, key: bytes) -> bool:
        """Try to get the lease of a key; a fault of the server is raised."""
        with self._server.calling():
            return self._note(key, run(self._server.call(self._server.wire, *self._claim(key))))

    def release(self, key: bytes) -> None:
        """Give a lease back; a fault is left to the lease's end."""
        token = self._held.pop(key, None)
        if token is not None:
            with contextlib.suppress(Exception), self._server.calling():
                run(self._server.run(self._server.wire, _RELEASE, [self._name(key)], [token]))

    async def aacquire(self, key: bytes) -> bool:
        """Do what `acquire` does, without blocking the event loop."""
        if self._server.blocking:
            return await self._acquire_in_thread(key)
        with self._server.calling():
            had = await self._server.call(self._server.awire(), *self._claim(key))
            return self._note(key, had)

    async def _acquire_in_thread(self, key: bytes) -> bool:
        """Acquire in a thread: it goes on if the caller is cancelled, who then has no lease."""
        had, ended = False, threading.Lock()  # whoever finds it locked came last, and gives back

        def acquire() -> bool:
            nonlocal had
            had = self.acquire(key)
            if not ended.acquire(blocking=False) and had:
                self.release(key)
            return had

        try:
            return await asyncio.to_thread(acquire)
        except asyncio.CancelledError:
            if not ended.acquire(blocking=False) and had:
                asyncio.get_running_loop().run_in_executor(None, self.release, key)
            raise

    async def arelease(self, key: bytes) -> None:
        """Do what `release` does, without blocking the event loop."""
        if self._server.blocking:
            await asyncio.to_thread(self.release, key)
            return
        token = self._held.pop(key, None)
        if token is not None:
            with contextlib.suppress(Exception), self._server.calling():
                wire = self._server.awire()
                await self._server.run(wire, _RELEASE, [self._name(key)], [token])

    def close(self) -> None:
        """Give every lease back."""
        for key in list(self._held):
            self.release(key)

    def renew(self) -> bool:
        """Lengthen what is held; if nothing is, return False and let the thread end."""
        with self._lock:
            held = list(self._held.items())
            if not held:
                self._renewer = None
                return False
        for key, token in held:
            with contextlib.suppress(Exception), self._server.calling():
                arguments = [token, _MILLISECONDS]
                run(self._server.run(self._server.wire, _RENEW, [self._name(key)], arguments))
        return True

    def after_fork_in_child(self) -> None:
        """Hold nothing: the leases are the parent's."""
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._token = secrets.token_hex(8)
        self._held = {}
        self._renewer = None

    def _note(self, key: bytes, had: Any) -> bool:
        if had:
            with self._lock:
                self._held[key] = self._token
                if self._renewer is None:
                    self._renewer = threading.Thread(
                        target=_renew,
                        args=(weakref.ref(self),),
                        name="ragaccel-leases",
                        daemon=True,
                    )
                    self._renewer.start()
        return bool(had)

    def _name(self, key: bytes) -> bytes:
        return self._prefix + key.hex().encode()

    def _claim(self, key: bytes) -> tuple[Any, ...]:
        return "SET", self._name(key), self._token, "NX", "PX", _MILLISECONDS


def _renew(leases: weakref.ref[RedisLeases]) -> None:
    """Renew until nothing is held or nobody is there; the thread keeps nobody alive."""
    going = True
    while going:
        time.sleep(_RENEW_SECONDS)
        held = leases()
        going = held is not None and held.renew()
        del held
