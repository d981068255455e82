"""Searches that are answered by what similar ones found, and what keeps them right."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from ragaccel import VectorCollection
from ragaccel.cli.demo.corpus import load_xquad
from ragaccel.cli.demo.models import load_model
from ragaccel.errors import ConfigurationError
from ragaccel.reuse import NeighbourReuse
from ragaccel.reuse.neighbours_trust import START
from ragaccel.tuning.parts import tunables
from ragaccel.vectors import Field, watch
from tests.reuse.nearby import ask, filled, found, near, reuse, served, topics, write

EVEN = Field("even", "eq", value=True)


@pytest.fixture
def collection():
    """Five hundred rows."""
    with filled(topics(500, seed=1)) as collection:
        yield collection


def played(one, collection, *, rounds=6, spread=0.05, **how):
    """Ask for near questions about twenty topics; return how many answers were wrong."""
    wrong = 0
    for at in range(rounds):
        for number, topic in enumerate(topics(20, seed=2)):
            query = near(topic, 100 * at + number, spread)
            wrong += ask(one, collection, query, **how) != found(collection, query, **how)
    return wrong


class Writing(RuleBasedStateMachine):
    """Writes and questions in any order; what is proven is what a search finds, ties included."""

    answered = 0

    def __init__(self):
        super().__init__()
        self.collection = VectorCollection.open(dim=4, compression="float32")
        self.reuse = reuse(rows=12, max_entries=12)
        self.count = 0
        self.grow(30, 0)

    @rule(count=st.integers(1, 8), seed=st.integers(0, 1000))
    def grow(self, count, seed):
        rows = np.round(np.random.default_rng(seed).normal(size=(count, 4)), 1) + 1e-3
        write(self.collection, rows, self.count)
        self.count += count

    @rule(data=st.data(), seed=st.integers(0, 1000))
    def replace(self, data, seed):
        rows = np.round(np.random.default_rng(seed).normal(size=(1, 4)), 1) + 1e-3
        write(self.collection, rows, data.draw(st.integers(0, self.count - 1)))

    @rule(data=st.data())
    def delete(self, data):
        self.collection.delete([str(data.draw(st.integers(0, self.count - 1)))])

    @rule(topic=st.integers(0, 5), seed=st.integers(0, 1000), where=st.sampled_from((None, EVEN)))
    def ask(self, topic, seed, where):
        query = near(topics(6, dim=4)[topic], seed, 0.02)
        part = b"all" if where is None else b"even"
        for asked in (query, near(query, seed, 0.001)):
            answer = ask(self.reuse, self.collection, asked, 3, part, where=where)
            assert answer == found(self.collection, asked, 3, where=where)

    def teardown(self):
        stats = self.reuse.stats()
        assert stats.faults == 0
        Writing.answered += stats.certified
        self.collection.close()


def test_what_is_proven_is_what_a_search_finds():
    """Under any writes, with equal rows and filters, ids, scores and their order are the same."""
    Writing.answered = 0
    run_state_machine_as_test(Writing, settings=settings(max_examples=40, stateful_step_count=30))
    assert Writing.answered > 0


@pytest.mark.parametrize("compression", ["float32", "int8"])
def test_questions_near_to_each_other_need_one_search(compression):
    """Most of what is asked about a topic after the first question is not searched for."""
    with filled(topics(3000, seed=1), compression=compression) as collection:
        one = reuse(rows=100)
        assert played(one, collection) == 0
        stats = one.stats()
        assert stats.searches == 120
        assert stats.share_served > 0.5
        assert stats.certified == served(one)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_a_collection_that_fits_into_a_list_is_never_searched_again(k):
    """Where a list holds every row there is, any question is answered from it."""
    with filled(topics(8)) as collection:
        one = reuse()
        for topic in topics(10, seed=5):
            assert ask(one, collection, topic, k) == found(collection, topic, k)
        assert served(one) == 9


def test_an_answer_that_was_served_tells_its_floor(collection):
    """No row above the floor is missing, so that what is kept can be repaired after writes."""
    one, cut = reuse(rows=60), 0
    for at, topic in enumerate(topics(12, seed=3)):
        ask(one, collection, topic)
        before, query = served(one), near(topic, at, 0.02)
        with watch(50, one.within(b"", "tenant")) as traces:
            collection.search(query, 4)
        if served(one) == before:
            continue
        trace, every = traces[0], collection.search(query, 500)[0]
        above = {hit.slot for hit in every if hit.score > trace.floor + 1e-6}
        assert above <= set(trace.slots)
        assert len(trace.slots) >= 4
        cut += len(trace.slots) < 54
    assert cut > 0


# -- writes ----------------------------------------------------------------------------------------


def test_a_row_written_above_the_floor_is_found(collection):
    """A new nearest row is in the next answer, though no list was made since."""
    one, topic = reuse(rows=100), topics(1, seed=3)[0]
    ask(one, collection, topic)
    write(collection, topic[None], 1000)
    answer = ask(one, collection, near(topic, 1, 0.01))
    assert answer == found(collection, near(topic, 1, 0.01))
    assert answer[0][0] == "1000"
    assert served(one) == 1


@pytest.mark.parametrize("flushed", [False, True])
def test_deleted_members_are_in_no_answer(collection, flushed):
    """Whoever was nearest and is deleted is not served, and the next ones take their places."""
    if flushed:
        collection.flush()
    one, topic = reuse(rows=100), topics(1, seed=3)[0]
    first = ask(one, collection, topic)
    collection.delete([id_ for id_, _ in first[:3]])
    answer = ask(one, collection, near(topic, 1, 0.01))
    assert answer == found(collection, near(topic, 1, 0.01))
    assert not {id_ for id_, _ in answer} & {id_ for id_, _ in first[:3]}
    assert served(one) == 1


def test_a_bulk_load_lets_lists_and_labels_go(collection):
    """After more than a thousand writes at once questions are searched for anew."""
    one, topic = reuse("calibrated", rows=100), topics(1, seed=3)[0]
    ask(one, collection, topic)
    write(collection, topics(1500, seed=9), 2000)
    assert ask(one, collection, topic) == found(collection, topic)
    assert served(one) == 0
    assert one.trusted(collection) == START


def test_a_cleared_collection_is_found_empty(collection):
    """Nothing of before is served when all rows are gone."""
    one, topic = reuse(), topics(1, seed=3)[0]
    ask(one, collection, topic)
    collection.clear()
    assert ask(one, collection, topic) == []


def test_another_process_writes_are_followed(tmp_path):
    """A reader of a collection that is written elsewhere answers as a new search does."""
    rows = topics(300, seed=1)
    with VectorCollection.open(tmp_path / "c", dim=16, compression="float32") as writer:
        write(writer, rows)
        with VectorCollection.open(tmp_path / "c", read_only=True) as reader:
            one, topic = reuse(rows=100), topics(1, seed=3)[0]
            ask(one, reader, topic)
            write(writer, topic[None], 1000)
            assert ask(one, reader, near(topic, 1, 0.01))[0][0] == "1000"
            assert served(one) == 1


def test_threads_that_read_and_write_get_what_was_there(collection):
    """While rows are written, every answer holds the rows that were written before it was asked."""
    one, topic = reuse(rows=100), topics(1, seed=3)[0]
    written = threading.Event()

    def read(seed):
        last = written.is_set()
        return last, ask(one, collection, near(topic, seed, 0.01), 20)

    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(read, seed) for seed in range(100)]
        for at in range(10):
            write(collection, near(topic, at, 0.001)[None], 2000 + at)
        written.set()
        reads += [pool.submit(read, seed) for seed in range(100)]
    new = {str(2000 + at) for at in range(10)}
    after = [answer for last, answer in (one.result() for one in reads) if last]
    assert after
    assert all(new <= {id_ for id_, _ in answer} for answer in after)
    assert one.stats().faults == 0


# -- partitions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [{"part": b"other"}, {"k": 5}, {"collection": True}],
    ids=["settings", "k", "collection"],
)
def test_nothing_is_found_across_partitions(collection, other):
    """With other settings, k or documents a question is searched for, and found."""
    one, topic = reuse(rows=100), topics(1, seed=3)[0]
    with filled(topics(500, seed=7)) as stranger:
        asked = stranger if other.pop("collection", False) else collection
        ask(one, collection, topic)
        k = other.get("k", 4)
        assert ask(one, asked, topic, **other) == found(asked, topic, k)
        assert served(one) == 0


def test_filters_have_lists_of_their_own(collection):
    """A filtered question is answered by filtered ones, also after writes that it lets in."""
    one, topic = reuse(rows=100), topics(1, seed=3)[0]
    ask(one, collection, topic, part=b"even", where=EVEN)
    write(collection, np.stack((topic, topic)), 1000)
    answer = ask(one, collection, topic, part=b"even", where=EVEN)
    assert answer == found(collection, topic, where=EVEN)
    assert [id_ for id_, _ in answer if int(id_) >= 1000] == ["1000"]
    assert served(one) == 1


# -- calibration -----------------------------------------------------------------------------------


WORDINGS = ("so {} please", "well I wonder, {}", "{} is what I ask", "tell me then, {}")


@pytest.fixture(scope="module")
def spoken():
    """Real vectors: sentences of XQuAD's paragraphs, and its questions in two wordings each."""
    pytest.importorskip("wordllama")
    passages, questions = load_xquad(Path(__file__).parents[2] / "examples/data/xquad_en")
    model = load_model("wordllama")
    sentences = [text for one in passages for text in one.text.split(". ") if text]
    asked = [
        WORDINGS[(at + again) % 4].format(one.text)
        for again in range(2)
        for at, one in enumerate(questions[:150])
    ]
    return model.embed(sentences), model.embed(asked)


