"""Keys: a digest of everything that decides the answer."""

from __future__ import annotations

import hashlib
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
        encoded = _encoder.encode((_FORMAT, namespace, kind, parts))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Uncacheable("key") from error
    return Digest(hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest())


def _refuse(part: Any) -> Any:
    raise TypeError(f"{type(part).__name__} has no canonical form")


_encoder = msgspec.msgpack.Encoder(enc_hook=_refuse, order="deterministic")
