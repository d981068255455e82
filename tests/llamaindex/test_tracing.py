"""The spans of an accelerated LlamaIndex retriever, alone and under OpenInference's."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from opentelemetry import trace

from ragaccel import accelerate
from ragaccel.errors import FilterError
from tests.llamaindex.embeddings import TEXTS
from tests.llamaindex.retrievers import BrokenRetriever, WordRetriever

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llama_index.core.base.base_retriever import BaseRetriever
    from opentelemetry.sdk.trace import ReadableSpan

QUERY = "which animals hunt mice in the forest at night"
OURS = "ragaccel"
Tree = tuple[Any, ...]  # a name, and the trees inside

MISS = ("query", ("preprocess",), ("cache.lookup",), ("retrieve", ("embed",), ("search",)))
HIT = ("query", ("preprocess",), ("cache.lookup",))


@dataclass
class Trace:
    """The spans of one request, below the span that the test opened for it."""

    spans: list[ReadableSpan] = field(default_factory=list)

    @property
    def ours(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.instrumentation_scope.name == OURS]

    def one(self, name: str) -> ReadableSpan:
        """The only span of ours with a name."""
        (found,) = [span for span in self.ours if span.name == name]
        return found

    def tree(self, spans: list[ReadableSpan] | None = None) -> list[Tree]:
        """Names in the order of starting, each followed by what is inside it.

        A span whose parent is not among the given ones counts for the nearest that is.
        """
        chosen = self.spans if spans is None else spans
        by_id = {span.context.span_id: span for span in self.spans}
        kept = {span.context.span_id for span in chosen}

        def parent(span: ReadableSpan) -> int | None:
            while span.parent is not None and span.parent.span_id in by_id:
                if span.parent.span_id in kept:
                    return span.parent.span_id
                span = by_id[span.parent.span_id]
            return None

        def below(of: int | None) -> list[Tree]:
            found = [span for span in chosen if parent(span) == of]
            found.sort(key=lambda span: span.start_time)
            return [(span.name, *below(span.context.span_id)) for span in found]

        return below(None)


@pytest.fixture
def request_span(span_exporter):
    """A context manager: one request of the user's, traced."""

    @contextlib.contextmanager
    def traced() -> Iterator[Trace]:
        result = Trace()
        span_exporter.clear()
        with trace.get_tracer("tests").start_as_current_span("request") as root:
            yield result
        trace_id = root.get_span_context().trace_id
        for span in span_exporter.get_finished_spans():
            if span.name == "request":
                continue
            assert span.context.trace_id == trace_id, f"{span.name} is in another trace"
            result.spans.append(span)
        known = {span.context.span_id for span in result.spans}
        known.add(root.get_span_context().span_id)
        assert all(span.parent.span_id in known for span in result.spans), "an orphan"
        for span in result.spans:
            assert root.start_time <= span.start_time <= span.end_time

    return traced


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """`retrieve` or `aretrieve`, to be called the same way."""

    def call(retriever: BaseRetriever, query: str | QueryBundle) -> list[NodeWithScore]:
        if request.param == "sync":
            return retriever.retrieve(query)
        return asyncio.run(retriever.aretrieve(query))

    return call


# -- stages ----------------------------------------------------------------------------------------


def test_a_miss_and_a_hit(index, cache, ask, request_span):
    """A miss shows every stage, a hit ends with the look-up."""
    retriever = accelerate(index.as_retriever(similarity_top_k=3), cache=cache)
    with request_span() as miss:
        ask(retriever, QUERY)
    with request_span() as hit:
        ask(retriever, QUERY)
    assert miss.tree() == [MISS]
    assert hit.tree() == [HIT]


