"""An accelerated retriever behaves as the plain one does, on a miss and on a hit.

The matrix: every sort of retriever x miss and hit x everything that a user or the framework does
with a retriever.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.errors import ConfigurationError, UnsupportedComponentError
from tests.langchain import retrievers
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.recorder import Recorder
from tests.langchain.retrievers import TEXTS, Failing, NativeAsync, Telling, WordRetriever
from tests.langchain.stores import opened

if TYPE_CHECKING:
    from langchain_core.retrievers import BaseRetriever

QUERY = "red tree"
OTHER = "dark sky"
CUSTOM = (
    retrievers.WordRetriever,
    retrievers.OldStyle,
    retrievers.NativeAsync,
    retrievers.OldStyleAsync,
    retrievers.WithArguments,
    retrievers.Dumpable,
)


@dataclass
class Pair:
    """A retriever and its accelerated self, and whether the cache knows the query."""

    plain: BaseRetriever
    fast: BaseRetriever
    cache: MultiLevelCache
    is_hit: bool

    def check(self, lookups=1):
        """Assert that the cache was used as the name of the test says."""
        stats = self.cache.stats()
        served = lookups if self.is_hit else lookups - 1
        assert sum(stats.hits.values()) == served
        assert stats.misses == 1
        assert stats.bypasses == {}


def made(name, tmp_path):
    """Return a retriever of a sort, and the identity that it needs."""
    if name == "store":
        return opened(tmp_path / "corpus").as_retriever(
            search_kwargs={"k": 3}, tags=["mine"], metadata={"team": "search"}
        ), None
    if name == "foreign store":
        theirs = InMemoryVectorStore(HashEmbeddings())
        theirs.add_texts(list(TEXTS), ids=[f"text-{row}" for row in range(len(TEXTS))])
        return theirs.as_retriever(search_type="mmr", search_kwargs={"k": 3}), None
    if name == "own class over a store":
        ours = opened(tmp_path / "corpus")
        return retrievers.Partner(vectorstore=ours, search_kwargs={"k": 3}), "corpus"
    return getattr(retrievers, name)(tags=["mine"], metadata={"team": "search"}), "words"


@pytest.fixture(
    params=[
        "store", "foreign store", "own class over a store", *(cls.__name__ for cls in CUSTOM)
    ]
)  # fmt: skip
def sort(request, tmp_path):
    """A plain retriever, and its identity."""
    return made(request.param, tmp_path)


@pytest.fixture(params=["miss", "hit"])
def pair(request, sort, tmp_path):
    """A plain and an accelerated retriever whose cache does not, or does, know the query."""
    plain, identity = sort
    with MultiLevelCache.open(tmp_path / "cache") as cache:
        fast = accelerate(plain, cache=cache, identity=identity)
        if request.param == "hit":
            fast.invoke(QUERY)
        yield Pair(plain, fast, cache, is_hit=request.param == "hit")


# -- results ---------------------------------------------------------------------------------------


def test_result_is_equal(pair):
    """The same documents come back, in the same order, with the same types."""
    expected = pair.plain.invoke(QUERY)
    found = pair.fast.invoke(QUERY)
    assert len(found) == 3
    assert found == expected
    assert [repr(one) for one in found] == [repr(one) for one in expected]
    pair.check()


async def test_asynchronous_result_is_equal(pair):
    """The async method gives what the plain sync method gives."""
    assert await pair.fast.ainvoke(QUERY) == pair.plain.invoke(QUERY)
    pair.check()


def test_results_are_the_callers_own(pair):
    """Changing what came back changes nothing for the next caller."""
    expected = copy.deepcopy(pair.plain.invoke(QUERY))
    for _ in range(3):
        found = pair.fast.invoke(QUERY)
        assert found == expected
        found[0].page_content = "changed"
        found[1].metadata["added"] = True
        for value in found[2].metadata.values():
            if isinstance(value, list):
                value.clear()
        found.reverse()
        del found[0]
    pair.check(lookups=3)


def test_extra_arguments_reach_the_retriever(pair):
    """Arguments of `invoke` go where they go in the plain retriever, and are told apart."""
    given = {"ignored": "by LangChain"}
    if isinstance(pair.plain, VectorStoreRetriever):
        given = {"k": 1}
    elif isinstance(pair.plain, retrievers.WithArguments):
        given = {"language": "fr"}
    for _ in range(2):
        assert pair.fast.invoke(QUERY, **given) == pair.plain.invoke(QUERY, **given)
        assert pair.fast.invoke(QUERY) == pair.plain.invoke(QUERY)


# -- what the framework tells ----------------------------------------------------------------------


def recorded(retriever, **config):
    """The callbacks of one call."""
    recorder = Recorder()
    retriever.invoke(QUERY, {"callbacks": [recorder], **config})
    return recorder.events


CONFIG = {"tags": ["of the call"], "metadata": {"user": 7}, "run_name": "my retrieval"}


@pytest.mark.parametrize("config", [{}, CONFIG], ids=["bare", "configured"])
def test_callbacks_are_equal(pair, config):
    """Handlers hear the same names, tags, metadata, inputs and outputs."""
    expected = recorded(pair.plain, **config)
    assert [event[0] for event in expected] == ["retriever start", "retriever end"]
    assert recorded(pair.fast, **config) == expected
    pair.check()


async def test_asynchronous_callbacks_are_equal(pair):
    """Handlers of an async call hear what those of a sync call do."""
    recorder = Recorder()
    await pair.fast.ainvoke(QUERY, {"callbacks": [recorder], **CONFIG})
    assert recorder.events == recorded(pair.plain, **CONFIG)
    pair.check()


async def test_stream_of_events_is_equal(pair):
    """`astream_events` tells of the same run."""

    async def events(retriever):
        told = [
            (event["event"], event["name"], event["tags"], event["metadata"], event["data"])
            async for event in retriever.astream_events(QUERY, version="v2")
        ]
        assert told
        return told

    assert await events(pair.fast) == await events(pair.plain)
    pair.check()


def test_run_manager_reaches_the_inner_retriever(cache):
    """On a miss the retriever's own events are nested in its run."""
    fast = accelerate(Telling(), cache=cache, identity="words")
    told = recorded(fast)
    assert told == recorded(Telling())
    assert [event[0] for event in told] == ["retriever start", "text", "retriever end"]
    assert [event[0] for event in recorded(fast)] == ["retriever start", "retriever end"]


