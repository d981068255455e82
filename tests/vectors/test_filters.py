"""Filters against their meaning in plain Python, and filters that cannot be understood."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragaccel import VectorCollection
from ragaccel.errors import FilterError
from ragaccel.vectors import And, DocumentId, Documents, Field, Ids, Not, Or
from tests.vectors.data import SLOW
from tests.vectors.filtering import passes

KEYS = (
    "plain", "two words", "dotted.key", "$", "$.root", "bracket[0]", "a[*]", "#-1", "'single'",
    'dou"ble', '"', "back\\slash", "\\", "\\u0061", "line\nbreak", "tab\t", "\x01control", "\x7f",
    "größe", "日本語", "😀", "e\u0301", "\u2028", "", " ", "null", "0", "id", "slot", "metadata",
    "key", "value", "Plain", "%", "_", "?", "?1", ":name", "--", "/*", ";",
)  # fmt: skip
INJECTIONS = (
    "'; DROP TABLE doc; --",
    '"; DROP TABLE doc; --',
    "' OR '1'='1",
    '" OR 1=1 --',
    "$\") OR 1=1 OR json_extract(metadata, '$.a",
    "') UNION SELECT slot FROM doc --",
    "x' AND randomblob(1000000000) --",
    "? OR 1=1",
)
ORDERS = ("gt", "ge", "lt", "le")
LISTS = ("in", "nin", "any", "all")
TEXTS = ("text_match", "text_match_insensitive")
NAN = float("nan")
BARE = ("is_empty", "is_missing")

# -- what is stored and asked ----------------------------------------------------------------------

strings = st.one_of(
    st.sampled_from(
        ["", "a", "A", "ab", "b", "1", "1.0", "true", "null", "{}", "é", "Straße", "İ", "日本", '"']
    ),
    st.sampled_from(INJECTIONS),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=4),
)
integers = st.one_of(st.integers(-2, 2), st.integers(-(2**63), 2**63 - 1))
floats = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 0.1 + 0.2, 2.0**53, 1e300, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)
scalars = st.one_of(strings, integers, floats, st.booleans())
values = st.one_of(
    scalars,
    st.none(),
    st.lists(st.one_of(scalars, st.none()), max_size=3),
    st.dictionaries(st.sampled_from(KEYS), scalars, max_size=2),
    st.just([["nested"], {"a": "b"}]),
)
document_ids = st.sampled_from([None, "one", "two", "", "None"])


@st.composite
def fields(draw, keys):
    """Draw a test of one field, with a value that its operator understands."""
    operator = draw(
        st.sampled_from(["eq", "ne", "contains", *ORDERS, *LISTS, *TEXTS, *BARE]),
    )
    value = None
    if operator in LISTS:
        items = scalars if operator == "any" else st.one_of(scalars, st.none())
        value = draw(st.lists(items, max_size=3))
    elif operator in TEXTS:
        value = draw(strings)
    elif operator not in BARE:
        value = draw(scalars)
    absent = st.builds(DocumentId, st.sampled_from(["None", "", "one"]))
    return Field(draw(st.one_of(st.sampled_from(keys), absent)), operator, value)


def filters(keys, ids):
    """Draw a tree of filters."""
    leaf = st.one_of(
        fields(keys),
        st.builds(Ids, st.lists(st.sampled_from([*ids, "unknown"]), max_size=3).map(tuple)),
        st.builds(Documents, st.lists(document_ids, max_size=2).map(tuple)),
    )
    return st.recursive(
        leaf,
        lambda part: st.one_of(
            st.builds(And, st.lists(part, max_size=3).map(tuple)),
            st.builds(Or, st.lists(part, max_size=3).map(tuple)),
            st.builds(Not, part),
        ),
        max_leaves=6,
    )


@st.composite
def cases(draw):
    """Draw rows (id, metadata, document) and filters on the keys that they may have."""
    keys = draw(st.lists(st.sampled_from(KEYS + INJECTIONS), unique=True, min_size=1, max_size=3))
    ids = draw(st.lists(strings.filter(bool), unique=True, min_size=1, max_size=6))
    metadata = st.dictionaries(st.sampled_from(keys), values, max_size=3)
    rows = [(one, draw(metadata), draw(document_ids)) for one in ids]
    return rows, draw(st.lists(filters(keys, ids), min_size=1, max_size=4))


def stored(*metadata):
    """Open a collection in memory with a row, `row-0` and so on, for each dict."""
    collection = VectorCollection.open()
    ids = [f"row-{at}" for at in range(len(metadata))]
    collection.upsert(ids, np.ones((len(ids), 1)), metadata=metadata)
    return collection


def selected(collection, where):
    """Return the ids of the rows that pass a filter."""
    return [row.id for row in collection.select(where)]


# -- what passes -----------------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=SLOW, max_examples=100)
@example(([("a", {"": []}, None), ("b", {}, None)], [Not(Field("", "is_empty"))]))
@example(([("a", {}, None)], [And((Field("k", "text_match_insensitive", "3"),))]))
@example(([("a", {'"': 3}, None)], [Field('"', "text_match_insensitive", "3")]))
@given(cases())
def test_select_finds_what_plain_python_finds(case):
    """Any tree of filters passes exactly the rows that it passes in plain Python."""
    rows, wheres = case
    ids, metadata, documents = zip(*rows, strict=True)
    with VectorCollection.open() as collection:
        collection.upsert(ids, np.ones((len(ids), 1)), metadata=metadata, document_ids=documents)
        records = collection.select()
        assert [(one.id, one.metadata, one.document_id) for one in records] == rows
        for where in wheres:
            wanted = [one.id for one in records if passes(one, where)]
            assert selected(collection, where) == wanted
            assert collection.count(where) == len(wanted)
            (hits,) = collection.search([1.0], k=len(rows), where=where)
            assert [hit.id for hit in hits] == wanted


@settings(deadline=None, suppress_health_check=SLOW, max_examples=100)
@given(cases(), st.booleans(), st.booleans())
def test_an_index_changes_nothing(case, first, again):
    """With indexes on all fields, made before or after the rows, any filter passes the same."""
    rows, wheres = case
    ids, metadata, documents = zip(*rows, strict=True)
    keys = sorted({key for one in metadata for key in one})
    with VectorCollection.open(dim=1) as plain, VectorCollection.open(dim=1) as collection:
        for key in keys if first else ():
            collection.create_index(key)
        for one in (plain, collection):
            one.upsert(ids, np.ones((len(ids), 1)), metadata=metadata, document_ids=documents)
            if again:
                one.upsert(ids[:2], np.ones((len(ids[:2]), 1)), metadata=metadata[::-1][:2])
                one.delete(ids[-1:])
        for key in keys:
            collection.create_index(key)
        assert collection.indexes() == keys
        for where in wheres:
            wanted = [one.id for one in plain.select() if passes(one, where)]
            assert selected(plain, where) == selected(collection, where) == wanted


@pytest.mark.parametrize("operator", ["eq", "contains", "text_match", "in", "any"])
@pytest.mark.parametrize("text", INJECTIONS)
def test_sql_in_keys_and_values_is_only_text(text, operator):
    """SQL in a key or a value finds the row that has it, and does nothing else."""
    collection = stored({text: text}, {"a": "b"}, {text: "b"})
    value = [text] if operator in LISTS else text

    assert selected(collection, Field(text, operator, value)) == ["row-0"]

    assert selected(collection, Ids((text,))) == []
    assert selected(collection, Documents((text,))) == []
    assert selected(collection, Field(DocumentId(text), "ne", text)) == []
    assert collection.delete([text]) == 0
    assert len(collection) == 3


def test_numbers_beyond_64_bits():
    """Numbers larger than SQLite's own are compared by their size, too."""
    collection = stored({"n": 2**70}, {"n": 1}, {"n": -(2**70)})

    assert selected(collection, Field("n", "eq", 2**70)) == ["row-0"]
    assert selected(collection, Field("n", "lt", 2**63)) == ["row-1", "row-2"]
    assert selected(collection, Field("n", "in", [-(2**70), 1])) == ["row-1", "row-2"]
    assert collection.select()[0].metadata == {"n": 2**70}


