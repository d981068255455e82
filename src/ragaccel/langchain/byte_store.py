"""LangChain's byte store, such as `CacheBackedEmbeddings` keeps vectors in, over a cache."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
from langchain_core.stores import BaseStore

from ragaccel.cache import MISSING, Kind
from ragaccel.cache.terms import checked
from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from ragaccel.cache import MultiLevelCache
    from ragaccel.cache.ttl import TTL
    from ragaccel.cache.values import Body

    _Pair = tuple[str, bytes]

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


def _open(body: Body) -> tuple[_Pair, None]:
    return _decode(body), None


_PAIR: Final[Kind[_Pair]] = Kind("langchain.bytes", _encode, _open)


class ByteStore(BaseStore[str, bytes]):
    """Keeps bytes under strings on the levels of a cache; a call of many keys asks each level once.

    It keeps what its cache keeps: past the size of a level its oldest entries go, and of memory
    alone nothing is left after a restart.

    Args:
        cache: Where the bytes are kept.
        namespace: The tenant; the cache's own by default. Within it the store has a namespace of
            its own, which `cache.invalidate(namespace=store.namespace)` empties.
        ttl: Lifetime of an entry, or a function of key and (key, bytes) that gives it; no limit by
            default, and None for the cache's own.

    Example:
        >>> from ragaccel import MultiLevelCache
        >>> store = ByteStore(MultiLevelCache.open())
        >>> store.mset([("a", b"1"), ("b", b"2")])
        >>> store.mget(["b", "c"])
        [b'2', None]
    """

    def __init__(
        self, cache: MultiLevelCache, *, namespace: str | None = None, ttl: TTL = math.inf
    ) -> None:
        tenant = cache.namespace if namespace is None else namespace
        self.namespace: Final = f"{tenant}/{_PAIR.name}"
        self._cache = cache
        self._ttl = None if ttl is None else checked(ttl)

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes under the keys in their order, None where there are none."""
        return _values(self._cache.get_many(keys, **self._where()))

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what `mget` does, without blocking the event loop."""
        return _values(await self._cache.aget_many(keys, **self._where()))

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Keep bytes under keys; of a key that is given twice the last counts.

        Raises:
            ConfigurationError: A key is not a string, or a value is not bytes.
            InvalidationError: An older value was replaced, and that could not be written down.
        """
        self._cache.set_many(_items(key_value_pairs), ttl=self._ttl, **self._where())

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Do what `mset` does, without blocking the event loop."""
        await self._cache.aset_many(_items(key_value_pairs), ttl=self._ttl, **self._where())

    def mdelete(self, keys: Sequence[str]) -> None:
        """Forget keys; those that are not there are no error.

        Raises:
            InvalidationError: It could not be written down; call it again.
        """
        self._cache.delete(*keys, **self._where())

    async def amdelete(self, keys: Sequence[str]) -> None:
        """Do what `mdelete` does, without blocking the event loop."""
        await self._cache.adelete(*keys, **self._where())

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Yield the keys that begin with a prefix, in no order; it reads all of the store."""
        for key, _ in self._cache.scan(**self._where()):
            if prefix is None or key.startswith(prefix):
                yield key

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """Yield what `yield_keys` does; the store is read in a worker thread."""
        for key in await asyncio.to_thread(lambda: list(self.yield_keys(prefix=prefix))):
            yield key

    def _where(self) -> dict[str, Any]:
        return {"kind": _PAIR, "namespace": self.namespace}


def _values(found: list[Any]) -> list[bytes | None]:
    return [None if pair is MISSING else pair[1] for pair in found]


def _items(pairs: Sequence[_Pair]) -> list[tuple[str, _Pair]]:
    for key, value in pairs:
        if type(key) is not str or type(value) is not bytes:
            raise ConfigurationError(
                "a byte store keeps bytes under strings, got "
                f"{type(value).__name__} under {type(key).__name__}."
            )
    return [(key, (key, value)) for key, value in dict(pairs).items()]
