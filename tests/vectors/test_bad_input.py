"""What cannot be stored or answered is refused by name, and changes nothing."""

from __future__ import annotations

import datetime as dt
import pickle

import numpy as np
import pytest

from ragaccel import CompressionSpec, RagaccelError, VectorCollection
from ragaccel.errors import (
    CollectionClosedError,
    CollectionError,
    ConfigurationError,
    DimensionMismatchError,
    FilterError,
    InvalidRecordError,
    InvalidVectorError,
)
from ragaccel.vectors import Ids

NAN = float("nan")
INFINITY = float("inf")
LONE = "\ud800"


@pytest.fixture
def stored(tmp_path):
    """A collection of three rows with all that rows can have, on disk."""
    with VectorCollection.open(tmp_path / "stored") as collection:
        collection.upsert(
            ["a", "b", "c"],
            [[1, 0], [0, 1], [1, 1]],
            texts=["one", None, "three"],
            metadata=[{"n": 1}, None, {"tags": ["x", None, {"y": 0.5}]}],
            document_ids=["first", None, "first"],
            payloads=[b"\x00", None, b""],
        )
        yield collection


def content(collection):
    """Return all that is stored, and the position of the change log."""
    rows = [
        (
            row.slot,
            row.id,
            row.text,
            row.metadata,
            row.document_id,
            row.payload,
            row.vector.tolist(),
        )
        for row in collection.select(vectors=True)
    ]
    return rows, collection.seq


def deep(levels):
    """Return a dict in a dict in a dict."""
    found = {}
    for _ in range(levels):
        found = {"in": found}
    return found


def refuses(collection, call, error, words):
    """Check that a call is refused with words, and that everything stays as it was."""
    before = content(collection)

    with pytest.raises(error) as refused:
        call(collection)

    assert isinstance(refused.value, RagaccelError)
    for word in words:
        assert word in str(refused.value)
    assert content(collection) == before
    path = collection.path
    collection.close()
    with VectorCollection.open(path) as again:
        assert content(again) == before


def upsert(vectors, **columns):
    """Return a call that writes one new row, and replaces another."""
    return lambda collection: collection.upsert(["new", "a"], vectors, **columns)


def case(name, call, *words):
    """Name a call and the words of its refusal."""
    return pytest.param(call, words, id=name)


# -- vectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        case("three axes", upsert(np.zeros((2, 2, 1))), "(2, 2, 1)", "(n, dim)"),
        case("no axis", lambda one: one.upsert(["new"], np.float32(1)), "(n, dim)"),
        case("no dimensions", upsert(np.zeros((2, 0))), "(2, 0)", "(n, dim)"),
        case("ragged", upsert([[1, 2], [3]]), "equal length"),
        case("words", upsert([["one", "two"], ["three", "four"]]), "numbers", "one"),
        case("digits in strings", upsert([["1", "2"], ["3", "4"]]), "numbers"),
        case("bytes", upsert(b"12"), "(n, dim)"),
        case("dict", upsert({"a": 1}), "numbers", "dict"),
        case("nothing", upsert(None), "(n, dim)"),
        case("complex", upsert([[1j, 0], [0, 1]]), "numbers"),
        case("NaN", upsert([[1, 2], [NAN, 4]]), "1", "NaN"),
        case("infinity", upsert([[1, 2], [3, -INFINITY]]), "1", "infinite"),
        case("too large for float32", upsert([[1, 2], [3, 1e300]]), "1", "infinite"),
        case("None among numbers", upsert([[1, 2], [3, None]]), "1", "NaN"),
    ],
)
def test_unfit_vectors(stored, call, words):
    """Vectors that are not rows of finite numbers are refused."""
    refuses(stored, call, InvalidVectorError, words)


@pytest.mark.parametrize("dim", [1, 3, 1024])
def test_vectors_of_another_dimension(stored, dim):
    """Vectors of another model are refused with both dimensions, in writing and in asking."""
    words = ["2 dimensions", str(dim), "embedding model"]
    refuses(stored, upsert(np.ones((2, dim))), DimensionMismatchError, words)
    with VectorCollection.open(stored.path) as again:
        refuses(again, lambda one: one.search(np.ones(dim)), DimensionMismatchError, words)
    with pytest.raises(DimensionMismatchError, match=f"2 dimensions, got dim={dim}"):
        VectorCollection.open(stored.path, dim=dim)


@pytest.mark.parametrize(
    "query", [[NAN, 1], [[1, 2], [INFINITY, 0]], [[[1, 2]]], ["one", "two"], [[1, 2], [3]], None]
)
def test_unfit_queries(stored, query):
    """A query that is not a row of finite numbers is refused."""
    refuses(stored, lambda one: one.search(query), InvalidVectorError, [])