@pytest.mark.parametrize(
    ("operator", "rows", "found"),
    [("in", 30_000, 10_000), ("nin", 30_000, 20_000), ("any", 300, 100), ("all", 300, 0)],
)
def test_ten_thousand_values_in_one_list(operator, rows, found):
    """A list operator takes ten thousand values."""
    listed = [3 * at for at in range(10_000)]
    collection = stored(*({"n": at, "tags": [at, -at]} for at in range(rows)))

    key = "tags" if operator in {"any", "all"} else "n"
    assert collection.count(Field(key, operator, listed)) == found


def test_many_ids_and_documents():
    """Rows can be asked for by ten thousand ids or documents at once."""
    ids = tuple(f"row-{at}" for at in range(10_000))
    with VectorCollection.open() as collection:
        collection.upsert(ids, np.ones((10_000, 1)), document_ids=[f"of {one}" for one in ids])

        assert len(collection.get(ids)) == 10_000
        assert collection.count(Ids(ids[::2])) == 5_000
        assert collection.count(Documents(tuple(f"of {one}" for one in ids[::4]))) == 2_500


def test_trees_of_a_hundred_filters():
    """Filters may be wide, and as deep as programs write them."""
    collection = stored(*({"n": at} for at in range(100)))
    deep = Field("n", "eq", 7)
    for _ in range(5):
        deep = Or((And((Not(Not(deep)),)),))

    assert selected(collection, deep) == ["row-7"]
    either = Or(tuple(Field("n", "eq", at) for at in range(0, 100, 2)))
    assert len(selected(collection, either)) == 50
    assert selected(collection, And(tuple(Field("n", "ne", at) for at in range(99)))) == ["row-99"]