# -- what it is ------------------------------------------------------------------------------------


def test_it_is_of_the_same_class(pair):
    """The concrete class, its names and its documentation are those of the plain retriever."""
    plain, fast = type(pair.plain), type(pair.fast)
    assert isinstance(pair.fast, plain)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(fast, name) == getattr(plain, name)
    assert fast.lc_id() == plain.lc_id()
    assert fast._expects_other_args == plain._expects_other_args


def test_dumps_are_equal(pair):
    """Nothing that is written or printed shows that it was wrapped."""
    assert pair.fast.model_dump() == pair.plain.model_dump()
    assert dumpd(pair.fast) == dumpd(pair.plain)
    assert repr(pair.fast) == repr(pair.plain)
    assert str(pair.fast) == str(pair.plain)
    assert pair.fast.get_name() == pair.plain.get_name()
    assert pair.fast.get_name("suffix") == pair.plain.get_name("suffix")
    assert pair.fast.model_fields_set == pair.plain.model_fields_set
    assert pair.fast.config_specs == pair.plain.config_specs
    assert pair.fast.get_input_jsonschema() == pair.plain.get_input_jsonschema()
    assert pair.fast.get_output_jsonschema() == pair.plain.get_output_jsonschema()
    assert pair.fast.get_graph().draw_mermaid() == pair.plain.get_graph().draw_mermaid()


def test_original_is_untouched(pair):
    """Wrapping and using the clone leaves the original without a trace, and `unwrap` gives it."""
    before = dict(vars(pair.plain))
    pair.fast.invoke(QUERY)
    assert vars(pair.plain) == before
    assert unwrap(pair.fast) is pair.plain
    assert unwrap(pair.plain) is pair.plain
    assert type(pair.plain).__mro__[0] is not type(pair.fast)


# -- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, lambda one: one.model_copy()])
def test_copy_shares_the_entries(pair, copied):
    """A shallow copy is accelerated, too, and asks for the same keys."""
    twin = copied(pair.fast)
    assert twin is not pair.fast
    assert type(twin) is type(pair.fast)
    assert twin.invoke(QUERY) == pair.plain.invoke(QUERY)
    assert pair.fast.invoke(QUERY) == pair.plain.invoke(QUERY)
    pair.check(lookups=2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: one.model_copy(deep=True)])