@pytest.fixture
def crowded(spoken):
    """The sentences in a collection."""
    with filled(spoken[0]) as collection:
        yield collection


def stream(one, collection, spoken):
    """Ask for all questions; return how many served answers were not exact."""
    wrong = 0
    for query in spoken[1]:
        before = served(one)
        answer = ask(one, collection, query)
        if served(one) > before:
            wrong += {id_ for id_, _ in answer} != {id_ for id_, _ in found(collection, query)}
    return wrong


def test_more_is_served_where_a_few_may_be_wrong(crowded, spoken):
    """Calibrated answers come on top of proven ones, and are wrong as rarely as was asked for."""
    proven, calibrated = reuse(rows=100), reuse("calibrated", rows=100, error=0.05)
    assert stream(proven, crowded, spoken) == 0
    wrong = stream(calibrated, crowded, spoken)
    assert served(calibrated) > served(proven) + 30
    assert wrong <= 0.05 * calibrated.stats().calibrated


def test_the_report_says_what_audits_found(crowded, spoken):
    """Where all is audited, the audited share and recall are those of all that was served."""
    one = reuse("calibrated", rows=100, error=0.5, audit=1.0)
    wrong = stream(one, crowded, spoken)
    stats = one.stats()
    assert stats.audits == stats.calibrated > 20
    assert stats.wrong_audits == wrong > 0
    assert wrong / stats.audits < stats.error_bound < 1
    assert 1 - wrong / stats.audits < stats.recall < 1
    assert stats.faults == 0


