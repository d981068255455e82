"""Everything a flow waits for, for callers that block and callers that await."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol

from ragaccel.io import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from ragaccel.cache.flight import Flight, Outcome
    from ragaccel.cache.leases import Leases
    from ragaccel.cache.ledger import Ledger
    from ragaccel.cache.levels import Level, Stored

_REFRESHES: Final = 8


class IO(Protocol):
    """Everything a flow waits for."""

    async def get(self, level: Level, key: bytes) -> bytes | None:
        """Read one key of one level."""

    async def get_many(self, level: Level, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Read keys of one level."""

    async def put_many(self, level: Level, entries: Sequence[Stored]) -> None:
        """Write entries to one level."""

    async def delete(self, level: Level, keys: Sequence[bytes]) -> None:
        """Delete keys of one level."""

    async def wait(self, flight: Flight, timeout: float) -> Outcome | None:
        """Wait for another caller's computation; None where that cannot be waited for."""

    async def prepare(self, ledger: Ledger) -> None:
        """Hear what was struck so far."""

    async def strike(self, ledger: Ledger, namespace: bytes, marks: Sequence[bytes]) -> None:
        """Strike marks of a namespace in a ledger."""

    async def acquire(self, leases: Leases, key: bytes) -> bool:
        """Try to get the lease of a key."""

    async def release(self, leases: Leases, key: bytes) -> None:
        """Give the lease of a key back."""

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the user's that may take long, and wait for what it gives."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    def spawn(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a flow that nobody waits for; it may be left out when many are under way."""


class SyncIO(IO):
    """Blocks instead of suspending, so that `io.run` can drive a flow."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(_REFRESHES)

    async def get(self, level: Level, key: bytes) -> bytes | None:
        return level.get_many((key,)).get(key)

    async def get_many(self, level: Level, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        return level.get_many(keys)

    async def put_many(self, level: Level, entries: Sequence[Stored]) -> None:
        level.put_many(entries)

    async def delete(self, level: Level, keys: Sequence[bytes]) -> None:
        level.delete_many(keys)

    async def wait(self, flight: Flight, timeout: float) -> Outcome | None:
        return flight.wait(timeout)

    async def prepare(self, ledger: Ledger) -> None:
        ledger.prepare()

    async def strike(self, ledger: Ledger, namespace: bytes, marks: Sequence[bytes]) -> None:
        ledger.strike(namespace, marks)

    async def acquire(self, leases: Leases, key: bytes) -> bool:
        return leases.acquire(key)

    async def release(self, leases: Leases, key: bytes) -> None:
        leases.release(key)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        given = function(*args)
        if not inspect.isawaitable(given):
            return given
        with ThreadPoolExecutor(1) as pool:  # there may be a running loop in this thread
            return pool.submit(asyncio.run, _awaited(given)).result()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - this IO blocks

    def spawn(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if not self._free.acquire(blocking=False):
            return

        def work() -> None:
            try:
                run(flow())
            finally:
                self._free.release()

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), daemon=True).start()


class AsyncIO(IO):
    """Waits on the running event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, level: Level, key: bytes) -> bytes | None:
        return (await level.aget_many((key,))).get(key)

    async def get_many(self, level: Level, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        return await level.aget_many(keys)

    async def put_many(self, level: Level, entries: Sequence[Stored]) -> None:
        await level.aput_many(entries)

    async def delete(self, level: Level, keys: Sequence[bytes]) -> None:
        await level.adelete_many(keys)

    async def wait(self, flight: Flight, timeout: float) -> Outcome | None:
        return await flight.await_(timeout)

    async def prepare(self, ledger: Ledger) -> None:
        await ledger.aprepare()

    async def strike(self, ledger: Ledger, namespace: bytes, marks: Sequence[bytes]) -> None:
        await ledger.astrike(namespace, marks)

    async def acquire(self, leases: Leases, key: bytes) -> bool:
        return await leases.aacquire(key)

    async def release(self, leases: Leases, key: bytes) -> None:
        await leases.arelease(key)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        given = await asyncio.to_thread(function, *args)
        return await given if inspect.isawaitable(given) else given

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def spawn(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(flow())  # the loop itself holds tasks weakly
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _awaited(given: Awaitable[Any]) -> Any:
    return await given


SYNC: Final = SyncIO()
ASYNC: Final = AsyncIO()