def test_deep_copy_is_accelerated(pair, copied):
    """A deep copy gives the same answers, through the same cache."""
    twin = copied(pair.fast)
    assert type(twin) is type(pair.fast)
    before = pair.cache.stats().lookups
    assert twin.invoke(QUERY) == twin.invoke(QUERY) == pair.plain.invoke(QUERY)
    assert pair.cache.stats().lookups == before + 2
    assert sum(pair.cache.stats().hits.values()) > 0


def test_changed_copy_has_another_key(pair):
    """A copy with other settings gives the answers of its own settings."""
    update = fewer(pair.plain)
    twin = pair.fast.model_copy(update=update)
    assert len(twin.invoke(QUERY)) == 1
    assert twin.invoke(QUERY) == pair.plain.model_copy(update=update).invoke(QUERY)
    assert pair.fast.invoke(QUERY) == pair.plain.invoke(QUERY)


def test_settings_changed_live_have_another_key(pair):
    """Attributes that are set on the accelerated retriever take effect at once."""
    pair.fast.invoke(QUERY)
    for name, value in fewer(pair.plain).items():
        setattr(pair.fast, name, value)
    assert len(pair.fast.invoke(QUERY)) == 1
    for name in fewer(pair.plain):
        setattr(pair.fast, name, getattr(pair.plain, name))
    assert pair.fast.invoke(QUERY) == pair.plain.invoke(QUERY)


def test_configurable_fields_have_their_own_keys(pair):
    """Fields that are configured per call decide the answer of that call."""
    ((name, value),) = fewer(pair.plain).items()
    field = {name: ConfigurableField(id="setting")}
    fast, plain = pair.fast.configurable_fields(**field), pair.plain.configurable_fields(**field)
    before = pair.cache.stats().lookups
    for _ in range(2):
        found = fast.with_config(configurable={"setting": value}).invoke(QUERY)
        assert found == plain.with_config(configurable={"setting": value}).invoke(QUERY)
        assert len(found) == 1
        assert fast.invoke(QUERY) == plain.invoke(QUERY)
    assert pair.cache.stats().lookups == before + 4


def fewer(retriever):
    """The field that limits a retriever to one result."""
    if isinstance(retriever, VectorStoreRetriever):
        return {"search_kwargs": {"k": 1}}
    return {"k": 1}


# -- pickling --------------------------------------------------------------------------------------


def test_pickled_retriever_stays_accelerated(pair, spans):
    """Going through pickle it keeps its class, its options and its answers."""
    back = pickle.loads(pickle.dumps(pair.fast))
    assert type(back) is type(pair.fast)
    assert repr(back).split("vectorstore=")[0] == repr(pair.fast).split("vectorstore=")[0]
    assert unwrap(back) is not back
    spans.clear()
    assert back.invoke(QUERY) == back.invoke(QUERY) == pair.plain.invoke(QUERY)
    looked_up = [span for span in spans.get_finished_spans() if span.name == "cache.lookup"]
    assert len(looked_up) == 2
    assert looked_up[1].attributes["ragaccel.cache.hit"]


def answers_elsewhere(retriever):
    """Ask in another process: the answer, and whether the retriever itself was asked."""
    asked = len(retriever.asked)
    answer = retriever.invoke(QUERY)
    return answer, len(retriever.asked) > asked


