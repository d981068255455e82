"""The change log, what searches tell about themselves, and answers that stay right under writes."""

from __future__ import annotations

import contextvars
import math
import shutil
import tempfile
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragaccel import VectorCollection
from ragaccel.cache import Stale
from ragaccel.reuse.freshness import Answer, answers, dependencies
from ragaccel.vectors import Documents, Field, Ids, find_open, watch
from tests.vectors import children
from tests.vectors.data import METRICS, SLOW, clustered, exact_scores, names
from tests.vectors.processes import child

IDS = names(8, "id")
KIND = answers("test", lambda result: result, lambda result: result, list[tuple[str, int, float]])

#: Vectors whose scores have no rounding errors, whatever the metric, and many ties.
unrounded = st.one_of(
    st.sampled_from(np.eye(4).tolist()),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 4).map(list),
    st.just([0.0, -2.0, 0.0, 0.0]),
    st.just([0.0] * 4),
)
rows = st.lists(st.tuples(st.sampled_from(IDS), unrounded), max_size=5)
writes = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), rows),
        st.tuples(st.just("delete"), st.lists(st.sampled_from(IDS), max_size=3)),
        st.sampled_from([("clear",), ("flush",), ("compact",), ("reopen",)]),
    ),
    max_size=6,
)


class Written:
    """A collection that random writes are applied to, in memory or in a folder of its own."""

    def __init__(self, *, on_disk=False, metric="cosine"):
        self.folder = tempfile.mkdtemp() if on_disk else None
        self.options = {"dim": 4, "metric": metric, "compression": "float32"}
        self.collection = VectorCollection.open(self.folder, **self.options)

    def apply(self, calls):
        for name, *arguments in calls:
            if name == "upsert":
                self.put(*arguments)
            elif name == "reopen":
                if self.folder is not None:
                    self.collection.close()
                    self.collection = VectorCollection.open(self.folder, **self.options)
            else:
                getattr(self.collection, name)(*arguments)

    def put(self, pairs):
        ids, vectors = zip(*pairs, strict=True) if pairs else ((), np.zeros((0, 4)))
        self.collection.upsert(ids, vectors)

    def snapshot(self):
        """Return the id and the vector of each slot."""
        return {
            row.slot: (row.id, row.vector.tobytes()) for row in self.collection.select(vectors=True)
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.collection.close()
        if self.folder is not None:
            shutil.rmtree(self.folder)


# -- the change log --------------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=SLOW, max_examples=150)
@given(before=writes, after=writes, on_disk=st.booleans())
def test_changes_are_the_difference_of_two_states(before, after, on_disk):
    """What `changes_since` tells is what differs between two states, whatever happened between."""
    with Written(on_disk=on_disk) as written:
        written.apply(before)
        seq, old = written.collection.seq, written.snapshot()
        written.apply(after)
        new = written.snapshot()

        changes = written.collection.changes_since(seq)

        assert changes.seq == written.collection.seq >= seq
        assert changes.upserted.dtype == changes.deleted.dtype == np.int64
        upserted = changes.upserted.tolist()
        assert sorted(upserted) == upserted == [slot for slot in new if slot not in old]
        assert [vector.tobytes() for vector in changes.vectors] == [new[at][1] for at in upserted]
        assert changes.vectors.shape == (len(upserted), 4)
        deleted = set(changes.deleted.tolist())
        assert deleted & set(old) == set(old) - set(new)
        assert not deleted & set(new)
        assert (changes.seq == seq) == (not upserted and not deleted)


def test_changes_across_a_checkpoint(tmp_path):
    """Vectors are told from the log and from the slab alike, also after a reopening."""
    vectors = clustered(2000, seed=1)
    with VectorCollection.open(tmp_path) as collection:
        for start in range(0, 2000, 100):
            collection.upsert(names(2000)[start : start + 100], vectors[start : start + 100])
        collection.delete(names(2000)[500:520])
    with VectorCollection.open(tmp_path) as collection:
        changes = collection.changes_since(0, limit=3000)

        assert changes.deleted.tolist() == list(range(500, 520))
        kept = np.delete(np.arange(2000), np.arange(500, 520))
        assert changes.upserted.tolist() == kept.tolist()
        assert changes.vectors.tobytes() == vectors[kept].tobytes()


def test_more_changes_than_asked_for():
    """If there were more changes than `limit`, there is no answer instead of a part of one."""
    with VectorCollection.open(dim=1) as collection:
        start = collection.seq
        collection.upsert(names(30), np.ones((30, 1)))
        collection.delete(names(5))

        assert collection.changes_since(start, limit=34) is None
        changes = collection.changes_since(start, limit=35)
        assert (len(changes.upserted), len(changes.deleted)) == (25, 5)
        assert collection.changes_since(collection.seq, limit=1).upserted.tolist() == []
        collection.upsert(names(1000, "more"), np.ones((1000, 1)))
        assert collection.changes_since(start) is None
        assert len(collection.changes_since(start + 35).upserted) == 1000


def test_an_empty_write_changes_nothing():
    """Calls that find nothing to do leave the change log where it is."""
    with VectorCollection.open(dim=1) as collection:
        collection.upsert(["a"], [[1]])
        seq = collection.seq

        collection.upsert([], np.zeros((0, 1)))
        collection.delete(["unknown"])
        collection.delete_where(Field("n", "eq", 1))
        collection.flush()
        collection.compact()

        assert collection.seq == seq


# -- what searches tell ----------------------------------------------------------------------------


def told(traces):
    """Return what one trace tells."""
    (trace,) = traces
    return trace


def test_a_search_tells_what_its_answer_depends_on():
    """A trace tells the collection, its position, the raw query, the floor and the rows found."""
    with VectorCollection.open(metric="l2") as collection:
        collection.upsert(names(20), clustered(20, seed=1))
        queries = clustered(2, seed=2)

        with watch() as traces:
            found = collection.search(queries, k=5)

        assert len(traces) == 2
        for trace, query, hits in zip(traces, queries, found, strict=True):
            assert trace.collection == collection.id
            assert trace.seq == collection.seq == 20
            assert trace.query.tobytes() == query.tobytes()
            assert trace.floor == hits[-1].score
            assert trace.slots == tuple(hit.slot for hit in hits)


@pytest.mark.parametrize("where", [None, Ids(tuple(names(4)))])
def test_any_row_may_enter_an_answer_that_is_not_full(where):
    """Where fewer rows were found than asked for, every new row may enter the answer."""
    with VectorCollection.open() as collection:
        with watch() as traces:
            collection.search(clustered(1, seed=2), k=4)
        assert (told(traces).floor, told(traces).slots) == (-math.inf, ())
        collection.upsert(names(4), clustered(4, seed=1))
        for k, full in ((3, True), (4, True), (5, False)):
            with watch() as traces:
                (hits,) = collection.search(clustered(1, seed=2), k=k, where=where)
            assert told(traces).floor == (hits[-1].score if full else -math.inf)
            assert len(told(traces).slots) == min(k, 4)


@pytest.mark.parametrize(
    "read",
    [
        lambda one: one.select(Field("n", "eq", 1)),
        lambda one: one.select(Documents(("none",))),
        lambda one: one.get(names(3)),
    ],
)
def test_reads_without_a_query_depend_on_every_new_row(read):
    """A read by filter or id tells its rows, and that any new row might belong to them."""
    with VectorCollection.open() as collection:
        collection.upsert(names(3), clustered(3, seed=1), metadata=[{"n": 1}, {"n": 2}, {"n": 1}])

        with watch() as traces:
            records = read(collection)

        assert told(traces).floor == -math.inf
        assert set(told(traces).slots) == {record.slot for record in records}


def test_searches_are_told_only_inside():
    """Searches outside of `watch` and on other threads are not told; copied contexts are."""
    with VectorCollection.open() as collection:
        collection.upsert(names(3), clustered(3, seed=1))

        def search():
            collection.search(clustered(1, seed=2))

        search()
        with watch() as traces:
            assert traces == []
            thread = threading.Thread(target=search)
            thread.start()
            thread.join()
            assert traces == []
            copied = contextvars.copy_context()
            thread = threading.Thread(target=copied.run, args=(search,))
            thread.start()
            thread.join()
            assert len(traces) == 1
            search()
            assert len(traces) == 2
        search()
        assert len(traces) == 2


# -- answers that stay right -----------------------------------------------------------------------


def ask(collection, query, k):
    """Search and return the answer as it is, and as it is cached."""
    with watch() as traces:
        found = result(collection, query, k)
    return found, KIND.pack(Answer(found, dependencies(traces)))


def result(collection, query, k):
    """Search and return what an answer consists of."""
    return [(hit.id, hit.slot, hit.score) for hit in collection.search(query, k)[0]]


def serve(body):
    """Return a cached answer and its renewed bytes; None where it is stale."""
    try:
        answer, renewed = KIND.open(body)
    except Stale:
        return None
    return answer.result, renewed


@settings(deadline=None, suppress_health_check=SLOW, max_examples=120)
@given(
    before=rows,
    rounds=st.lists(writes, min_size=1, max_size=3),
    query=unrounded,
    k=st.integers(1, 6),
    metric=st.sampled_from(METRICS),
    on_disk=st.sampled_from([False, False, False, True]),
)
def test_an_answer_is_served_only_if_a_new_search_would_give_it(
    before, rounds, query, k, metric, on_disk
):
    """Whatever is written after a search, its answer is served only while it is right."""
    with Written(on_disk=on_disk, metric=metric) as written:
        written.put(before)
        found, body = ask(written.collection, query, k)
        for calls in rounds:
            written.apply(calls)
            served = serve(body)
            if served is not None:
                assert served[0] == result(written.collection, query, k) == found
                body = served[1] or body


@settings(deadline=None, suppress_health_check=SLOW, max_examples=120)
@given(before=rows, after=writes, query=unrounded, k=st.integers(1, 4))
def test_writes_that_change_nothing_keep_an_answer(before, after, query, k):
    """An answer is kept where no found row is gone and no new row comes near its last one."""
    with Written(metric="ip") as written:
        written.put(before)
        found, body = ask(written.collection, query, k)
        old = written.snapshot()
        written.apply(after)
        new = written.snapshot()

        served = serve(body)

        gone = [slot for _, slot, _ in found if slot not in new]
        added = [np.frombuffer(new[slot][1], np.float32) for slot in new if slot not in old]
        best = exact_scores("ip", query, added).max() if added else -math.inf
        floor = found[-1][2] if len(found) == k else -math.inf
        if not gone and (best < floor or not added):
            assert served is not None
            assert served[0] == found


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [3, 64])
def test_equal_vectors_do_not_make_an_answer_wrong(metric, dim):
    """Rows that score as the last one of an answer do, up to rounding, are not overlooked."""
    generator = np.random.default_rng(dim)
    served = 0
    for _ in range(150):
        unlike = generator.standard_normal((6, dim)).astype(np.float32)
        with VectorCollection.open(metric=metric, compression="float32") as collection:

            def put(rows, prefix, unlike=unlike, collection=collection):
                vectors = unlike[generator.integers(0, 6, rows)]
                if metric == "cosine":
                    vectors = vectors * generator.choice([1, 3, 7], (rows, 1)).astype(np.float32)
                collection.upsert(names(rows, prefix), vectors)

            put(int(generator.integers(5, 60)), "old")
            query, k = generator.standard_normal(dim), int(generator.integers(1, 6))
            _, body = ask(collection, query, k)
            put(int(generator.integers(1, 9)), "new")
            answer = serve(body)
            if answer is not None:
                served += 1
                now = result(collection, query, k)
                assert [slot for _, slot, _ in answer[0]] == [slot for _, slot, _ in now]
                assert [one[2] for one in answer[0]] == pytest.approx([one[2] for one in now])
    assert served


