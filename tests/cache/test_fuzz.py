"""Bytes that nobody of ours has written, under real keys: a miss each time, and never an error.

A checksum keeps out damage, so most of what is made here is thrown away at once; what carries the
right checksum tries what lies behind it.
"""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
import struct
import time
import warnings
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ragaccel.cache import MISSING, PLAIN, DiskLevel, MemoryLevel, MultiLevelCache, Stored, values
from ragaccel.cache.keys import namespace_mark
from tests.cache.helpers import Compute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ragaccel.cache import Level

VALUES = {
    "text": "text " * 40,
    "long": "0123456789" * 1_000,
    "nested": {"a": [1, 2.5, None, True, b"bytes", {"b": "c"}], "d": []},
    "array": np.arange(12, dtype=np.float32).reshape(3, 4),
    "none": None,
}
SUM = struct.Struct("<4sQ")
REST = struct.Struct("<BHdddfIIQQ")
HEAD = SUM.size + REST.size
LEVELS = ["memory", "disk", "disk behind memory"]


class Bench:
    """A cache whose entries are put in place as bytes."""

    def __init__(self, cache: MultiLevelCache) -> None:
        self.cache, self.level = cache, cache.levels[-1]
        self.frames: dict[str, bytes] = {}
        for name, value in VALUES.items():
            cache.set(name, value)
            key = cache._key(name)
            self.frames[name] = self.level.get_many([key])[key]

    def put(self, name: str, blob: bytes) -> None:
        """Let the level have these bytes under the key of a name, and the others nothing."""
        key = self.cache._key(name)
        for level in self.cache.levels:
            level.clear()
        entry = Stored(key, blob, time.time() + 60, 0.0, namespace_mark("default"))
        self.level.put_many([entry])

    def sealed(self, name: str, rest: bytes) -> bytes:
        """Return a frame whose checksum is right."""
        return seal(self.cache._key(name), rest)

    def misses(self, name: str) -> None:
        """Assert that nothing is found under a name, in any way, and that nothing is raised."""
        cache = self.cache
        assert cache.get_many([name]) == [MISSING]
        assert list(cache.scan()) == []
        assert cache.get(name) is MISSING
        compute = Compute("computed")
        assert cache.get_or_compute(name, compute) == "computed"
        assert compute.calls == 1
        assert cache.get(name) == "computed"

    def survives(self, name: str, blob: bytes) -> Any:
        """Assert that whatever is found is found in every way alike, and that nothing is raised."""
        self.put(name, blob)
        many = self.cache.get_many([name])[0]
        list(self.cache.scan())
        got = self.cache.get(name)
        assert repr(many) == repr(got)
        found = self.cache.get_or_compute(name, lambda: "computed")
        assert repr(found) == repr("computed" if got is MISSING else got)
        assert self.cache.stats().errors == {}
        return got


def seal(key: bytes, rest: bytes) -> bytes:
    checksum = xxhash.xxh3_64_intdigest(rest, struct.unpack_from("<Q", key)[0])
    return SUM.pack(b"rA2\0", checksum) + rest


@pytest.fixture(params=LEVELS)
def bench(request, tmp_path) -> Iterator[Bench]:
    levels: list[Level] = []
    if "memory" in request.param:
        levels.append(MemoryLevel())
    if "disk" in request.param:
        levels.append(DiskLevel(tmp_path / "cache.sqlite"))
    with MultiLevelCache(levels, ttl=None) as cache:
        yield Bench(cache)


def fuzz(examples: int):
    """Settings for tests whose examples share a fixture that each of them sets up anew."""
    allowed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=allowed)


# ---- bytes without a right checksum --------------------------------------------------------------


@fuzz(60)
@given(blob=st.binary(max_size=300), magic=st.booleans())
@example(blob=b"", magic=False)
@example(blob=bytes(HEAD - 4), magic=True)
def test_random_bytes_are_no_entry(bench, blob, magic):
    """Of any length, also behind the right magic."""
    bench.put("text", b"rA2\0" + blob if magic else blob)
    bench.misses("text")
    assert bench.cache.stats().errors == {}


