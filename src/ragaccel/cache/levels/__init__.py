"""The levels of a cache: places that keep framed bytes under a 20-byte key."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Stored(NamedTuple):
    """One entry as a level keeps it; `expires` is in seconds since the epoch."""

    key: bytes
    blob: bytes
    expires: float


class Level(Protocol):
    """A place to keep entries. Any fault may be raised: the cache goes on without the level.

    Attributes:
        name: Under which statistics and spans show it.
        compress: Whether bodies of some size are compressed before they are put here.
    """

    name: str
    compress: bool

    def get_many(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return the blobs of those keys that are here and have not expired."""

    def put_many(self, entries: Sequence[Stored]) -> None:
        """Keep the entries, replacing those of the same keys."""

    def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget the keys."""

    def clear(self) -> None:
        """Forget everything."""

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