def test_a_served_answer_is_renewed():
    """An answer that outlived writes is stored anew, so that they are looked at only once."""
    with VectorCollection.open(metric="ip", compression="float32") as collection:
        collection.upsert(["a", "b"], [[4.0], [3.0]])
        found, body = ask(collection, [1.0], 2)
        assert serve(body) == (found, None)
        collection.upsert(["c"], [[2.0]])

        served, renewed = serve(body)

        assert served == found
        assert serve(renewed) == (found, None)
        collection.delete(["c"])
        assert serve(renewed)[0] == serve(body)[0] == found
        collection.upsert(["d"], [[3.5]])
        assert serve(renewed) is serve(body) is None


def test_too_many_changes_make_an_answer_stale():
    """After more changes than are looked at, an answer is made anew."""
    with VectorCollection.open(metric="ip", compression="float32") as collection:
        collection.upsert(["a"], [[4.0]])
        found, body = ask(collection, [1.0], 1)
        collection.upsert(names(1000), np.ones((1000, 1)))
        assert serve(body)[0] == found
        collection.upsert(["b"], [[1.0]])
        assert serve(body) is None


def test_answers_of_a_collection_that_is_not_open(tmp_path):
    """An answer cannot be judged while its collection is closed; it can when that is open again."""
    with VectorCollection.open(tmp_path, compression="float32") as collection:
        collection.upsert(["a"], [[4.0]])
        found, body = ask(collection, [1.0], 1)
    assert find_open(collection.id) is None
    assert serve(body) is None

    with VectorCollection.open(tmp_path, read_only=True) as again:
        assert find_open(collection.id) is again
        assert serve(body) == (found, None)

    with VectorCollection.open(compression="float32") as other:
        other.upsert(["a"], [[4.0]])
        assert serve(body) is None


