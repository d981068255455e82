"""What cannot be done is refused in full, in words that help, and changes nothing."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone

import pytest

from ragaccel import MultiLevelCache, accelerate
from ragaccel.errors import (
    CollectionClosedError,
    CollectionError,
    CollectionLockedError,
    CollectionNotFoundError,
    ConfigurationError,
    DimensionMismatchError,
    FilterError,
    InvalidRecordError,
    InvalidVectorError,
    RagaccelError,
)
from ragaccel.langchain import CompressedVectorStore
from ragaccel.reuse import NeighbourReuse
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.stores import opened

DAY = datetime(2024, 5, 17, tzinfo=timezone.utc)
CYCLE = []
CYCLE.append(CYCLE)


class Spoilable(HashEmbeddings):
    """Gives the last text of a call what `spoil` makes of its good vector."""

    spoil = None

    def embed_documents(self, texts):
        *others, last = [HashEmbeddings.embed_query(self, text) for text in texts]
        return [*others, *(self.spoil(last) if self.spoil else [last])]

    def embed_query(self, text):
        return self.embed_documents([text])[0]


def contents(store):
    """Everything a store holds."""
    return [(row.id, row.text, row.metadata) for row in store.collection.scan()]


def spoiled(spoil, use):
    """Use a store while its model fails."""

    def act(store):
        store.embeddings.spoil = spoil
        try:
            use(store)
        finally:
            store.embeddings.spoil = None

    return act


def add(spoil, *texts):
    """Add texts, the last of which gets a bad vector."""
    return spoiled(spoil, lambda store: store.add_texts(texts or ["good", "bad"]))


def ask(spoil):
    """Search with a bad vector."""
    return spoiled(spoil, lambda store: store.similarity_search("red"))


def with_metadata(value):
    """Add two texts, the second with a value in its metadata."""
    return lambda store: store.add_texts(["good", "bad"], [{}, {"key": value}])


def where(condition):
    """Search with a filter."""
    return lambda store: store.similarity_search("red", filter=condition)


def shorter(vector):
    return [vector[:3]]


def holed(vector):
    return [[math.nan, *vector[1:]]]


def endless(vector):
    return [[*vector[:-1], math.inf]]


def missing(vector):
    return []


# What is tried, the error, and what its message says: what was wrong, and what to do.
WRITES = {
    "dimension of one": (add(shorter), InvalidVectorError, "rows of equal length", ""),
    "dimension of all": (
        add(shorter, "bad"),
        DimensionMismatchError,
        "64 dimensions, got 3",
        "use the embedding model",
    ),
    "not a number": (add(holed), InvalidVectorError, "vector 1 .*NaN", "embedding"),
    "infinity": (add(endless), InvalidVectorError, "vector 1 .*infinite", "embedding"),
    "too few vectors": (add(missing), InvalidRecordError, "got 1", "need 2 vectors"),
    "empty text": (
        lambda store: store.add_texts(["good", ""]),
        InvalidRecordError,
        "text is empty",
        "leave .* out",
    ),
    "text that is no Unicode": (
        lambda store: store.add_texts(["good", "b\ud800d"]),
        InvalidRecordError,
        "not valid Unicode",
        "clean it",
    ),
    "too few ids": (
        lambda store: store.add_texts(["good", "bad"], ids=["one"]),
        ConfigurationError,
        "got 1",
        "need 2 ids",
    ),
    "too many ids": (
        lambda store: store.add_texts(["good"], ids=["one", "two"]),
        ConfigurationError,
        "got 2",
        "need 1 ids",
    ),
    "too few metadatas": (
        lambda store: store.add_texts(["good", "bad"], [{}]),
        InvalidRecordError,
        "got 1",
        "need 2 metadata",
    ),
    "id that is no text": (
        lambda store: store.add_texts(["good", "bad"], ids=["one", 2]),
        InvalidRecordError,
        "got 2 at position 1",
        "non-empty strings",
    ),
    "id that is no Unicode": (
        lambda store: store.add_texts(["good", "bad"], ids=["one", "b\ud800d"]),
        InvalidRecordError,
        "not valid Unicode",
        "clean it",
    ),
    "id with a zero character": (
        lambda store: store.add_texts(["good", "bad"], ids=["one", "text-0\0"]),
        InvalidRecordError,
        "(zero|null) character",
        "remove it",
    ),
    "zero character in metadata": (
        with_metadata("a\0b"),
        InvalidRecordError,
        r"\['key'\].*(zero|null) character",
        "remove it",
    ),
    "zero character in a key": (
        with_metadata({"a\0b": 1}),
        InvalidRecordError,
        "(zero|null) character",
        "remove it",
    ),
    "date": (with_metadata(DAY), InvalidRecordError, r"\['key'\].*datetime", "store strings"),
    "NaN": (with_metadata(math.nan), InvalidRecordError, r"\['key'\].*nan", "finite numbers"),
    "infinite": (with_metadata(-math.inf), InvalidRecordError, "inf", "finite numbers"),
    "set": (with_metadata({1}), InvalidRecordError, r"\['key'\].*set", "lists"),
    "bytes": (with_metadata(b"raw"), InvalidRecordError, "bytes", "store strings"),
    "deep inside": (
        with_metadata({"list": [0, {"date": DAY}]}),
        InvalidRecordError,
        re.escape("['key']['list'][1]['date']"),
        "store strings",
    ),
    "key that is no text": (
        with_metadata({1: "one"}),
        InvalidRecordError,
        "1: 'one'",
        "string keys",
    ),
    "metadata that is no Unicode": (
        with_metadata("b\ud800d"),
        InvalidRecordError,
        "metadata",
        "",
    ),
    "list inside itself": (with_metadata(CYCLE), InvalidRecordError, "nested|holds itself", ""),
    "ids in one text": (
        lambda store: store.delete("text-0"),
        InvalidRecordError,
        "the string 'text-0'",
        "list of strings",
    ),
}
READS = {
    "query dimension": (ask(shorter), DimensionMismatchError, "64 .* got 3", "embedding model"),
    "query not a number": (ask(holed), InvalidVectorError, "NaN", "embedding"),
    "query too large for float32": (
        ask(lambda vector: [[1e300, *vector[1:]]]),
        InvalidVectorError,
        "infinite",
        "embedding",
    ),
    "no results asked for": (
        lambda store: store.similarity_search("red", k=0),
        ConfigurationError,
        "got 0",
        "k must be at least 1",
    ),
    "unknown operator": (
        where({"number": {"$near": 3}}),
        FilterError,
        r"\$near.*number",
        r"use one of \$eq.*\$exists",
    ),
    "unknown combination": (
        where({"$xor": []}),
        FilterError,
        r"\$xor",
        r"use \$and, \$or, \$not or a field",
    ),
    "condition without operator": (where({"number": {}}), FilterError, "number", r"\$eq"),
    "text as filter": (where("number > 1"), FilterError, "got str", "dict or a function"),
    "list as filter": (where([{"number": 1}]), FilterError, "got list", "dict or a function"),
    "empty list as filter": (where([]), FilterError, "got list", "dict or a function"),
    "number as field": (where({1: "a"}), FilterError, "1", "string"),
    "combination of no list": (
        where({"$and": {"number": 1}}),
        FilterError,
        r"\$and.*number",
        "list of filters",
    ),
    "combination of no filters": (where({"$or": [1]}), FilterError, r"\$or", "list of filters"),
    "value of no kind": (where({"number": object()}), FilterError, "object", "string or a number"),
    "date as value": (where({"number": {"$gt": DAY}}), FilterError, "datetime", "string or"),
    "None to be greater than": (where({"number": {"$gt": None}}), FilterError, "None", "needs"),
    "one value of many": (where({"number": {"$in": 3}}), FilterError, "got 3", r"write \[value\]"),
    "dates among many": (where({"number": {"$in": [DAY]}}), FilterError, "datetime", "string"),
    "objects among many": (where({"number": [object()]}), FilterError, "object", "string"),
    "part of a number": (where({"number": {"$like": 3}}), FilterError, "got 3", "needs a string"),
    "value that is no Unicode": (where({"number": "\ud800"}), FilterError, "Unicode", ""),
    "field that is no Unicode": (where({"\ud800": 1}), FilterError, "Unicode", ""),
}


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    """A store with six texts."""
    path = None if request.param == "memory" else tmp_path / "corpus"
    store = opened(path, embeddings=Spoilable())
    yield store
    store.close()


@pytest.mark.parametrize(
    ("act", "error", "wrong", "advice"), [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS]
)
def test_refusal_helps_and_changes_nothing(store, act, error, wrong, advice):
    """The error says what was wrong and what to do, and all of the call is undone."""
    before = contents(store)
    with pytest.raises(RagaccelError, match=f"(?s){wrong}") as refusal:
        act(store)
    assert type(refusal.value) is error
    assert re.search(advice, str(refusal.value))
    assert contents(store) == before
    assert len(store.similarity_search("red apple tree", 100)) == len(before)
    store.add_texts(["and it goes on"], ids=["later"])
    assert [one.id for one in store.similarity_search("and it goes on", 1)] == ["later"]


@pytest.mark.parametrize(
    ("texts", "options", "error"),
    [
        (["good", ""], {}, InvalidRecordError),
        (["good", "bad"], {"ids": ["one"]}, ConfigurationError),
        (["good", "bad"], {"metadatas": [{}, {"date": DAY}]}, InvalidRecordError),
    ],
    ids=["empty text", "too few ids", "date"],
)
async def test_asynchronous_writes_are_refused_alike(store, texts, options, error):
    """An async write that fails raises the same error and changes nothing."""
    before = contents(store)
    with pytest.raises(error):
        await store.aadd_texts(texts, **options)
    assert contents(store) == before


@pytest.mark.parametrize("condition", ["age > 1", {"age": {"$near": 1}}])
async def test_asynchronous_searches_are_refused_alike(store, condition):
    """An async search with an unfit filter raises the same error."""
    for search in ("asimilarity_search", "amax_marginal_relevance_search"):
        with pytest.raises(FilterError):
            await getattr(store, search)("red", filter=condition)


def test_error_of_a_filter_function_comes_through(store):
    """What the caller's own function raises is not dressed up."""
    with pytest.raises(KeyError, match="unknown"):
        store.similarity_search("red", filter=lambda document: document.metadata["unknown"])


