"""What a semantic cache is told of a call, and what it has to do for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from ragaccel.cache import MISSING, Uncacheable, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ragaccel import telemetry
    from ragaccel.cache import Digest, Kind, MultiLevelCache
    from ragaccel.cache.flow import IO

T = TypeVar("T")

_SCALARS: Final = (str, int, float, bool, type(None))
#: Arguments by which an answer becomes more than a text.
_SHAPED: Final = frozenset(
    ("tools", "tool_choice", "functions", "function_call", "response_format", "format")
)


@dataclass(frozen=True, slots=True)
class Similar(Generic[T]):
    """How an adapter lets a call be answered as a similar question was.

    Attributes:
        question: Gives the text that may be another one, and everything else that decides the
            answer; None where there is no such text. It may raise `Uncacheable`.
        said: Gives the text of an answer, or None for one that is more than a text.
    """

    question: Callable[[], tuple[str, Any] | None]
    said: Callable[[T], str | None]


@dataclass(slots=True)
class Call(Generic[T]):
    """A call whose own answer is not kept.

    Attributes:
        cache: Where the answers are.
        namespace: The tenant.
        kind: How answers are stored.
        key: Of the call's own answer.
        question: Its text.
        rest: Everything else that decides the answer.
        said: See `Similar`.
        looked: What the semantic cache found out when it looked for an answer.
    """

    cache: MultiLevelCache
    namespace: str
    kind: Kind[T]
    key: Digest
    question: str
    rest: Any
    said: Callable[[T], str | None]
    looked: Any = None

    def partition(self, *more: Any) -> Digest:
        """Return the digest of all that must be equal; see `ragaccel.cache.digest`."""
        return digest(self.namespace, f"{self.kind.name}.semantic", (self.rest, more))

    async def answer(self, io: IO, key: bytes, *, counted: bool) -> Any:
        """Return the answer to another question of the kind, or `MISSING`."""
        return await self.cache.look(
            io, key, kind=self.kind, namespace=self.namespace, counted=counted
        )


class Semantic(Protocol):
    """Answers a question as a similar one was answered; it never raises into a call."""

    async def find(self, io: IO, call: Call[T], span: telemetry.Stage) -> Any:
        """Return an answer that may be given, or `MISSING`, and tell the span which it is."""

    async def learn(self, io: IO, call: Call[T], answer: T) -> None:
        """Hear what the model answered where nothing was found."""


async def reusable(
    io: IO,
    cache: MultiLevelCache,
    namespace: str,
    kind: Kind[T],
    key: Digest,
    similar: Similar[T],
) -> Call[T] | None:
    """Return the call, or None where its own answer is kept or no other question's can be its."""
    try:
        asked = similar.question()
    except Uncacheable:
        return None
    if asked is None:
        return None
    call = Call(cache, namespace, kind, key, *asked, similar.said)
    return call if await call.answer(io, key, counted=False) is MISSING else None


def asks_for_text(asked: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Tell whether a call's arguments are plain values that leave the answer a text.

    Args:
        asked: Those of the call.
        own: Those that the model adds to every call.
    """
    shaped = not _SHAPED.isdisjoint(asked) or not _SHAPED.isdisjoint(own)
    return not shaped and all(isinstance(value, _SCALARS) for value in asked.values())
