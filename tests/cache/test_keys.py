"""Keys: whatever decides the answer decides the key, and nothing else does."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import struct
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ragaccel.cache import Digest, MemoryLevel, MultiLevelCache, Uncacheable, digest
from ragaccel.errors import ConfigurationError

INTEGERS = st.integers(-(2**63), 2**64 - 1)
FEW = st.sampled_from([None, False, True, 0, 1, 0.0, -0.0, 1.0, "", "0", "1", "a", b"", b"1", b"a"])
SCALARS = FEW | st.none() | st.booleans() | INTEGERS | st.floats() | st.text() | st.binary()


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        ),
        max_leaves=12,
    )


def identity(part: Any) -> Any:
    """Return what makes a part the part it is: its type and its bits."""
    if isinstance(part, list | tuple):
        return "list", tuple(identity(item) for item in part)
    if isinstance(part, dict):
        return "dict", frozenset((name, identity(value)) for name, value in part.items())
    if isinstance(part, float):
        return "float", struct.pack("<d", part)
    return type(part).__name__, part


@given(st.lists(nested(SCALARS) | nested(FEW), min_size=2, max_size=12))
@settings(deadline=None, max_examples=300)
@example([["ab", "c"], ["a", "bc"], ["abc"], "abc", ["a", "b", "c"], ["abc", ""], ["", "abc"]])
@example([1, 1.0, True, "1", b"1", [1], [[1]], {"1": 1}, [1, None], None, "", b"", [], {}])
@example([["a", ["b"]], [["a"], "b"], [["a", "b"]], ["a", "b"], [[], "a", "b"], {"a": "b"}])
def test_different_parts_never_share_a_digest(parts):
    """Two part lists share a digest exactly when they are the same, types included."""
    digests: dict[bytes, Any] = {}
    for part in parts:
        same = digests.setdefault(digest("namespace", "kind", part), part)
        assert identity(same) == identity(part)
    assert len(digests) == len({identity(part) for part in parts})


@given(st.dictionaries(st.text(), nested(FEW), min_size=2), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_a_dict_does_not_matter(parts, chance):
    """Dicts that are equal are one key, however they were filled, at any depth."""
    items = list(parts.items())
    chance.shuffle(items)
    shuffled = dict(items)
    assert digest("n", "k", [{"deep": shuffled}]) == digest("n", "k", [{"deep": parts}])


def test_the_order_of_a_list_matters():
    """A list is a sequence, not a set."""
    assert digest("n", "k", ["a", "b"]) != digest("n", "k", ["b", "a"])


def test_a_tuple_is_a_list():
    """Arguments may come as a tuple or as a list and mean the same."""
    assert digest("n", "k", ("a", (1, 2))) == digest("n", "k", ["a", [1, 2]])


@given(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4), st.text(max_size=4))
@settings(deadline=None)
@example("ab", "c", "a", "bc")
@example("", "ab", "ab", "")
def test_namespaces_and_kinds_are_apart(namespace, kind, other_namespace, other_kind):
    """The same parts in another namespace or of another kind are another key."""
    assume((namespace, kind) != (other_namespace, other_kind))
    assert digest(namespace, kind, ["part"]) != digest(other_namespace, other_kind, ["part"])


class Mode(enum.Enum):
    DEFAULT = "default"


@dataclass
class Above:
    score: float = 0.5


@dataclass
class Below:
    score: float = 0.5


class Struct(msgspec.Struct):
    score: float = 0.5


ID = uuid.UUID(int=7)
DAY = dt.date(2026, 1, 2)
MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc).replace(tzinfo=None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Above(), Below()),
        (Above(), {"score": 0.5}),
        (Struct(), {"score": 0.5}),
        ({1, 2}, [1, 2]),
        (frozenset(("a",)), ["a"]),
        (Mode.DEFAULT, "default"),
        (ID, str(ID)),
        (DAY, str(DAY)),
        (MOMENT, MOMENT.isoformat()),
        (decimal.Decimal("1.0"), "1.0"),
        (dt.timedelta(days=1), "P1D"),
        (np.float64(1.0), 1.0),
        ({1: "a"}, {"1": "a"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_different_types_never_share_a_digest(one, other):
    """What has no typed encoding of its own is refused, not taken for something like it."""
    digests = []
    for part in (one, other):
        try:
            digests.append(digest("n", "k", ["parts", part]))
        except Uncacheable:
            digests.append(None)
    assert digests[0] is None or digests[0] != digests[1]


def endless() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


@pytest.mark.parametrize(
    "part",
    [
        len,
        lambda: None,
        object(),
        int,
        iter(()),
        np.arange(3),
        1j,
        2**64,
        -(2**63) - 1,
        "\ud800",
        {"\ud800": 1},
        endless(),
        {("tuple",): 1},
    ],
    ids=lambda part: type(part).__name__,
)
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: [1, [p]], lambda p: {"deep": {"er": p}}])
def test_what_has_no_canonical_form_is_refused(part, wrap):
    """A key is never guessed: objects, functions and strings that are no text are `Uncacheable`."""
    with pytest.raises(Uncacheable) as refusal:
        digest("n", "k", wrap(part))
    assert refusal.value.reason == "key"


def test_a_refused_key_of_a_direct_call_is_the_callers_mistake():
    """`get` and its siblings say that the key cannot be used, and why."""
    cache = MultiLevelCache([MemoryLevel()])
    with pytest.raises(ConfigurationError, match=r"key is made of.*function"):
        cache.get(["question", endless])


def test_a_finished_digest_is_used_as_it_is():
    """Adapters make their own keys and meet nobody else's."""
    cache = MultiLevelCache([MemoryLevel()])
    finished = digest("default", "retrieval", ["question"])
    assert isinstance(finished, Digest)
    assert len(finished) == 20
    cache.set(finished, 1)
    assert cache.get(digest("default", "retrieval", ["question"])) == 1
    assert not cache.get(bytes(finished))
    assert not cache.get(["question"])


@pytest.mark.parametrize(
    ("namespace", "kind", "parts", "golden"),
    [
        ("default", "plain", "key", "9fa235440376eaa4d24f45aac9ccd07dad9eb0c9"),
        ("", "", None, "08a7e0358ef6e20626470e2ba2bf3f48ddcedb99"),
        (
            "tenant-a",
            "retrieval",
            ["question", 10, {"filter": {"b": 1, "a": [True, 0.5]}}],
            "c9d7418dab0f21f957e74484b24a0fc705f893f8",
        ),
        (
            "tenant-a",
            "embedding",
            ("Füße", b"\x00\xff", -1, 2**64 - 1, 1e300, float("inf")),
            "22efe82733725cc1dacafd2d9e6902a2f57285a8",
        ),
    ],
)
def test_digests_stay_what_they_are(namespace, kind, parts, golden):
    """Entries of earlier releases stay reachable: a change of the format is made knowingly."""
    assert digest(namespace, kind, parts).hex() == golden
