"""The levels of a cache: places that keep framed bytes under a 20-byte key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ragaccel.cache.leases import Leases
    from ragaccel.cache.ledger import Ledger
    from ragaccel.cache.levels.breaker import State

#: The mark of entries that were stored without a namespace.
NO_NAMESPACE: Final = bytes(8)


class Stored(NamedTuple):
    """One entry as a level keeps it.

    Attributes:
        key: 20 bytes.
        blob: The framed value.
        expires: Seconds since the epoch; infinity for never.
        cost: Seconds the value took to compute, by which a level may choose what to keep.
        namespace: The 8-byte mark of the tenant; see `keys.namespace_mark`.
    """

    key: bytes
    blob: bytes
    expires: float
    cost: float = 0.0
    namespace: bytes = NO_NAMESPACE


class Usage(NamedTuple):
    """What a level holds now, and how many entries it had to let go for its size bound.

    A level that cannot tell something says -1; one without a circuit breaker has no state of it.
    """

    entries: int
    bytes: int
    evictions: int
    breaker: State | None = None


class Level(Protocol):
    """A place to keep entries. Any fault may be raised: the cache goes on without the level.

    Attributes:
        name: Under which statistics and spans show it.
        compress: Whether bodies of some size are compressed before they are put here.
    """

    name: str
    compress: bool

    @property
    def ledger(self) -> Ledger | None:
        """Where invalidations are written down for all that share the level, if it keeps one."""
        return None

    @property
    def leases(self) -> Leases | None:
        """Rights to compute, given to one of all that share the level, if it gives any."""
        return None

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return the blobs of those keys that are here and have not expired."""

    def put_many(self, entries: Sequence[Stored]) -> None:
        """Keep the entries, replacing those of the same keys."""

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys."""

    def scan(self, namespace: bytes) -> Iterable[tuple[bytes, bytes]]:
        """Yield the keys and blobs of a namespace; expired ones may be among them."""

    def clear(self) -> None:
        """Forget everything."""

    def usage(self) -> Usage:
        """Return what the level holds now."""

    def close(self) -> None:
        """Let go of files and sockets."""

    async def aget_many(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return what `get_many` does."""

    async def aput_many(self, entries: Sequence[Stored]) -> None:
        """Do what `put_many` does."""

    async def adelete_many(self, keys: Sequence[bytes]) -> None:
        """Do what `delete_many` does."""

    async def aclear(self) -> None:
        """Do what `clear` does."""

    async def aclose(self) -> None:
        """Do what `close` does."""
