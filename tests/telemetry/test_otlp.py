"""Spans of a whole request, sent by the real exporters and read back from a real receiver."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.otlp import GrpcReceiver, HttpReceiver, problems, to_jaeger

_ROOT = Path(__file__).parents[2]

# A process of its own for each test: OpenTelemetry has one tracer provider per process.
_APPLICATION = """
import asyncio, sys, warnings
warnings.simplefilter("ignore")
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from ragaccel import MultiLevelCache, accelerate, telemetry
from ragaccel.llamaindex import CompressedVectorStore as LlamaStore
from ragaccel.langchain import CompressedVectorStore as ChainStore
from ragaccel.cli.demo.models import langchain_embeddings, llamaindex_embedding, load_model

telemetry.configure(sys.argv[1], service_name="shop", protocol=sys.argv[2])
model = load_model("wordllama")
texts = ["A tombstone marks a deleted row.", "Bread is baked in an oven."]
cache = MultiLevelCache.open()
store = LlamaStore.open()
index = VectorStoreIndex(
    [TextNode(text=text) for text in texts],
    storage_context=StorageContext.from_defaults(vector_store=store),
    embed_model=llamaindex_embedding(model),
)
retriever = accelerate(index.as_retriever(), cache=cache)
retriever.retrieve("What is a tombstone?")
retriever.retrieve("What is a tombstone?")
asyncio.run(retriever.aretrieve("How is bread made?"))
chain = accelerate(
    ChainStore.from_texts(texts, langchain_embeddings(model)).as_retriever(), cache=cache
)
chain.invoke("What is a tombstone?")
asyncio.run(chain.ainvoke("What is a tombstone?"))
try:
    store.collection.search([1.0, float("nan")])
except ValueError:
    pass
telemetry.flush()
"""


@pytest.mark.parametrize(("receiver", "protocol"), [(GrpcReceiver, "grpc"), (HttpReceiver, "http")])
def test_every_stage_arrives_whole(receiver, protocol):
    """Query, preprocess, look-up, retrieve, embed and search arrive, nested and free of content."""
    with receiver() as server:
        _run(_APPLICATION, server.endpoint, protocol)
        spans = [span for span in server.spans() if span.name != "ingest"]
    assert {span.service for span in spans} == {"shop"}
    assert {span.scope for span in spans} == {"ragaccel"}
    traces = {}
    for span in spans:
        traces.setdefault(span.trace_id, []).append(span)
    trees = [_tree(trace) for trace in traces.values()]
    miss = "query(preprocess cache.lookup retrieve(embed search))"
    hit = "query(preprocess cache.lookup)"
    assert trees.count(miss) == 3
    assert trees.count(hit) == 2
    assert not problems(spans)
    for trace in traces.values():
        assert to_jaeger(trace)["data"][0]["spans"]
    for span in spans:
        told = str(span.attributes) + str(span.events)
        assert "tombstone" not in told.lower()
        assert "bread" not in told.lower()


def test_hits_say_so():
    """A look-up span tells whether it hit and on which level; a retrieval has its own kind."""
    with HttpReceiver() as server:
        _run(_APPLICATION, server.endpoint, "http")
        spans = server.spans()
    lookups = [span.attributes for span in spans if span.name == "cache.lookup"]
    assert sorted(one["ragaccel.cache.hit"] for one in lookups) == [False] * 3 + [True] * 2
    assert {one.get("ragaccel.cache.level") for one in lookups} == {None, "memory"}
    kinds = {span.name: span.attributes.get("openinference.span.kind") for span in spans}
    assert kinds["retrieve"] == "RETRIEVER"
    assert kinds["embed"] == "EMBEDDING"


def test_nothing_is_recorded_without_a_provider():
    """Stages of a process that configured nothing are one shared object that does nothing."""
    _run(
        """
        from opentelemetry import trace
        from ragaccel import telemetry
        first, second = telemetry.stage("query"), telemetry.stage("search")
        assert first is second
        with first as span:
            span.set({"a": 1})
            assert not trace.get_current_span().get_span_context().is_valid
        """
    )


def test_requests_that_are_not_sampled_make_no_spans():
    """Inside a span that the sampler dropped, stages are the shared no-op."""
    _run(
        """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
        from ragaccel import telemetry
        trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
        with telemetry.stage("query"):
            assert telemetry.stage("search") is telemetry.stage("embed")
        """
    )


def test_bad_endpoints_are_refused():
    """An endpoint without a scheme is an error that shows a right one."""
    _run(
        """
        from ragaccel import telemetry
        from ragaccel.errors import ConfigurationError
        try:
            telemetry.configure("localhost:4317")
        except ConfigurationError as error:
            assert "http://localhost:4317" in str(error)
        else:
            raise SystemExit("accepted")
        """
    )


def test_a_missing_sdk_names_its_extra():
    """Without the SDK, configure says which line installs it and stages still work."""
    _run(
        """
        import sys
        sys.modules["opentelemetry.sdk.resources"] = None
        from ragaccel import telemetry
        from ragaccel.errors import MissingExtraError
        with telemetry.stage("query"):
            pass
        try:
            telemetry.configure("http://localhost:4317")
        except MissingExtraError as error:
            assert 'pip install "ragaccel[otel]"' in str(error)
        else:
            raise SystemExit("accepted")
        """
    )


def _run(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _tree(spans) -> str:
    by_parent = {}
    for span in sorted(spans, key=lambda one: one.start_ns):
        by_parent.setdefault(span.parent_id, []).append(span)

    def draw(span) -> str:
        inside = " ".join(draw(child) for child in by_parent.get(span.span_id, []))
        return f"{span.name}({inside})" if inside else span.name

    return " ".join(draw(root) for root in by_parent[None])
