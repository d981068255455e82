"""What a profiler keeps of a request: one `Call` per stage, as a tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ragaccel.observe.spent import Spent


@dataclass(frozen=True, slots=True)
class Call:
    """One stage that is over; times by `time.perf_counter_ns`.

    Attributes:
        name: Of the stage.
        began_ns: When it began, never before what it is part of.
        ended_ns: When it ended; after what it is part of if nobody waited for it.
        error: The name of the exception that ended it.
        attributes: What it told that a profile reads: counts and names, no content.
        spent: What it used; None of a stage that was told of when it was over.
        children: The stages that were part of it.
    """

    name: str
    began_ns: int
    ended_ns: int
    error: str | None
    attributes: Mapping[str, Any]
    spent: Spent | None
    children: tuple[Call, ...]

    @property
    def duration_ns(self) -> int:
        """How long it took."""
        return self.ended_ns - self.began_ns

    @property
    def awaited(self) -> list[Call]:
        """The stages inside that were over when it ended, so that it may have waited for them."""
        return [one for one in self.children if one.ended_ns <= self.ended_ns]

    @property
    def is_hit(self) -> bool:
        """Whether a cache has answered it."""
        told = self.attributes
        return bool(told.get(attributes.CACHE_HIT)) or told.get(attributes.SENT) == 0

    def walk(self) -> Iterator[Call]:
        """Give it and all that is inside, outer ones first."""
        yield self
        for one in self.children:
            yield from one.walk()


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        call: The stage that all others are part of.
        asked: A keyed digest of the query, if it is known; equal for equal queries of one profiler.
        trace_id: Of its trace, 32 hexadecimal digits as viewers show it, if it was traced.
    """

    call: Call
    asked: bytes | None = None
    trace_id: str | None = None