def test_audits_are_made_in_the_background(crowded, spoken):
    """By default nobody waits for them; who wants their figures does."""
    one = reuse("calibrated", rows=100, audit=1.0, background=True)
    stream(one, crowded, spoken)
    assert one.wait(60)
    assert 0 < one.stats().audits <= one.stats().calibrated


def test_a_low_recall_floor_lets_more_through(crowded, spoken):
    """Where half of the k is enough, less need is asked for and more is served."""
    strict = reuse("calibrated", rows=50, error=0.05)
    loose = reuse("calibrated", rows=50, error=0.05, recall=0.5)
    stream(strict, crowded, spoken)
    stream(loose, crowded, spoken)
    assert loose.trusted(crowded) < strict.trusted(crowded)
    assert served(loose) > served(strict)


def test_drift_that_breaks_the_bound_is_heard_of(crowded, spoken):
    """Lists that lack rows make audits fail, and nothing is served by trust any more.

    No write through a collection does that; the codes of a compressed one may grow worse.
    """
    one = reuse("calibrated", rows=100, audit=1.0)
    stream(one, crowded, spoken)
    assert one.trusted(crowded) <= START
    for lists in one._index._partitions.values():
        lists._rows = [rows[5:] for rows in lists._rows]
    stream(one, crowded, spoken)
    assert one.trusted(crowded) > START


