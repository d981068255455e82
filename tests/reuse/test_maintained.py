"""Whatever is written by whom, a cached answer is the answer of a search from scratch."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ragaccel import MultiLevelCache, accelerate
from ragaccel.errors import ConfigurationError
from ragaccel.langchain import CompressedVectorStore
from tests.reuse.peers import KINDS, Numbered, Peer, Remote

TOPICS = ("ant", "bee", "cat", "dog")
kinds = st.sampled_from(sorted(KINDS))
topics = st.sampled_from(TOPICS)
rows = st.integers(0, 60)
groups = st.integers(0, 3)


@pytest.fixture(scope="module")
def remote():
    remote = Remote()
    yield remote
    remote.end()


class Writing(RuleBasedStateMachine):
    """Two processes share a folder of documents and one of entries; one of them writes."""

    others = ()
    served = (0, 0, 0)

    @initialize(here=st.booleans(), many=st.integers(0, 60))
    def begin(self, here, many):
        self.folder = Path(tempfile.mkdtemp())
        opener = Peer(self.folder, read_only=False)
        opener.add(
            [str(row) for row in range(many)],
            [f"{TOPICS[row % 4]} {row}" for row in range(many)],
            [{"group": row % 4} for row in range(many)],
        )
        opener.close()
        local = Peer(self.folder, read_only=not here)
        remote = self.others[0].open(self.folder, read_only=here)
        self.peers = [local, remote]
        self.writer = local if here else remote
        self.number = 0

    @rule(changed=st.lists(st.tuples(rows, topics, groups, st.booleans()), min_size=1, max_size=5))
    def upsert(self, changed):
        changed = {row: (topic, group, kept) for row, topic, group, kept in changed}
        self.number += 1
        self.writer.add(
            [str(row) for row in changed],
            [f"{topic} {row} {self.number}" for row, (topic, *_) in changed.items()],
            [{"group": group, "kept": kept} for _, group, kept in changed.values()],
        )

    @rule(gone=st.lists(rows, min_size=1, max_size=6))
    def delete(self, gone):
        self.writer.delete([str(row) for row in gone])

    @rule(topic=topics)
    def delete_more_than_there_are_spare_rows(self, topic):
        nearest, _ = self.writer.ask("all", topic)
        self.writer.delete([row for row, *_ in nearest[:14]])

    @rule(how=st.sampled_from(["flush", "compact", "clear"]))
    def tidy(self, how):
        self.writer.tidy(how)

    @rule(who=st.integers(0, 1), struck=rows)
    def invalidate(self, who, struck):
        self.peers[who].invalidate([str(struck)])

    @rule(who=st.integers(0, 1), asked=st.lists(st.tuples(kinds, topics), min_size=1, max_size=5))
    def ask(self, who, asked):
        for kind, topic in asked:
            served, true = self.peers[who].ask(kind, topic)
            assert served == true

    def teardown(self):
        if hasattr(self, "peers"):
            for peer in self.peers:
                told = peer.figures()
                Writing.served = tuple(map(sum, zip(Writing.served, told, strict=True)))
                peer.close()
            shutil.rmtree(self.folder)


def test_no_order_of_writes_in_any_process_makes_an_answer_differ(remote):
    """Upserts, deletes, filters, tidying and strikes in two processes: no answer ever differs."""
    Writing.others, Writing.served = (remote,), (0, 0, 0)
    run_state_machine_as_test(
        Writing,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Writing.served[0] > 30


def _traffic(peers, writer, chance, count, *, rows, queries):
    """Yield who is asked what, and write in between."""
    number = 0
    for _ in range(count):
        if chance.random() < 0.1:
            number += 1
            row = str(chance.randrange(rows))
            if chance.random() < 0.3:
                writer.delete([row])
            else:
                text = f"{chance.choice(queries)} {row} {number}"
                writer.add([row], [text], [{"group": chance.randrange(4)}])
        yield (
            chance.choice(peers),
            chance.choice(sorted(KINDS.keys() - {"all"})),
            int(chance.paretovariate(0.6)) % len(queries),
        )


def _filled(folder, rows, queries, **options):
    peer = Peer(folder, read_only=False, **options)
    peer.add(
        [str(row) for row in range(rows)],
        [f"{queries[row % len(queries)]} {row}" for row in range(rows)],
        [{"group": row % 4} for row in range(rows)],
    )
    peer.tidy("flush")
    return peer


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_hundred_thousand_questions_have_no_wrong_answer(tmp_path, remote, seed):
    """Of 5 x 20,000 questions at 10% writes on their topics, in two processes, none differs."""
    chance, queries = random.Random(seed), [f"topic-{number}" for number in range(300)]
    here = _filled(tmp_path, 3000, queries)
    there = remote.open(tmp_path, read_only=True)
    differing = 0
    for peer, kind, query in _traffic(
        [here, there], here, chance, 20_000, rows=3500, queries=queries
    ):
        served, true = peer.ask(kind, queries[query])
        differing += served != true
    assert differing == 0
    for peer in (here, there):
        hits, misses, _ = peer.figures()
        assert hits > 4 * misses
        peer.close()


@pytest.mark.parametrize("compression", ["rabitq1", pytest.param("pq", marks=pytest.mark.slow)])
def test_compressed_answers_are_as_right_as_those_of_new_searches(tmp_path, compression):
    """Over compressed vectors kept answers have at least the recall of searches made now."""
    chance, queries = random.Random(5), [f"topic-{number}" for number in range(40)]
    peer = _filled(tmp_path, 6000, queries, compression=compression)
    kept = new = 0
    for _, kind, query in _traffic([peer], peer, chance, 800, rows=6500, queries=queries):
        ours, theirs = peer.recalls(kind, queries[query])
        kept, new = kept + ours, new + theirs
    hits, misses, _ = peer.figures()
    assert hits > 4 * misses
    assert kept >= new > 0
    peer.close()


@pytest.mark.parametrize("spare", [0, 4])
def test_as_many_deletes_are_outlived_as_rows_are_to_spare(spare):
    """With none to spare the first delete in an answer makes it be searched for anew."""
    store = CompressedVectorStore(Numbered())
    store.add_texts([f"ant {row}" for row in range(40)])
    plain = store.as_retriever(search_kwargs={"k": 3})
    with MultiLevelCache.open() as cache:
        fast = accelerate(plain, cache=cache, spare=spare)
        for deletes in range(spare + 2):
            found = fast.invoke("ant")
            assert found == plain.invoke("ant")
            assert cache.stats().misses == (1 if deletes <= spare else 2)
            store.delete([found[0].id])
    store.close()


def test_bulk_load_is_not_replayed():
    """After more changes than an eighth of the rows an answer is searched for anew."""
    store = CompressedVectorStore(Numbered())
    store.add_texts([f"ant {row}" for row in range(24_000)])
    fast = store.as_retriever(search_kwargs={"k": 3})
    with MultiLevelCache.open() as cache:
        fast = accelerate(fast, cache=cache)
        for written, misses in ((0, 1), (2400, 1), (4000, 2)):
            store.add_texts([f"bee {row}" for row in range(written)])
            fast.invoke("ant")
            assert cache.stats().misses == misses
    store.close()


@pytest.mark.parametrize("spare", [-1, 2.5, True, None, "10"])
def test_spare_that_is_no_number_of_rows_is_refused_at_once(spare):
    """It is said what can be."""
    retriever = CompressedVectorStore(Numbered()).as_retriever()
    with pytest.raises(ConfigurationError, match="spare must be a whole number of at least 0"):
        accelerate(retriever, spare=spare)