def test_other_process_finds_the_entries(tmp_path):
    """A retriever sent to another process is served what this one put into the disk level."""
    plain = WordRetriever()
    with (
        MultiLevelCache.open(tmp_path / "cache") as cache,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        fast = accelerate(plain, cache=cache, identity="words")
        expected = fast.invoke(QUERY)
        assert pool.submit(answers_elsewhere, fast).result() == (expected, False)
        assert pool.submit(answers_elsewhere, plain).result() == (expected, True)


# -- composition -----------------------------------------------------------------------------------


def test_bound_config_is_used(pair):
    """`with_config` reaches the handlers, and the answer is still cached."""
    expected = recorded(pair.plain.with_config(CONFIG))
    assert recorded(pair.fast.with_config(CONFIG)) == expected
    pair.check()


def test_batch_is_equal(pair):
    """A batch gives every query its answer, equal queries too, and the next one is all hits."""
    queries = [QUERY, OTHER, QUERY, "green", OTHER]
    expected = pair.plain.batch(queries)
    assert pair.fast.batch(queries) == expected
    before = sum(pair.cache.stats().hits.values())
    assert pair.fast.batch(queries) == expected
    assert sum(pair.cache.stats().hits.values()) == before + len(queries)


def test_batches_leave_no_files_open(tmp_path):
    """LangChain gives every batch new threads: what they opened is closed with them."""
    store = opened(tmp_path / "corpus")
    with MultiLevelCache.open(tmp_path / "cache") as cache:
        fast = accelerate(store.as_retriever(), cache=cache)

        def open_files_after(batches):
            for number in range(batches):
                fast.batch([f"question {number} {at}" for at in range(4)])
            gc.collect()
            return len(list(Path("/dev/fd").iterdir()))

        before = open_files_after(12)  # by now as many are open as four threads use at once
        assert open_files_after(12) <= before + 4
    store.close()


def test_threads_that_meet_at_a_new_cache_all_get_to_write(tmp_path):
    """A cache folder that is not there yet is made once, without a fault."""
    plain = WordRetriever()
    meeting = threading.Barrier(8)

    def ask(fast, query):
        meeting.wait()
        return fast.invoke(query)

    with ThreadPoolExecutor(meeting.parties) as pool:
        for round_ in range(100):
            with MultiLevelCache.open(tmp_path / str(round_)) as cache:
                fast = accelerate(plain, cache=cache, identity="words")
                asked = [pool.submit(ask, fast, f"question {at}") for at in range(8)]
                assert all(one.result() for one in asked)
                assert cache.stats().errors == {}


async def test_asynchronous_batch_is_equal(pair):
    """An async batch gives every query its answer."""
    queries = [QUERY, OTHER, QUERY, "green", OTHER]
    assert await pair.fast.abatch(queries) == pair.plain.batch(queries)


def test_chain_is_equal(pair):
    """Inside a chain it gives the same outputs, events and streams."""

    def chain(retriever):
        found = {"found": retriever, "query": RunnablePassthrough()}
        return found | RunnableLambda(lambda given: [one.page_content for one in given["found"]])

    plain, fast = chain(pair.plain), chain(pair.fast)
    assert fast.invoke(QUERY) == plain.invoke(QUERY)
    assert list(fast.stream(QUERY)) == list(plain.stream(QUERY))
    assert fast.batch([QUERY, OTHER]) == plain.batch([QUERY, OTHER])
    told = sorted(map(str, recorded(pair.fast | RunnableLambda(len))))
    assert told == sorted(map(str, recorded(pair.plain | RunnableLambda(len))))


async def test_asynchronous_chain_is_equal(pair):
    """Inside an async chain it gives the same outputs."""
    chain = pair.fast | (lambda documents: [one.page_content for one in documents])
    assert await chain.ainvoke(QUERY) == [one.page_content for one in pair.plain.invoke(QUERY)]
    pair.check()


def test_tool_is_equal(pair):
    """As an agent's tool it answers in the same words."""
    fast, plain = (
        create_retriever_tool(one, "search", "Searches.") for one in (pair.fast, pair.plain)
    )
    assert fast.invoke({"query": QUERY}) == plain.invoke({"query": QUERY})
    assert fast.args == plain.args
    pair.check()


# -- entries ---------------------------------------------------------------------------------------


async def test_sync_and_async_share_one_entry(sort, cache):
    """What a sync call has found, an async call is served, and the other way round."""
    plain, identity = sort
    fast = accelerate(plain, cache=cache, identity=identity)
    first = fast.invoke(QUERY)
    assert await fast.ainvoke(QUERY) == first
    second = await fast.ainvoke(OTHER)
    assert fast.invoke(OTHER) == second
    stats = cache.stats()
    assert (stats.hits, stats.misses) == ({"memory": 2}, 2)


async def test_equal_questions_at_once_are_asked_once(cache):
    """Of concurrent equal calls one reaches the retriever."""
    plain = NativeAsync()
    fast = accelerate(plain, cache=cache, identity="words")
    answers = await asyncio.gather(*(fast.ainvoke(QUERY) for _ in range(8)))
    assert plain.asked == [QUERY]
    assert all(answer == answers[0] for answer in answers)
    assert len({id(answer[0]) for answer in answers}) == len(answers)


class Waiting(WordRetriever):
    """Answers an async call when it is told to."""

    began: asyncio.Event
    may_end: asyncio.Event

    async def _aget_relevant_documents(self, query, *, run_manager):
        self.began.set()
        await self.may_end.wait()
        return self.ranked(query)


async def test_sync_call_beside_an_async_one_does_not_wait_for_it(cache):
    """A sync call on the event loop's own thread computes for itself instead of blocking it."""
    plain = Waiting(began=asyncio.Event(), may_end=asyncio.Event())
    fast = accelerate(plain, cache=cache, identity="words")
    under_way = asyncio.create_task(fast.ainvoke(QUERY))
    await plain.began.wait()
    found = fast.invoke(QUERY)
    plain.may_end.set()
    assert await under_way == found
    assert plain.asked == [QUERY] * 2


def test_search_types_are_equal_and_told_apart(store, cache):
    """All three search types give the plain answer, each under its own key."""
    kinds = {
        "similarity": {"k": 3},
        "similarity_score_threshold": {"k": 3, "score_threshold": 0.6},
        "mmr": {"k": 3, "fetch_k": 5, "lambda_mult": 0.2},
    }
    for _ in range(2):
        for search_type, search_kwargs in kinds.items():
            plain = store.as_retriever(search_type=search_type, search_kwargs=search_kwargs)
            found = accelerate(plain, cache=cache).invoke(QUERY)
            assert found == plain.invoke(QUERY)
            assert found
    assert (cache.stats().hits, cache.stats().misses) == ({"memory": 3}, 3)


def test_search_settings_changed_in_place_have_another_key(store, cache):
    """Changing the dict of search settings is seen by the next call."""
    fast = accelerate(store.as_retriever(search_kwargs={"k": 2}), cache=cache)
    assert len(fast.invoke(QUERY)) == 2
    fast.search_kwargs["k"] = 4
    assert len(fast.invoke(QUERY)) == 4
    fast.search_kwargs["filter"] = {"number": {"$lt": 1}}
    assert [one.id for one in fast.invoke(QUERY)] == ["text-0"]
    assert cache.stats().hits == {}


@pytest.mark.parametrize("sort", ["store", "foreign store"])
def test_filter_function_goes_past_the_cache(sort, tmp_path, cache):
    """A function cannot be told from another one: the answer is right, and counted as a bypass."""
    plain, _ = made(sort, tmp_path)
    fast = accelerate(plain, cache=cache)
    for wanted in ("text-0", "text-1"):
        fast.search_kwargs["filter"] = lambda document, wanted=wanted: document.id == wanted
        assert [one.id for one in fast.invoke(QUERY)] == [wanted]
    stats = cache.stats()
    assert (stats.bypasses, stats.lookups) == ({"key": 2}, 0)


class Special(Document):
    """A document that a cache could not give back as it was."""


class Returning(WordRetriever):
    """Returns what it was given."""

    documents: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


@pytest.mark.parametrize(
    "document",
    [
        Special(page_content="of another class"),
        Document(page_content="a date", metadata={"day": timedelta(days=1)}),
        Document(page_content="a tuple", metadata={"pair": (1, 2)}),
        Document(page_content="a set", metadata={"some": {1, 2}}),
        Document(page_content="a number as key", metadata={"keys": {1: "one"}}),
    ],
    ids=lambda document: document.page_content,
)
def test_what_cannot_be_stored_faithfully_is_not_cached(document, cache):
    """Such documents come back as they are, every time."""
    fast = accelerate(Returning(documents=[document]), cache=cache, identity="returning")
    for _ in range(2):
        (found,) = fast.invoke(QUERY)
        assert found == document
        assert type(found) is type(document)
    assert cache.stats().bypasses == {"value": 2}
    assert cache.stats().hits == {}


def test_empty_answer_is_an_answer(cache):
    """Finding nothing is cached like finding something."""
    fast = accelerate(Returning(documents=[]), cache=cache, identity="returning")
    assert fast.invoke(QUERY) == fast.invoke(QUERY) == []
    assert cache.stats().hits == {"memory": 1}


def test_lifetime_of_an_entry_can_be_given(cache):
    """An entry is not served longer than `ttl`."""
    fast = accelerate(WordRetriever(), cache=cache, identity="words", ttl=timedelta(microseconds=1))
    assert fast.invoke(QUERY) == fast.invoke(QUERY)
    assert cache.stats().misses == 2


# -- errors ----------------------------------------------------------------------------------------


class OwnError(Exception):
    """An error of the user's own, with more than a message."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        KeyError("key"),
        TimeoutError(),
        OwnError(7, "no"),
        StopIteration("no more"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_through_unchanged(error, cache):
    """The retriever's own error reaches the caller and the handlers, and is not cached."""
    fast = accelerate(Failing(error=error), cache=cache, identity="failing")
    for _ in range(2):
        recorder = Recorder()
        with pytest.raises(type(error)) as caught:
            fast.invoke(QUERY, {"callbacks": [recorder]})
        assert caught.value is error
        assert [event[0] for event in recorder.events] == ["retriever start", "retriever error"]
        assert recorder.events[1][3] == (error,)
    assert cache.stats().misses == 2


async def test_errors_come_through_asynchronously(cache):
    """The same holds for async calls."""
    error = OwnError(7, "no")
    fast = accelerate(Failing(error=error), cache=cache, identity="failing")
    for _ in range(2):
        recorder = Recorder()
        with pytest.raises(OwnError) as caught:
            await fast.ainvoke(QUERY, {"callbacks": [recorder]})
        assert caught.value is error
        assert [event[0] for event in recorder.events] == ["retriever start", "retriever error"]
    answers = await fast.abatch([QUERY, OTHER], return_exceptions=True)
    assert answers == [error, error]


def test_retriever_works_again_after_an_error(cache):
    """An error leaves nothing behind that the next call would wait for."""
    fast = accelerate(Failing(error=ValueError("no")), cache=cache, identity="failing")
    with pytest.raises(ValueError, match="no"):
        fast.invoke(QUERY)
    fast.error = KeyError("other")
    with pytest.raises(KeyError, match="other"):
        fast.invoke(QUERY)


# -- accelerate ------------------------------------------------------------------------------------


def test_without_a_cache_nothing_is_cached(sort):
    """Without `cache=` every class can be wrapped, and each call asks the retriever."""
    plain, _ = sort
    fast = accelerate(plain)
    assert fast.invoke(QUERY) == fast.invoke(QUERY) == plain.invoke(QUERY)
    if isinstance(plain, WordRetriever):
        assert len(plain.asked) == 3


def test_second_call_replaces_the_options(sort, cache):
    """Accelerating an accelerated retriever gives it other options, and never nests."""
    plain, identity = sort
    with MultiLevelCache.open() as other:
        first = accelerate(plain, cache=cache, identity=identity)
        second = accelerate(first, cache=other, identity=identity)
        third = accelerate(second)
        assert type(first) is type(second) is type(third)
        assert unwrap(second) is unwrap(third) is plain
        for one in (second, third):
            assert one.invoke(QUERY) == plain.invoke(QUERY)
        assert cache.stats().lookups == 0
        assert other.stats().lookups == 1
        first.invoke(QUERY)
        assert cache.stats().lookups == 1


def test_unknown_class_needs_an_identity(cache):
    """A class whose settings cannot be seen is not guessed at."""
    with pytest.raises(ConfigurationError, match=r"WordRetriever .* identity=\"\.\.\."):
        accelerate(WordRetriever(), cache=cache)


@pytest.mark.parametrize("ttl", [0, -1, timedelta(0)])
def test_unfit_lifetime_is_refused_at_once(store, cache, ttl):
    """A lifetime that cannot be is refused where it is given, not in the first request."""
    with pytest.raises(ConfigurationError, match="ttl must be positive"):
        accelerate(store.as_retriever(), cache=cache, ttl=ttl)


@pytest.mark.parametrize(
    ("thing", "advice"),
    [
        (lambda store: "text", "pass a retriever"),
        (lambda store: None, "pass a retriever"),
    ],
    ids=["text", "none"],
)
def test_what_cannot_be_wrapped_is_refused_with_advice(store, thing, advice):
    """The error names the class and says what to wrap instead."""
    given = thing(store)
    with pytest.raises(UnsupportedComponentError, match=type(given).__name__) as refusal:
        accelerate(given)
    assert advice in str(refusal.value)
