"""Every stage of a retrieval is a span, at its place in the trace, and without any content."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap

import pytest
from langchain_core.runnables import RunnableLambda
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace

from ragaccel import MultiLevelCache, accelerate
from tests.langchain.retrievers import TEXTS, Delegating, Failing, NativeAsync, WordRetriever

QUERY = "a confidential question about the red tree"
MISS = ("query", ["preprocess", "cache.lookup", ("retrieve", ["embed", "search"])])
HIT = ("query", ["preprocess", "cache.lookup"])
BYPASS = ("query", ["preprocess", ("retrieve", ["embed", "search"])])
UNCACHED = ("retrieve", ["embed", "search"])


@pytest.fixture
def fast(store, cache, spans):
    """An accelerated retriever over the six texts, which were written untraced."""
    spans.clear()
    return accelerate(store.as_retriever(search_kwargs={"k": 2}), cache=cache)


@pytest.fixture
def instrumented(exporter):
    """LangChain with OpenInference's spans, for one test."""
    LangChainInstrumentor().instrument()
    yield
    LangChainInstrumentor().uninstrument()


def tree(finished, span):
    """A span's name with those of its children, in the order in which they began."""
    inside = [
        tree(finished, one)
        for one in sorted(finished, key=lambda one: one.start_time)
        if one.parent is not None and one.parent.span_id == span.context.span_id
    ]
    return (span.name, inside) if inside else span.name


def trees(spans):
    """Every trace that was recorded, as trees; there is no span without its parent."""
    finished = spans.get_finished_spans()
    known = {(span.context.trace_id, span.context.span_id) for span in finished}
    for span in finished:
        assert span.parent is None or (span.context.trace_id, span.parent.span_id) in known
    roots = sorted((one for one in finished if one.parent is None), key=lambda one: one.start_time)
    assert len({root.context.trace_id for root in roots}) == len(roots)
    return [tree(finished, root) for root in roots]


def only(spans, name):
    """The one span of a name."""
    (found,) = (span for span in spans.get_finished_spans() if span.name == name)
    return found


# -- stages ----------------------------------------------------------------------------------------


def test_miss_and_hit_have_their_stages(fast, spans):
    """A miss is looked up, retrieved, embedded and searched for; a hit is looked up."""
    fast.invoke(QUERY)
    fast.invoke(QUERY)
    assert trees(spans) == [MISS, HIT]


async def test_asynchronous_calls_have_the_same_stages(fast, spans):
    """Worker threads and tasks leave no span without its parent."""
    await fast.ainvoke(QUERY)
    await fast.ainvoke(QUERY)
    assert trees(spans) == [MISS, HIT]


def test_bypass_has_no_lookup(fast, spans):
    """A call that cannot be cached says so and is retrieved."""
    fast.search_kwargs["filter"] = lambda _: True
    fast.invoke(QUERY)
    assert trees(spans) == [BYPASS]
    assert only(spans, "preprocess").attributes["ragaccel.cache.bypass"] is True


def test_retriever_without_a_cache_is_traced(store, spans):
    """Tracing needs no cache."""
    accelerate(store.as_retriever()).invoke(QUERY)
    assert trees(spans) == [UNCACHED]


@pytest.mark.parametrize("retriever", [WordRetriever, NativeAsync])
async def test_custom_retrievers_have_their_stages(retriever, cache, spans):
    """A retriever of the user's own has the stages that can be seen from outside."""
    fast = accelerate(retriever(), cache=cache, identity="words")
    await fast.ainvoke(QUERY)
    fast.invoke(QUERY)
    assert trees(spans) == [("query", ["preprocess", "cache.lookup", "retrieve"]), HIT]


def test_retriever_inside_a_retriever_is_nested(store, cache, spans):
    """The inner query is a part of the outer retrieval."""
    inner = accelerate(store.as_retriever(), cache=cache)
    accelerate(Delegating(inner=inner), cache=cache, identity="outer").invoke(QUERY)
    assert trees(spans) == [("query", ["preprocess", "cache.lookup", ("retrieve", [MISS])])]


