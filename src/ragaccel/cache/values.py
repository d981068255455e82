"""Values: what is stored, framed so that damage and foreign bytes are seen before they are used.

Frame: magic and version, xxh3-64 of all the rest seeded with the key, flags, times, cost, tokens,
position of the ledger, marks, body. A body is MessagePack of an allow-listed shape; nothing is
pickled. The checksum shows damage and bytes under a wrong key, not a forger who can write there.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import xxhash
import zstandard

from ragaccel.cache.keys import Uncacheable
from ragaccel.cache.ledger import MARK_BYTES, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")
Body = bytes | memoryview

_MAGIC: Final = b"rA2\0"
_SUM: Final = struct.Struct("<4sQ")
_REST: Final = struct.Struct("<BHdddfIIQQ")
_HEAD: Final = struct.Struct(_SUM.format + _REST.format[1:])
_COMPRESSED: Final = 1
_COMPRESS_FROM_BYTES: Final = 2048
_KEY: Final = struct.Struct("<Q")
_MAX_BODY_BYTES: Final = 1024**3
#: How many marks an entry can carry.
MAX_MARKS: Final = 0xFFFF
_ARRAY: Final = 1
_BARE_ARRAY: Final = b"\xc1"  # begins a body that is one array: no MessagePack begins so
_MAX_DEPTH: Final = 64


class Stale(Exception):  # noqa: N818 - a verdict, not an error
    """A stored value is no longer what the computation would give."""


class Entry(NamedTuple):
    """A stored value and what decides how long it is served; times in seconds since the epoch.

    Attributes:
        created: When it was computed.
        fresh: Until when it is served without being computed anew in the background.
        expires: When it stops being served; infinity for never.
        cost: Seconds it took to compute.
        tokens_read: How many tokens a model read for it.
        tokens_written: How many tokens a model wrote for it.
        ledger: Whose strikes it can be told by.
        seq: Where the ledger stood when its computation began.
        marks: What it can be struck by, joined; the namespace's and the kind's first.
        body: The packed value.
    """

    created: float
    fresh: float
    expires: float
    cost: float
    tokens_read: int
    tokens_written: int
    ledger: int
    seq: int
    marks: bytes
    body: Body

    @property
    def position(self) -> Position:
        """Where the ledger stood when the computation began."""
        return Position(self.ledger, self.seq)

    @property
    def namespace(self) -> bytes:
        """The mark of its namespace."""
        return self.marks[:MARK_BYTES]

    @property
    def is_kept(self) -> bool:
        """Whether it has a lifetime at all."""
        return self.expires > self.created

    def until(self, end: float) -> Entry:
        """Return the entry with a lifetime that ends at a time, if not before."""
        return self._replace(fresh=min(self.fresh, end), expires=min(self.expires, end))


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How one sort of value is turned into bytes and back.

    Attributes:
        name: Part of every key of the kind.
        pack: Gives the body; raises `Uncacheable` for a value that would not come back equal.
        open: Gives a fresh value, and a new body if the stored one is to be replaced by one that is
            right now, with what it reads now; raises `Stale` if the value must not be served.
        open_many: Gives fresh values of several bodies at once where that is faster, or None.
        documents: Gives the ids of the documents a value was made of, which it is invalidated by.
        result: Gives what the user sees of a value, for policies that look at it.
        tokens: Gives how many tokens a model read and wrote for a value.
    """

    name: str
    pack: Callable[[T], bytes]
    open: Callable[[Body], tuple[T, bytes | None]]
    open_many: Callable[[Sequence[Body]], list[T] | None] = lambda _: None
    documents: Callable[[T], Iterable[str]] = lambda _: ()
    result: Callable[[T], Any] = lambda value: value
    tokens: Callable[[T], tuple[int, int]] = lambda _: (0, 0)