@pytest.mark.parametrize("count", [0, 2])
async def test_one_query_where_one_is_taken(stored, count):
    """What answers one query does not pass over others."""
    with pytest.raises(InvalidVectorError, match=f"one query vector, got {count}"):
        await stored.asearch(np.zeros((count, stored.dim)))


def test_a_dimension_asked_for_later_is_kept(tmp_path):
    """A collection that was made without a dimension takes the one that it is reopened with."""
    VectorCollection.open(tmp_path).close()
    with (
        VectorCollection.open(tmp_path, dim=5) as collection,
        pytest.raises(DimensionMismatchError, match="5"),
    ):
        collection.upsert(["a"], [[1, 2, 3]])


# -- records ---------------------------------------------------------------------------------------

PAIR = [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        case("empty id", lambda one: one.upsert(["new", ""], PAIR), "''", "1", "non-empty"),
        case("number as id", lambda one: one.upsert(["new", 5], PAIR), "5", "strings"),
        case("bytes as id", lambda one: one.upsert([b"new", "a"], PAIR), "b'new'", "strings"),
        case("None as id", lambda one: one.upsert([None, "a"], PAIR), "None", "strings"),
        case("one string as ids", lambda one: one.upsert("ab", PAIR), "'ab'", "list"),
        case("no ids", lambda one: one.upsert(None, PAIR), "ids", "None"),
        case(
            "surrogate in an id", lambda one: one.upsert(["new", LONE], PAIR), "Unicode", "replace"
        ),
        case("null in an id", lambda one: one.upsert(["new", "a\0"], PAIR), "id", "null"),
        case("null in a document", upsert(PAIR, document_ids=["a\0", "b"]), "document", "null"),
        case("fewer ids", lambda one: one.upsert(["new"], PAIR), "1 ids", "2"),
        case("no ids for vectors", lambda one: one.upsert([], PAIR), "0 ids", "2"),
        case("fewer vectors", upsert([[1, 2]]), "2 ids", "2 vectors", "1"),
        case("fewer texts", upsert(PAIR, texts=["one"]), "2 ids", "2 texts", "1"),
        case("more metadata", upsert(PAIR, metadata=[{}] * 3), "2 ids", "2 metadata", "3"),
        case("fewer documents", upsert(PAIR, document_ids=[]), "2 ids", "2 document_ids", "0"),
        case("fewer payloads", upsert(PAIR, payloads=[b""]), "2 ids", "2 payloads", "1"),
        case("one string as texts", upsert(PAIR, texts="ab"), "texts", "'ab'"),
        case("empty text", upsert(PAIR, texts=["new", ""]), "empty", "None"),
        case("number as text", upsert(PAIR, texts=["new", 5]), "int", "strings"),
        case("surrogate in a text", upsert(PAIR, texts=["new", LONE]), "Unicode", "replace"),
        case("number as document", upsert(PAIR, document_ids=["new", 5]), "document_ids", "5"),
        case("dict as document", upsert(PAIR, document_ids=["new", {}]), "document_ids", "{}"),
        case("surrogate in a document", upsert(PAIR, document_ids=["new", LONE]), "Unicode"),
        case("text as payload", upsert(PAIR, payloads=[b"new", "text"]), "payloads", "'text'"),
        case("number as payload", upsert(PAIR, payloads=[b"new", 5]), "payloads", "5"),
        case("object as payload", upsert(PAIR, payloads=[b"", object()]), "payloads", "object"),
    ],
)
def test_unfit_records(stored, call, words):
    """Columns that are not as long as the ids, or hold what cannot be stored, are refused."""
    refuses(stored, call, InvalidRecordError, words)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        case("date", {"at": dt.date(2026, 1, 2)}, "'at'", "date"),
        case(
            "time",
            {"at": dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)},
            "'at'",
            "2026",
        ),
        case("NaN", {"n": NAN}, "'n'", "nan", "finite"),
        case("infinity", {"n": [1.0, INFINITY]}, "'n'", "[1]", "inf"),
        case("set", {"s": {1}}, "'s'", "{1}", "lists"),
        case("bytes", {"deep": {"b": [b"x"]}}, "'deep'", "'b'", "[0]", "b'x'"),
        case("numpy number", {"n": np.int64(1)}, "'n'", "int64"),
        case("numpy array", {"n": np.zeros(2)}, "'n'", "array"),
        case("complex", {"n": 1j}, "'n'", "1j"),
        case("object", {"o": object()}, "'o'", "object"),
        case("number as key", {1: "one"}, "1", "string keys"),
        case("surrogate", {"s": LONE}, "'s'", "Unicode"),
        case("surrogate in a key", {LONE: 1}, "key", "Unicode"),
        case("null character", {"deep": ["a\0"]}, "'deep'", "[0]", "null"),
        case("null character in a key", {"a\0": 1}, "key", "null"),
        case("deeper than JSON goes", deep(5000), "metadata"),
        case("text for a dict", "author", "metadata", "'author'"),
        case("list for a dict", [1], "metadata", "[1]"),
        case("number for a dict", 5, "metadata", "5"),
    ],
)
def test_unfit_metadata(stored, metadata, words):
    """Metadata that JSON cannot hold is refused with the place where it is."""
    refuses(stored, upsert(PAIR, metadata=[{"fit": 1}, metadata]), InvalidRecordError, words)


