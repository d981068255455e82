"""Work in the background, which ends when it is not wanted any more."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from ragaccel.vectors.slab import Slab

_log = logging.getLogger("ragaccel.vectors")


class StoppedError(Exception):
    """The work is not wanted any more; it never reaches a user."""


class Background(Forkable):
    """Does one piece of work at a time on a thread of its own, which ends with the work.

    Args:
        fault: What is said where the work fails, of which nobody else hears.
    """

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.stopping = threading.Event()
        self.follow_forks()

    def begin(self, work: Callable[[], None]) -> None:
        """Begin some work, unless there is some under way."""
        with self._lock:
            if self.stopping.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(
                target=self._do, args=(work,), name="ragaccel-upkeep", daemon=True
            )
            self._thread.start()

    def wait(self) -> None:
        """Wait until no work is under way."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def stop(self) -> None:
        """Let the work end soon, and begin no other."""
        self.stopping.set()
        self.wait()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            _log.exception("%s (%s)", self._fault, type(error).__name__)

    def after_fork_in_child(self) -> None:
        """Have no thread: it is the parent's."""
        self._lock = threading.Lock()
        self._thread = None


class StoppableSlab:
    """A slab for work in the background, whose reads end when the work is not wanted any more."""

    def __init__(self, slab: Slab, stopping: threading.Event) -> None:
        self._slab, self._stopping = slab, stopping

    @property
    def mapped(self) -> NDArray[np.float32]:
        """All rows, without a copy."""
        return self._slab.mapped

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of slots, shape (n, dim).

        Raises:
            StoppedError: See above.
        """
        if self._stopping.is_set():
            raise StoppedError
        return self._slab.read(slots)

    def ask_for(self, slots: NDArray[np.int64]) -> None:
        """Tell which slots, ascending, will be read next."""
        self._slab.ask_for(slots)
