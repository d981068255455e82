"""Warming: every query once, within bounds, whatever happens."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import io
import itertools
import json
import sys
import threading
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import QueryBundle, TextNode

from ragaccel.cache.warming import WarmReport, awarm, warm
from ragaccel.errors import ConfigurationError
from tests.cache.helpers import PATIENCE, script, wait_until
from tests.langchain import retrievers as langchain_retrievers
from tests.llamaindex import retrievers as llamaindex_retrievers

HERE = contextvars.ContextVar("HERE", default="outside")


def sync(queries, through, **options):
    return warm(queries, through, **{"progress": False, **options})


def in_a_loop(queries, through, **options):
    return asyncio.run(awarm(queries, through, **{"progress": False, **options}))


both = pytest.mark.parametrize("ask", [sync, in_a_loop])


@both
@settings(max_examples=20, deadline=None)
@given(queries=st.lists(st.text() | st.integers(0, 3) | st.booleans() | st.lists(st.text())))
def test_every_query_is_asked_once(ask, queries):
    """What was asked are the distinct queries, 1 and True told apart."""
    asked = []
    report = ask(iter(queries), asked.append)
    assert sorted(map(repr, asked)) == sorted(set(map(repr, queries)))
    assert (report.asked, report.failed, report.errors) == (len(asked), 0, ())


@both
def test_errors_are_collected(ask):
    """A query that fails is in the report with what it raised, and the others are asked."""
    wrong = {1: ValueError("one"), 3: KeyError("three"), 5: TimeoutError()}

    def through(query):
        if query in wrong:
            raise wrong[query]

    report = ask(range(8), through)
    assert (report.asked, report.failed) == (8, 3)
    assert dict(report.errors) == wrong
    assert "8 queries asked" in str(report)
    assert "3 failed" in str(report)


@both
def test_a_stop_iteration_is_an_error_like_any_other(ask):
    """The one error that neither a coroutine nor a future can carry ends nothing."""

    def through(query):
        raise StopIteration(query)

    report = ask(range(3), through)
    assert (report.asked, report.failed) == (3, 3)


@both
def test_the_first_thousand_errors_are_kept(ask):
    """All failures are counted, and no more than 1,000 errors are held."""

    def through(query):
        raise LookupError(query)

    report = ask(range(1500), through)
    assert report.failed == 1500
    assert len(report.errors) == 1000


@both
def test_a_source_that_breaks_off(ask):
    """What the source gave before its error is asked, and the error is reported."""

    def source():
        yield "one"
        raise OSError("gone")

    asked = []
    report = ask(source(), asked.append)
    assert asked == ["one"]
    assert [(query, str(error)) for query, error in report.errors] == [(None, "gone")]


@both
@pytest.mark.parametrize("concurrency", [1, 3])
def test_bounded_and_lazy(ask, concurrency):
    """No more are under way than allowed, and no more are read than twice as many."""
    lock = threading.Lock()
    full = threading.Barrier(concurrency)
    taken, under_way, most, ended = [0], [0], [0], [0]

    def source():
        for number in range(6 * concurrency):
            taken[0] += 1
            with lock:
                assert taken[0] - ended[0] <= 2 * concurrency + 1
            yield number

    def through(query):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        full.wait(PATIENCE)  # all places are taken before anybody leaves
        with lock:
            under_way[0] -= 1
            ended[0] += 1

    report = ask(source(), through, concurrency=concurrency)
    assert report.failed == 0, report
    assert most == [concurrency]


@both
def test_rate(ask):
    """The queries are spaced, so that n of them take n - 1 intervals at least."""
    report = ask(range(6), lambda _: None, rate=50, concurrency=8)
    assert report.asked == 6
    assert report.seconds >= 5 / 50


@both
def test_context_variables_are_seen(ask):
    """The queries are asked with the context variables of the caller."""
    seen = []
    token = HERE.set("inside")
    try:
        ask(range(3), lambda _: seen.append(HERE.get()))
    finally:
        HERE.reset(token)
    assert seen == ["inside"] * 3


@both
def test_an_endless_log_is_remembered_in_bounded_memory(ask, monkeypatch):
    """The oldest queries are forgotten first, and may then be asked again."""
    monkeypatch.setattr("ragaccel.cache.queries._REMEMBERED", 100)
    asked = []
    ask([*range(50), *range(50), *range(100, 300), *range(50)], asked.append)
    assert asked.count(7) == 2
    assert len(asked) == 300


@both
def test_llamaindex_objects(ask):
    """A retriever is asked by its retrieve, a query engine by its query."""
    nodes = [TextNode(text="a tree"), TextNode(text="the sky")]
    for kind in (llamaindex_retrievers.WordRetriever, llamaindex_retrievers.AsyncWordRetriever):
        retriever = kind(nodes)
        assert ask(["tree", "sky", "tree"], retriever).asked == 2
        assert sorted(retriever.calls) == ["sky", "tree"]
    retriever = llamaindex_retrievers.WordRetriever(nodes)

    class Engine(CustomQueryEngine):
        def custom_query(self, query_str):
            return str(retriever.retrieve(query_str))

    report = ask([QueryBundle("tree")], Engine())  # it has a `retrieve`, which refuses
    assert report.failed == 0, report
    assert retriever.calls == ["tree"]


@both
@pytest.mark.parametrize("kind", ["WordRetriever", "NativeAsync"])
def test_langchain_retrievers(ask, kind):
    """A retriever is asked by its invoke or ainvoke."""
    retriever = getattr(langchain_retrievers, kind)()
    assert ask(["tree", "sky", "tree"], retriever).failed == 0
    assert sorted(retriever.asked) == ["sky", "tree"]


async def test_the_loop_is_not_blocked():
    """Other tasks run while a function that blocks is asked."""
    free = threading.Event()
    warming = asyncio.create_task(awarm(["query"], lambda _: free.wait(PATIENCE), progress=False))
    await asyncio.sleep(0.01)
    assert not warming.done()
    free.set()
    assert (await warming).failed == 0


async def test_coroutine_functions():
    """Whatever can be awaited is: functions, partials, objects, lambdas."""
    asked = []

    async def ask(query, more=None):
        await asyncio.sleep(0)
        asked.append(query)

    class Callable:
        async def __call__(self, query):
            await ask(query)

    def late(query):
        return ask(query)

    class Retriever:
        async def aretrieve(self, query):
            await ask(query)

    for through in (ask, functools.partial(ask, more=1), Callable(), Retriever(), late):
        await awarm(["query"], through, progress=False)
    assert asked == ["query"] * 5
    for through in (ask, Callable(), Retriever()):
        with pytest.raises(ConfigurationError, match="awarm"):
            warm(["query"], through)
    [(_, error)] = warm(["query"], late, progress=False).errors
    assert "awarm" in str(error)


async def test_a_cancellation_cancels_the_queries():
    """Nothing is left under way, and no more is read, when the warming is cancelled."""
    started, cancelled, read = [], [], itertools.count()
    full = asyncio.Event()

    async def through(query):
        started.append(query)
        if len(started) == 3:
            full.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(query)
            raise

    warming = asyncio.create_task(awarm(read, through, concurrency=3, progress=False))
    await asyncio.wait_for(full.wait(), PATIENCE)
    warming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await warming
    assert sorted(started) == sorted(cancelled) == [0, 1, 2]
    assert next(read) <= 7


@both
def test_an_interrupt_passes(ask):
    """A KeyboardInterrupt stops the warming; what was under way has ended by then."""
    asked = []

    def source():
        yield from range(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(source(), asked.append, concurrency=2)
    assert set(asked) <= set(range(5))
    wait_until(lambda: not [one for one in threading.enumerate() if "ragaccel" in one.name])


def test_control_c_ends_the_threads():
    """A real SIGINT during a wait ends the program with KeyboardInterrupt, threads and all."""
    told = script(
        """
        import itertools, os, signal, threading
        from ragaccel.cache.warming import warm

        def through(query):
            if query % 200 == 20:  # Python may lose one, in a destructor
                os.kill(os.getpid(), signal.SIGINT)

        try:
            warm(itertools.count(), through, progress=False, rate=100)
        except KeyboardInterrupt:
            print("interrupted", threading.active_count())
        """
    )
    assert told.split() == ["interrupted", "1"]


FILES = {
    "a.txt": "one\r\n\n  two  \nthree, 3\none\n",
    "b.jsonl": '{"query": "one", "at": 1}\n"two"\n\n{"query": "three, 3"}\n{"query": ""}\n',
    "c.csv": 'at,Query\n1,one\n2,two\n3,"three, 3"\n4,\n5\n',
    "d.csv": 'one,1\ntwo,2\n"three, 3",3\n\n',
    "e.tsv": "n\tquery\n1\tone\n2\ttwo\n3\tthree, 3\n",
    "f.TXT": "\ufeffone\ntwo\nthree, 3",
}


@both
@pytest.mark.parametrize("name", FILES)
def test_files(ask, name, tmp_path):
    """A file gives its queries by its ending, as a path or as a string; no blank ones."""
    path = tmp_path / name
    path.write_bytes(FILES[name].encode())
    for given_path in (path, str(path)):
        asked = []
        report = ask(given_path, asked.append, concurrency=1)
        assert asked == ["one", "two", "three, 3"]
        assert report.failed == 0


def test_empty_files(tmp_path):
    """A file without anything in it has no queries."""
    for ending in (".txt", ".jsonl", ".csv", ".tsv"):
        path = tmp_path / f"empty{ending}"
        path.touch()
        report = sync(path, print)
        assert (report.asked, report.failed) == (0, 0)


@given(queries=st.lists(st.text(min_size=1).filter(str.strip), unique=True))
@settings(max_examples=20, deadline=None)
def test_recorded_traffic_comes_back_as_it_was(queries, tmp_path_factory):
    """Queries of any text are read from JSON lines as they were written."""
    path = tmp_path_factory.mktemp("traffic") / "traffic.jsonl"
    path.write_text("".join(json.dumps({"query": one, "at": 1.5}) + "\n" for one in queries))
    asked = []
    sync(path, asked.append, concurrency=1)
    assert asked == queries


def test_damaged_lines_are_reported(tmp_path):
    """Lines that cannot be understood are errors of the report; the others are asked."""
    path = tmp_path / "traffic.jsonl"
    path.write_text('{"query": "one"}\n{"quer\n[1]\n{"text": 1}\n7\n{"query": "two"}\n')
    asked = []
    report = sync(path, asked.append, concurrency=1)
    assert asked == ["one", "two"]
    assert [line for line, _ in report.errors] == ['{"quer', "[1]", '{"text": 1}', "7"]
    assert all(isinstance(error, ConfigurationError) for _, error in report.errors)
    path.write_bytes(b'"one"\n"\xff"\n')
    assert isinstance(sync(path, asked.append).errors[0][1], UnicodeDecodeError)


@pytest.mark.parametrize(
    ("queries", "told"),
    [
        ("what is a tree?", r"\['what is a tree\?'\]"),
        ("missing.txt", "no file"),
        (__file__, ".jsonl"),
        (b"bytes", "list"),
        (None, "list"),
        (7, "list"),
        (QueryBundle("tree"), "list"),
    ],
)
async def test_queries_that_are_none(queries, told):
    """What is neither a list nor a file is refused, with what to write instead."""
    with pytest.raises(ConfigurationError, match=told):
        warm(queries, print)
    with pytest.raises(ConfigurationError, match=told):
        await awarm(queries, print)


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"concurrency": 1.5}, {"rate": 0}, {"rate": -1}, {"rate": float("nan")}],
)
async def test_other_bad_arguments(options):
    """Bounds that cannot be meant, and objects that cannot be asked, are refused."""
    with pytest.raises(ConfigurationError):
        warm([], print, **options)
    with pytest.raises(ConfigurationError):
        await awarm([], print, **options)
    with pytest.raises(ConfigurationError, match="object cannot be asked"):
        warm([], object())
    with pytest.raises(ConfigurationError, match="object cannot be asked"):
        await awarm([], object())


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@both
def test_progress_on_a_terminal(ask, monkeypatch, tmp_path):
    """A terminal sees a bar with count and rate; a file and `progress=False` see nothing."""
    path = tmp_path / "queries.txt"
    path.write_text("one\ntwo\none\n")
    monkeypatch.setenv("TERM", "xterm")
    for stream, progress in ((_Terminal(), True), (_Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert ask(path, len, progress=progress).asked == 2
        shown = progress and stream.isatty()
        assert ("3/3" in stream.getvalue() and "/s" in stream.getvalue()) == shown
        assert bool(stream.getvalue()) == shown


def test_rich_is_imported_for_a_terminal_only():
    """Importing and warming without a terminal does not load rich."""
    told = script(
        """
        import sys
        from ragaccel.cache.warming import warm
        warm(["query"], len)
        print("rich" in sys.modules)
        """
    )
    assert told.strip() == "False"


def test_the_report_is_a_value():
    """A report is frozen and prints as the call that makes it."""
    report = sync(["query"], len)
    assert eval(repr(report)) == report == WarmReport(1, 0, report.seconds)
    with pytest.raises(FrozenInstanceError):
        report.asked = 2