def test_one_dict_for_a_column_of_metadata(stored):
    """A dict where a list of dicts belongs is refused, also where its length fits."""
    call = upsert(PAIR, metadata={"n": 1, "m": 2})
    refuses(stored, call, InvalidRecordError, ["metadata"])


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
@pytest.mark.parametrize("fault", ["vector", "id", "surrogate", "text", "metadata", "payload"])
def test_one_bad_row_among_a_thousand(tmp_path, fault, on_disk):
    """If one row of a call is refused, none of its rows is stored and later calls work."""
    ids, metadata = [f"row-{at}" for at in range(1000)], [{"n": at} for at in range(1000)]
    vectors, texts, payloads = np.ones((1000, 2)), ["text"] * 1000, [b""] * 1000
    if fault == "vector":
        vectors[500] = NAN
    elif fault == "id":
        ids[500] = ""
    elif fault == "surrogate":
        ids[500] = LONE
    elif fault == "text":
        texts[500] = ""
    elif fault == "metadata":
        metadata[500] = {"n": {1, 2}}
    else:
        payloads[500] = object()
    with VectorCollection.open(tmp_path if on_disk else None) as collection:
        collection.upsert(["row-1", "kept"], [[1, 0], [0, 1]], texts=["old", "old"])
        before = content(collection)

        with pytest.raises((InvalidVectorError, InvalidRecordError)):
            collection.upsert(ids, vectors, texts=texts, metadata=metadata, payloads=payloads)

        assert content(collection) == before
        assert [hit.id for hit in collection.search([1, 0], k=5)[0]] == ["row-1", "kept"]
        collection.upsert(["later"], [[1, 1]])
        assert [row.id for row in collection.select()] == ["row-1", "kept", "later"]


@pytest.mark.parametrize("ids", [[""], [5], [None], "ab", None, [LONE]], ids=ascii)
@pytest.mark.parametrize("method", ["get", "delete"])
def test_unfit_ids_in_reading_and_deleting(stored, method, ids):
    """Ids that no row can have are refused wherever ids are given."""
    refuses(stored, lambda one: getattr(one, method)(ids), InvalidRecordError, [])


@pytest.mark.parametrize("vectors", [[], np.zeros((0, 2)), np.zeros((0, 0))], ids=repr)
def test_nothing_to_write(stored, vectors):
    """To write no rows is no fault and no change."""
    before = content(stored)

    stored.upsert([], vectors, texts=[], metadata=[])

    assert content(stored) == before


def test_no_filter_deletes_nothing(stored):
    """To pass None where a filter belongs is refused: it would delete every row."""
    before = content(stored)
    with pytest.raises(FilterError, match=r"clear\(\)"):
        stored.delete_where(None)
    assert content(stored) == before


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        case("recall as percent", {"recall": 99}, "99", "0.99"),
        case("no recall", {"recall": 0}, "0", "(0, 1]"),
        case("NaN as recall", {"recall": NAN}, "nan", "(0, 1]"),
        case("text as recall", {"recall": "high"}, "high", "0.99"),
        case("unknown metric", {"metric": "euclid"}, "'euclid'", "cosine", "ip", "l2"),
        case("unknown codec", {"compression": "zip"}, "'zip'", "float32", "int8", "pq"),
        case("codec in capitals", {"compression": "PQ"}, "'PQ'", "pq"),
        case("no codec", {"compression": None}, "None", "float32"),
        case("no dimensions", {"dim": 0}, "0", "at least 1"),
        case("fewer than no dimensions", {"dim": -3}, "-3", "at least 1"),
        case("half a dimension", {"dim": 2.5}, "2.5", "dim"),
        case("text as dimension", {"dim": "64"}, "'64'", "dim"),
        case("no memory", {"memory_mb": 0}, "0", "memory_mb"),
        case("less than no memory", {"memory_mb": -64}, "-64", "memory_mb"),
        case("all memory", {"memory_mb": INFINITY}, "inf", "memory_mb"),
        case("text as memory", {"memory_mb": "64"}, "'64'", "memory_mb"),
    ],
)
def test_unfit_options(tmp_path, options, words):
    """An option that cannot work is refused before anything is made."""
    with pytest.raises(ConfigurationError) as refused:
        VectorCollection.open(tmp_path / "new", **options)

    for word in words:
        assert word in str(refused.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        case("codec", lambda: CompressionSpec("pq8"), "'pq8'", "float32", "pq"),
        case("oversample", lambda: CompressionSpec("pq", oversample=0), "0", "at least 1"),
        case("half a sample", lambda: CompressionSpec("pq", oversample=1.5), "1.5"),
    ],
)
def test_unfit_specs(make, words):
    """A `CompressionSpec` that cannot work is refused when it is made."""
    with pytest.raises(ConfigurationError) as refused:
        make()

    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("k", [0, -1, 2.5, "10", None])
