"""How long a value is served, and what it is struck by."""

from __future__ import annotations

import math
import random
import time
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ragaccel.cache.keys import Uncacheable, entry_marks, mark
from ragaccel.cache.ledger import MARK_BYTES
from ragaccel.cache.ttl import TTL, seconds
from ragaccel.cache.values import MAX_MARKS, Entry, Kind
from ragaccel.errors import ConfigurationError, RagaccelWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ragaccel.cache.ledger import Position
    from ragaccel.cache.values import Body

T = TypeVar("T")

_MAX_TOKENS: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for every entry of a cache.

    Attributes:
        ttl: Of entries that do not say otherwise.
        negative_ttl: The longest that an empty result is kept; None for no difference.
        stale_while_revalidate: Seconds after its lifetime in which an entry is still served once
            more while it is computed anew in the background.
        early_refresh: How eagerly entries are computed anew in the background before their
            lifetime ends: 0 never, 1 as in the paper, more is earlier.
    """

    ttl: TTL
    negative_ttl: float | None
    stale_while_revalidate: float
    early_refresh: float

    def is_due(self, entry: Entry) -> bool:
        """Tell whether an entry is to be computed anew in the background.

        Before its time it is drawn by lot, more likely the nearer the end and the longer it takes.
        Source: Vattani, Chierichetti, Lowenstein, Optimal Probabilistic Cache Stampede Prevention,
        VLDB 2015.
        """
        if entry.fresh == math.inf:
            return False
        head_start = entry.cost * self.early_refresh * random.expovariate(1.0)
        return time.time() + head_start >= entry.fresh


@dataclass(slots=True, eq=False)
class Terms(Generic[T]):
    """Under which terms one value is kept.

    Attributes:
        kind: How it is stored.
        namespace: Whose it is.
        policy: The cache's.
        ttl: Its own lifetime.
        query: What a policy is shown of the question.
        tags: What else it is invalidated by; see `named`.
        documents: Which documents it is made of, besides those its kind tells; see `named`.
        prefix: What the marks of its entry begin with.
    """

    kind: Kind[T]
    namespace: str
    policy: Policy
    ttl: TTL = None
    query: Any = None
    tags: Sequence[str] = ()
    documents: Sequence[str] = ()
    prefix: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.prefix = entry_marks(self.namespace, self.kind.name)

    def lifetime(self, value: T) -> float:
        """Return for how many seconds a value is kept; nothing above 0 for not at all.

        A policy of the user that fails is warned about, and the value is not kept.
        """
        result, ttl = self.kind.result(value), self.ttl
        if callable(ttl):
            try:
                ttl = ttl(self.query, result)
                lifetime = 0.0 if _is_none_at_all(ttl) else seconds(ttl)
            except Exception as error:  # noqa: BLE001 - the caller's request goes on
                warnings.warn(
                    f"the ttl policy failed, so nothing is kept ({type(error).__name__}).",
                    RagaccelWarning,
                    stacklevel=2,
                )
                return 0.0
        else:
            lifetime = seconds(ttl)
        negative = self.policy.negative_ttl
        if negative is not None and is_empty(result):
            return min(lifetime, negative)
        return lifetime

    def entry(self, value: T, body: Body, position: Position, cost: float) -> Entry:
        """Return the value as it is stored; it has no lifetime if it is not to be kept.

        Raises:
            Uncacheable: It has more marks than an entry can carry.
        """
        lifetime, now = self.lifetime(value), time.time()
        fresh, expires = now, now
        if lifetime > 0:
            fresh = now + lifetime
            expires = fresh + self.policy.stale_while_revalidate
        read, written = self.kind.tokens(value)
        struck_by = self.marks(self.kind.documents(value))
        if len(struck_by) > MAX_MARKS * MARK_BYTES:
            raise Uncacheable("marks")
        return Entry(
            now, fresh, expires, cost,
            min(read, _MAX_TOKENS), min(written, _MAX_TOKENS), *position, struck_by, body,
        )  # fmt: skip

    def marks(self, documents: Iterable[str] = ()) -> bytes:
        """Return what an entry is struck by, joined.

        Args:
            documents: What it was made of, besides what is known before.
        """
        named = {*self.documents, *documents}
        return self.prefix + b"".join(marks(self.namespace, self.tags, named))


def marks(namespace: str, tags: Iterable[str], documents: Iterable[str]) -> list[bytes]:
    """Return the marks of tags and documents of a namespace."""
    return [mark("tag", namespace, tag) for tag in tags] + [
        mark("document", namespace, document) for document in documents
    ]


def named(given: Iterable[str]) -> tuple[str, ...]:
    """Return tags or documents, of which the caller may have given an iterator.

    Raises:
        ConfigurationError: They are not strings, or a single string that was meant as one.
    """
    found = () if isinstance(given, str) else tuple(given)
    if isinstance(given, str) or not all(isinstance(one, str) for one in found):
        raise ConfigurationError(
            f"tags and documents are lists of strings, got {found or given!r}."
        )
    return found


def checked(ttl: TTL) -> TTL:
    """Return a lifetime in seconds, or the function that gives it.

    Raises:
        ConfigurationError: It is neither.
    """
    return ttl if callable(ttl) else seconds(ttl)


def is_empty(result: Any) -> bool:
    """Tell whether a result says that nothing was found."""
    if result is None:
        return True
    try:
        return hasattr(type(result), "__len__") and len(result) == 0
    except TypeError:  # an array of no dimensions has none
        return False


def _is_none_at_all(ttl: Any) -> bool:
    zero: Any = timedelta(0) if isinstance(ttl, timedelta) else 0
    return isinstance(ttl, (int, float, timedelta)) and ttl <= zero
