"""A circuit breaker: a store that failed a moment ago is not asked again for a while."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Final, Literal, get_args

from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Iterator

State = Literal["closed", "open", "half-open"]
STATES: Final[tuple[State, ...]] = get_args(State)

_log = logging.getLogger("ragaccel.cache")


class Unavailable(Exception):  # noqa: N818 - raised to the flow, never to a caller
    """The breaker is open: the store failed a moment ago and is not asked again yet."""


class Breaker(Forkable):
    """Opens at a fault of a store; after a while one call is let through to see whether it is over.

    One line is logged per change of state.

    Args:
        store: How log lines name it; no secrets.
        trips: Which exceptions mean that the store itself cannot be reached.
        retry_after: Seconds without a call after a fault.
        refusals: Which exceptions mean that the store can be reached, but does not do as asked.
    """

    def __init__(
        self,
        store: str,
        trips: tuple[type[Exception], ...],
        retry_after: float,
        refusals: tuple[type[Exception], ...] = (),
    ) -> None:
        self._store, self._trips, self._retry_after = store, trips, retry_after
        self._refusals = refusals
        self._lock = threading.Lock()
        self._opened: float | None = None
        self._probing = False
        self.follow_forks()

    @property
    def state(self) -> State:
        """Whether calls go through, do not, or one is on its way to see."""
        if self._opened is None:
            return "closed"
        return "half-open" if self._probing else "open"

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Watch a call to the store.

        Raises:
            Unavailable: The store is not to be asked now, or the call found that out.
        """
        probe = self.enter()
        try:
            yield
        except BaseException as error:
            self.leave(error, probe=probe)
            raise
        self.leave(None, probe=probe)

    def enter(self) -> bool:
        """Begin a call; tell whether it is the one that looks whether the fault is over.

        Raises:
            Unavailable: The store is not to be asked now.
        """
        opened = self._opened
        if opened is None:
            return False
        with self._lock:
            if self._probing or time.monotonic() < opened + self._retry_after:
                raise Unavailable(f"{self._store} is not asked again yet")
            self._probing = True
            return True

    def leave(self, error: BaseException | None, *, probe: bool) -> None:
        """End a call.

        Args:
            error: What it raised.
            probe: What `enter` returned.

        Raises:
            Unavailable: The error means that the store cannot be reached.
        """
        if isinstance(error, self._trips):
            self.trip(error)
        elif probe and (error is None or isinstance(error, self._refusals)):
            self._close()
        if probe:
            self._probing = False
        if isinstance(error, self._trips):
            raise Unavailable(f"{self._store}: {type(error).__name__}") from error

    def trip(self, error: Exception) -> None:
        """Open, for a fault that was seen outside of a call."""
        with self._lock:
            was, self._opened = self._opened, time.monotonic()
        if was is None:
            _log.warning(
                "%s cannot be reached (%s); the cache goes on without it and looks again every "
                "%g s",
                self._store,
                type(error).__name__,
                self._retry_after,
            )

    def _close(self) -> None:
        with self._lock:
            was, self._opened = self._opened, None
        if was is not None:
            _log.warning("%s can be reached again", self._store)

    def after_fork_in_child(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()
        self._probing = False
