"""One call for several items: each gets its result, or the error that is its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ragaccel.errors import BatchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

T = TypeVar("T")
R = TypeVar("R")

#: Errors that are no item's fault: making the call again with fewer would only repeat them.
_NOBODYS_FAULT: Final = re.compile(
    r"timeout|timed|connect|ratelimit|toomany|quota|auth|permission|unavailable", re.IGNORECASE
)


def outcomes(
    call: Callable[[Sequence[T]], Awaitable[Sequence[R]]], items: Sequence[T]
) -> Coroutine[Any, Any, list[R | Exception]]:
    """Return for each item its result or its error, when awaited.

    Equal items are sent once. Where a call of several fails, each half is called by itself, and so
    on, so that one bad item fails alone.

    Args:
        call: Takes items and gives as many results, in their order.
        items: What is asked.
    """
    try:
        are_different = len(set(items)) == len(items)
    except TypeError:  # some cannot be compared by a hash
        are_different = True
    return _halved(call, [*items]) if are_different else _shared(call, items)


async def _shared(
    call: Callable[[Sequence[T]], Awaitable[Sequence[R]]], items: Sequence[T]
) -> list[R | Exception]:
    places = {item: place for place, item in enumerate(dict.fromkeys(items))}
    found = await _halved(call, [*places])
    return [found[places[item]] for item in items]


async def _halved(
    call: Callable[[Sequence[T]], Awaitable[Sequence[R]]], items: list[T]
) -> list[R | Exception]:
    if not items:
        return []
    try:
        found = list(await call(items))
    except Exception as error:  # noqa: BLE001 - it goes to those who asked
        if len(items) == 1 or any(
            _NOBODYS_FAULT.search(cls.__name__) for cls in type(error).__mro__
        ):
            return [error] * len(items)
        middle = len(items) // 2
        return await _halved(call, items[:middle]) + await _halved(call, items[middle:])
    if len(found) != len(items):
        return [odd_count(len(items), len(found))] * len(items)
    return [*found]


def odd_count(items: int, results: int) -> BatchError:
    """Return the error of a call that gave another number of results than it was given items."""
    return BatchError(f"a call with {items} items gave {results} results.")
