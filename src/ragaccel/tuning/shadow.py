"""Recall of live requests: some answers are compared with exact search, beside the requests."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from ragaccel.tuning.callbacks import Callbacks
from ragaccel.tuning.parts import parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragaccel.vectors.collection import VectorCollection

_MOST_WAITING: Final = 8


class Shadow:
    """Compares answers of the collections of a pipeline with exact search, on a thread of its own.

    It takes no more than it can keep up with.

    Args:
        pipeline: A component, or several, that hold collections.
        one_in: Of how many answers one is compared.

    Attributes:
        collections: Those of the pipeline.
    """

    def __init__(self, pipeline: Any, one_in: int) -> None:
        self.collections: list[VectorCollection] = [
            one for one in parts(pipeline) if hasattr(one, "hear_answers")
        ]
        self._one_in = one_in
        self._callbacks, self._waiting = Callbacks(), 0

    def begin(self, wanted: Callable[[], bool], tell: Callable[[float], object]) -> None:
        """Compare from now on.

        Args:
            wanted: Tells, in the context of a search, whether it is one of those.
            tell: Hears of the recall of each that was compared.
        """
        self._wanted, self._tell = wanted, tell
        for one in self.collections:
            one.hear_answers(self._hear)

    def end(self) -> None:
        """Compare no more."""
        for one in self.collections:
            one.hear_answers(None)

    def _hear(self, recall: Callable[[], float | None]) -> None:
        if self._waiting >= _MOST_WAITING or not self._wanted():
            return
        if random.random() * self._one_in < 1:  # noqa: S311 - no secret depends on it
            self._waiting += 1
            self._callbacks.tell(self._compare, recall)

    def _compare(self, recall: Callable[[], float | None]) -> None:
        try:
            found = recall()
        finally:
            self._waiting -= 1
        if found is not None:
            self._tell(found)