# -- standing aside --------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_other_metrics_are_left_alone(metric):
    """The bounds are of unit vectors: what is scored otherwise is searched for."""
    with filled(topics(100), metric=metric) as collection:
        one = reuse()
        for topic in topics(5, seed=3):
            assert ask(one, collection, topic) == found(collection, topic)
        assert one.stats().searches == 0


def test_exact_and_bounded_searches_and_several_at_once_are_left_alone(collection):
    """Who asks for more than the nearest k gets the collection's own search."""
    one = reuse()
    with watch(0, one.within(b"", "tenant")), collection.exactly():
        collection.search(topics(1)[0], 4)
    with watch(0, one.within(b"", "tenant")):
        collection.search(topics(1)[0], 4, min_score=0.1)
        collection.search(topics(3), 4)
    assert one.stats().searches == 0


def test_it_stands_aside_where_a_search_is_cheaper(collection):
    """A search of few rows takes less than what it would have to save: it is left alone."""
    one = reuse(rows=100, min_gain=0.999)
    assert played(one, collection, rounds=10) == 0
    assert one.stats().aside > 50


def test_a_knob_switches_it_off_and_on(collection):
    """A tuner finds the knob; off, every question is searched for."""
    one = reuse(rows=100)
    (knob,) = tunables(one)
    assert (knob.name, knob.get()) == ("neighbours", True)
    knob.set(False)
    played(one, collection, rounds=2)
    assert served(one) == 0
    knob.set(True)
    played(one, collection, rounds=2)
    assert served(one) > 0


def test_a_fault_is_a_search(collection, caplog):
    """When something of it breaks, the question is searched for, and one line is logged."""
    one, topic = reuse(rows=100), topics(1, seed=3)[0]
    ask(one, collection, topic)
    one._index._partitions[(b"", collection.id, 4)]._floors = None
    assert ask(one, collection, topic) == found(collection, topic)
    assert ask(one, collection, topic) == found(collection, topic)
    assert one.stats().faults >= 2
    assert len(caplog.messages) == 1


def test_no_more_questions_are_kept_than_asked_for(collection):
    """The oldest questions go first, and partitions that were asked longest ago."""
    one = reuse(rows=100, max_entries=10)
    for at, topic in enumerate(topics(60, seed=6)):
        ask(one, collection, topic, part=b"%d" % (at // 20))
    assert one.stats().entries <= 10
    assert played(one, collection) == 0


def test_async_searches_are_answered_too(collection):
    """The event loop's searches are put to neighbours as the others are."""
    one, topic = reuse(rows=100), topics(1, seed=3)[0]

    async def search(query):
        with watch(0, one.within(b"", "tenant")):
            return [(hit.id, hit.score) for hit in await collection.asearch(query, 4)]

    asyncio.run(search(topic))
    query = near(topic, 1, 0.02)
    assert asyncio.run(search(query)) == found(collection, query)
    assert served(one) == 1


# -- what it is told -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "guess"},
        {"recall": 0},
        {"recall": 1.5},
        {"error": 0},
        {"audit": 0},
        {"doubt": 0.9},
        {"min_gain": 1.0},
        {"rows": 0},
        {"max_entries": 0},
    ],
    ids=str,
)
def test_bad_options_are_refused(wrong):
    """The message says which and what it can be."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        NeighbourReuse(**wrong)


def test_a_pickled_one_begins_anew(collection):
    """Its options travel, what it learned does not."""
    one = reuse("calibrated", rows=100, error=0.02)
    played(one, collection)
    back = pickle.loads(pickle.dumps(one))
    assert back._options == one._options
    assert back.stats().searches == 0