def test_answers_live_while_any_object_has_the_collection_open(tmp_path):
    """Closing one of two objects of a collection does not make the answers of the other stale."""
    with VectorCollection.open(tmp_path, compression="float32") as writer:
        writer.upsert(["a"], [[4.0]])
        found, body = ask(writer, [1.0], 1)

        VectorCollection.open(tmp_path, compression="float32", read_only=True).close()

        assert find_open(writer.id) is writer
        assert serve(body) == (found, None)
        with VectorCollection.open(tmp_path, compression="float32", read_only=True) as follower:
            assert ask(follower, [1.0], 1)[0] == found
            writer.delete(["a"])
            assert serve(body) is None


def test_answers_follow_another_process(tmp_path):
    """What another process writes makes the answers of this one stale, if it concerns them."""
    same, other = np.ones(children.DIM), np.eye(children.DIM)[0]
    with VectorCollection.open(tmp_path, compression="float32") as writer:
        writer.upsert(["same", "other"], [same, other])
    with VectorCollection.open(tmp_path, compression="float32", read_only=True) as reader:
        found, concerned = ask(reader, same, 2)
        _, unconcerned = ask(reader, other, 1)
        with child("hold", tmp_path) as holder:
            assert holder.stdout.readline() == "held\n"  # a row as near to `same` as can be

            assert serve(concerned) is None
            assert serve(unconcerned)[0] == [("other", 1, 1.0)]
            assert result(reader, same, 2) != found


