"""LlamaIndex's key-value store, the ground of its ingestion cache, docstore and index store."""

from __future__ import annotations

import asyncio
import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
from llama_index.core.storage.kvstore.types import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_COLLECTION,
    BaseKVStore,
)

from ragaccel.cache import MISSING, Kind, Uncacheable
from ragaccel.cache.terms import checked
from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache import MultiLevelCache
    from ragaccel.cache.ttl import TTL
    from ragaccel.cache.values import Body

    _Value = dict[str, Any]
    _Pair = tuple[str, _Value]

_MAX_DEPTH: Final = 64
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[str, dict[str, Any]]).decode


def _pack(pair: _Pair) -> bytes:
    try:
        return _encode(pair)
    except (OverflowError, ValueError) as error:
        raise Uncacheable("value") from error


def _open(body: Body) -> tuple[_Pair, None]:
    return _decode(body), None


_PAIR: Final[Kind[_Pair]] = Kind("llamaindex.kv", _pack, _open)


class CacheKVStore(BaseKVStore):
    """Keeps dicts under strings, in collections, on the levels of a cache.

    Every value that is read is a fresh copy. It keeps what its cache keeps: past the size of a
    level its oldest entries go, and of memory alone nothing is left after a restart. So under a
    document store give it a cache with room for all of it.

    Args:
        cache: Where the values are kept.
        namespace: The tenant; the cache's own by default. Within it every collection has a
            namespace of its own; see `namespace_of`.
        ttl: Lifetime of an entry, or a function of key and (key, value) that gives it; no limit by
            default, and None for the cache's own.

    Example:
        >>> from ragaccel import MultiLevelCache
        >>> store = CacheKVStore(MultiLevelCache.open())
        >>> store.put("a", {"text": "first"})
        >>> store.get("a"), store.get("b")
        ({'text': 'first'}, None)
    """

    def __init__(
        self, cache: MultiLevelCache, *, namespace: str | None = None, ttl: TTL = math.inf
    ) -> None:
        self._cache = cache
        self._namespace = cache.namespace if namespace is None else namespace
        self._ttl = None if ttl is None else checked(ttl)

    def namespace_of(self, collection: str = DEFAULT_COLLECTION) -> str:
        """Return the namespace of a collection, which `cache.invalidate(namespace=...)` empties."""
        return f"{self._namespace}/{_PAIR.name}/{quote(collection, safe='')}"

    def put(self, key: str, val: _Value, collection: str = DEFAULT_COLLECTION) -> None:
        """Keep a value.

        Raises:
            ConfigurationError: It would not come back equal.
            InvalidationError: An older value was replaced, and that could not be written down.
        """
        self.put_all([(key, val)], collection)

    async def aput(self, key: str, val: _Value, collection: str = DEFAULT_COLLECTION) -> None:
        """Do what `put` does, without blocking the event loop."""
        await self.aput_all([(key, val)], collection)

    def put_all(
        self,
        kv_pairs: Sequence[_Pair],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,  # noqa: ARG002 - see below
    ) -> None:
        """Keep values, with one call of each level whatever the batch size; see `put`."""
        self._cache.set_many(_items(kv_pairs), ttl=self._ttl, **self._where(collection))

    async def aput_all(
        self,
        kv_pairs: Sequence[_Pair],
        collection: str = DEFAULT_COLLECTION,
        batch_size: int = DEFAULT_BATCH_SIZE,  # noqa: ARG002 - see put_all
    ) -> None:
        """Do what `put_all` does, without blocking the event loop."""
        await self._cache.aset_many(_items(kv_pairs), ttl=self._ttl, **self._where(collection))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> _Value | None:
        """Return a fresh copy of the value under a key, or None."""
        return _value(self._cache.get(key, **self._where(collection)))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> _Value | None:
        """Return what `get` does, without blocking the event loop."""
        return _value(await self._cache.aget(key, **self._where(collection)))

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, _Value]:
        """Return fresh copies of all values of a collection by key, in no order."""
        return dict(self._cache.scan(**self._where(collection)))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, _Value]:
        """Return what `get_all` does; the levels are read in a worker thread."""
        return await asyncio.to_thread(self.get_all, collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Forget a key, and tell whether it was there.

        Raises:
            InvalidationError: It could not be written down; call it again.
        """
        was_there = self.get(key, collection) is not None
        self._cache.delete(key, **self._where(collection))
        return was_there

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Do what `delete` does, without blocking the event loop."""
        was_there = await self.aget(key, collection) is not None
        await self._cache.adelete(key, **self._where(collection))
        return was_there

    def _where(self, collection: str) -> dict[str, Any]:
        return {"kind": _PAIR, "namespace": self.namespace_of(collection)}


def _value(pair: Any) -> _Value | None:
    return None if pair is MISSING else pair[1]


def _items(pairs: Sequence[_Pair]) -> list[tuple[str, _Pair]]:
    for key, value in pairs:
        if type(key) is not str or type(value) is not dict or not _comes_back(value):
            raise ConfigurationError(
                f"the value under {key!r} cannot be stored faithfully; store dicts with string "
                "keys of strings, bytes, numbers, None, lists and dicts."
            )
    return [(key, (key, value)) for key, value in dict(pairs).items()]


def _comes_back(value: Any, depth: int = 0) -> bool:
    """Tell whether a value comes back equal; an enumeration of strings comes back as its string."""
    if type(value) in {str, int, float, bool, type(None), bytes}:
        return True
    if depth >= _MAX_DEPTH:
        return False
    if type(value) is list:
        return all(_comes_back(item, depth + 1) for item in value)
    if type(value) is dict:
        return all(map(_is_text, value)) and all(
            _comes_back(item, depth + 1) for item in value.values()
        )
    return _is_text(value)


def _is_text(value: Any) -> bool:
    return type(value) is str or (isinstance(value, Enum) and isinstance(value, str))
