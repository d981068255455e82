"""Values: what is stored, framed so that damage and foreign bytes are seen before they are used.

Frame: magic and version, flags, time stored, time of expiry, seconds the value took to compute,
xxh3-64 of all the rest, body. A body is MessagePack of an allow-listed shape; nothing is pickled.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import numpy as np
import xxhash
import zstandard

from ragaccel.cache.keys import Uncacheable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_MAGIC = b"rA1"
_HEAD = struct.Struct("<3sBddf")
_SUM = struct.Struct("<Q")
_BODY_AT = _HEAD.size + _SUM.size
_COMPRESSED = 1
_COMPRESS_FROM_BYTES = 2048
_MAX_BODY_BYTES = 1024**3
_ARRAY = 1
_MAX_DEPTH = 64


class Stale(Exception):  # noqa: N818 - a verdict, not an error
    """A stored value is no longer what the computation would give."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored value with its times, in seconds since the epoch.

    Attributes:
        body: The packed value.
        created: When it was computed.
        expires: When it stops being served; infinity for never.
        cost: Seconds it took to compute.
    """

    body: bytes
    created: float
    expires: float
    cost: float


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How one sort of value is turned into bytes and back.

    Attributes:
        name: Part of every key of the kind.
        pack: Gives the body; raises `Uncacheable` for a value that would not come back equal.
        open: Gives a fresh value, and a new body if the stored one is to be replaced; raises
            `Stale` if the value must not be served any more.
    """

    name: str
    pack: Callable[[T], bytes]
    open: Callable[[bytes], tuple[T, bytes | None]]


def frame(entry: Entry, *, compress: bool) -> bytes:
    """Return the bytes a level stores."""
    body, flags = entry.body, 0
    if compress and len(body) >= _COMPRESS_FROM_BYTES:
        body, flags = zstandard.compress(body, 1), _COMPRESSED
    head = _HEAD.pack(_MAGIC, flags, entry.created, entry.expires, entry.cost)
    return b"".join((head, _SUM.pack(xxhash.xxh3_64_intdigest(head + body)), body))


def unframe(blob: bytes) -> Entry | None:
    """Return the entry, or None if the bytes are damaged, foreign or of another version."""
    if type(blob) is not bytes or len(blob) < _BODY_AT or blob[:3] != _MAGIC:
        return None
    head, body = blob[: _HEAD.size], blob[_BODY_AT:]
    if _SUM.unpack_from(blob, _HEAD.size)[0] != xxhash.xxh3_64_intdigest(head + body):
        return None
    _, flags, created, expires, cost = _HEAD.unpack(head)
    if flags & _COMPRESSED:
        try:
            if zstandard.frame_content_size(body) > _MAX_BODY_BYTES:
                return None
            body = zstandard.decompress(body)
        except (zstandard.ZstdError, MemoryError):
            return None
    return Entry(body, created, expires, cost)


def _pack_plain(value: Any) -> bytes:
    check_plain(value)
    try:
        return _plain_encoder.encode(value)
    except (OverflowError, ValueError) as error:
        raise Uncacheable("value") from error


def _open_plain(body: bytes) -> tuple[Any, None]:
    return _plain_decoder.decode(body), None


def check_plain(value: Any, depth: int = 0) -> None:
    """Raise `Uncacheable` unless the value comes back equal, types included."""
    kind = type(value)
    if kind in (str, int, float, bool, type(None), bytes):
        return
    if depth < _MAX_DEPTH:
        if kind is list:
            for item in value:
                check_plain(item, depth + 1)
            return
        if kind is dict and all(type(key) is str for key in value):
            for item in value.values():
                check_plain(item, depth + 1)
            return
        if kind is np.ndarray and value.dtype.kind in "fiub":
            return
    raise Uncacheable("value")


def _array_to_ext(value: Any) -> msgspec.msgpack.Ext:
    shape = msgspec.msgpack.encode((value.dtype.str, value.shape))
    return msgspec.msgpack.Ext(_ARRAY, bytes((len(shape),)) + shape + value.tobytes())


def _array_from_ext(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    start = 1 + data[0]
    dtype, shape = msgspec.msgpack.decode(data[1:start], type=tuple[str, tuple[int, ...]])
    return np.frombuffer(data[start:], dtype=np.dtype(dtype)).reshape(shape).copy()


_plain_encoder = msgspec.msgpack.Encoder(enc_hook=_array_to_ext)
_plain_decoder = msgspec.msgpack.Decoder(ext_hook=_array_from_ext)

#: Strings, bytes, numbers, None, lists, dicts with string keys, and numeric numpy arrays.
PLAIN: Kind[Any] = Kind("plain", _pack_plain, _open_plain)
