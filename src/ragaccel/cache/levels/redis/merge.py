"""Reads of one turn of an event loop go to the server together."""

from __future__ import annotations

import asyncio
import copy
import weakref
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Found = dict[bytes, bytes]
    Fetch = Callable[[Sequence[bytes]], Awaitable[Found]]


class _Waiting(NamedTuple):
    """A caller: what it asked for, and where it waits."""

    keys: Sequence[bytes]
    answer: asyncio.Future[Found | Exception]


class Merger:
    """Collects the keys that callers ask for until the loop's turn is over."""

    def __init__(self) -> None:
        self._waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Waiting]] = (
            weakref.WeakKeyDictionary()
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, keys: Sequence[bytes], fetch: Fetch) -> Found:
        """Return what the fetch of this turn found of the keys.

        A caller that is cancelled leaves the others alone; a fault reaches all of them, each with
        an exception of its own.

        Args:
            keys: What to look for.
            fetch: Reads keys; the same for all callers.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(keys, loop.create_future())
        batch = self._waiting.get(loop)
        if batch is None:
            self._waiting[loop] = [waiting]
            loop.call_soon(self._flush, loop, fetch)
        else:
            batch.append(waiting)
        answer = await waiting.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _flush(self, loop: asyncio.AbstractEventLoop, fetch: Fetch) -> None:
        batch = [one for one in self._waiting.pop(loop) if not one.answer.done()]
        if batch:
            task = loop.create_task(_serve(batch, fetch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _serve(batch: list[_Waiting], fetch: Fetch) -> None:
    keys = list(dict.fromkeys(key for one in batch for key in one.keys))
    try:
        found = await fetch(keys)
    except Exception as error:  # noqa: BLE001 - it is raised where each caller waits
        for one in batch:
            if not one.answer.done():
                one.answer.set_result(_own(error))
    except BaseException:  # the loop is being closed
        for one in batch:
            one.answer.cancel()
        raise
    else:
        for one in batch:
            if not one.answer.done():
                one.answer.set_result({key: found[key] for key in one.keys if key in found})


def _own(error: Exception) -> Exception:
    """Return a copy, whose traceback does not grow with every caller that raises it."""
    try:
        own = copy.copy(error)
    except Exception:  # noqa: BLE001 - some exceptions cannot be copied
        return error
    own.__cause__ = error.__cause__
    return own