def test_look_ups_tell_what_they_found(index, cache, ask, request_span):
    """A hit names its level and the age of the entry; both say how many nodes came back."""
    retriever = accelerate(index.as_retriever(similarity_top_k=3), cache=cache)
    with request_span() as miss:
        ask(retriever, QUERY)
    with request_span() as hit:
        ask(retriever, QUERY)
    missed, found = (one.one("cache.lookup").attributes for one in (miss, hit))
    assert missed["ragaccel.cache.hit"] is False
    assert "ragaccel.cache.level" not in missed
    assert found["ragaccel.cache.hit"] is True
    assert found["ragaccel.cache.level"] == "memory"
    assert 0 <= found["ragaccel.cache.age"] < 60
    for one in (miss, hit):
        query = one.one("query").attributes
        assert query["ragaccel.documents.count"] == 3
        assert query["ragaccel.component"] == "VectorIndexRetriever"
        assert "ragaccel.cache.bypass" not in one.one("preprocess").attributes


def test_stages_have_the_names_that_viewers_know(index, cache, ask, request_span):
    """OpenInference kinds and GenAI attributes, so that Phoenix and others draw them right."""
    retriever = accelerate(index.as_retriever(similarity_top_k=3), cache=cache)
    with request_span() as miss:
        ask(retriever, QUERY)
    kinds = {
        span.name: span.attributes.get("openinference.span.kind")
        for span in miss.ours
        if span.name != "search"
    }
    assert kinds["retrieve"] == "RETRIEVER"
    assert kinds["embed"] == "EMBEDDING"
    assert set(kinds.values()) == {"CHAIN", "RETRIEVER", "EMBEDDING"}
    assert miss.one("embed").attributes["gen_ai.request.model"] == "hash"
    search = miss.one("search").attributes
    assert search["gen_ai.retrieval.top_k"] == 3
    assert search["ragaccel.index.rows"] == len(TEXTS)


def test_a_stage_takes_no_longer_than_the_one_around_it(index, cache, ask, request_span):
    """Start and end of every span lie within its parent's."""
    retriever = accelerate(index.as_retriever(), cache=cache)
    with request_span() as miss:
        ask(retriever, QUERY)
    by_id = {span.context.span_id: span for span in miss.spans}
    for span in miss.spans:
        outer = by_id.get(span.parent.span_id)
        if outer is not None:
            assert outer.start_time <= span.start_time <= span.end_time <= outer.end_time


def test_retrieving_without_a_cache(index, ask, request_span):
    """There is no look-up to show, the stages of the retrieval are there."""
    retriever = accelerate(index.as_retriever())
    with request_span() as told:
        ask(retriever, QUERY)
    assert told.tree() == [("retrieve", ("embed",), ("search",))]


def test_retrieving_from_another_store(nodes, embed_model, cache, ask, request_span):
    """A store of LlamaIndex's own has no search span, its embedding is seen."""
    plain = VectorStoreIndex(nodes, embed_model=embed_model).as_retriever()
    with request_span() as told:
        ask(accelerate(plain, cache=cache), QUERY)
    assert told.tree() == [("query", ("preprocess",), ("cache.lookup",), ("retrieve", ("embed",)))]


def test_a_call_that_goes_past_the_cache_says_so(nodes, cache, ask, request_span):
    """What cannot be keyed has no look-up; the preprocessing tells it was bypassed."""
    retriever = accelerate(WordRetriever(nodes), cache=cache, identity="words")
    bundle = QueryBundle(QUERY)
    bundle.image_path = object()
    with request_span() as told:
        ask(retriever, bundle)
    assert told.tree() == [("query", ("preprocess",), ("retrieve",))]
    assert told.one("preprocess").attributes["ragaccel.cache.bypass"] is True


def test_every_embedding_is_a_stage(index, cache, ask, request_span):
    """A query of several texts embeds each of them."""
    retriever = accelerate(index.as_retriever(), cache=cache)
    with request_span() as told:
        ask(retriever, QueryBundle(QUERY, custom_embedding_strs=["owls", "mice"]))
    (retrieve,) = told.tree([span for span in told.ours if span.name in ("retrieve", "embed")])
    assert retrieve == ("retrieve", ("embed",), ("embed",))
    with request_span() as embedded:
        ask(retriever, QueryBundle(QUERY, embedding=[1.0, *[0.0] * 63]))
    assert "embed" not in [span.name for span in embedded.ours]