@fuzz(80)
@given(name=st.sampled_from(sorted(VALUES)), data=st.data())
def test_a_flipped_bit_anywhere_is_seen(bench, name, data):
    """In the head, the marks or the body."""
    frame = bytearray(bench.frames[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] ^= 1 << data.draw(st.integers(0, 7))
    if bytes(frame) != bench.frames[name]:
        bench.put(name, bytes(frame))
        bench.misses(name)


@fuzz(60)
@given(name=st.sampled_from(sorted(VALUES)), data=st.data())
def test_a_frame_that_was_cut_or_grew_is_seen(bench, name, data):
    """A torn write, at any length; bytes behind the end, or a part twice."""
    frame = bench.frames[name]
    at = data.draw(st.integers(0, len(frame) - 1))
    how = data.draw(st.sampled_from(["cut", "grown", "doubled", "begun late", "zeroed"]))
    harmed = {
        "cut": frame[:at],
        "grown": frame + bytes(at + 1),
        "doubled": frame[: at + 1] + frame[at:],
        "begun late": frame[at + 1 :],
        "zeroed": frame[:at] + bytes(len(frame) - at),
    }[how]
    if harmed != frame:
        bench.put(name, harmed)
        bench.misses(name)


def test_frames_under_the_keys_of_others_are_seen(bench):
    """A swap of two whole and undamaged entries serves neither."""
    for name in VALUES:
        for other in VALUES:
            if name != other:
                bench.put(name, bench.frames[other])
                bench.misses(name)


def test_whole_frames_are_found(bench):
    """The bench itself works: what was stored is served from the same bytes."""
    for name, value in VALUES.items():
        found = bench.survives(name, bench.frames[name])
        assert np.array_equal(found, value) if name == "array" else found == value


@pytest.mark.parametrize("magic", [b"rA1\0", b"rA3\0", b"RA2\0", b"\0\0\0\0", b"rA2\1"])
def test_frames_of_other_versions_are_misses(bench, magic):
    """Older or newer ones, whose checksum is right for their rest."""
    bench.put("text", magic + bench.frames["text"][4:])
    bench.misses("text")


@pytest.mark.parametrize("bits", [1, 8, 64])
def test_no_harm_of_a_hundred_thousand_gets_through(bits):
    """A plain loop over the frame itself: no flipped bits make a frame that is taken for whole."""
    draw, key = random.Random(bits), random.Random(1).randbytes(20)
    entry = values.Entry(1.0, 2e9, 2e9, 0.5, 1, 2, 3, 4, bytes(16), PLAIN.pack("text" * 20))
    frame = values.frame(key, entry, compress=False)
    assert values.unframe(key, frame) is not None
    number, length = int.from_bytes(frame, "little"), len(frame)
    for _ in range(30_000):
        harm = sum(1 << draw.randrange(8 * length) for _ in range(bits))
        if harm:
            blob = (number ^ (harm & ((1 << 8 * length) - 1))).to_bytes(length, "little")
            assert values.unframe(key, blob) is None


# ---- bytes with a right checksum -----------------------------------------------------------------


def numbers(width: int) -> st.SearchStrategy[int]:
    top = (1 << width) - 1
    return st.sampled_from([0, 1, 2, top, top - 1, top >> 1]) | st.integers(0, top)


TIMES = st.floats(allow_nan=False) | st.sampled_from([0.0, -1.0, 1e308, math.inf, -math.inf])


@fuzz(150)
@given(
    name=st.sampled_from(sorted(VALUES)),
    flags=numbers(8),
    marks=numbers(16),
    times=st.tuples(TIMES | st.just(math.nan), TIMES),
    cost=st.floats(width=32),
    counts=st.tuples(numbers(32), numbers(32), numbers(64), numbers(64)),
    keep=st.sets(st.sampled_from(["flags", "marks", "times", "position"])),
)
def test_heads_that_say_anything(bench, name, flags, marks, times, cost, counts, keep):
    """Every field of the head at its bounds and beyond, with the right checksum."""
    rest = bench.frames[name][SUM.size :]
    whole = REST.unpack_from(rest)
    head = [
        whole[0] if "flags" in keep else flags,
        whole[1] if "marks" in keep else marks,
        *(whole[2:5] if "times" in keep else (*times, times[1])),  # never due and not over
        cost,
        *counts[:2],
        *(whole[8:] if "position" in keep else counts[2:]),
    ]
    frame = bench.sealed(name, REST.pack(*head) + rest[REST.size :])
    got = bench.survives(name, frame)
    if head[1] != whole[1]:
        assert got is MISSING or name in {"none", "long"} or head[1] < whole[1]


@fuzz(80)
@given(name=st.sampled_from(sorted(VALUES)), data=st.data())
def test_anything_behind_the_checksum(bench, name, data):
    """Random bytes for head, marks and body."""
    rest = data.draw(st.binary(min_size=REST.size, max_size=200))
    bench.survives(name, bench.sealed(name, rest))


@pytest.mark.parametrize("marks", [0, 1, 3, 100, 65_535])
def test_another_number_of_marks(bench, marks):
    """Marks end where the frame does at the latest; the body is then another one: a miss."""
    rest = bytearray(bench.frames["text"][SUM.size :])
    struct.pack_into("<H", rest, 1, marks)
    bench.put("text", bench.sealed("text", bytes(rest)))
    bench.misses("text")


def test_a_namespace_of_others_in_the_marks(bench):
    """A whole entry that says it is another tenant's is not served."""
    rest = bytearray(bench.frames["text"][SUM.size :])
    rest[REST.size : REST.size + 8] = namespace_mark("other")
    bench.put("text", bench.sealed("text", bytes(rest)))
    bench.misses("text")


def compressed(bench: Bench, body: bytes) -> bytes:
    rest = bytearray(bench.frames["text"][SUM.size :][: REST.size + 8])
    rest[0] = 1
    return bench.sealed("text", bytes(rest) + body)


def announcing(size: int) -> bytes:
    """Return a Zstandard frame whose head announces a size, and little behind it."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\x00\x00"


BOMBS = {
    "a gigabyte more than there may be": announcing(1024**3 + 1),
    "an exabyte": announcing(2**60),
    "the largest number": announcing(2**64 - 1),
    "half a gigabyte that is not there": announcing(2**29),
    "nothing": b"",
    "garbage": b"garbage" * 20,
    "an empty frame": zstandard.compress(b""),
    "no size": zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 5_000),
    "cut": zstandard.compress(PLAIN.pack("x" * 5_000))[:-3],
    "no MessagePack": zstandard.compress(b"\xc1" * 5_000),
    "a skippable frame": b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"1234",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bodies_that_do_not_unpack_are_misses(bench, bomb):
    """Announced sizes that nobody has room for, and frames that are none."""
    bench.put("text", compressed(bench, BOMBS[bomb]))
    start = time.monotonic()
    bench.misses("text")
    assert time.monotonic() - start < 10
    assert bench.cache.stats().errors == {}


def test_a_body_that_unpacks_to_very_much(bench):
    """A few kilobytes that become 64 MB of zeros: a miss, as they are no value."""
    bench.put("text", compressed(bench, zstandard.compress(bytes(64 * 1024**2))))
    found = bench.cache.get("text")
    assert found in {MISSING, 0}


PLAIN_BODIES = [PLAIN.pack(value) for value in VALUES.values()] + [
    PLAIN.pack([np.zeros((2, 3), "<f4"), np.zeros(0, "u1"), "text"]),
    PLAIN.pack({"k" * 40: [[[[[1]]]]]}),
]


@fuzz(250)
@given(data=st.data())
def test_mutated_bodies_never_raise(bench, data):
    """Under the right checksum: a value or a miss, in every way to ask alike."""
    body = bytearray(data.draw(st.sampled_from(PLAIN_BODIES)))
    for _ in range(data.draw(st.integers(1, 4))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body))) :]
    head = bench.frames["text"][SUM.size :][: REST.size + 8]
    bench.survives("text", bench.sealed("text", head + bytes(body)))


def array(dtype: str, shape: Any, data: bytes) -> bytes:
    told = msgspec.msgpack.encode((dtype, shape))
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(1, bytes((len(told) % 256,)) + told + data))


HOSTILE = {
    "a list of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "a string of four gigabytes": b"\xdb\xff\xff\xff\xff",
    "bytes of four gigabytes": b"\xc6\xff\xff\xff\xff",
    "an extension of four gigabytes": b"\xc9\xff\xff\xff\xff\x01",
    "a hundred thousand lists in each other": b"\x91" * 100_000,
    "a map with a list as a key": b"\x81\x91\x01\x01",
    "a map with a map as a key": b"\x81\x80\x01",
    "text that is no UTF-8": b"\xa2\xff\xfe",
    "an empty extension": b"\xc7\x00\x01",
    "an unknown extension": b"\xc7\x01\x05a",
    "a date": b"\xd6\xff\xff\xff\xff\xff",
    "a date beyond all": b"\xc7\x0c\xff" + b"\xff" * 12,
    "an array of objects": array("O", [1], bytes(8)),
    "an array of records": array("V8", [1], bytes(8)),
    "an array of a wrong type": array("no such type", [1], bytes(8)),
    "an array of a type with fields": array("i4,i4", [1], bytes(8)),
    "an array of no type": array("", [1], bytes(8)),
    "an array of strings": array("U2", [1], bytes(8)),
    "an array of dates": array("M8[s]", [1], bytes(8)),
    "an array that is larger than its bytes": array("<f8", [1000], bytes(8)),
    "an array of negative length": array("<f8", [-1], bytes(16)),
    "an array of two negative lengths": array("<f8", [-1, -1], bytes(16)),
    "an array of exabytes": array("<f8", [2**60], bytes(8)),
    "an array of too many dimensions": array("<f8", [1] * 100, bytes(8)),
    "an array of half a number": array("<f8", [1], bytes(7)),
    "an array of nothing": array("<f8", [], b""),
    "an array with zero items of exabytes": array("<f8", [0, 2**60], b""),
    "a head that is longer than the array": msgspec.msgpack.encode(
        msgspec.msgpack.Ext(1, b"\xff\x92")
    ),
    "one value and more": b"\x01\x02",
    "the byte that means nothing": b"\xc1",
    "nothing": b"",
}


@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_bodies_never_raise(bench, body):
    """What a decoder could trip over, with the right checksum."""
    head = bench.frames["text"][SUM.size :][: REST.size + 8]
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bench.survives("text", bench.sealed("text", head + HOSTILE[body]))
    assert time.monotonic() - start < 10


# ---- rows of the file ----------------------------------------------------------------------------

COLUMNS = ("key", "blob", "expires", "written", "namespace", "size")
ODD: dict[str, Any] = {
    "text": "text",
    "an integer": 7,
    "a real": 1.5,
    "bytes": b"bytes",
    "many bytes": bytes(10_000),
    "infinity": math.inf,
    "no UTF-8": "CAST(x'ff' AS TEXT)",
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("odd", ODD)
def test_rows_with_values_of_another_type(tmp_path, column, odd):
    """SQLite keeps anything in any column: nothing is raised, and other rows are read."""
    with MultiLevelCache.open(tmp_path) as cache:
        cache.set("a", "whole")
        cache.set("b", "other")
        hash_ = int.from_bytes(cache._key("a")[:8], "little", signed=True)
        with contextlib.closing(sqlite3.connect(tmp_path / "cache.sqlite")) as db:
            if odd == "no UTF-8":
                db.execute(f"UPDATE entry SET {column} = {ODD[odd]} WHERE hash = ?", (hash_,))
            else:
                db.execute(f"UPDATE entry SET {column} = ? WHERE hash = ?", (ODD[odd], hash_))
            db.commit()
        cache.levels[0].clear()
        assert cache.get("a") in {"whole", MISSING}
        assert cache.get_or_compute("a", lambda: "whole") == "whole"
        assert cache.get("b") == "other"
        list(cache.scan())
        assert cache.stats().levels["memory"].entries >= 1
        cache.levels[0].clear()
        cache.set("a", "again")
        assert cache.get("a") == "again"


def test_one_odd_row_does_not_hide_the_others(tmp_path):
    """A row that cannot be read is a miss of its own key only."""
    with MultiLevelCache.open(tmp_path) as cache:
        cache.set_many([("a", 1), ("b", 2)])
        hash_ = int.from_bytes(cache._key("a")[:8], "little", signed=True)
        with contextlib.closing(sqlite3.connect(tmp_path / "cache.sqlite")) as db:
            db.execute("UPDATE entry SET expires = x'00' WHERE hash = ?", (hash_,))
            db.commit()
        cache.levels[0].clear()
        assert cache.get_many(["a", "b"]) == [MISSING, 2]
