"""Filters that are remembered: right after any writes, in the writer and in those who follow it."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ragaccel import VectorCollection
from ragaccel.errors import FilterError
from ragaccel.vectors import And, Documents, Field, Ids, Not, Or, bitmaps, database, fields
from ragaccel.vectors.filters import compile_filter
from tests.vectors.data import SLOW, names
from tests.vectors.filtering import passes

IDS = names(12, "id")
FIELDS = ("n", "tags", 'odd"key')

scalars = st.one_of(st.integers(-1, 3), st.booleans(), st.just(0.5), st.sampled_from("xyz"))
values = st.one_of(scalars, st.none(), st.lists(scalars, max_size=2))
metadata = st.dictionaries(st.sampled_from(FIELDS), values)
leaves = st.one_of(
    st.builds(
        Field, st.sampled_from(FIELDS), st.sampled_from(["eq", "ne", "contains", "gt"]), scalars
    ),
    st.builds(
        Field,
        st.sampled_from(FIELDS),
        st.sampled_from(["in", "nin", "any", "all"]),
        st.lists(scalars, max_size=2),
    ),
    st.builds(Ids, st.lists(st.sampled_from(IDS), max_size=6).map(tuple)),
    st.builds(Documents, st.lists(st.sampled_from(["one", None])).map(tuple)),
)
conditions = st.recursive(
    leaves,
    lambda part: st.one_of(
        st.builds(And, st.lists(part, max_size=2).map(tuple)),
        st.builds(Or, st.lists(part, max_size=2).map(tuple)),
        st.builds(Not, part),
    ),
    max_leaves=3,
)


class RememberedFilters(RuleBasedStateMachine):
    """The same filters, asked again and again between writes, pass what plain Python passes."""

    @initialize(
        wheres=st.lists(conditions, min_size=1, max_size=4),
        on_disk=st.booleans(),
        max_bytes=st.sampled_from([0, 1000, 2**20]),
    )
    def open(self, wheres, on_disk, max_bytes):
        self.wheres = wheres
        self.folder = tempfile.mkdtemp() if on_disk else None
        self.writer = VectorCollection.open(self.folder, dim=1)
        self.writer._filters = bitmaps.FilterCache(max_bytes)
        self.readers = [self.writer]
        if on_disk:
            self.readers.append(VectorCollection.open(self.folder, read_only=True))
        self.model = {}

    def teardown(self):
        for reader in reversed(getattr(self, "readers", [])):
            reader.close()
        if getattr(self, "folder", None) is not None:
            shutil.rmtree(self.folder)

    @rule(
        ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=6, unique=True),
        data=st.data(),
        copies=st.sampled_from([1, 1, 1, 30]),
    )
    def upsert(self, ids, data, copies):
        ids = [f"{one}{'+' * copy}" for copy in range(copies) for one in ids]
        held = data.draw(st.lists(metadata, min_size=1, max_size=6))
        rows = [
            SimpleNamespace(
                id=one, metadata=held[at % len(held)], document_id=[None, "one"][at % 2]
            )
            for at, one in enumerate(ids)
        ]
        self.writer.upsert(
            ids,
            np.ones((len(ids), 1)),
            metadata=[row.metadata for row in rows],
            document_ids=[row.document_id for row in rows],
        )
        for row in rows:
            self.model.pop(row.id, None)
            self.model[row.id] = row

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=4))
    def delete(self, ids):
        self.writer.delete(ids)
        for one in ids:
            self.model.pop(one, None)

    @rule(data=st.data())
    def delete_where(self, data):
        where = data.draw(st.sampled_from(self.wheres))
        gone = self.passing(where)
        assert self.writer.delete_where(where) == len(gone)
        for one in gone:
            del self.model[one]

    @rule(call=st.sampled_from(["clear", "flush", "compact"]))
    def keep_house(self, call):
        getattr(self.writer, call)()
        if call == "clear":
            self.model.clear()

    @rule(call=st.sampled_from(["create_index", "drop_index"]), key=st.sampled_from(FIELDS))
    def change_indexes(self, call, key):
        getattr(self.writer, call)(key)
        assert all((key in one.indexes()) == (call == "create_index") for one in self.readers)

    @precondition(lambda self: self.folder is not None)
    @rule()
    def reopen(self):
        self.writer.close()
        self.writer = self.readers[0] = VectorCollection.open(self.folder)

    @rule(data=st.data())
    def ask(self, data):
        reader = data.draw(st.sampled_from(self.readers), "reader")
        where = data.draw(st.sampled_from(self.wheres), "where")
        wanted = self.passing(where)
        (hits,) = reader.search([1.0], k=len(self.model) + 1, where=where)
        assert [hit.id for hit in hits] == wanted
        assert reader.count(where) == len(wanted)
        assert [row.id for row in reader.select(where)] == wanted

    def passing(self, where):
        return [row.id for row in self.model.values() if passes(row, where)]


class FewChanges(RememberedFilters):
    """Where only few changes are followed, most filters are asked anew."""

    def __init__(self):
        super().__init__()
        self.followed, bitmaps._MAX_CHANGES = bitmaps._MAX_CHANGES, 5

    def teardown(self):
        bitmaps._MAX_CHANGES = self.followed
        super().teardown()


TestRememberedFilters = RememberedFilters.TestCase
TestRememberedFilters.settings = settings(
    deadline=None, suppress_health_check=SLOW, max_examples=40, stateful_step_count=30
)
TestFewChanges = FewChanges.TestCase
TestFewChanges.settings = settings(
    deadline=None, suppress_health_check=SLOW, max_examples=15, stateful_step_count=20
)

# -- indexes ---------------------------------------------------------------------------------------


def test_files_without_indexes_are_opened(tmp_path):
    """A file of before there were indexes is read as it is, and gets the tables from a writer."""
    filled(path=tmp_path).close()
    with sqlite3.connect(tmp_path / "collection.sqlite") as db:
        db.executescript("DROP TABLE field; DROP TABLE attribute; PRAGMA user_version = 1;")
    with VectorCollection.open(tmp_path, read_only=True) as reader:
        assert found(reader, Field("n", "lt", 1)) == ["row-0"]
        assert reader.indexes() == []
        with VectorCollection.open(tmp_path) as writer:
            writer.create_index("n")
            assert found(writer, Field("n", "lt", 2)) == ["row-0", "row-1"]
        assert reader.indexes() == ["n"]
        assert found(reader, Field("n", "lt", 2)) == ["row-0", "row-1"]


def test_an_index_holds_what_the_rows_hold():
    """Deleted and replaced rows leave nothing in an index, and nor does a dropped index."""
    collection = filled()
    collection.create_index("n")
    collection.create_index("n")
    collection.create_index("other")
    collection.upsert(["row-0"], [[1.0]], metadata=[{"n": ["a", "a", None, 1], "other": {"b": 1}}])
    collection.delete(names(10)[1:9])

    def held():
        with collection._store.db.read() as db:
            return db.execute("SELECT kind, value, slot FROM attribute ORDER BY slot").fetchall()

    rows = [("number", 9, 9), ("item", 1, 10), ("item", "a", 10), ("key", "b", 10)]
    assert held() == rows
    collection.drop_index("n")
    collection.drop_index("unknown")
    assert held() == rows[-1:]
    assert collection.indexes() == ["other"]


@pytest.mark.parametrize("field", [5, None, "a\x00b", "\ud800"])
def test_indexes_on_what_is_no_field(field):
    """An index that no filter could use is refused."""
    with pytest.raises(FilterError):
        filled().create_index(field)


def test_an_index_is_used():
    """A filter on an indexed field is answered without reading all rows."""
    collection = filled()
    collection.create_index("n")
    where = And((Field("n", "ge", 8), Not(Field("n", "in", [9]))))
    sql, parameters = compile_filter(fields.with_lookups(where, {"n": 1}))
    with collection._store.db.read() as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN SELECT slot FROM doc WHERE {sql}", parameters)
        steps = [step for *_, step in plan]
    assert "SEARCH doc USING INTEGER PRIMARY KEY (rowid=?)" in steps
    assert not any(step.startswith(("SCAN doc", "SCAN attribute")) for step in steps)


# -- what is asked ---------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Return a list that is told what SQLite is asked: all rows (None), or which."""
    calls = []
    ask = database.slots_where

    def told(db, where, among=None):
        calls.append(among)
        return ask(db, where, among)

    monkeypatch.setattr(database, "slots_where", told)
    return calls