def test_empty_combinations():
    """All rows pass every one of no parts, and none passes any of no parts."""
    collection = stored({"n": 1}, {})

    assert selected(collection, And(())) == ["row-0", "row-1"]
    assert selected(collection, Or(())) == []
    assert selected(collection, Not(Or(()))) == ["row-0", "row-1"]
    assert selected(collection, Ids(())) == selected(collection, Documents(())) == []


def test_only_what_holds_nothing_is_empty():
    """Missing values, nulls, empty texts and empty lists are empty; brackets in a text are not."""
    collection = stored({}, {"k": None}, {"k": ""}, {"k": []}, {"k": "[]"}, {"k": {}}, {"k": 0})

    assert selected(collection, Field("k", "is_empty")) == ["row-0", "row-1", "row-2", "row-3"]
    assert selected(collection, Field("k", "is_missing")) == ["row-0", "row-1"]


def test_lists_are_equal_as_wholes():
    """`eq` and `ne` compare a list with the whole stored list."""
    collection = stored({"tags": ["a", "b"]}, {"tags": ["b", "a"]}, {"tags": "a"}, {"tags": []}, {})

    assert selected(collection, Field("tags", "eq", ["a", "b"])) == ["row-0"]
    assert selected(collection, Field("tags", "eq", [])) == ["row-3"]
    assert "row-0" not in selected(collection, Field("tags", "ne", ["a", "b"]))


def test_filters_follow_writes():
    """A filter sees the metadata that a row has now, not what it had."""
    collection = stored({"n": 1}, {"n": 1})
    collection.upsert(["row-0"], [[1.0]], metadata=[{"n": 2}])
    collection.delete(["row-1"])

    assert selected(collection, Field("n", "eq", 1)) == []
    assert selected(collection, Field("n", "eq", 2)) == ["row-0"]
    assert collection.delete_where(Field("n", "gt", 5)) == 0
    assert collection.delete_where(Field("n", "gt", 1)) == 1
    assert len(collection) == 0


# -- what cannot be understood ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [
        *((Field("n", operator, "ab"), [operator, "'ab'", "list"]) for operator in LISTS),
        *((Field("n", operator, 5), [operator, "5", "list"]) for operator in LISTS),
        *((Field("n", operator), [operator, "None", "list"]) for operator in LISTS),
        *((Field("n", operator), [operator, "None", "string"]) for operator in ORDERS),
        *((Field("n", operator, [1]), [operator, "[1]"]) for operator in ORDERS),
        *((Field("n", operator, 5), [operator, "5", "string"]) for operator in TEXTS),
        (Field("n", "eq"), ["eq", "None"]),
        (Field("n", "ne", {"a": 1}), ["ne", "{'a': 1}"]),
        (Field("n", "contains"), ["contains", "None"]),
        (Field("n", "contains", ["a"]), ["contains", "['a']"]),
        (Field("n", "like", "a%"), ["like"]),
        (Field("n", "in", [object()]), ["in", "object"]),
        (Field("n", "in", [{1}]), ["in", "{1}"]),
        (Field("n", "eq", NAN), ["eq", "nan"]),
        (Field("n", "eq", "\ud800"), ["Unicode"]),
        (Field("n", "in", ["a", "\ud800"]), ["Unicode"]),
        (Field("\ud800", "eq", "a"), ["Unicode"]),
        (Field("n", "eq", "a\x00b"), ["null character"]),
        (Field("a\x00b", "eq", 1), ["null character"]),
        (Ids(("a\x00b",)), ["null character"]),
        (Documents(("\ud800",)), ["Unicode"]),
        (Field(5, "eq", "a"), ["5"]),
        ({"n": 1}, ["{'n': 1}"]),
        ("n = 1", ["n = 1"]),
        (And(({"n": 1},)), ["{'n': 1}"]),
    ],
    ids=lambda one: None if isinstance(one, list) else ascii(one)[:60].split(" at 0x")[0],
)
def test_filters_that_cannot_be_understood(where, words):
    """An unfit filter is refused with a message that names what is wrong with it."""
    collection = stored({"n": 1})
    for refuse in (collection.select, collection.count, collection.delete_where):
        with pytest.raises(FilterError) as refused:
            refuse(where)
        for word in words:
            assert word in str(refused.value)
    with pytest.raises(FilterError):
        collection.search([1.0], where=where)
    assert len(collection) == 1
