"""A whole pipeline's trace, sent by the real exporters and read back from who shows it.

The in-test receiver always; a real Phoenix where it can be installed; a user's Jaeger where
`RAGACCEL_JAEGER_QUERY` (its page, `http://localhost:16686`) and, unless it is the usual one,
`RAGACCEL_JAEGER_OTLP` (`http://localhost:4317`) say where it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llama_index.core.schema import QueryBundle

from ragaccel import MultiLevelCache, accelerate
from tests.langchain.stores import opened
from tests.support import jaeger, phoenix
from tests.support.application import OUTLINE, SERVICE
from tests.support.otlp import GrpcReceiver, HttpReceiver, problems, to_jaeger
from tests.support.pipelines import llamaindex_index
from tests.support.traces import OURS, from_file, outlines, recorder

_ROOT = Path(__file__).parents[2]
_WAIT_SECONDS = 60
_OF_A_SPAN = (
    "span_id", "parent_id", "kind", "start_ns", "end_ns", "events", "links", "status_code",
    "status_message", "scope", "scope_version", "service",
)  # fmt: skip
_PROTOCOLS = [(GrpcReceiver, "grpc"), (HttpReceiver, "http")]


@pytest.fixture
def send(tmp_path):
    """Runs the application, and returns its trace's id and what it wrote to a file meanwhile."""

    def run(endpoint, protocol, **environment):
        file = tmp_path / f"{protocol}.jsonl"
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.application", endpoint, protocol, str(file)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            env={**os.environ, **environment},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), file

    return run


def by_id(spans):
    return sorted(spans, key=lambda span: span.span_id)


def arrived(read, count):
    """What a backend shows, once it shows so many: it takes spans in its own time."""
    ends = time.monotonic() + _WAIT_SECONDS
    while len(spans := read()) < count and time.monotonic() < ends:
        time.sleep(0.5)
    return spans


# -- the receiver of the tests ---------------------------------------------------------------------


@pytest.mark.parametrize(("receiver", "protocol"), _PROTOCOLS)
def test_a_whole_pipeline_arrives(receiver, protocol, send):
    """Every stage of both frameworks, nested, with all that Jaeger needs, as the file has it."""
    with receiver() as server:
        trace_id, file = send(server.endpoint, protocol)
        spans = server.spans()
    assert by_id(spans) == by_id(from_file(file))
    assert problems(spans) == []
    request = [span for span in spans if span.trace_id == trace_id]
    assert outlines(request) == [OUTLINE]
    (batch,) = (span for span in spans if span.trace_id != trace_id)
    (embed,) = (span for span in request if span.links)
    assert [one[:2] for one in batch.links] == [(trace_id, embed.span_id)]
    assert [one[:2] for one in embed.links] == [(batch.trace_id, batch.span_id)]
    assert {span.service for span in spans} == {SERVICE}
    assert {span.scope for span in spans} == {"tests", OURS}
    assert all(span.scope_version for span in spans if span.scope == OURS)


def test_jaeger_would_show_it(send):
    """Jaeger's own JSON of it has parents, links, errors and the service of every span."""
    with HttpReceiver() as server:
        trace_id, _ = send(server.endpoint, "http")
        request = [span for span in server.spans() if span.trace_id == trace_id]
    (shown,) = json.loads(json.dumps(to_jaeger(request)))["data"]
    assert shown["processes"]["p1"]["serviceName"] == SERVICE
    references = {span["spanID"]: span["references"] for span in shown["spans"]}
    roots = [span for span in shown["spans"] if not span["references"]]
    assert [span["operationName"] for span in roots] == ["request"]
    kinds = [one["refType"] for references_ in references.values() for one in references_]
    assert kinds.count("FOLLOWS_FROM") == 1
    assert kinds.count("CHILD_OF") == len(shown["spans"]) - 1
    failed = [
        span["operationName"]
        for span in shown["spans"]
        if {"key": "error", "type": "bool", "value": True} in span["tags"]
    ]
    assert failed == ["retrieve"]
    assert all(
        span["logs"][0]["fields"][1]["value"] == "LookupError"
        for span in shown["spans"]
        if span["operationName"] in failed and span["logs"]
    )


def test_parts_lie_within_what_they_are_part_of(send):
    """From the first trace of a process on, no stage seems to end after the one around it."""
    with HttpReceiver() as server:
        send(server.endpoint, "http")
        spans = server.spans()
    outer = {span.span_id: span for span in spans}
    for span in spans:
        if span.parent_id is not None:
            around = outer[span.parent_id]
            assert around.start_ns <= span.start_ns <= span.end_ns <= around.end_ns, span.name


# -- Phoenix ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Phoenix itself."""
    try:
        python = phoenix.install(tmp_path_factory.mktemp("phoenix") / "venv")
    except phoenix.UnavailableError as error:
        pytest.skip(f"Phoenix cannot be installed here: {error}")
    with phoenix.Phoenix(python, tmp_path_factory.mktemp("phoenix-data")) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_phoenix_shows_it(server, send, protocol):
    """Its REST API tells every span with its parent, times, kind, attributes, status and events."""
    endpoint, project = server.endpoint(protocol), f"shop-{protocol}"
    _, file = send(
        endpoint, protocol, OTEL_RESOURCE_ATTRIBUTES=f"openinference.project.name={project}"
    )
    sent = from_file(file)
    shown = arrived(lambda: server.spans(project), len(sent))
    assert sorted(outlines(shown)) == sorted(outlines(sent)) == sorted([OUTLINE, "batch"])
    for ours, theirs in zip(by_id(sent), by_id(shown), strict=True):
        assert (theirs.span_id, theirs.trace_id) == (ours.span_id, ours.trace_id)
        assert ours.attributes.items() <= theirs.attributes.items(), ours.name
        assert abs(theirs.start_ns - ours.start_ns) <= 1000  # it keeps microseconds
        assert abs(theirs.end_ns - ours.end_ns) <= 1000
        assert (theirs.status_code, theirs.status_message) == (
            ours.status_code,
            ours.status_message,
        )
        assert [name for name, _ in theirs.events] == [name for name, _ in ours.events]
    kinds = {span.name: span.attributes.get("openinference.span.kind") for span in shown}
    assert kinds["retrieve"] == "RETRIEVER"
    assert kinds["embed"] == "EMBEDDING"
    assert kinds["rerank"] == "RERANKER"
    assert kinds["generate"] == "LLM"


