"""One query: when it may be asked, and whether it is asked again. Written once, see `ragaccel.io`.

Retries are made with tenacity.
"""

from __future__ import annotations

import math
import re
import threading
from typing import TYPE_CHECKING, Any, Final

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import tenacity

_LONGEST_WAIT: Final = 30.0
_TOO_FAST: Final = re.compile(r"ratelimit|toomany|throttl|exhausted", re.IGNORECASE)
_PASSING: Final = re.compile(
    r"timeout|timedout|connect|unavailable|overloaded|deadline", re.IGNORECASE
)
_PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_TOO_FAST_STATUS: Final = 429


class Pace:
    """Spaces calls evenly: so many in a second.

    Args:
        rate: The most calls in a second, or None for no limit.
        now: A clock, in seconds.
    """

    def __init__(self, rate: float | None, now: Callable[[], float]) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._now = now
        self._next = self._held_until = -math.inf
        self._lock = threading.Lock()

    def turn(self) -> float:
        """Take the next turn and return how long it is until then, in seconds."""
        if self._next == -math.inf and not self._gap:
            return 0.0
        with self._lock:
            now = self._now()
            turn = max(now, self._next)
            self._next = turn + self._gap
        return turn - now

    def hold(self, seconds: float) -> None:
        """Have no turn before some time has passed; those that were taken are void."""
        with self._lock:
            self._held_until = max(self._held_until, self._now() + seconds)
            self._next = max(self._next, self._held_until)

    def is_held(self) -> bool:
        """Tell whether a turn that has come is void."""
        return self._now() < self._held_until


class Attempts:
    """Asks a query, and again where that may help.

    Args:
        call: Asks it once; only this and `sleep` are awaited.
        sleep: Lets seconds pass.
        now: The clock of `sleep`.
        rate: The most attempts in a second.
        retry: How many more attempts there are, or a retryer of tenacity.
    """

    def __init__(
        self,
        call: Callable[[Any], Awaitable[Any]],
        sleep: Callable[[float], Awaitable[None]],
        now: Callable[[], float],
        rate: float | None,
        retry: int | tenacity.BaseRetrying | None,
    ) -> None:
        self._call, self._sleep = call, sleep
        self._pace = Pace(rate, now)
        self._retrying = _retrying(retry, sleep, self._pace) if retry else None

    async def __call__(self, query: Any) -> Any:
        """Return the answer."""
        if self._retrying is None:
            return await self._try(query)
        return await self._retrying.copy()(self._try, query)

    async def _try(self, query: Any) -> Any:
        wait = self._pace.turn()
        while wait > 0:
            await self._sleep(wait)
            wait = self._pace.turn() if self._pace.is_held() else 0
        return await self._call(query)


def check_rate(rate: Any) -> None:
    """Refuse what is no rate.

    Raises:
        ConfigurationError: It is neither None nor a number above 0.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigurationError(
            f"rate must be queries per second above 0, or None for no limit, got {rate!r}."
        )


def check_retry(retry: Any) -> None:
    """Refuse what does not say how to retry.

    Raises:
        ConfigurationError: It is neither a number of attempts nor a retryer of tenacity.
    """
    if retry is None or (isinstance(retry, int) and retry >= 0):
        return
    from tenacity import BaseRetrying

    if not isinstance(retry, BaseRetrying):
        raise ConfigurationError(
            "retry must be how many more attempts there are, or a tenacity.Retrying, "
            f"got {retry!r}."
        )


def passes(error: BaseException) -> bool:
    """Tell whether an error may be gone at the next attempt.

    Time-outs, failed connections, rate limits and overloaded servers may: HTTP status 408, 425,
    429 and 5xx where the error has one, else by the names of its classes. A wrong argument or key
    is not asked for again.
    """
    if not isinstance(error, Exception):
        return False
    status = _status(error)
    if status is not None:
        return status in _PASSING_STATUS
    return _is_named(error, _PASSING) or _is_named(error, _TOO_FAST)


def _retrying(
    retry: int | tenacity.BaseRetrying, sleep: Callable[[float], Awaitable[None]], pace: Pace
) -> tenacity.AsyncRetrying:
    import tenacity

    if not isinstance(retry, int):
        return tenacity.AsyncRetrying(
            sleep=sleep, stop=retry.stop, wait=retry.wait, retry=retry.retry, before=retry.before,
            after=retry.after, before_sleep=retry.before_sleep, reraise=retry.reraise,
            retry_error_cls=retry.retry_error_cls,
            retry_error_callback=retry.retry_error_callback,
        )  # fmt: skip
    backoff = tenacity.wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT)

    def wait(state: tenacity.RetryCallState) -> float:
        return max(backoff(state), _asked_wait(_error(state)))

    def hold(state: tenacity.RetryCallState) -> None:
        """Have the others wait too, where all of them are too fast together."""
        if _is_too_fast(_error(state)) and state.next_action is not None:
            pace.hold(state.next_action.sleep)

    return tenacity.AsyncRetrying(
        sleep=sleep, stop=tenacity.stop_after_attempt(retry + 1), wait=wait,
        retry=tenacity.retry_if_exception(passes), before_sleep=hold, reraise=True,
    )  # fmt: skip


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()


def _is_too_fast(error: BaseException | None) -> bool:
    if error is None:
        return False
    status = _status(error)
    return _is_named(error, _TOO_FAST) if status is None else status == _TOO_FAST_STATUS


def _is_named(error: BaseException, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(cls.__name__) for cls in type(error).__mro__)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status where clients of HTTP APIs put it."""
    response = getattr(error, "response", None)
    for one in (getattr(error, "status_code", None), getattr(response, "status_code", None)):
        if isinstance(one, int):
            return one
    return None


def _asked_wait(error: BaseException | None) -> float:
    """Return how long the server asks to wait by `Retry-After`, in seconds, within reason."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return min(float(headers.get("retry-after", 0)), _LONGEST_WAIT)
    except (TypeError, ValueError, AttributeError):
        return 0.0
