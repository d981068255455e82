"""Objects that exist, for as long as somebody else holds them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class Living(Generic[T]):
    """A set that holds nobody alive, to be gone through while threads add and forget members.

    `weakref.WeakSet` may lose a member in another thread amid an iteration, which then raises. Here
    every step is one call of the interpreter's own, which no other thread can get between.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._references: set[weakref.ref[T]] = set()

    def add(self, member: T) -> None:
        """Take in a member, by what it is and not by what it equals."""
        self._references.add(weakref.ref(member, self._references.discard))

    def __iter__(self) -> Iterator[T]:
        """Go through those who live at this moment."""
        members = [reference() for reference in list(self._references)]
        return iter([member for member in members if member is not None])
