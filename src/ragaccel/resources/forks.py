"""Objects that survive `os.fork`: their locks and files are put in order on both sides."""

from __future__ import annotations

import os
import threading

from ragaccel.resources.living import Living


class Forkable:
    """An object that is told of forks.

    A lock that another thread holds at the fork would never be released in the child, and SQLite's
    locks do not cross a fork: so an object may lay down what it holds before, and begin anew after.
    """

    def follow_forks(self) -> None:
        """Be told of forks from now on."""
        with _lock:
            _forkable.add(self)

    def before_fork(self) -> None:
        """Lay down in the parent what must not cross the fork."""

    def after_fork_in_parent(self) -> None:
        """Go on in the parent."""

    def after_fork_in_child(self) -> None:
        """Begin anew in the child, where no other thread of the parent runs."""


_lock = threading.RLock()
_forkable: Living[Forkable] = Living()
_told: list[Forkable] = []


def _before() -> None:
    _lock.acquire()
    _told[:] = _forkable
    for one in _told:
        one.before_fork()


def _in_parent() -> None:
    for one in _told:
        one.after_fork_in_parent()
    _told.clear()
    _lock.release()


def _in_child() -> None:
    for one in _told:
        one.after_fork_in_child()
    _told.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