def frame(key: bytes, entry: Entry, *, compress: bool) -> bytes:
    """Return the bytes a level stores.

    Raises:
        Uncacheable: The entry has more marks than a frame holds.
    """
    body, flags = entry.body, 0
    if compress and len(body) >= _COMPRESS_FROM_BYTES:
        body, flags = zstandard.compress(body, 1), _COMPRESSED
    marks = len(entry.marks) // MARK_BYTES
    if marks > MAX_MARKS:
        raise Uncacheable("marks")
    rest = b"".join((_REST.pack(flags, marks, *entry[:8]), entry.marks, body))
    return _SUM.pack(_MAGIC, _checksum(key, rest)) + rest


def unframe(key: bytes, blob: bytes) -> Entry | None:
    """Return the entry, or None if the bytes are damaged, foreign or of another version or key."""
    if type(blob) is not bytes or len(blob) < _HEAD.size:
        return None
    magic, checksum, flags, marks, *head = _HEAD.unpack_from(blob)
    whole = memoryview(blob)
    if magic != _MAGIC or checksum != _checksum(key, whole[_SUM.size :]):
        return None
    body_at = _HEAD.size + marks * MARK_BYTES
    body: Body = whole[body_at:]
    if flags & _COMPRESSED:
        try:
            if zstandard.frame_content_size(body) > _MAX_BODY_BYTES:
                return None
            body = _decompressor().decompress(body)
        except (zstandard.ZstdError, MemoryError):
            return None
    return tuple.__new__(Entry, (*head, blob[_HEAD.size : body_at], body))


_own = threading.local()


def _decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's decompressor: making one takes longer than using it."""
    try:
        found: zstandard.ZstdDecompressor = _own.decompressor
    except AttributeError:
        found = _own.decompressor = zstandard.ZstdDecompressor()
    return found


def _checksum(key: bytes, rest: Body) -> int:
    return xxhash.xxh3_64_intdigest(rest, _KEY.unpack_from(key)[0])


def _pack_plain(value: Any) -> bytes:
    check_plain(value)
    if type(value) is np.ndarray:
        return _BARE_ARRAY + _array_bytes(value)
    try:
        return _plain_encoder.encode(value)
    except (OverflowError, ValueError) as error:
        raise Uncacheable("value") from error


def _open_plain(body: Body) -> tuple[Any, None]:
    if body[0] == _BARE_ARRAY[0]:
        return _array(body, 1), None
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


def _array_bytes(value: Any) -> bytes:
    shape = msgspec.msgpack.encode((value.dtype.str, value.shape))
    return b"".join((bytes((len(shape),)), shape, value.tobytes()))


def _array(data: Body, at: int) -> Any:
    """Return an array of its own from the bytes that begin at a place."""
    start = at + 1 + data[at]
    dtype, shape = _shape(bytes(data[at + 1 : start]))
    return np.ndarray(shape, dtype, data, start).copy()


def _open_arrays(bodies: Sequence[Body]) -> list[Any] | None:
    """Return arrays of one dtype and shape as the rows of one array, with one copy for all."""
    if not bodies or bodies[0][:1] != _BARE_ARRAY:
        return None
    start = 2 + bodies[0][1]
    head = bytes(bodies[0][:start])
    dtype, shape = _shape(head[2:])
    if not shape or any(body[:start] != head for body in bodies):
        return None
    joined = bytearray().join([body[start:] for body in bodies])
    return list(np.ndarray((len(bodies), *shape), dtype, joined))


def _array_to_ext(value: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(_ARRAY, _array_bytes(value))


def _array_from_ext(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    return _array(data, 0)


@lru_cache(maxsize=256)
def _shape(packed: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    dtype, shape = msgspec.msgpack.decode(packed, type=tuple[str, tuple[int, ...]])
    return np.dtype(dtype), shape


_plain_encoder = msgspec.msgpack.Encoder(enc_hook=_array_to_ext)
_plain_decoder = msgspec.msgpack.Decoder(ext_hook=_array_from_ext)

#: Strings, bytes, numbers, None, lists, dicts with string keys, and numeric numpy arrays.
PLAIN: Kind[Any] = Kind("plain", _pack_plain, _open_plain, _open_arrays)
