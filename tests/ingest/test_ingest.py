"""What `ingest` stores, embeds, passes over and reports, over a collection in memory."""

from __future__ import annotations

import io
import json
import re
import sys

import numpy as np
import pytest

from ragaccel import VectorCollection, telemetry
from ragaccel.errors import (
    CollectionError,
    ConfigurationError,
    DimensionMismatchError,
    IngestionError,
    InvalidVectorError,
)
from ragaccel.ingest import ingest
from tests.ingest import texts


class Setup:
    """A collection, a model and the texts that it was asked for."""

    def __init__(self, collection):
        self.collection, self.model, self.asked = collection, texts.HashModel(), []
        self.model.callbacks.append(self.asked.extend)

    def ingest(self, documents, **options):
        self.asked.clear()
        options = {"embed": self.model, "transform": texts.sentences, "workers": 0, **options}
        return ingest(documents, self.collection, **options)

    def texts(self):
        return sorted(row.text for row in self.collection.select())


@pytest.fixture
def setup():
    """An empty collection in memory, and a model."""
    with VectorCollection.open() as collection:
        yield Setup(collection)


def test_chunks_are_stored_with_their_vectors(setup):
    """Text, metadata, document and vector of each chunk are what transformation and model gave."""
    setup.ingest([("a", "one. two", {"kind": "x"})], transform=texts.numbered)
    found = setup.collection.select(vectors=True)
    assert [(one.text, one.metadata, one.document_id) for one in found] == [
        ("one", {"number": 0}, "a"),
        ("two", {"number": 1}, "a"),
    ]
    assert np.array_equal(found[0].vector, setup.model.vector("one"))
    (hits,) = setup.collection.search(setup.model.vector("two"), k=1)
    assert hits[0].text == "two"


def test_without_a_transformation_a_document_keeps_its_id(setup):
    """The row is what the store's own writing would make of it."""
    setup.ingest([("a", "one. two", {"kind": "x"})], transform=None)
    with VectorCollection.open() as other:
        other.upsert(["a"], [setup.model.vector("one. two")], ["one. two"], [{"kind": "x"}])
        assert texts.rows(setup.collection) == texts.rows(other)


@pytest.mark.parametrize("transform", [texts.sentences, None])
def test_what_is_stored_is_passed_over(setup, transform):
    """A second run changes nothing and embeds nothing."""
    documents = texts.documents(30)
    first = setup.ingest(documents, transform=transform)
    before = setup.collection.seq
    second = setup.ingest(documents, transform=transform)
    assert (first.stored, second.stored, second.unchanged) == (30, 0, 30)
    assert (second.embedded, second.chunks, second.deleted) == (0, 0, 0)
    assert setup.collection.seq == before
    assert not setup.asked


def test_without_resume_all_is_made_anew(setup):
    """`resume=False` embeds what is stored already, and leaves it there once."""
    setup.ingest([("a", "one. two")])
    report = setup.ingest([("a", "one. two")], resume=False)
    assert (report.stored, report.embedded) == (1, 2)
    assert setup.texts() == ["one", "two"]


def test_of_a_changed_document_only_new_texts_are_embedded(setup):
    """Its other texts keep their vectors, and what it has no more is gone."""
    setup.ingest([("a", "one. two. three"), ("b", "four")])
    report = setup.ingest([("a", "zero. one. three"), ("b", "four")])
    assert setup.asked == ["zero"]
    assert setup.texts() == ["four", "one", "three", "zero"]
    assert (report.stored, report.unchanged, report.deleted) == (1, 1, 3)
    one = next(row for row in setup.collection.select(vectors=True) if row.text == "one")
    assert np.array_equal(one.vector, setup.model.vector("one"))


def test_another_transformation_makes_the_chunks_anew(setup):
    """The code of a function counts, and texts that stay the same are not embedded again."""
    setup.ingest([("a", "one. two")])
    report = setup.ingest([("a", "one. two")], transform=texts.numbered)
    assert (report.stored, report.chunks, report.deleted, report.embedded) == (1, 2, 2, 0)
    assert [row.metadata for row in setup.collection.select()] == [{"number": 0}, {"number": 1}]


def test_a_closure_is_another_one_with_another_value(setup):
    """What a function has closed over counts as well."""

    def cut(length):
        return lambda document: [document[1][:length]]

    setup.ingest([("a", "abcdef")], transform=cut(3))
    assert setup.ingest([("a", "abcdef")], transform=cut(3)).unchanged == 1
    assert setup.ingest([("a", "abcdef")], transform=cut(2)).stored == 1
    assert setup.texts() == ["ab"]


