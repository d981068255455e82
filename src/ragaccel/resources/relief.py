"""What may be asked to give memory up when it is short."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol


class Relief(IntEnum):
    """What giving memory up costs; the cheapest is asked first."""

    CACHE = 1
    """Results have to be computed again."""
    LOADED = 2
    """Something has to be loaded again before it can be used."""
    WORK = 3
    """All work goes slower."""


class Relievable(Protocol):
    """Something that can hold less memory for a while.

    It may say what that costs in an attribute `relief`. Both methods may be called from any thread,
    several times in a row, and without the other before.
    """

    def relieve(self, needed_bytes: int) -> int:
        """Give memory up and do not take it again until `restore`.

        Args:
            needed_bytes: How much is wanted; giving less or more is no fault.

        Returns:
            How many bytes were given up; 0 for none, or where nobody knows.
        """

    def restore(self) -> None:
        """Hold what was usual before `relieve`, or let it be taken when it is needed."""
