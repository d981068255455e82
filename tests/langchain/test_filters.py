"""Metadata filters: every operator by example, and all of them against plain Python."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document

from ragaccel.langchain import CompressedVectorStore
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.test_vector_store import many

PEOPLE = {
    "ann": {"age": 31, "city": "Oslo", "tags": ["a", "b"], "member": True},
    "bob": {"age": 25, "city": "Bergen", "tags": [], "member": False, "note": None},
    "cid": {"age": 40.5, "city": "oslo", "tags": ["b", 3], "boss": {"name": "ann"}},
    "dee": {"city": "Oslo Fjord", "note": "later"},
}


@pytest.fixture(scope="module")
def people():
    """A store with one document per person."""
    store = CompressedVectorStore(HashEmbeddings())
    store.add_texts(list(PEOPLE), list(PEOPLE.values()), ids=list(PEOPLE))
    yield store
    store.close()


def matching(store, where):
    """The ids of all documents that pass a filter."""
    found = store.similarity_search("anybody", max(1, len(store.collection)), filter=where)
    names = {document.id for document in found}
    assert len(names) == len(found)
    return names


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ({}, "ann bob cid dee"),
        ({"city": "Oslo"}, "ann"),
        ({"city": {"$eq": "Oslo"}}, "ann"),
        ({"city": {"$ne": "Oslo"}}, "bob cid dee"),
        ({"age": {"$ne": 31}}, "bob cid dee"),
        ({"age": {"$gt": 25}}, "ann cid"),
        ({"age": {"$gte": 25}}, "ann bob cid"),
        ({"age": {"$lt": 31}}, "bob"),
        ({"age": {"$lte": 31}}, "ann bob"),
        ({"age": {"$gt": 25, "$lt": 40}}, "ann"),
        ({"age": {"$gt": "0"}}, ""),
        ({"city": {"$gt": "Bergen"}}, "ann cid dee"),
        ({"city": ["Oslo", "Bergen"]}, "ann bob"),
        ({"city": ("Oslo", "Bergen")}, "ann bob"),
        ({"city": {"$in": ["oslo"]}}, "cid"),
        ({"city": {"$in": []}}, ""),
        ({"age": {"$nin": [25, 31]}}, "cid dee"),
        ({"member": True}, "ann"),
        ({"member": False}, "bob"),
        ({"tags": {"$contains": "b"}}, "ann cid"),
        ({"tags": {"$contains": 3}}, "cid"),
        ({"city": {"$contains": "slo"}}, "ann cid dee"),
        ({"boss": {"$contains": "name"}}, "cid"),
        ({"tags": {"$any": ["a", 3]}}, "ann cid"),
        ({"tags": {"$all": ["a", "b"]}}, "ann"),
        ({"tags": {"$all": []}}, "ann bob cid"),
        ({"tags": ["a"]}, ""),
        ({"tags": {"$eq": ["a", "b"]}}, "ann"),
        ({"city": {"$like": "Oslo"}}, "ann dee"),
        ({"city": {"$ilike": "OSLO"}}, "ann cid dee"),
        ({"note": None}, "ann bob cid"),
        ({"note": {"$eq": None}}, "ann bob cid"),
        ({"note": {"$ne": None}}, "dee"),
        ({"note": {"$exists": True}}, "dee"),
        ({"note": {"$exists": False}}, "ann bob cid"),
        ({"unknown": {"$exists": False}}, "ann bob cid dee"),
        ({"city": "Oslo", "age": {"$gt": 30}}, "ann"),
        ({"$and": [{"member": True}, {"age": {"$lt": 40}}]}, "ann"),
        ({"$and": []}, "ann bob cid dee"),
        ({"$or": [{"city": "Bergen"}, {"age": {"$gt": 40}}]}, "bob cid"),
        ({"$or": []}, ""),
        ({"$not": {"city": "Oslo"}}, "bob cid dee"),
        ({"$not": [{"city": "Oslo"}, {"age": 31}]}, "bob cid dee"),
        ({"age": {"$not": {"$gt": 30}}}, "bob dee"),
        ({"$or": [{"$and": [{"member": True}]}, {"$not": {"age": {"$exists": True}}}]}, "ann dee"),
        ({"$or": [{"city": "Oslo"}], "age": {"$lt": 30}}, ""),
        (lambda document: document.metadata.get("age", 0) > 30, "ann cid"),
        (lambda document: document.id == "bob", "bob"),
        (lambda document: "e" in document.page_content, "dee"),
        (lambda _: False, ""),
    ],
)
def test_filter_lets_pass_what_it_says(people, where, names):
    """Every operator, alone and combined, passes just the documents it names."""
    assert matching(people, where) == set(names.split())


def test_function_sees_whole_documents(people):
    """A filter function is given documents as a search would return them."""
    seen = []
    people.similarity_search("anybody", 1, filter=seen.append)
    assert seen == [
        Document(id=name, page_content=name, metadata=metadata) for name, metadata in PEOPLE.items()
    ]


@pytest.mark.parametrize("compression", ["float32", "int8", "pq"])
@pytest.mark.parametrize("search", ["similarity_search", "max_marginal_relevance_search"])
def test_selective_filter_still_gives_k_results(compression, search):
    """As many documents come back as were asked for, however few of all rows pass."""
    texts = many(2_100)
    store = CompressedVectorStore.from_texts(
        texts,
        HashEmbeddings(),
        [{"row": row, "rare": row % 300 == 299} for row in range(len(texts))],
        compression=compression,
    )
    store.collection.flush()
    for where in ({"rare": True}, lambda document: document.metadata["rare"]):
        found = getattr(store, search)("w0 w1 n5", k=7, filter=where)
        assert {document.metadata["row"] for document in found} == set(range(299, 2_100, 300))


@pytest.mark.parametrize(
    "where",
    [
        {"$or": [{"age": number} for number in range(1_500)]},
        {"$and": [{"age": {"$ne": -number}} for number in range(1, 1_500)]},
        {"age": {"$in": list(range(100_000))}},
        {"city": {"$any": ["Berg", *(f"group {number}" for number in range(1_500))]}},
    ],
    ids=["or", "and", "in", "any"],
)
def test_long_filters_work(people, where):
    """Lists of a user's thousand groups or ids are no longer than a filter can be."""
    assert "bob" in matching(people, where)