# -- Jaeger ----------------------------------------------------------------------------------------


@pytest.mark.skipif(
    "RAGACCEL_JAEGER_QUERY" not in os.environ, reason="RAGACCEL_JAEGER_QUERY names no Jaeger"
)
def test_a_users_jaeger_shows_it(send):
    """Its query API gives the trace back as it was sent."""
    query = os.environ["RAGACCEL_JAEGER_QUERY"]
    otlp = os.environ.get("RAGACCEL_JAEGER_OTLP", "http://localhost:4317")
    trace_id, file = send(otlp, "http" if otlp.rstrip("/").endswith(":4318") else "grpc")
    check_jaeger(query, trace_id, from_file(file))


def test_a_trace_is_read_back_from_the_query_api(send):
    """The reader of the test above, against a stand-in that answers as Jaeger's snapshots do.

    No Jaeger is here: its storage and its own checks are not tried, only that we can read it.
    """
    with HttpReceiver() as server:
        trace_id, file = send(server.endpoint, "http")
    with jaeger.QueryApi(lambda: file.read_text(encoding="utf-8").splitlines()) as api:
        check_jaeger(api.url, trace_id, from_file(file))
        assert jaeger.spans_of(api.url, "0" * 32) == []


def check_jaeger(query_url, trace_id, sent):
    """Jaeger has every span of a trace as it was sent; it may add attributes of its own."""
    sent = by_id(span for span in sent if span.trace_id == trace_id)
    shown = by_id(arrived(lambda: jaeger.spans_of(query_url, trace_id), len(sent)))
    assert outlines(shown) == [OUTLINE]
    for ours, theirs in zip(sent, shown, strict=True):
        assert ours.attributes.items() <= theirs.attributes.items()
        for name in _OF_A_SPAN:
            assert getattr(theirs, name) == getattr(ours, name), (ours.name, name)


# -- what it costs ---------------------------------------------------------------------------------


@pytest.fixture
def recorded():
    spans = recorder()
    spans.clear()
    yield spans
    spans.clear()


@pytest.fixture
def cache():
    with MultiLevelCache.open() as cache:
        yield cache


@pytest.fixture(params=["langchain", "llamaindex"])
def retrieve(request, cache, recorded):
    """A call of an accelerated retriever of each framework."""
    if request.param == "langchain":
        call = accelerate(opened().as_retriever(), cache=cache).invoke
    else:
        fast = accelerate(llamaindex_index().as_retriever(), cache=cache)

        def call(query):
            return fast.retrieve(QueryBundle(query))

    recorded.clear()
    return call


def test_a_retrieval_costs_at_most_a_kilobyte(retrieve, recorded):
    """All spans of one call, on a miss as on a hit; what a batch shares is not counted."""
    question = "which owls hunt mice " * 100
    for outline in (
        "query(preprocess cache.lookup retrieve(embed search))",
        "query(preprocess cache.lookup)",
    ):
        recorded.clear()
        retrieve(question)
        assert outlines(recorded.spans()) == [outline]
        assert recorded.size() <= 1024, sizes(recorded)


def sizes(recorded):
    """What each attribute of each span costs, for whoever has to save some."""
    return [
        (span.name, span.ByteSize(), {one.key: one.ByteSize() + 2 for one in span.attributes})
        for group in recorded.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


# A process of its own: what it holds is compared, and nobody else may add to that.
_HOUR = """
import gc, sys, tracemalloc, warnings
warnings.simplefilter("ignore")
from ragaccel import MultiLevelCache, accelerate, telemetry
from tests.langchain.stores import opened

telemetry.configure(sys.argv[1], protocol="http")
fast = accelerate(opened().as_retriever(), cache=MultiLevelCache.open())

def ask(count):
    for number in range(count):
        fast.invoke(("red tree", "green pear", "blue sky")[number % 3])
        if number % 500 == 499:
            telemetry.flush()
    telemetry.flush()

def held():
    for _ in range(3):
        gc.collect()
    return len(gc.get_objects())

ask(2_000)
tracemalloc.start()
ask(2_000)
objects, bytes_ = held(), tracemalloc.get_traced_memory()[0]
ask(int(sys.argv[2]))
print(held() - objects, tracemalloc.get_traced_memory()[0] - bytes_)
"""


@pytest.mark.slow
def test_an_hour_of_spans_does_not_grow_memory():
    """After 20,000 traced requests to a collector the process holds what it held before them."""
    requests = 20_000
    received = []

    class Counting(HttpReceiver):
        """Keeps the number of spans only, so that the test's own process does not grow either."""

        def accept(self, request):
            received.append(
                sum(len(one.spans) for group in request.resource_spans for one in group.scope_spans)
            )
            return super().accept(type(request)())

    with Counting() as server:
        done = subprocess.run(
            [sys.executable, "-c", _HOUR, server.endpoint, str(requests)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=580,
        )
    assert done.returncode == 0, done.stderr
    assert sum(received) >= 3 * requests
    objects, bytes_ = map(int, done.stdout.split())
    assert objects < 1000, done.stdout
    assert bytes_ < 200_000, done.stdout
