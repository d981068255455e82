"""Values: they come back equal, types included, or not at all."""

from __future__ import annotations

import random
import struct
from collections import OrderedDict, UserDict
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ragaccel.cache import (
    MISSING,
    PLAIN,
    MemoryLevel,
    MultiLevelCache,
    Stored,
    Uncacheable,
    digest,
)
from ragaccel.cache.keys import entry_marks
from ragaccel.cache.values import Entry, frame, unframe
from ragaccel.errors import ConfigurationError
from tests.cache.helpers import Compute, key

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
DTYPES = (
    npst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | npst.integer_dtypes(endianness="?")
    | npst.unsigned_integer_dtypes(endianness="?")
    | npst.boolean_dtypes()
)
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, min_side=0, max_dims=4))
PLAIN_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


KEY = key("key")


def entry_of(body: bytes, **fields: Any) -> Entry:
    """Return an entry with a body, whose other fields all differ from each other."""
    return Entry(
        1e9, 1.5e9, 2e9, 0.5, 70_000, 4_000_000_000, 2**62, 2**63 + 7, b"marks of" * 2, body
    )._replace(**fields)


def round_trip(value: Any) -> Any:
    """Return the value after all that happens to it on the way to a level and back."""
    framed = frame(KEY, entry_of(PLAIN.pack(value)), compress=True)
    entry = unframe(KEY, framed)
    assert entry is not None
    opened, renewed = PLAIN.open(entry.body)
    assert renewed is None
    return opened