def test_whole_numbers_beyond_64_bits_can_be_compared(embeddings):
    """A number that SQLite has no integer for is compared like any other."""
    store = CompressedVectorStore(embeddings)
    store.add_texts(["small", "large"], [{"n": 1}, {"n": 2**70}], ids=["small", "large"])
    assert matching(store, {"n": {"$lt": 2**63}}) == {"small"}
    assert matching(store, {"n": 2**70}) == {"large"}


def test_text_that_looks_like_a_list_is_a_text(embeddings):
    """A text is not one of the values of a list because it is written as one of them would be."""
    store = CompressedVectorStore(embeddings)
    store.add_texts(["a", "b"], [{"v": "[1]"}, {"v": [1]}], ids=["text", "list"])
    assert matching(store, {"v": {"$in": ["[1]"]}}) == {"text"}
    assert "text" not in matching(store, {"v": {"$in": [[1]]}})


# -- all operators at once, against plain Python ---------------------------------------------------

KEYS = (
    "plain", "two words", "dotted.key", 'dou"ble', "it's", "back\\slash", "a[0]", "größe", "日本",
    "😀", "", "#", "line\nbreak", "\x7f", "x$",
)  # fmt: skip
characters = st.characters(codec="utf-8", exclude_characters="\0")
strings = st.one_of(
    st.sampled_from(["", "a", "A", "ab", "1", "null", "true", "[]", '"', "\\", "%", "é", "Straße"]),
    st.text(characters, max_size=4),
)
whole = st.one_of(st.integers(-2, 2), st.integers(-(2**63), 2**63 - 1))
fractions = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 0.5, 0.1 + 0.2, float(2**53), 1e300, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)
any_scalar = st.one_of(strings, whole, fractions, st.booleans())


@st.composite
def cases(draw):
    """Rows of metadata and a filter; they share a few keys and values, so that much is equal."""
    keys = st.sampled_from(draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)))
    pool = draw(st.lists(any_scalar, min_size=1, max_size=4))
    texts = [one for one in pool if isinstance(one, str)]
    scalars = st.sampled_from(pool)
    strings = st.sampled_from(
        [part for one in [*texts, ""] for part in (one, one[1:], one.upper())]
    )
    lists = st.lists(st.one_of(scalars, st.none()), max_size=2)
    values = st.one_of(scalars, scalars, st.none(), lists, st.dictionaries(strings, scalars))
    rows = st.lists(st.dictionaries(keys, values, min_size=1), min_size=2, max_size=6)
    fields = st.dictionaries(keys, conditions(scalars, strings, lists), min_size=1, max_size=2)
    where = st.recursive(fields, partial(combinations, fields), max_leaves=4)
    return draw(rows), draw(where)


