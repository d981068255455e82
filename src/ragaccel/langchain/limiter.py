"""Rate limiters that wait for calls to the provider only, not for what the cache serves."""

from __future__ import annotations

from langchain_core.rate_limiters import BaseRateLimiter

from ragaccel.wrapping.transparent import Around


class MissLimiter(Around, BaseRateLimiter):
    """Lets LangChain pass, which asks before it knows whether there will be a call."""

    def acquire(self, *, blocking: bool = True) -> bool:
        """Do not wait."""
        del blocking
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        """Do not wait."""
        del blocking
        return True


def wait(limiter: BaseRateLimiter | None) -> None:
    """Wait until a call may be made."""
    if isinstance(limiter, MissLimiter):
        limiter.inner.acquire(blocking=True)


async def await_(limiter: BaseRateLimiter | None) -> None:
    """Wait until a call may be made, without blocking the event loop."""
    if isinstance(limiter, MissLimiter):
        await limiter.inner.aacquire(blocking=True)
