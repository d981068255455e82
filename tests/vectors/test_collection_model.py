"""A collection against a model in plain Python, over random sequences of calls."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.vectors import And, Documents, Field, Ids, Not, Or
from tests.vectors.data import METRICS, SLOW, clustered, exact_scores, names, nearest, recall
from tests.vectors.filtering import passes

IDS = names(12, "id")

#: Vectors whose scores have no rounding errors, whatever the metric, and many ties.
unrounded = st.one_of(
    st.sampled_from(np.eye(4).tolist()),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 4).map(list),
    st.tuples(*[st.sampled_from([-2.0, 2.0])] * 4).map(list),
    st.just([0.0, -4.0, 0.0, 0.0]),
    st.just([0.0] * 4),
)
conditions = st.recursive(
    st.one_of(
        st.builds(
            Field, st.just("n"), st.sampled_from(["eq", "ne", "gt", "le"]), st.integers(0, 4)
        ),
        st.builds(Field, st.just("tags"), st.just("contains"), st.sampled_from("xyz")),
        st.builds(Ids, st.lists(st.sampled_from(IDS), max_size=6).map(tuple)),
        st.builds(Documents, st.lists(st.sampled_from(["one", "two", None])).map(tuple)),
    ),
    lambda part: st.one_of(
        st.builds(And, st.lists(part, max_size=2).map(tuple)),
        st.builds(Or, st.lists(part, max_size=2).map(tuple)),
        st.builds(Not, part),
    ),
    max_leaves=3,
)


@dataclass
class Row:
    """What a row should be."""

    slot: int
    id: str
    vector: list[float]
    text: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    document_id: str | None = None
    payload: bytes | None = None


rows = st.builds(
    Row,
    slot=st.just(-1),
    id=st.sampled_from(IDS),
    vector=unrounded,
    text=st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=3)),
    metadata=st.fixed_dictionaries(
        {},
        optional={
            "n": st.integers(0, 4),
            "tags": st.lists(st.sampled_from("xyz"), max_size=2),
            "nested": st.just({"a": [1, 0.5, None, True, {"ü": "\x01"}]}),
        },
    ),
    document_id=st.sampled_from([None, "one", "two"]),
    payload=st.sampled_from([None, b"", b"\x00\xff"]),
)


def content(row):
    """Return all that a row or a record holds, as one comparable value."""
    vector = None if row.vector is None else list(row.vector)
    return row.slot, row.id, row.text, row.metadata, row.document_id, row.payload, vector


class CollectionModel(RuleBasedStateMachine):
    """Searches and reads must give exactly what the model gives."""

    @initialize(
        on_disk=st.booleans(),
        metric=st.sampled_from(METRICS),
        compression=st.sampled_from(["float32", "auto", "pq"]),
    )
    def open(self, on_disk, metric, compression):
        self.folder = tempfile.mkdtemp() if on_disk else None
        self.metric, self.compression = metric, compression
        self.collection = self.opened()
        self.model: dict[str, Row] = {}
        self.next_slot, self.seq, self.bulks = 0, 0, 0

    def opened(self):
        return VectorCollection.open(self.folder, metric=self.metric, compression=self.compression)

    def teardown(self):
        if hasattr(self, "collection"):
            self.collection.close()
            if self.folder is not None:
                shutil.rmtree(self.folder)

    def put(self, new):
        self.collection.upsert(
            [row.id for row in new],
            [row.vector for row in new] or np.zeros((0, 4)),
            texts=[row.text for row in new],
            metadata=[row.metadata for row in new],
            document_ids=[row.document_id for row in new],
            payloads=[row.payload for row in new],
        )
        last = {row.id: place for place, row in enumerate(new)}
        for place, row in enumerate(new):
            if last[row.id] == place:
                self.model.pop(row.id, None)
                self.model[row.id] = Row(**{**vars(row), "slot": self.next_slot})
                self.next_slot += 1

    def passing(self, where):
        return [row for row in self.model.values() if where is None or passes(row, where)]

    # -- writes ------------------------------------------------------------------------------------

    @rule(new=st.lists(rows, max_size=6))
    def upsert(self, new):
        self.put(new)

    @precondition(lambda self: self.bulks < 2 and self.compression != "pq")
    @rule(new=st.lists(rows, min_size=1, max_size=3))
    def upsert_many(self, new):
        """Write more rows than are kept before they are moved to the slab."""
        self.bulks += 1
        self.put([
            Row(**{**vars(new[at % len(new)]), "id": f"many-{self.bulks}-{at}"})
            for at in range(1030)
        ])  # fmt: skip

    @rule(ids=st.lists(st.sampled_from([*IDS, "many-1-7", "unknown"]), max_size=4))
    def delete(self, ids):
        known = set(ids) & set(self.model)
        assert self.collection.delete(ids) == len(known)
        for one in known:
            del self.model[one]

    @rule(where=conditions)
    def delete_where(self, where):
        gone = [row.id for row in self.passing(where)]
        assert self.collection.delete_where(where) == len(gone)
        for one in gone:
            del self.model[one]

    @rule()
    def clear(self):
        self.collection.clear()
        self.model.clear()

    @rule()
    def flush(self):
        self.collection.flush()

    @rule()
    def compact(self):
        self.collection.compact()

    @precondition(lambda self: self.folder is not None)
    @rule()
    def reopen(self):
        self.collection.close()
        self.collection = self.opened()

    # -- reads -------------------------------------------------------------------------------------

    @rule(ids=st.lists(st.sampled_from([*IDS, "many-2-1000", "unknown"]), max_size=5))
    def get(self, ids):
        found = self.collection.get(ids, vectors=True)
        wanted = [content(self.model[one]) for one in ids if one in self.model]
        assert [content(record) for record in found] == wanted

    @rule(where=st.one_of(st.none(), conditions))
    def select(self, where):
        wanted = [content(row) for row in self.passing(where)]
        assert [content(record) for record in self.collection.select(where, vectors=True)] == wanted
        assert self.collection.count(where) == len(wanted)

    @rule(
        queries=st.lists(unrounded, min_size=1, max_size=3),
        k=st.sampled_from([1, 2, 5, 20, 5000]),
        where=st.one_of(st.none(), conditions),
        exact=st.booleans(),
        vectors=st.booleans(),
    )
    def search(self, queries, k, where, exact, vectors):
        found = self.collection.search(queries, k, where=where, exact=exact, vectors=vectors)
        allowed = self.passing(where)
        stored = [row.vector for row in allowed] or np.zeros((0, 4))
        assert len(found) == len(queries)
        for hits, scores in zip(found, exact_scores(self.metric, queries, stored), strict=True):
            order = sorted(range(len(allowed)), key=lambda at: (-scores[at], allowed[at].slot))[:k]
            assert [hit.score for hit in hits] == [scores[at] for at in order]
            wanted = [content(allowed[at])[: None if vectors else -1] for at in order]
            assert [content(hit)[: None if vectors else -1] for hit in hits] == wanted

    @invariant()
    def numbers_are_right(self):
        if hasattr(self, "model"):
            stats = self.collection.stats()
            assert len(self.collection) == stats.rows == len(self.model)
            assert stats.seq == self.collection.seq >= self.seq
            self.seq = stats.seq


class CompressedModel(RuleBasedStateMachine):
    """Compressed, a search finds nearly what exact search finds, and nothing that is not there."""

    ROWS = 1500
    QUERIES = clustered(20, seed=1, dim=32)

    @initialize(
        on_disk=st.booleans(),
        metric=st.sampled_from(METRICS),
        compression=st.sampled_from([
            CompressionSpec("pq", oversample=40), CompressionSpec("int8", oversample=4), "pq"
        ]),
    )  # fmt: skip
    def open(self, on_disk, metric, compression):
        self.folder = tempfile.mkdtemp() if on_disk else None
        self.metric, self.compression = metric, compression
        self.collection = self.opened()
        self.model: dict[str, tuple[str, np.ndarray]] = {}
        self.version = 0
        self.put(range(self.ROWS))
        assert self.collection.stats().compression.codec in {"pq", "int8"}

    opened = CollectionModel.opened
    teardown = CollectionModel.teardown

    def put(self, places):
        self.version += 1
        vectors = clustered(len(places), seed=100 + self.version, dim=32)
        ids = [f"row-{place}" for place in places]
        texts = [f"{one} in version {self.version}" for one in ids]
        self.collection.upsert(ids, vectors, texts, [{"v": self.version}] * len(ids))
        for one, text, vector in zip(ids, texts, vectors, strict=True):
            self.model.pop(one, None)
            self.model[one] = text, vector

    @rule(start=st.integers(0, ROWS + 1000), rows=st.sampled_from([1, 30, 400, 1200]))
    def upsert(self, start, rows):
        self.put(range(start, start + rows))

    @rule(start=st.integers(0, ROWS), step=st.integers(1, 9))
    def delete(self, start, step):
        gone = {f"row-{place}" for place in range(start, start + 50 * step, step)}
        assert self.collection.delete(list(gone)) == len(gone & set(self.model))
        for one in gone:
            self.model.pop(one, None)

    @precondition(lambda self: len(self.model) > 1000)
    @rule()
    def delete_the_oldest(self):
        oldest = min(int(text.rpartition(" ")[2]) for text, _ in self.model.values())
        gone = [one for one in self.model if self.model[one][0].endswith(f" {oldest}")]
        assert self.collection.delete_where(Field("v", "eq", oldest)) == len(gone)
        for one in gone:
            del self.model[one]

    @rule(call=st.sampled_from(["flush", "compact", "reopen"]))
    def keep_house(self, call):
        if call != "reopen":
            getattr(self.collection, call)()
        elif self.folder is not None:
            self.collection.close()
            self.collection = self.opened()

    @rule(k=st.sampled_from([1, 10, 50]))
    def search(self, k):
        self.check(self.collection.search(self.QUERIES, k), k, 0.95)

    @rule(k=st.sampled_from([1, 10]))
    def search_exactly(self, k):
        self.check(self.collection.search(self.QUERIES, k, exact=True), k, 1.0)

    @rule(share=st.integers(1, 20))
    def search_filtered(self, share):
        newest = Field("v", "gt", self.version - share)
        allowed = {
            one: stored
            for one, stored in self.model.items()
            if int(stored[0].rpartition(" ")[2]) > self.version - share
        }
        found = self.collection.search(self.QUERIES, 10, where=newest)
        self.check(found, 10, 0.95, allowed)

    def check(self, found, k, least, allowed=None):
        allowed = self.model if allowed is None else allowed
        if not allowed:
            assert found == [[]] * len(self.QUERIES)
            return
        ids = list(allowed)
        scores = exact_scores(self.metric, self.QUERIES, [allowed[one][1] for one in ids])
        place = {one: at for at, one in enumerate(ids)}
        for hits, row in zip(found, scores, strict=True):
            assert len({hit.id for hit in hits}) == len(hits) == min(k, len(allowed))
            assert [hit.text for hit in hits] == [allowed[hit.id][0] for hit in hits]
            order = [(-hit.score, hit.slot) for hit in hits]
            assert order == sorted(order)
            for hit in hits:
                assert math.isclose(hit.score, row[place[hit.id]], rel_tol=1e-4, abs_tol=1e-4)
        truth = nearest(
            self.metric, self.QUERIES, [allowed[one][1] for one in ids], min(k, len(ids))
        )
        assert recall([[place[hit.id] for hit in hits] for hits in found], truth) >= least

    @invariant()
    def no_row_too_many(self):
        if hasattr(self, "model"):
            assert len(self.collection) == len(self.model)


TestCollection = CollectionModel.TestCase
TestCollection.settings = settings(
    deadline=None, suppress_health_check=SLOW, max_examples=30, stateful_step_count=25
)
TestCompressedCollection = CompressedModel.TestCase
TestCompressedCollection.settings = settings(
    deadline=None, suppress_health_check=SLOW, max_examples=8, stateful_step_count=15
)