def test_without_a_request_around_it_a_query_is_a_trace_of_its_own(
    index, cache, ask, span_exporter
):
    """The query is the root, and two queries are two traces."""
    retriever = accelerate(index.as_retriever(), cache=cache)
    span_exporter.clear()
    ask(retriever, QUERY)
    ask(retriever, QUERY)
    spans = span_exporter.get_finished_spans()
    roots = [span for span in spans if span.parent is None]
    assert [span.name for span in roots] == ["query", "query"]
    assert len({span.context.trace_id for span in spans}) == 2


async def test_queries_at_once_keep_their_stages_apart(index, cache, request_span):
    """Each of several tasks has its own tree under the one request."""
    retriever = accelerate(index.as_retriever(), cache=cache)
    with request_span() as told:
        await asyncio.gather(*(retriever.aretrieve(f"{QUERY} {at}") for at in range(5)))
    assert told.tree() == [MISS] * 5


def test_parts_of_a_fusion_are_queries_of_one_request(index, nodes, cache, mock_llm, request_span):
    """Each accelerated retriever inside another has its stages."""
    parts = [
        accelerate(index.as_retriever(), cache=cache),
        accelerate(WordRetriever(nodes), cache=cache, identity="words"),
    ]
    retriever = QueryFusionRetriever(parts, num_queries=1, use_async=False)
    with request_span() as told:
        retriever.retrieve(QUERY)
    assert told.tree() == [
        MISS, ("query", ("preprocess",), ("cache.lookup",), ("retrieve",)),
    ]  # fmt: skip


# -- errors and content ----------------------------------------------------------------------------


def texts_of(spans: list[ReadableSpan]) -> str:
    """Everything that a viewer would show of the spans."""
    shown = []
    for span in spans:
        shown += [span.name, span.status.description or "", dict(span.attributes)]
        shown += [(event.name, dict(event.attributes)) for event in span.events]
        shown += [dict(link.attributes) for link in span.links]
    return repr(shown)


def test_no_content_is_recorded(index, cache, ask, request_span):
    """Neither the query nor a document, an id or metadata stands in a span of ours."""
    retriever = accelerate(index.as_retriever(similarity_top_k=6), cache=cache)
    with request_span() as told:
        for _ in range(2):
            ask(retriever, QueryBundle(QUERY, custom_embedding_strs=["secret owls"]))
    assert len(told.ours) > 8
    shown = texts_of(told.ours)
    for content in (QUERY, "hunt", "secret", "owls", "node-5", "animals-2", *TEXTS):
        assert content not in shown


def test_an_error_marks_the_stages_it_went_through(cache, ask, request_span):
    """Retrieval and query fail, the look-up did not; the type of the error is told."""
    retriever = accelerate(BrokenRetriever(LookupError("broken")), cache=cache, identity="broken")
    with request_span() as told, contextlib.suppress(LookupError):
        ask(retriever, QUERY)
    failed = {span.name for span in told.ours if not span.status.is_ok and span.status.description}
    assert failed == {"query", "retrieve"}
    for name in failed:
        assert told.one(name).attributes["error.type"] == "LookupError"


@pytest.mark.parametrize("error", [LookupError(f"nothing for {QUERY!r}"), FilterError(TEXTS[0])])
def test_an_error_brings_no_content_into_the_spans(cache, ask, request_span, error):
    """Messages of errors often repeat the query or a document."""
    retriever = accelerate(BrokenRetriever(error), cache=cache, identity="broken")
    with request_span() as told, contextlib.suppress(type(error)):
        ask(retriever, QUERY)
    shown = texts_of(told.ours)
    assert QUERY not in shown
    assert TEXTS[0] not in shown


# -- under OpenInference's spans -------------------------------------------------------------------


@pytest.fixture
def instrumented(span_exporter):
    """LlamaIndex instrumented by OpenInference for one test."""
    instrumentor = LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=trace.get_tracer_provider())
    yield
    instrumentor.uninstrument()


