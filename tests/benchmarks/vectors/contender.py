"""What one way to search looks like to the benchmark."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.benchmarks.vectors.data import Data

    Contender = Callable[[Data, Path], Iterator["Setting"]]

GROWN = "growth of private memory"


@dataclass
class Setting:
    """A built index with its knobs turned; it is measured until the next one is asked for.

    Attributes:
        label: The knobs.
        search: What is timed: takes a question as `question` made it.
        rows: Takes what `search` returned and gives row numbers.
        question: Makes of a float32 vector what the call takes; not timed.
        resident: Bytes that must stay in memory; None for what the process grew by.
        how: How `resident` is known.
    """

    label: str
    search: Callable[[Any], Any]
    rows: Callable[[Any], list[int]]
    question: Callable[[Any], Any] = lambda vector: vector
    resident: int | None = None
    how: str = GROWN


@dataclass
class Line:
    """What was measured of one setting."""

    group: str
    name: str
    label: str
    recall: float
    ratio: float
    cpu_ratio: float
    milliseconds: float
    bytes_per_vector: float
    how: str
    grown: float
    build_seconds: float
    asked: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)