def test_refused_write_is_not_there_after_reopening(tmp_path):
    """Nothing of a failed call reaches the disk."""
    store = opened(tmp_path / "corpus")
    before = contents(store)
    with pytest.raises(InvalidRecordError):
        store.add_texts(["good", "replaced", ""], ids=["new", "text-0", "empty"])
    store.close()
    again = CompressedVectorStore.open(tmp_path / "corpus", HashEmbeddings(), read_only=True)
    assert contents(again) == before
    again.close()


USES = {
    "add": lambda store: store.add_texts(["text"]),
    "delete": lambda store: store.delete(["text-0"]),
    "delete all": lambda store: store.delete(),
    "get": lambda store: store.get_by_ids(["text-0"]),
    "search": lambda store: store.similarity_search("red"),
    "search with a function": lambda store: store.similarity_search("red", filter=lambda _: True),
    "diverse search": lambda store: store.max_marginal_relevance_search("red"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_closed_store_says_so(store, use):
    """After `close` every use is refused, and closing again is not."""
    store.close()
    with pytest.raises(CollectionClosedError, match=r"closed; (open it again|make a new one)"):
        use(store)
    store.close()


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_store_that_was_closed_before_its_first_use_says_so(tmp_path, use):
    """Closing a store that was never used closes it, too."""
    store = CompressedVectorStore(HashEmbeddings(), path=tmp_path / "corpus")
    store.close()
    with pytest.raises(CollectionClosedError, match=r"closed; (open it again|make a new one)"):
        use(store)
    assert list(tmp_path.iterdir()) == []


def test_store_for_reading_cannot_be_written(tmp_path):
    """A reader refuses writes, and what is there stays."""
    opened(tmp_path / "corpus").close()
    reader = CompressedVectorStore.open(tmp_path / "corpus", HashEmbeddings(), read_only=True)
    before = contents(reader)
    for write in (lambda: reader.add_texts(["text"]), lambda: reader.delete(["text-0"])):
        with pytest.raises(CollectionError, match="reading only; open it without read_only"):
            write()
    assert contents(reader) == before
    reader.close()


def test_folder_without_a_collection_cannot_be_read(tmp_path):
    """A reader of an empty folder is told so, and leaves no file."""
    with pytest.raises(CollectionNotFoundError, match="no collection at"):
        CompressedVectorStore.open(tmp_path / "corpus", HashEmbeddings(), read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_second_writer_is_refused(tmp_path):
    """Two writers of one folder are told apart, and the first one goes on."""
    first = opened(tmp_path / "corpus")
    with pytest.raises(CollectionLockedError, match="close it, or open with read_only=True"):
        CompressedVectorStore.open(tmp_path / "corpus", HashEmbeddings())
    first.add_texts(["still writing"])
    first.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "euclid"}, "cosine, ip or l2, got 'euclid'"),
        ({"recall": 99}, "recall=0.99"),
        ({"dim": 0}, "at least 1, got 0"),
        ({"compression": "zip"}, "float32.*got 'zip'"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, options, message):
    """Options are checked before a folder is made."""
    with pytest.raises(ConfigurationError, match=message):
        CompressedVectorStore.open(tmp_path / "corpus", HashEmbeddings(), **options)
    assert list(tmp_path.iterdir()) == []


def test_another_model_for_a_stored_collection_is_refused(tmp_path):
    """A collection that was made with another dimension is not searched, and stays as it is."""
    opened(tmp_path / "corpus").close()
    store = CompressedVectorStore.open(tmp_path / "corpus", HashEmbeddings(dim=32))
    before = contents(store)
    for use in (lambda: store.similarity_search("red"), lambda: store.add_texts(["text"])):
        with pytest.raises(DimensionMismatchError, match="64 dimensions, got 32; use the"):
            use()
    assert contents(store) == before
    store.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "redis://:secret@host"}, "MultiLevelCache.open"),
        ({"cache": MultiLevelCache}, "MultiLevelCache.open"),
        ({"namespace": 7}, "namespace must be"),
        ({"batch": 8}, "MicroBatcher"),
        ({"semantic": True}, "VerifiedReuse"),
        ({"neighbours": NeighbourReuse}, "NeighbourReuse"),
    ],
)
def test_what_could_not_be_used_is_refused_at_once(options, message):
    """Not at the first question, or never; and nothing of a URL is told."""
    retriever = CompressedVectorStore(HashEmbeddings()).as_retriever()
    cache = MultiLevelCache.open()
    with pytest.raises(ConfigurationError, match=message) as told:
        accelerate(retriever, **{"cache": cache, **options})
    assert "secret" not in str(told.value)