def test_answers_of_two_collections_are_judged_apart(tmp_path):
    """A write into another collection is no reason to make an answer anew."""
    with (
        VectorCollection.open(tmp_path / "one", metric="ip", compression="float32") as one,
        VectorCollection.open(tmp_path / "two", metric="ip", compression="float32") as two,
    ):
        one.upsert(["a"], [[4.0]])
        two.upsert(["a"], [[4.0]])
        found, body = ask(one, [1.0], 1)
        two.upsert(["b"], [[5.0]])
        assert serve(body) == (found, None)
        one.upsert(["b"], [[5.0]])
        assert serve(body) is None


def test_an_answer_from_before_a_restored_backup(tmp_path):
    """An answer is not served by a collection that went another way from an older backup."""
    folder, backup = tmp_path / "folder", tmp_path / "backup"
    with VectorCollection.open(folder, metric="ip", compression="float32") as collection:
        collection.upsert(["a"], [[4.0]])
    shutil.copytree(folder, backup)
    with VectorCollection.open(folder, metric="ip", compression="float32") as collection:
        collection.upsert(["b"], [[3.0]])
        _, body = ask(collection, [1.0], 1)
    for file in backup.iterdir():
        shutil.copy(file, folder / file.name)

    with VectorCollection.open(folder, metric="ip", compression="float32") as collection:
        collection.upsert(["c"], [[5.0]])
        assert serve(body) is None


def test_changes_that_pass_a_filter():
    """What was written and does not pass is left out; what was deleted is told in any case."""
    with VectorCollection.open(dim=1) as collection:
        collection.upsert(["a"], [[1]])
        seq = collection.seq
        collection.upsert(["b", "c"], [[2], [3]], metadata=[{"n": 1}, {"n": 2}])
        collection.delete(["a"])
        changes = collection.changes_since(seq, where=Field("n", "eq", 2))
        assert changes.vectors.tolist() == [[3]]
        assert changes.deleted.tolist() == [0]
        assert changes.seq == collection.seq
