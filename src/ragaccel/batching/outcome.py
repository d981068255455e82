"""What came of one of many calls, and the order in which it is handed out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class Placed(Protocol):
    """What has a place in an order."""

    @property
    def position(self) -> int:
        """Its place, counted from 0."""


P = TypeVar("P", bound=Placed)


@dataclass(frozen=True)
class Outcome:
    """The result of an item, or its error.

    Attributes:
        position: The item's place in the source, counted from 0.
        item: The query or item itself.
        value: The result; None where there is an error.
        error: What was raised instead.
    """

    position: int
    item: Any
    value: Any = None
    error: Exception | None = None

    def unwrap(self) -> Any:
        """Return the result.

        Raises:
            Exception: The error, if that is what came of it.
        """
        if self.error is not None:
            raise self.error
        return self.value


class InOrder:
    """Keeps back what is ready before its turn; without an order everything's turn is now."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0
        self._early: dict[int, Any] = {}

    def put(self, one: P) -> Iterator[P]:
        """Return those whose turn it is now that another one is ready."""
        if not self._ordered:
            yield one
            return
        self._early[one.position] = one
        while self._next in self._early:
            yield self._early.pop(self._next)
            self._next += 1
