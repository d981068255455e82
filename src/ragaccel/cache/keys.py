"""Keys: a digest of everything that decides the answer."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import msgspec

_FORMAT = 1
_DIGEST_BYTES = 20


class Uncacheable(Exception):  # noqa: N818 - not an error: the call goes on without the cache
    """Something cannot be put into a key or a value faithfully, so the cache is passed by."""

    def __init__(self, reason: str) -> None:
        """Give the reason under which `CacheStats.bypasses` counts it."""
        super().__init__(reason)
        self.reason = reason


class Digest(bytes):
    """A finished key, which a cache uses as it is."""

    __slots__ = ()


def digest(namespace: str, kind: str, parts: Any) -> Digest:
    """Return the key of a call.

    The parts are encoded as MessagePack with sorted maps: typed and length-framed, so that no two
    different part lists share an encoding.

    Args:
        namespace: The tenant or application; nothing is shared between two of them.
        kind: What is stored, so that two kinds of value never meet.
        parts: Numbers, strings, bytes, None, and lists, tuples and dicts of them.

    Returns:
        20 bytes.

    Raises:
        Uncacheable: A part has no canonical form (a function, an open file ...).
    """
    try:
        _check(parts)
        encoded = _encoder.encode((_FORMAT, namespace, kind, parts))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Uncacheable("key") from error
    return Digest(hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest())


def _check(part: Any) -> None:
    """Refuse what MessagePack would write like something else: enums, dates, sets, objects."""
    kind = type(part)
    if kind is list or kind is tuple:
        if not set(map(type, part)) <= _SCALARS:
            for item in part:
                _check(item)
    elif kind is dict:
        if not set(map(type, part)) <= _SCALARS:
            raise TypeError("a dict key has no canonical form")
        for item in part.values():
            _check(item)
    elif kind not in _SCALARS:
        raise TypeError(f"{kind.__name__} has no canonical form")


_SCALARS = frozenset((str, bytes, int, float, bool, type(None)))
_encoder = msgspec.msgpack.Encoder(order="deterministic")


def mark(sort: str, *parts: str) -> bytes:
    """Return the 8-byte mark under which a ledger strikes something; see `cache.ledger`.

    Args:
        sort: Such as "namespace", "tag" or "document", which never meet.
        parts: What tells it apart from others of its sort, the namespace first.
    """
    return hashlib.blake2b(_encoder.encode((_FORMAT, sort, parts)), digest_size=8).digest()


@lru_cache(maxsize=4096)
def namespace_mark(namespace: str) -> bytes:
    """Return the mark of a tenant, which every entry of the tenant carries."""
    return mark("namespace", namespace)


@lru_cache(maxsize=4096)
def entry_marks(namespace: str, kind: str) -> bytes:
    """Return what the marks of every entry begin with: its tenant's, then that of its kind."""
    return namespace_mark(namespace) + mark("kind", namespace, kind)


def key_mark(key: bytes) -> bytes:
    """Return the mark of a single key."""
    return key[:8]
