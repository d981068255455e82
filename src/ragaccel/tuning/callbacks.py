"""Callbacks of the user's, sync or async, on a thread of their own: no request waits for them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ragaccel.resources import Errands

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ragaccel.tuning.journal import State

    Callback = Callable[[Any], Any]

_log = logging.getLogger("ragaccel.tuning")


class Trial(msgspec.Struct, frozen=True):
    """What callbacks are told: how a trial stands.

    Attributes:
        state: "trying", "applied", "rolled back", or "stopped" where it was ended before that.
        settings: What is tried; by the names of the knobs.
        was: The values before.
        share: The share of the traffic that sees it.
        canaries: How many requests with it were judged.
        controls: How many requests without it were judged.
        reason: Why it was rolled back.
    """

    state: State
    settings: dict[str, Any]
    was: dict[str, Any]
    share: float
    canaries: int = 0
    controls: int = 0
    reason: str | None = None


class Hooks(NamedTuple):
    """Callbacks of a `Trial`, sync or async; see `Callbacks`.

    Attributes:
        on_trial: A trial begins.
        on_improvement: It was found no worse, and a larger share will see it.
        on_apply: It is for all from now on.
        on_rollback: It was taken back.
    """

    on_trial: Callback | None = None
    on_improvement: Callback | None = None
    on_apply: Callback | None = None
    on_rollback: Callback | None = None


class Callbacks:
    """Calls callbacks one after another, on a thread that ends with the last one.

    What a callback raises is logged by its type and goes no further. Coroutines run in an event
    loop of their own.
    """

    def __init__(self) -> None:
        self._errands: Errands[tuple[Callback, Any]] = Errands(_call, "ragaccel-callbacks")

    def tell(self, callback: Callback | None, told: Any) -> None:
        """Call a callback soon, if there is one.

        Args:
            callback: A function or coroutine function of one argument.
            told: The argument.
        """
        if callback is not None:
            self._errands.add((callback, told))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until none waits to be called, for a program that ends.

        Args:
            timeout: Seconds; None for as long as it takes.

        Returns:
            Whether none waits. A callback that waits for all callbacks gets False at once.
        """
        return self._errands.wait(timeout)


def _call(errand: tuple[Callback, Any]) -> None:
    callback, told = errand
    try:
        answer = callback(told)
        if inspect.isawaitable(answer):
            asyncio.run(_awaited(answer))
    except Exception as error:  # noqa: BLE001 - it is the user's, and nobody waits for it
        name = getattr(callback, "__name__", type(callback).__name__)
        _log.warning("The callback %s failed: %s", name, type(error).__name__)


async def _awaited(answer: Awaitable[Any]) -> None:
    await answer