def test_another_model_embeds_anew(setup):
    """Vectors of two models are never mixed."""
    setup.ingest([("a", "one. two")])
    other = texts.HashModel(seed=1)
    assert setup.ingest([("a", "one. two")], embed=other).embedded == 2
    vectors = {row.text: row.vector for row in setup.collection.select(vectors=True)}
    assert np.array_equal(vectors["one"], other.vector("one"))
    assert len(vectors) == len(setup.collection)


def test_equal_texts_are_embedded_once(setup):
    """In one batch as in different ones."""
    documents = [(f"{number}", f"page {number}. The same footer") for number in range(3000)]
    report = setup.ingest(documents)
    assert (report.chunks, report.embedded) == (6000, 3001)
    assert setup.asked.count("The same footer") == 1


def test_texts_are_embedded_by_length(setup):
    """Each call has texts of about the same length."""
    calls = []
    setup.model.callbacks.append(lambda some: calls.append([len(text) for text in some]))
    setup.ingest([(f"{number}", "x" * (number * 37 % 900 + 1)) for number in range(900)])
    assert max(max(call) - min(call) for call in calls) < 400
    assert max(map(len, calls)) <= 256


def test_a_document_that_comes_again_replaces_the_one_before(setup):
    """Of documents with the same id the last one counts, and an equal one is not counted twice."""
    report = setup.ingest([("a", "one"), ("b", "two"), ("a", "one"), ("a", "three"), ("a", "four")])
    assert setup.texts() == ["four", "two"]
    assert (report.documents, report.stored, report.unchanged) == (5, 4, 1)


def test_a_chunk_that_was_deleted_comes_back(setup):
    """A document of which a row is missing is not complete."""
    setup.ingest([("a", "one. two. three")])
    setup.collection.delete([setup.collection.select()[1].id])
    report = setup.ingest([("a", "one. two. three")])
    assert setup.texts() == ["one", "three", "two"]
    assert (report.stored, report.chunks) == (1, 1)


def test_rows_too_many_go(setup):
    """What a killed run has left of an old text is deleted, with nothing made anew."""
    setup.ingest([("a", "one. two")])
    setup.collection.upsert(["old"], [setup.model.vector("old")], ["old"], document_ids=["a"])
    report = setup.ingest([("a", "one. two")])
    assert (report.unchanged, report.deleted, report.embedded) == (1, 1, 0)
    assert setup.texts() == ["one", "two"]


def test_documents_that_are_not_given_stay_unless_pruned(setup):
    """`prune` deletes all that is no chunk of what was given, wherever it came from."""
    setup.collection.upsert(["own"], [setup.model.vector("own")], ["own"])
    setup.ingest([("a", "one. two"), ("b", "three"), ("c", "poisonous")])
    setup.ingest([("c", "four")])
    assert setup.ingest([("b", "three")]).deleted == 0
    report = setup.ingest([("b", "three"), ("c", "poison"), ("d", "five")], prune=True)
    assert setup.texts() == ["five", "four", "three"]
    assert (report.deleted, report.failed) == (3, 1)


def test_nothing_is_pruned_where_something_could_not_be_read(setup):
    """It might have been the document that the rows are of."""
    setup.ingest([("a", "one"), ("b", "two")])
    report = setup.ingest([("a", "one"), "rubbish"], prune=True)
    assert (report.deleted, report.failed) == (0, 1)
    assert setup.texts() == ["one", "two"]


def test_a_document_without_chunks_has_none(setup):
    """Blank chunks are left out, and a document that has become blank leaves nothing."""
    setup.ingest([("a", "one"), ("b", " . . ")])
    report = setup.ingest([("a", " "), ("b", " . . ")])
    assert (report.stored, report.empty, report.failed) == (2, 2, 0)
    assert not setup.texts()


