"""The one bridge between sync and async: flows are coroutines over an injected IO.

A flow is written once as an `async def` that awaits only the methods of an IO object. An async
caller awaits it; a sync caller hands it to `run`, with an IO whose methods block instead of
suspending. No event loop is created, so a sync call also works inside a running one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def run(flow: Coroutine[Any, Any, T]) -> T:
    """Drive a flow to its end with a single step.

    Args:
        flow: A coroutine whose IO never suspends.

    Returns:
        What the flow returns.

    Raises:
        RuntimeError: The flow suspended, that is, it was given an IO that is not a blocking one.
    """
    try:
        flow.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    except RuntimeError as error:
        # A StopIteration that leaves a coroutine is turned into this one (PEP 479): undo it, and
        # the caller sees the error that was raised.
        if isinstance(error.__cause__, StopIteration) and "coroutine raised" in str(error):
            raise error.__cause__ from None
        raise
    finally:
        flow.close()
    raise RuntimeError("a synchronous flow tried to wait")
