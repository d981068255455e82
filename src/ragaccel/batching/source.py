"""Sources of a stream: whatever can be iterated, read as far as there is room."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

#: Stands for the end of a source.
END: Final = object()
_GRACE: Final = 1.0


def check_source(source: Any) -> None:
    """Refuse what cannot be iterated, and a single text.

    Raises:
        ConfigurationError: It is no iterable of items.
    """
    if isinstance(source, (str, bytes)) or not isinstance(source, (Iterable, AsyncIterable)):
        raise ConfigurationError(f"an iterable of items is needed, got {source!r}.")


class Reader(Protocol):
    """Reads a source as far as there is room."""

    async def next(self) -> Any:
        """Return the next item when there is room for it, or `END`."""

    def release(self) -> None:
        """Make room for one more item."""

    async def aclose(self) -> None:
        """Read no more, and close the source if it is a generator."""


def reader(source: Iterable[Any] | AsyncIterable[Any], room: int) -> Reader:
    """Begin to read a source.

    Collections are read as they are. Another iterable may block, so a thread of its own reads it.

    Args:
        source: What is read.
        room: How many items there is room for.
    """
    if isinstance(source, AsyncIterable):
        return _OnLoop(source, source.__aiter__(), room)
    if isinstance(source, Collection):
        return _OnLoop(source, _later(source), room)
    return _InThread(source, room)


async def _later(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class _OnLoop:
    """Reads on the event loop."""

    def __init__(self, source: Any, items: AsyncIterator[Any], room: int) -> None:
        self._source, self._items = source, items
        self._room = anyio.Semaphore(room, fast_acquire=True)

    async def next(self) -> Any:
        await self._room.acquire()
        return await anext(self._items, END)

    def release(self) -> None:
        self._room.release()

    async def aclose(self) -> None:
        for one in (self._source, self._items):
            if inspect.isasyncgen(one):
                await one.aclose()


class _InThread:
    """Reads in a thread of its own, which ends with it."""

    def __init__(self, source: Iterable[Any], room: int) -> None:
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(room)
        self._is_closed = False
        self._arrived: deque[tuple[Any, BaseException | None]] = deque()
        self._news, self._ended = anyio.Event(), anyio.Event()
        run = contextvars.copy_context().run
        threading.Thread(
            target=run, args=(self._read,), name="ragaccel-source", daemon=True
        ).start()

    async def next(self) -> Any:
        while not self._arrived:
            self._news = anyio.Event()
            await self._news.wait()
        item, error = self._arrived.popleft()
        if error is not None:
            raise error
        return item

    def release(self) -> None:
        self._room.release()

    async def aclose(self) -> None:
        self._is_closed = True
        self._room.release()
        with anyio.move_on_after(_GRACE):  # it may hang in the source
            await self._ended.wait()

    def _read(self) -> None:
        items = each(self._source)
        item, error = None, None
        try:
            while item is not END and error is None and self._room.acquire():
                if self._is_closed:
                    break
                item, error = _next(items)
                self._arrived.append((item, error))
                if len(self._arrived) == 1:  # else the news of one before is still to be heard
                    self._tell(self._wake)
        finally:
            try:
                if inspect.isgenerator(self._source):
                    self._source.close()
            finally:
                self._tell(self._ended.set)

    def _wake(self) -> None:
        self._news.set()

    def _tell(self, hear: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(hear)
        except RuntimeError:
            self._is_closed = True  # the event loop is gone


def each(source: Iterable[Any]) -> Iterator[Any]:
    """Iterate; what goes wrong at the beginning goes wrong at the first item."""
    for item in source:  # noqa: UP028 - `yield from` would close what is the caller's
        yield item


def _next(items: Iterator[Any]) -> tuple[Any, BaseException | None]:
    try:
        return next(items, END), None
    except BaseException as error:  # noqa: BLE001 - raised where the item was asked for
        return None, error