def test_unfit_numbers_of_results(stored, k):
    """`k` is a whole number of at least one."""
    refuses(stored, lambda one: one.search([1, 0], k=k), ConfigurationError, ["k must", str(k)])


def test_a_numpy_number_of_results(stored):
    """`k` may come out of a numpy array."""
    assert len(stored.search([1, 0], k=np.int64(2))[0]) == 2


def test_another_metric_than_the_stored_one(stored):
    """A collection is opened with the metric that it was made with."""
    stored.close()
    with pytest.raises(ConfigurationError, match="metric='cosine', got 'l2'; open it with its own"):
        VectorCollection.open(stored.path, metric="l2")
    VectorCollection.open(stored.path).close()


def test_a_file_where_the_folder_belongs(tmp_path):
    """A path that is a file is refused by name."""
    file = tmp_path / "notes.txt"
    file.write_text("notes")

    with pytest.raises(RagaccelError, match=r"notes\.txt"):
        VectorCollection.open(file)

    assert file.read_text() == "notes"


# -- collections that cannot be used so ------------------------------------------------------------

READS = [
    case("search", lambda one: one.search([1, 0])),
    case("get", lambda one: one.get(["a"])),
    case("select", lambda one: one.select()),
    case("scan", lambda one: list(one.scan())),
    case("count", lambda one: one.count()),
    case("len", len),
    case("changes_since", lambda one: one.changes_since(0)),
    case("measure_recall", lambda one: one.measure_recall()),
    case("stats", lambda one: one.stats()),
]
WRITES = [
    case("upsert", lambda one: one.upsert(["a"], [[1, 0]])),
    case("delete", lambda one: one.delete(["a"])),
    case("delete_where", lambda one: one.delete_where(Ids(()))),
    case("clear", lambda one: one.clear()),
    case("flush", lambda one: one.flush()),
    case("compact", lambda one: one.compact()),
]


@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
@pytest.mark.parametrize(("call", "words"), READS + WRITES)
def test_a_closed_collection(tmp_path, call, words, on_disk):
    """Nothing but `close` works on a closed collection, and the message says what does."""
    collection = VectorCollection.open(tmp_path if on_disk else None)
    collection.upsert(["a"], [[1, 0]])
    collection.close()
    collection.close()

    with pytest.raises(CollectionClosedError, match="closed; open it again"):
        call(collection)

    assert collection.closed


@pytest.mark.parametrize(("call", "words"), READS)
def test_a_closed_follower(stored, call, words):
    """A closed read-only collection says that it is closed."""
    follower = VectorCollection.open(stored.path, read_only=True)
    follower.close()

    with pytest.raises(CollectionClosedError, match="closed; open it again"):
        call(follower)


@pytest.mark.parametrize(("call", "words"), WRITES)
def test_writing_what_is_open_for_reading(stored, call, words):
    """A collection that is open for reading refuses every write."""
    before = content(stored)
    with VectorCollection.open(stored.path, read_only=True) as follower:
        with pytest.raises(CollectionError, match="open it without read_only"):
            call(follower)

        assert content(follower) == before
    assert content(stored) == before


def test_pickling(stored):
    """A collection on disk is pickled as its path; one in memory refuses."""
    with pickle.loads(pickle.dumps(stored)) as copy:
        assert copy.read_only
        assert content(copy) == content(stored)
    with (
        VectorCollection.open() as collection,
        pytest.raises(RagaccelError, match="cannot be pickled; give it a path"),
    ):
        pickle.dumps(collection)
