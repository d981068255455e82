"""Rate limiters that wait for calls to the provider only, not for what the cache serves."""

from __future__ import annotations

import copy
from typing import Any

from langchain_core.rate_limiters import BaseRateLimiter


def _itself(limiter: Any) -> Any:
    return limiter


class MissLimiter(BaseRateLimiter):
    """Lets LangChain pass, which asks before it knows whether there will be a call.

    Args:
        inner: The user's own, which calls wait for.
    """

    def __init__(self, inner: BaseRateLimiter) -> None:
        self.inner = inner

    def __deepcopy__(self, memo: dict[int, Any]) -> MissLimiter:
        return MissLimiter(copy.deepcopy(self.inner, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.inner,)  # in another process it is put around it again

    def acquire(self, *, blocking: bool = True) -> bool:
        """Do not wait."""
        del blocking
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Do not wait."""
        del blocking
        return True


def only_on_misses(limiter: BaseRateLimiter | None) -> BaseRateLimiter | None:
    """Return a limiter that waits in `wait` and `await_` only."""
    return limiter if limiter is None or isinstance(limiter, MissLimiter) else MissLimiter(limiter)


def wait(limiter: BaseRateLimiter | None) -> None:
    """Wait until a call may be made."""
    if isinstance(limiter, MissLimiter):
        limiter.inner.acquire(blocking=True)


async def await_(limiter: BaseRateLimiter | None) -> None:
    """Wait until a call may be made, without blocking the event loop."""
    if isinstance(limiter, MissLimiter):
        await limiter.inner.aacquire(blocking=True)
