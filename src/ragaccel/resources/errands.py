"""What nobody is to wait for, done one after another on a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from ragaccel.resources.forks import Forkable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Errands(Forkable, Generic[T]):
    """A line of errands and a thread that ends with the last one; a fork leaves them to the parent.

    Args:
        do: Does one; it raises nothing.
        name: Of the thread.
        most: How many may wait; None for any number.
    """

    _thread: threading.Thread | None

    def __init__(self, do: Callable[[T], object], name: str, most: int | None = None) -> None:
        self._do, self._name, self._most = do, name, most
        self.after_fork_in_child()
        self.follow_forks()

    def add(self, errand: T) -> bool:
        """Have an errand done soon; return whether there was room for it."""
        with self._lock:
            if self._most is not None and len(self._waiting) >= self._most:
                return False
            self._waiting.append(errand)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until none waits, for a program that ends.

        Args:
            timeout: Seconds; None for as long as it takes.

        Returns:
            Whether none waits. An errand that waits for all of them gets False at once.
        """
        thread = self._thread
        if thread is threading.current_thread():
            return False
        if thread is not None:
            thread.join(timeout)
        return self._thread is None

    def after_fork_in_child(self) -> None:
        """Leave what waits to the parent, whose thread does it."""
        self._lock = threading.Lock()
        self._waiting: deque[T] = deque()
        self._thread = None

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                errand = self._waiting.popleft()
            self._do(errand)