def test_bad_documents_are_listed_and_disturb_no_other(setup, tmp_path):
    """Each with its id, the stage and the error: in the report and, on request, in a file."""
    bad = [7, ("", "x"), ("p", "poison"), ("l", "lock"), ("u", "unembeddable. fine"), ("k", 3)]
    report = setup.ingest(
        [("a", "one"), *bad, ("b", "two")], transform=_with_lock, errors_file=tmp_path / "bad.jsonl"
    )
    assert setup.texts() == ["one", "two"]
    assert (report.documents, report.stored, report.failed) == (8, 2, 6)
    told = [(one.document_id, one.stage, type(one.error).__name__) for one in report.errors]
    assert sorted(told, key=str) == [
        ("k", "transform", "AttributeError"),
        ("l", "transform", "InvalidRecordError"),
        ("p", "transform", "ValueError"),
        ("u", "embed", "ValueError"),
        (None, "read", "InvalidRecordError"),
        (None, "read", "InvalidRecordError"),
    ]
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(one["document_id"], one["stage"], one["error"]) for one in lines] == told
    poison = next(line for line in lines if line["document_id"] == "p")
    assert poison["message"] == "poison"
    assert "texts.py" in poison["traceback"]
    assert "6 failed" in str(report)


def _with_lock(document):
    if document[1] == "lock":
        return texts.unpicklable_lock(document)
    document[1].split()
    return texts.sentences(document)


def test_a_document_that_fails_keeps_what_was_stored(setup):
    """Its old chunks stay until it can be taken in again."""
    setup.ingest([("a", "one. two"), ("b", "three")])
    report = setup.ingest([("a", "poison"), ("b", "four. unembeddable")])
    assert (report.failed, report.deleted) == (2, 0)
    assert setup.texts() == ["one", "three", "two"]


def test_the_first_bad_document_ends_it_on_request(setup):
    """The error tells which one it is."""
    with pytest.raises(IngestionError, match=r"'p' \(transform\): ValueError: poison"):
        setup.ingest([("a", "one"), ("p", "poison"), ("b", "two")], on_error="raise")


def test_it_ends_where_every_document_fails(setup):
    """After 1,000 in a row the fault is not theirs; the report would hold no more of them."""
    documents = ((f"{number}", "poison") for number in range(100_000))
    with pytest.raises(IngestionError, match="1,000 documents in a row"):
        setup.ingest(documents)
    mixed = [(f"{number}", "poison" if number % 3 else f"fine {number}") for number in range(1800)]
    report = setup.ingest(mixed)
    assert (report.stored, report.failed, len(report.errors)) == (600, 1200, 1000)


def test_vectors_that_are_none_are_the_texts_fault(setup):
    """NaN in a vector fails the documents with that text alone."""

    def embed(some):
        return [[float("nan")] if text == "two" else [1.0] for text in some]

    report = setup.ingest([("a", "one"), ("b", "two"), ("c", "one. two")], embed=embed)
    assert {one.document_id for one in report.errors} == {"b", "c"}
    assert all(isinstance(one.error, InvalidVectorError) for one in report.errors)
    assert setup.texts() == ["one"]


def test_vectors_of_another_dimension_end_it(setup):
    """That is no document's fault."""
    setup.ingest([("a", "one")])
    with pytest.raises(DimensionMismatchError):
        setup.ingest([("b", "two")], embed=lambda some: np.ones((len(some), 3)))


def test_what_came_before_a_source_broke_off_is_stored(setup):
    """And its error is raised."""

    def source():
        yield from texts.documents(10)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        setup.ingest(source(), prune=True)
    assert len({row.document_id for row in setup.collection.select()}) == 10


def test_documents_are_read_as_they_are_used_up(setup):
    """A generator of large documents is never far ahead of what is stored."""
    read, ahead = [0], []

    def source():
        for number in range(300):
            read[0] += 1
            ahead.append(read[0] - len(setup.collection))
            yield (f"{number}", f"{number} ".ljust(1 << 20, "x"))

    report = setup.ingest(source(), transform=lambda document: [document[1]])
    assert report.stored == 300
    assert max(ahead) < 100


def test_small_documents_with_large_chunks_are_counted_as_what_they_become(setup):
    """Where a path becomes a text, the texts are what is bounded."""
    ahead = []

    def load(document):
        ahead.append(int(document[0]) - len(setup.collection))
        return [f"{document[0]} ".ljust(1 << 20, "x")]

    setup.ingest(((f"{number}", "path") for number in range(300)), transform=load)
    assert max(ahead) < 100