def filled(rows=10, **options):
    """Open a collection whose rows hold their places as `n`."""
    collection = VectorCollection.open(**options)
    held = [{"n": at} for at in range(rows)]
    collection.upsert(names(rows), np.ones((rows, 1)), metadata=held)
    return collection


def found(collection, where):
    """Return the ids that a search with a filter finds."""
    return [hit.id for hit in collection.search([1.0], k=100, where=where)[0]]


def test_a_filter_is_asked_once(asked):
    """A filter that was asked before needs no SQL; after a write only new rows are asked."""
    collection = filled()
    for _ in range(3):
        assert found(collection, Field("n", "ge", 8)) == ["row-8", "row-9"]
    assert asked == [None]

    collection.delete(["row-8"])
    assert found(collection, Field("n", "ge", 8)) == ["row-9"]
    assert collection.count(Field("n", "ge", 8)) == 1
    collection.upsert(["row-0", "new"], [[1.0], [1.0]], metadata=[{"n": 9}, {"n": 1}])
    assert found(collection, Field("n", "ge", 8)) == ["row-9", "row-0"]
    assert asked == [None, [], [10, 11]]


def test_a_follower_asks_only_new_rows(asked, tmp_path):
    """A reader of another's files brings its filters up to date, too."""
    with (
        filled(path=tmp_path) as writer,
        VectorCollection.open(tmp_path, read_only=True) as reader,
    ):
        assert found(reader, Field("n", "lt", 1)) == ["row-0"]
        writer.upsert(["new"], [[1.0]], metadata=[{"n": 0}])
        assert found(reader, Field("n", "lt", 1)) == ["row-0", "new"]
        assert found(reader, Field("n", "lt", 1)) == ["row-0", "new"]
    assert asked == [None, [10]]


