"""What the rerankers of both frameworks share: what they did is kept, and done again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.cache import Uncacheable
from ragaccel.cache.waiting import AsyncIO, SyncIO

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence


class _NoRefresh:
    """Keeps rankings from being made anew behind the caller's back, with what the caller gave."""

    def spawn(self, flow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Leave it out."""


class _Sync(_NoRefresh, SyncIO):
    """Blocks."""


class _Async(_NoRefresh, AsyncIO):
    """Waits on the running event loop."""


SYNC: Final = _Sync()
ASYNC: Final = _Async()


def firsts(things: Sequence[Any]) -> list[int]:
    """Return of every thing the place where it is for the first time."""
    first: dict[int, int] = {}
    return [first.setdefault(id(one), at) for at, one in enumerate(things)]


def scalar(value: Any) -> Any:
    """Return a number of numpy's, as models give them, as an array that can be stored.

    Raises:
        Uncacheable: It is an array, which would come back as a number.
    """
    if isinstance(value, np.ndarray):
        raise Uncacheable("value")
    return np.asarray(value) if isinstance(value, np.generic) else value


def from_scalar(value: Any) -> Any:
    """Return what `scalar` was given."""
    return value[()] if isinstance(value, np.ndarray) else value
