"""`MemoryGuard`: gives memory up before the container's limit is reached."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from ragaccel.errors import ConfigurationError
from ragaccel.resources.container import memory_limit_bytes
from ragaccel.resources.forks import Forkable
from ragaccel.resources.heap import anonymous_bytes, give_back
from ragaccel.resources.relief import Relief

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from ragaccel.resources.relief import Relievable

R = TypeVar("R", bound="Relievable")
T = TypeVar("T")

_log = logging.getLogger("ragaccel.resources")

#: How much of the limit memory falls to before no more is given up: 70% for a limit of 80%.
_RESUME_SHARE: Final = 0.875

State = Literal["normal", "pressure", "relieved"]


@dataclass(frozen=True)
class MemoryEvent:
    """A change of a guard's state.

    Attributes:
        state: "pressure": `limit` was reached, and memory is being given up until `resume`.
            "relieved": `resume` was reached, and what was given up is not taken again yet.
            "normal": it may be taken again.
        used_bytes: What was in use when it changed.
        limit_bytes: From where on memory is given up.
        resume_bytes: Until where.
    """

    state: State
    used_bytes: int
    limit_bytes: int
    resume_bytes: int


class MemoryGuard(Forkable):
    """Lets caches, idle models and batches shrink when memory is short, and grow again after.

    Counted are the anonymous resident bytes of this process and its children, not the pages of
    mapped files. From `limit` on the guard asks what it watches to give up what is above `resume`,
    the cheapest first: caches, then what is loaded and idle, then the size of batches. It goes on
    at every reading until `resume` is reached. After `settle` seconds below that all is as before.

    While it is entered, by one or several, a thread looks every `interval` seconds; or call `check`
    yourself. A child of a fork is not guarded until it enters the guard anew.

    Args:
        limit: Bytes, or a share of what the container may use, such as "80%".
        resume: The same; seven eighths of `limit` by default.
        interval: Seconds between two readings.
        settle: Seconds that memory stays at or below `resume` before it may be taken again.
        on_change: Called with a `MemoryEvent` whenever the state changes, on the guard's thread.
        reading: Gives the bytes in use; by default `anonymous_bytes`.
        clock: Seconds by a clock that never goes back.

    Example:
        >>> from ragaccel import MultiLevelCache
        >>> guard = MemoryGuard(limit="80%")
        >>> cache = guard.watch(MultiLevelCache.open())
        >>> with guard:
        ...     cache.get_or_compute("answer", lambda: 42)
        42
    """

    def __init__(
        self,
        limit: str | int = "80%",
        resume: str | int | None = None,
        *,
        interval: float = 1.0,
        settle: float = 30.0,
        on_change: Callable[[MemoryEvent], object] | None = None,
        reading: Callable[[], int] = anonymous_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the options; nothing is read yet.

        Raises:
            ConfigurationError: One of them cannot work.
        """
        if not (0 < interval < math.inf and settle >= 0):
            raise ConfigurationError(
                f"interval must be positive and settle not negative, got {interval} and {settle}."
            )
        self._limit = _amount("limit", limit)
        self._resume = self._limit * _RESUME_SHARE
        if resume is not None:
            self._resume = _amount("resume", resume)
            if type(resume) is not type(limit) or self._resume >= self._limit:
                raise ConfigurationError(
                    "resume must be less than limit, and both bytes or both shares, got "
                    f"{resume!r} and {limit!r}."
                )
        self._interval, self._settle = interval, settle
        self._on_change, self._reading, self._clock = on_change, reading, clock
        self._watched: list[Relievable] = []
        self._failing: set[int] = set()
        self._is_share, self._whole = isinstance(limit, str), 0
        self._lock, self._checking = threading.Lock(), threading.Lock()
        self._state: State = "normal"
        self._low_since: float | None = None
        self._thread: threading.Thread | None = None
        self._times_entered = 0
        self._stopping = threading.Event()
        self.follow_forks()

    @property
    def state(self) -> State:
        """Where memory stands; see `MemoryEvent`."""
        return self._state

    def watch(self, what: R) -> R:
        """Ask something to give memory up when it is short, until `unwatch`.

        Args:
            what: A `MultiLevelCache`, `MemoryLevel`, `Lazy`, `MicroBatcher`, or a `Relievable` of
                your own. Of those that cost the same to relieve the first watched is asked first.

        Returns:
            The same.

        Raises:
            ConfigurationError: It cannot be asked.
        """
        if not (callable(getattr(what, "relieve", None)) and hasattr(what, "restore")):
            raise ConfigurationError(
                f"{type(what).__name__} cannot be watched; give it relieve() and restore(), see "
                "ragaccel.resources.Relievable."
            )
        with self._lock:
            others = [one for one in self._watched if one is not what]
            self._watched = sorted([*others, what], key=_relief)
        return what

    def unwatch(self, what: Relievable) -> None:
        """Ask something no more, and restore it."""
        with self._lock:
            self._watched = [one for one in self._watched if one is not what]
        self._shielded(what, what.restore)

    def check(self) -> State:
        """Do what the guard's thread does: read once, and act on it.

        Returns:
            The state then. While another check is under way, that of before, and nothing is done.
        """
        if self._checking.acquire(blocking=False):
            try:
                used = self._shielded(self._reading, self._reading)
                if used is not None:
                    self._act(used)
            finally:
                self._checking.release()
        return self._state

    def __enter__(self) -> Self:
        with self._lock:
            self._times_entered += 1
            if self._thread is None:
                self._stopping = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._stopping,), name="ragaccel-memory", daemon=True
                )
                self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._times_entered = max(0, self._times_entered - 1)
            if self._times_entered:
                return
            thread, stopping, self._thread = self._thread, self._stopping, None
        if thread is not None:
            stopping.set()
            thread.join()
        if self._state != "normal":
            self._state, self._low_since = "normal", None
            self._restore()

    def after_fork_in_child(self) -> None:
        """Have no thread, and nothing relieved: what is watched begins anew by itself."""
        self._lock, self._checking = threading.Lock(), threading.Lock()
        self._state, self._low_since, self._thread = "normal", None, None
        self._times_entered = 0

    def _run(self, stopping: threading.Event) -> None:
        self.check()
        while not stopping.wait(self._interval):
            self.check()

    def _act(self, used: int) -> None:
        if not self._whole:
            self._whole = memory_limit_bytes() if self._is_share else 1
        limit, resume = int(self._limit * self._whole), int(self._resume * self._whole)
        state = self._next(used, limit, resume)
        if state != self._state:
            self._state = state
            self._tell(MemoryEvent(state, used, limit, resume))
            if state == "normal":
                self._restore()
        if state == "pressure":
            self._relieve(used, resume)

    def _next(self, used: int, limit: int, resume: int) -> State:
        """Return the state that a reading leads to."""
        if used > resume:
            self._low_since = None
            return "pressure" if used >= limit else self._state
        if self._state == "normal":
            return "normal"
        if self._low_since is None:
            self._low_since = self._clock()
        return "normal" if self._clock() - self._low_since >= self._settle else "relieved"

    def _relieve(self, used: int, resume: int) -> None:
        """Ask one after the other until enough is free, by what they say or by a new reading."""
        for one in self._watched:
            if used <= resume:
                return
            freed = self._shielded(one, partial(one.relieve, used - resume))
            if freed:
                used -= freed
                give_back()
            now = self._shielded(self._reading, self._reading)
            used = used if now is None else min(used, now)

    def _restore(self) -> None:
        for one in reversed(self._watched):
            self._shielded(one, one.restore)

    def _tell(self, event: MemoryEvent) -> None:
        _log.warning(
            "memory: %s, with %d MiB in use (limit %d MiB, resume %d MiB)",
            event.state,
            *(size >> 20 for size in (event.used_bytes, event.limit_bytes, event.resume_bytes)),
        )
        if self._on_change is not None:
            self._shielded(self._on_change, partial(self._on_change, event))

    def _shielded(self, who: object, call: Callable[[], T]) -> T | None:
        """Return what a call gives, or None if it fails; that is logged until it succeeds again."""
        try:
            given = call()
        except Exception as error:  # noqa: BLE001 - memory is still to be guarded
            if id(who) not in self._failing:
                self._failing.add(id(who))
                _log.exception("the guard goes on without %r (%s)", who, type(error).__name__)
            return None
        self._failing.discard(id(who))
        return given


def _relief(what: Relievable) -> Relief:
    return getattr(what, "relief", Relief.CACHE)


def _amount(name: str, value: str | int) -> float:
    """Return bytes as a whole number, and a share as a fraction."""
    share = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *%", value) if isinstance(value, str) else None
    amount: float = float(share[1]) / 100 if share else value if isinstance(value, int) else 0
    if amount <= 0 or (share and amount > 1):
        raise ConfigurationError(f'{name} must be bytes or a share such as "80%", got {value!r}.')
    return amount