def test_attributes_tell_what_happened(fast, spans):
    """The look-up tells of hit and level, the query of its documents, the search of its rows."""
    fast.invoke(QUERY)
    missed = only(spans, "cache.lookup").attributes
    assert missed["ragaccel.cache.hit"] is False
    assert "ragaccel.cache.level" not in missed
    query = only(spans, "query").attributes
    assert query["ragaccel.component"] == "VectorStoreRetriever"
    assert query["ragaccel.documents.count"] == 2
    search = only(spans, "search").attributes
    assert (search["gen_ai.retrieval.top_k"], search["ragaccel.index.rows"]) == (2, len(TEXTS))
    kinds = {
        span.name: span.attributes.get("openinference.span.kind")
        for span in spans.get_finished_spans()
    }
    assert kinds["embed"] == "EMBEDDING"
    assert kinds["retrieve"] == "RETRIEVER"
    spans.clear()
    fast.invoke(QUERY)
    served = only(spans, "cache.lookup").attributes
    assert served["ragaccel.cache.hit"] is True
    assert served["ragaccel.cache.level"] == "memory"
    assert served["ragaccel.cache.age"] >= 0
    assert only(spans, "query").attributes["ragaccel.documents.count"] == 2


def test_level_that_served_is_named(store, tmp_path, spans):
    """A new process is served from the disk, and then from memory."""
    for _ in range(2):
        spans.clear()
        with MultiLevelCache.open(tmp_path) as cache:
            fast = accelerate(store.as_retriever(), cache=cache)
            fast.invoke(QUERY)
            fast.invoke(QUERY)
    found = [one for one in spans.get_finished_spans() if one.name == "cache.lookup"]
    assert [one.attributes["ragaccel.cache.level"] for one in found] == ["disk", "memory"]


def test_caller_keeps_its_current_span(fast):
    """After a call the caller's own span is current again, on a miss, a hit and an error."""
    failing = accelerate(Failing(error=ValueError("no")))
    with trace.get_tracer("tests").start_as_current_span("of the caller") as own:
        for retriever in (fast, fast, failing):
            try:
                retriever.invoke(QUERY)
            except ValueError:
                assert retriever is failing
            assert trace.get_current_span() is own


# -- under the framework's spans -------------------------------------------------------------------


def as_chain(retriever):
    """A chain such as an application has."""
    return retriever | RunnableLambda(len).with_config(run_name="count")


@pytest.mark.usefixtures("instrumented")
def test_stages_are_nested_under_the_frameworks_spans(fast, spans):
    """Miss and hit stand under OpenInference's retriever span, in one trace per request."""
    chain = as_chain(fast)
    chain.invoke(QUERY)
    chain.invoke(QUERY)
    assert trees(spans) == [
        ("RunnableSequence", [("VectorStoreRetriever", [stages]), "count"])
        for stages in (MISS, HIT)
    ]


@pytest.mark.usefixtures("instrumented")
async def test_asynchronous_stages_are_nested_under_the_frameworks_spans(fast, spans):
    """The same holds for async calls, also for several at once."""
    chain = as_chain(fast)
    await chain.ainvoke(QUERY)
    await chain.ainvoke(QUERY)
    expected = [
        ("RunnableSequence", [("VectorStoreRetriever", [stages]), "count"])
        for stages in (MISS, HIT)
    ]
    assert trees(spans) == expected
    spans.clear()
    await asyncio.gather(*(chain.ainvoke(f"{QUERY} {number}") for number in range(5)))
    assert trees(spans) == [expected[0]] * 5


@pytest.mark.usefixtures("instrumented")
def test_batch_has_one_tree_per_query(fast, spans):
    """Queries of a batch run in threads, and each keeps its stages together."""
    as_chain(fast).batch([QUERY, "blue sky", "green pear"])
    expected = ("RunnableSequence", [("VectorStoreRetriever", [MISS]), "count"])
    assert trees(spans) == [expected] * 3