def test_a_document_is_written_in_one_transaction(setup, heard):
    """With others in up to 2,000 rows; a large one goes by itself, and whole."""
    some = texts.documents(1500)
    large = ("large", ". ".join(f"part {number}" for number in range(5000)))
    setup.ingest([*some[:700], large, *some[700:]])
    rows = heard.rows()
    assert 5000 in rows
    assert 1000 < max(set(rows) - {5000}) <= 2000
    assert sum(rows) == len(setup.collection)


def test_every_batch_is_a_stage(heard, setup):
    """Inside the caller's own: what was embedded and what was written in it."""
    with telemetry.stage("query"):
        setup.ingest([("a", "one. two"), ("b", "two")])
    tree = [(one.name, one.parent and one.parent.name) for one in heard.stages]
    assert tree == [
        ("embed", "ingest"), ("ingest", "ingest"), ("ingest", "query"), ("query", None),
    ]  # fmt: skip
    batch = heard.stages[2].attributes
    assert batch["ragaccel.documents.count"] == 2
    assert (batch["ragaccel.items.count"], batch["ragaccel.items.sent"]) == (3, 2)


class _Heard:
    """Keeps the stages that it hears of."""

    def __init__(self):
        self.stages = []

    def started(self, stage):
        pass

    def ended(self, stage):
        self.stages.append(stage)

    def rows(self):
        """Return how many rows were written together, each time."""
        writing = [one.attributes for one in self.stages if one.name == "ingest"]
        return [one["ragaccel.index.rows"] for one in writing if "ragaccel.index.rows" in one]


@pytest.fixture
def heard():
    """All stages, in the order of their ends."""
    listener = _Heard()
    telemetry.listen(listener)
    yield listener
    telemetry.unlisten(listener)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"embed": None}, "pass embed="),
        ({"embed": 3}, "embed is an embedding model"),
        ({"transform": 3}, "transform is a function"),
        ({"workers": -1}, "workers must be"),
        ({"workers": 1.5}, "workers must be"),
        ({"on_error": "ignore"}, "collect or raise"),
    ],
)
def test_arguments_that_cannot_be_used(setup, options, told):
    """The message says what to write instead."""
    with pytest.raises(ConfigurationError, match=told):
        setup.ingest([("a", "one")], **options)


@pytest.mark.parametrize("documents", ["text", {"a": "one"}, None, 3])
def test_documents_that_are_no_iterable_of_documents(setup, documents):
    """A text is none, though it can be gone through."""
    with pytest.raises(ConfigurationError, match="an iterable of documents"):
        setup.ingest(documents)


def test_only_stores_of_ours_can_be_ingested_into(setup):
    """The message names them."""
    with pytest.raises(ConfigurationError, match="CompressedVectorStore"):
        ingest([("a", "one")], object(), embed=setup.model)


def test_a_store_that_is_open_for_reading_is_refused(tmp_path):
    """Before anything is read."""
    VectorCollection.open(tmp_path, dim=2).close()
    with (
        VectorCollection.open(tmp_path, read_only=True) as reader,
        pytest.raises(CollectionError, match="reading only"),
    ):
        ingest(iter([("a", "one")]), reader, embed=texts.HashModel())


@pytest.mark.parametrize("key", ["source", lambda document: document[2]["source"]])
def test_a_key_takes_the_place_of_the_id(setup, key):
    """A metadata field or a function tells documents apart from run to run."""
    setup.ingest([("random 1", "one", {"source": "x"})], key=key)
    report = setup.ingest(
        [("random 2", "two", {"source": "x"}), ("random 3", "three", {})], key=key
    )
    assert setup.texts() == ["two"]
    assert report.failed == 1
    assert [row.document_id for row in setup.collection.select()] == ["x"]


def test_progress_is_shown_on_a_terminal_only(setup, monkeypatch, capsys):
    """A bar with how many are done, how fast, and how long the rest takes if that is known."""
    setup.ingest(texts.documents(5))
    assert not capsys.readouterr().err
    documents = [*texts.documents(5, salt=1), ("p", "poison")]
    monkeypatch.setattr("sys.stderr", Terminal())
    setup.ingest(documents)
    assert re.search(r"6/6 +[\d,.]+/s +0:00:00", sys.stderr.plain())
    monkeypatch.setattr("sys.stderr", Terminal())
    setup.ingest(iter(documents))
    assert re.search(r"6/\? +[\d,.]+/s +\n", sys.stderr.plain())


class Terminal(io.StringIO):
    """Takes a terminal's place."""

    def isatty(self):
        return True

    def plain(self):
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.getvalue())