def conditions(scalars, strings, lists):
    """What can stand behind a field's name."""
    operands = {
        **dict.fromkeys(("$eq", "$ne"), st.one_of(scalars, st.none(), lists)),
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte", "$contains"), scalars),
        **dict.fromkeys(("$in", "$nin"), lists),
        **dict.fromkeys(("$any", "$all"), st.lists(scalars, max_size=2)),
        **dict.fromkeys(("$like", "$ilike"), strings),
        "$exists": st.booleans(),
    }
    one = st.one_of(
        *(st.fixed_dictionaries({name: operand}) for name, operand in operands.items()),
        st.fixed_dictionaries({"$gte": scalars, "$lte": scalars}),
    )
    direct = st.one_of(scalars, st.none(), lists, lists.map(tuple))
    return st.one_of(one, one, direct, st.fixed_dictionaries({"$not": one}))


def combinations(fields, parts):
    """What filters are combined to."""
    return st.one_of(
        st.fixed_dictionaries({"$and": st.lists(parts, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(parts, max_size=3)}),
        st.fixed_dictionaries({"$not": st.one_of(parts, st.lists(parts, max_size=2))}),
        st.tuples(fields, parts).map(lambda pair: {**pair[0], **pair[1]}),
    )


def passes(metadata, where):
    """Whether metadata passes a filter: what `ragaccel.vectors.filters` says, in plain Python."""
    for key, wanted in where.items():
        if key == "$and":
            fine = all(passes(metadata, part) for part in wanted)
        elif key == "$or":
            fine = any(passes(metadata, part) for part in wanted)
        elif key == "$not":
            parts = [wanted] if isinstance(wanted, dict) else wanted
            fine = not all(passes(metadata, part) for part in parts)
        else:
            fine = field_passes(metadata.get(key), wanted)
        if not fine:
            return False
    return True


def field_passes(value, wanted):
    if isinstance(wanted, dict):
        return all(TESTS[name](value, operand) for name, operand in wanted.items())
    if isinstance(wanted, (list, tuple)):
        return one_of(value, wanted)
    return same(value, wanted)


def same(value, wanted):
    """Equal and of the same kind; None stands for a field that is missing or null."""
    if isinstance(wanted, (list, tuple)):
        alike = isinstance(value, list) and len(value) == len(wanted)
        return alike and all(map(same, value, wanted))
    return (comparable(value, wanted) and value == wanted) or value is wanted is None


def comparable(value, wanted):
    """Texts are compared with texts, numbers with numbers; a truth value is a number."""
    texts = isinstance(value, str) and isinstance(wanted, str)
    return texts or (isinstance(value, (int, float)) and isinstance(wanted, (int, float)))


def one_of(value, wanted):
    return value is not None and any(same(value, one) for one in wanted)


def contains(value, item):
    if isinstance(value, list):
        return any(comparable(one, item) and one == item for one in value)
    return isinstance(value, (str, dict)) and isinstance(item, str) and item in value


TESTS = {
    "$eq": same,
    "$ne": lambda value, wanted: not same(value, wanted),
    "$gt": lambda value, wanted: comparable(value, wanted) and value > wanted,
    "$gte": lambda value, wanted: comparable(value, wanted) and value >= wanted,
    "$lt": lambda value, wanted: comparable(value, wanted) and value < wanted,
    "$lte": lambda value, wanted: comparable(value, wanted) and value <= wanted,
    "$in": one_of,
    "$nin": lambda value, wanted: not one_of(value, wanted),
    "$contains": contains,
    "$any": lambda value, wanted: any(contains(value, item) for item in wanted),
    "$all": lambda value, wanted: (
        value is not None and all(contains(value, item) for item in wanted)
    ),
    "$like": lambda value, wanted: isinstance(value, str) and wanted in value,
    "$ilike": lambda value, wanted: isinstance(value, str) and wanted.lower() in value.lower(),
    "$exists": lambda value, wanted: (value is not None) == wanted,
    "$not": lambda value, wanted: not field_passes(value, wanted),
}


@settings(max_examples=150, deadline=None)
@given(cases())
def test_filters_agree_with_plain_python(case):
    """Whatever the metadata and the filter, the documents that Python would pick come back."""
    rows, where = case
    names = [str(row) for row in range(len(rows))]
    store = CompressedVectorStore.from_texts(
        ["row"] * len(rows), HashEmbeddings(4), rows, ids=names
    )
    assert matching(store, where) == {
        name for name, metadata in zip(names, rows, strict=True) if passes(metadata, where)
    }
    store.close()