def test_a_log_of_before_does_not_lead_here(asked, tmp_path):
    """Where the log is not the one that a filter was asked at, it is asked anew."""
    with filled(path=tmp_path) as collection:
        found(collection, Field("n", "lt", 1))
        with collection._store.db.write() as db:
            db.execute("DELETE FROM change WHERE seq <= 10")
        collection.upsert(["new"], [[1.0]], metadata=[{"n": 0}])
        assert found(collection, Field("n", "lt", 1)) == ["row-0", "new"]
    assert asked == [None, None]


def test_the_least_recently_asked_is_forgotten(asked):
    """Remembered filters take no more bytes than they may, and are counted."""
    collection = filled()
    before = collection.stats().bytes_in_memory
    first, second, third = (Field("n", "eq", at) for at in range(3))
    found(collection, first)
    room = collection.stats().bytes_in_memory - before
    collection._filters = bitmaps.FilterCache(5 * room // 2)
    for where in (first, second, first, third, first):
        found(collection, where)

    assert 2 * room - 20 <= collection._filters.bytes_used <= 5 * room // 2
    assert len(asked) == 4  # once before
    found(collection, second)
    assert len(asked) == 5


def test_threads_share_remembered_filters():
    """Searches with one filter from many threads, between writes, find what is there."""
    collection = filled(50)
    where, wrong = Field("n", "lt", 10), []

    def search():
        for _ in range(30):
            ids = found(collection, where)
            if ids[:9] != names(10)[1:] or len(ids) not in {9, 10}:
                wrong.append(ids)

    collection.delete(["row-0"])
    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        collection.upsert(["more"], [[1.0]], metadata=[{"n": 1}])
        collection.delete(["more"])
    for thread in threads:
        thread.join()
    assert wrong == []