def same(one: Any, other: Any) -> bool:
    """Tell whether two plain values are equal with all their types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return bool(one == other)


# ---- what comes back -----------------------------------------------------------------------------


@given(PLAIN_VALUES)
@settings(deadline=None, max_examples=300)
def test_plain_values_come_back_equal(value):
    """Strings, bytes, numbers, None, lists and dicts keep their types, their order, every bit."""
    assert same(round_trip(value), value)


@given(ARRAYS)
@settings(deadline=None, max_examples=300)
def test_arrays_come_back_equal(array):
    """Numeric arrays keep dtype, byte order, shape and every bit, and can be written to."""
    back = round_trip(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable
    assert back.flags.owndata


@given(st.dictionaries(st.text(max_size=3), st.lists(ARRAYS, max_size=2), max_size=3))
@settings(deadline=None)
def test_arrays_within_lists_and_dicts_come_back(value):
    """Arrays may be anywhere in a value."""
    back = round_trip(value)
    assert list(back) == list(value)
    for name, arrays in value.items():
        assert [(a.dtype, a.shape, a.tobytes()) for a in back[name]] == [
            (a.dtype, a.shape, a.tobytes()) for a in arrays
        ]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(4, 6)[::2, ::-3],
        np.arange(6, dtype=np.int16).reshape(2, 3).T,
        np.zeros((0, 384), np.float32),
        np.float16(["nan", "inf", "-inf"]),
        np.broadcast_to(np.float32(1), (3, 3)),
    ],
    ids=["strided", "transposed", "empty", "special", "broadcast"],
)
def test_arrays_of_every_layout_come_back(array):
    """Views, empty arrays and special numbers are stored as what they show."""
    back = round_trip(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)


# ---- what does not come back is not stored -------------------------------------------------------


class Name(str):
    __slots__ = ()


class Record(dict):
    pass


class Number(int):
    pass


class Struct(msgspec.Struct):
    field: int = 1


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


UNFAITHFUL = {
    "tuple": (1, 2),
    "set": {1},
    "object": object(),
    "function": len,
    "bytearray": bytearray(b"a"),
    "str subclass": Name("a"),
    "dict subclass": Record(a=1),
    "ordered dict": OrderedDict(a=1),
    "user dict": UserDict(a=1),
    "int subclass": Number(1),
    "struct": Struct(),
    "complex": 1j,
    "huge int": 2**64,
    "huge negative int": -(2**63) - 1,
    "lone surrogate": "\ud800",
    "surrogate in a key": {"\ud800": 1},
    "int keys": {1: "a"},
    "mixed keys": {"a": 1, None: 2},
    "numpy scalar": np.float64(1.0),
    "object array": np.array([object()]),
    "text array": np.array(["a"]),
    "date array": np.array(["2026-01-02"], "datetime64[D]"),
    "record array": np.zeros(1, [("a", "f4")]),
    "complex array": np.zeros(1, np.complex64),
    "masked array": np.ma.masked_array([1.0], [True]),
    "matrix-like subclass": np.zeros(3).view(np.recarray),
    "very deep": deep(2_000),
}


@pytest.mark.parametrize("where", ["alone", "in a list", "in a dict"])
@pytest.mark.parametrize("value", UNFAITHFUL.values(), ids=UNFAITHFUL.keys())
def test_unfaithful_values_are_uncacheable(value, where):
    """A value that would come back changed is refused, wherever it hides."""
    wrapped = {"alone": value, "in a list": [0, [value]], "in a dict": {"a": {"b": value}}}[where]
    with pytest.raises(Uncacheable) as refusal:
        PLAIN.pack(wrapped)
    assert refusal.value.reason == "value"


@pytest.mark.parametrize("value", UNFAITHFUL.values(), ids=UNFAITHFUL.keys())
def test_unfaithful_values_go_past_the_cache(value, face):
    """The caller gets the very object that was computed, each time anew, and it is counted."""
    cache = MultiLevelCache([MemoryLevel()])
    compute = Compute(value)
    assert face.get_or_compute(cache, "key", compute) is value
    assert face.get_or_compute(cache, "key", compute) is value
    assert compute.calls == 2
    assert cache.stats().bypasses == {"value": 2}
    assert face.get(cache, "key") is MISSING


def test_storing_an_unfaithful_value_directly_is_the_callers_mistake(face):
    """`set` says that the value cannot be stored, of which type it is, and what can."""
    cache = MultiLevelCache([MemoryLevel()])
    with pytest.raises(ConfigurationError, match="tuple cannot be stored"):
        face.set(cache, "key", (1, 2))
    assert face.get(cache, "key") is MISSING


# ---- damage --------------------------------------------------------------------------------------

SMALL = entry_of(PLAIN.pack({"a": [1, 2.5, "text"]}))
LARGE = entry_of(
    PLAIN.pack(["some text that repeats"] * 300),
    fresh=float("inf"),
    expires=float("inf"),
    marks=b"",
)
FRAMES = {
    "small": frame(KEY, SMALL, compress=True),
    "large": frame(KEY, LARGE, compress=False),
    "compressed": frame(KEY, LARGE, compress=True),
}


def test_frames_hold_their_entries():
    """An entry comes back from its frame with all its fields; compression shortens a long body."""
    assert unframe(KEY, FRAMES["small"]) == SMALL
    assert unframe(KEY, FRAMES["large"]) == unframe(KEY, FRAMES["compressed"]) == LARGE
    assert len(FRAMES["compressed"]) < len(FRAMES["large"]) / 10


@pytest.mark.parametrize("name", FRAMES)
def test_what_was_read_may_be_written_again(name):
    """A body that is a part of another frame is framed like the bytes that it shows."""
    entry = unframe(KEY, FRAMES[name])
    assert frame(KEY, entry, compress=name != "large") == FRAMES[name]


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_under_another_key_is_damaged(name):
    """Bytes that lie at a key they were not made for are never served as its value."""
    for other in (b"K" + KEY[1:], KEY[:7] + bytes((KEY[7] ^ 1,)) + KEY[8:], key("other")):
        assert unframe(other, FRAMES[name]) is None


def test_an_entry_of_too_many_marks_is_uncacheable():
    """A frame holds 65,535 marks, and what has more is passed by rather than cut."""
    most = entry_of(b"body", marks=bytes(8 * 0xFFFF))
    assert unframe(KEY, frame(KEY, most, compress=True)) == most
    with pytest.raises(Uncacheable) as refusal:
        frame(KEY, entry_of(b"body", marks=bytes(8 * 0x10000)), compress=True)
    assert refusal.value.reason == "marks"


@pytest.mark.parametrize("name", FRAMES)
def test_every_flipped_bit_is_seen(name):
    """No single changed bit, wherever it is, goes unnoticed."""
    blob = FRAMES[name][:400] if name == "large" else FRAMES[name]
    rest = FRAMES[name][len(blob) :]
    for at in range(len(blob)):
        for bit in range(8):
            flipped = bytes([*blob[:at], blob[at] ^ 1 << bit, *blob[at + 1 :]])
            assert unframe(KEY, flipped + rest) is None


@pytest.mark.parametrize("name", FRAMES)
def test_every_truncation_is_seen(name):
    """No shortened and no lengthened frame is taken for a whole one."""
    blob = FRAMES[name]
    assert all(unframe(KEY, blob[:length]) is None for length in range(len(blob)))
    assert unframe(KEY, blob + b"\x00") is None
    assert unframe(KEY, blob + blob) is None


@pytest.mark.parametrize("name", FRAMES)
def test_many_random_changes_are_seen(name):
    """Overwritten, inserted, removed and exchanged stretches are all noticed."""
    blob, chance = FRAMES[name], random.Random(11)
    for _ in range(4_000):
        start, end = sorted(chance.choices(range(len(blob) + 1), k=2))
        new = chance.choice(
            [
                blob[:start] + chance.randbytes(chance.randrange(20)) + blob[end:],
                blob[:start] + blob[end:],
                blob[end:] + blob[:start],
                blob[:start] + bytes(end - start) + blob[end:],
            ]
        )
        assert new == blob or unframe(KEY, new) is None


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"rA2\0" + rest))
@settings(deadline=None, max_examples=1_000)
def test_foreign_bytes_are_no_entry(blob):
    """Whatever lies at a key, reading it is no error."""
    assert unframe(KEY, blob) is None


def sealed(body: bytes, flags: int) -> bytes:
    """Return a frame whose checksum is right, whatever its body is."""
    rest = struct.pack("<BHdddfIIQQ", flags, 0, 1.0, 2.0, 3.0, 0.5, 0, 0, 0, 0) + body
    return struct.pack("<4sQ", b"rA2\0", xxhash.xxh3_64_intdigest(rest, seed())) + rest


def seed() -> int:
    return int.from_bytes(KEY[:8], "little")


def test_a_sealed_body_is_an_entry():
    """What the following tests make is refused for its body, not for its frame."""
    assert unframe(KEY, sealed(b"body", 0)).body == b"body"
    assert unframe(KEY, sealed(ZSTD, 1)).body == b"some text that repeats " * 300


@pytest.mark.parametrize("cut", [1, 8, 100])
def test_marks_that_are_not_there_are_no_fault(cut):
    """A frame that claims more marks than it has gives an entry without a body, and no error."""
    rest = struct.pack("<BHdddfIIQQ", 0, cut, 1.0, 2.0, 3.0, 0.5, 0, 0, 0, 0) + b"short"
    blob = struct.pack("<4sQ", b"rA2\0", xxhash.xxh3_64_intdigest(rest, seed())) + rest
    entry = unframe(KEY, blob)
    assert entry is None or entry.body == b""


ZSTD = zstandard.compress(b"some text that repeats " * 300)
BROKEN_BODIES = {
    "empty": b"",
    "not zstd": b"some text that repeats",
    "cut": ZSTD[:-3],
    "cut in the head": ZSTD[:5],
    "changed": ZSTD[:-6] + b"\xff" * 6,
    "claims a terabyte": b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + b"\x01\0\0",
}


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
def test_a_body_that_does_not_decompress_is_no_entry(body):
    """A frame with a right checksum and a wrong compressed body is as good as none."""
    assert unframe(KEY, sealed(body, 1)) is None


def test_frames_of_later_versions_are_no_entry():
    """Bytes of another version are passed over, not guessed at."""
    blob = bytearray(FRAMES["small"])
    blob[2:3] = b"3"
    assert unframe(KEY, bytes(blob)) is None


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x92\x01", b"\xd4\x07\x00", b"\xc7\x03\x01\x02\xff\xff", b"\xd4\x01\xff"],
    ids=["empty", "unused code", "cut list", "unknown extension", "bad shape", "cut array"],
)
def test_a_body_that_is_no_value_is_a_miss(body, face):
    """A frame that is whole and whose body does not decode is counted and computed anew."""
    level = MemoryLevel()
    cache = MultiLevelCache([level])
    name = digest("default", "plain", "key")
    entry = Entry(1.0, 1e12, 1e12, 0.0, 0, 0, 0, 0, entry_marks("default", "plain"), body)
    level.put_many([Stored(name, frame(name, entry, compress=False), 1e12)])
    assert face.get(cache, "key") is MISSING
    assert face.get_or_compute(cache, "key", lambda: "new") == "new"
    assert face.get(cache, "key") == "new"
    assert cache.stats().damaged >= 1
    assert cache.stats().errors == {}


GOLDEN = (
    "724132006c92a7d3e40165250002000000000065cdcd41000000c00b5ad6410000000065"
    "cddd410000003f7011010000286bee000000000000004007000000000000806d61726b73"
    "206f666d61726b73206f6681a1619301cb4004000000000000a474657874"
)


def test_the_frame_stays_what_it_is():
    """Entries of earlier releases stay readable: a change of the format is made knowingly."""
    assert FRAMES["small"].hex() == GOLDEN