def names(tree: Sequence[Tree]) -> list[str]:
    """All names of a tree, sorted."""
    return sorted(name for top in tree for name in (top[0], *names(top[1:])))


def test_a_miss_nests_under_the_frameworks_spans(index, cache, ask, request_span, instrumented):
    """The framework's `retrieve` holds our query, and each of our stages is told once.

    OpenInference nests its own spans by LlamaIndex's span ids. So its `_retrieve`, and with it our
    `embed` and `search`, stand beside our query and not below our `retrieve`.
    """
    retriever = accelerate(index.as_retriever(), cache=cache)
    with request_span() as told:
        ask(retriever, QUERY)
    ((top, *below),) = told.tree()
    assert top in {"VectorIndexRetriever.retrieve", "VectorIndexRetriever.aretrieve"}
    assert below[0] == ("query", ("preprocess",), ("cache.lookup",), ("retrieve",))
    assert [one[0] for one in below[1:]] == [top.replace(".", "._")]
    assert names(told.tree(told.ours)) == names([MISS])
    assert told.tree([told.one("embed"), told.one("search")]) == [("embed",), ("search",)]


def test_a_hit_nests_under_the_frameworks_spans(index, cache, ask, request_span, instrumented):
    """The framework's `retrieve` is there on a hit as well, with the look-up inside."""
    retriever = accelerate(index.as_retriever(), cache=cache)
    ask(retriever, QUERY)
    with request_span() as told:
        ask(retriever, QUERY)
    ((top, *below),) = told.tree()
    assert top in {"VectorIndexRetriever.retrieve", "VectorIndexRetriever.aretrieve"}
    assert below == [HIT]
    assert told.one("cache.lookup").attributes["ragaccel.cache.hit"] is True


def test_the_frameworks_spans_are_those_of_the_plain_retriever(
    index, cache, ask, request_span, instrumented
):
    """A miss has the framework's spans of a plain call, no more and no fewer."""
    plain = index.as_retriever()
    with request_span() as told:
        ask(plain, QUERY)
    with request_span() as miss:
        ask(accelerate(plain, cache=cache), QUERY)
    theirs = [[span for span in one.spans if span not in one.ours] for one in (told, miss)]
    assert told.tree(theirs[0]) == miss.tree(theirs[1])


@pytest.mark.parametrize(
    "call",
    [lambda engine: engine.query(QUERY), lambda engine: asyncio.run(engine.aquery(QUERY))],
    ids=["sync", "async"],
)
def test_a_query_engine_is_one_trace(index, cache, mock_llm, request_span, instrumented, call):
    """From the engine down to the search everything hangs together, on a miss and on a hit."""
    retriever = accelerate(index.as_retriever(), cache=cache)
    engine = RetrieverQueryEngine.from_args(retriever, response_mode="no_text")
    for ours in (MISS, HIT):
        with request_span() as told:
            call(engine)
        ((top, *_),) = told.tree()
        assert top.startswith("RetrieverQueryEngine.")
        assert names(told.tree(told.ours)) == names([ours])


def test_recursion_is_one_trace(nodes, embed_model, store, cache, request_span, instrumented):
    """A retriever behind an index node is a query of its own in the same trace."""
    inner = accelerate(WordRetriever(nodes), cache=cache, identity="words")
    store.add(embed_model([IndexNode(id_="gate", text="forest", index_id="forest")]))
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    outer = index.as_retriever()
    outer.object_map = {"forest": inner}
    accelerated = accelerate(outer, cache=cache)
    with request_span() as miss:
        accelerated.retrieve(QUERY)
    with request_span() as hit:
        accelerated.retrieve(QUERY)
    assert names(miss.tree(miss.ours)) == names([MISS, HIT, ("retrieve",)])
    assert hit.tree(hit.ours) == [HIT, HIT]


def test_nothing_is_left_behind(index, cache, request_span):
    """After the instrumentation is gone the stages are as before."""
    retriever = accelerate(index.as_retriever(), cache=cache)
    with request_span() as told:
        retriever.retrieve(QUERY)
    assert told.tree() == [MISS]