@pytest.mark.usefixtures("instrumented")
def test_stages_join_the_trace_of_the_application(fast, spans):
    """Under a span of the application's own everything is one trace."""
    with trace.get_tracer("tests").start_as_current_span("request"):
        fast.invoke(QUERY)
    assert trees(spans) == [("request", [("VectorStoreRetriever", [MISS])])]


def test_instrumentor_that_is_switched_off_is_not_asked(fast, spans, capfd):
    """An imported but inactive OpenInference neither takes the spans nor prints anything."""
    fast.invoke(QUERY)
    assert trees(spans) == [MISS]
    assert capfd.readouterr() == ("", "")


# -- content ---------------------------------------------------------------------------------------


def written(spans):
    """Everything that our own spans carry, as one text."""
    return "\n".join(
        str((span.name, dict(span.attributes), span.status.description, span.links))
        + "".join(str((event.name, dict(event.attributes))) for event in span.events)
        for span in spans.get_finished_spans()
        if span.instrumentation_scope.name == "ragaccel"
    )


def test_spans_carry_no_content(store, cache, spans):
    """Neither the question nor a document, its metadata, its id or a filter is recorded."""
    fast = accelerate(
        store.as_retriever(search_kwargs={"filter": {"words": {"$contains": "red"}}}), cache=cache
    )
    store.add_texts(["a secret recipe"], [{"owner": "Mallory"}], ids=["recipe-number-9"])
    for query in (QUERY, QUERY, "secret recipe"):
        fast.invoke(query)
    store.delete(["recipe-number-9"])
    recorded = written(spans)
    assert "cache.lookup" in recorded
    for content in (QUERY, "confidential", "apple", "secret", "Mallory", "recipe", "words", "red"):
        assert content not in recorded


@pytest.mark.parametrize("cached", [False, True])
def test_errors_are_recorded_without_content(cached, cache, spans):
    """A failed stage tells the class of the error, not its message: it may quote the question."""
    failing = accelerate(
        Failing(error=ValueError(f"cannot parse {QUERY!r}")),
        cache=cache if cached else None,
        identity="failing",
    )
    with pytest.raises(ValueError, match="cannot parse"):
        failing.invoke(QUERY)
    whole = only(spans, "query" if cached else "retrieve")
    assert whole.status.status_code is trace.StatusCode.ERROR
    assert whole.attributes["error.type"] == "ValueError"
    assert "confidential" not in written(spans)


# -- without a provider ----------------------------------------------------------------------------


def run_alone(code):
    """Run a script in a process of its own, with warnings as errors, and return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_nothing_is_recorded_without_a_provider():
    """An application without OpenTelemetry gets its answers, no SDK and no output."""
    output = run_alone(
        """
        import asyncio, sys
        from opentelemetry import trace
        from ragaccel import MultiLevelCache, accelerate
        from ragaccel.telemetry import stage
        from tests.langchain.stores import opened

        fast = accelerate(opened().as_retriever(), cache=MultiLevelCache.open())
        first = fast.invoke("red tree")
        assert fast.invoke("red tree") == first == asyncio.run(fast.ainvoke("red tree"))
        assert stage("query") is stage("search")
        assert type(trace.get_tracer_provider()) is trace.ProxyTracerProvider
        assert "openinference" not in sys.modules
        print(len(first))
        """
    )
    assert output == "4\n"


def test_provider_that_is_set_up_later_is_used():
    """Retrievers that were made before tracing was set up are traced afterwards."""
    output = run_alone(
        """
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from ragaccel import accelerate, telemetry
        from tests.langchain.stores import opened

        fast = accelerate(opened().as_retriever())
        fast.invoke("red tree")
        exporter = InMemorySpanExporter()
        telemetry.configure(processors=[SimpleSpanProcessor(exporter)])
        fast.invoke("red tree")
        print(*(span.name for span in exporter.get_finished_spans()))
        """
    )
    assert output == "embed search retrieve\n"
