"""Those who keep copies of a server's entries, and hear when another process changed one."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from ragaccel.resources import Living

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ECHOES = 10_000
_ECHO_SECONDS = 5.0


class Follower(Protocol):
    """Keeps copies of entries."""

    def forget(self, keys: Sequence[bytes]) -> None:
        """Drop the copies of entries that another process changed."""

    def forget_all(self) -> None:
        """Drop every copy: changes may have been missed."""


class Followers:
    """Tells followers what others changed, and leaves out what this process wrote itself."""

    def __init__(self) -> None:
        self._followers: Living[Follower] = Living()
        self._written: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, follower: Follower) -> None:
        """Tell somebody from now on, for as long as it exists."""
        with self._lock:
            self._followers.add(follower)

    def wrote(self, keys: Iterable[bytes]) -> None:
        """Expect one echo of each of these keys."""
        now = time.monotonic()
        with self._lock:
            for key in keys:
                self._written.pop(key, None)
                self._written[key] = now
            while len(self._written) > _ECHOES:
                self._written.popitem(last=False)

    def changed(self, keys: Iterable[bytes]) -> None:
        """Tell of entries that the server says were changed."""
        too_old = time.monotonic() - _ECHO_SECONDS
        with self._lock:
            foreign = [key for key in keys if self._written.pop(key, -math.inf) <= too_old]
            followers = list(self._followers)
        if foreign:
            for follower in followers:
                follower.forget(foreign)

    def lost(self) -> None:
        """Tell that anything may have changed."""
        with self._lock:
            self._written.clear()
            followers = list(self._followers)
        for follower in followers:
            follower.forget_all()

    def after_fork(self) -> None:
        """Take a lock that no thread of the parent holds."""
        self._lock = threading.Lock()
