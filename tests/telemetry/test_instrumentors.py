"""Below the spans of others: one trace, each thing told once, and nothing of theirs disturbed.

Under OpenInference's and OpenLLMetry's instrumentations of both frameworks, each in a process of
its own.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from tests.support.instrumented import INSTRUMENTORS
from tests.support.otlp import problems
from tests.support.traces import OURS, outlines

_ROOT = Path(__file__).parents[2]

#: Stage -> what the name of the nearest span of the instrumentor's above it has in it.
_COMPONENTS = {
    "langchain": {"query": "VectorStoreRetriever", "generate": "FakeListChatModel"},
    "llamaindex": {
        "query": "VectorIndexRetriever",
        "embed": "HashEmbedding",
        "search": "VectorIndexRetriever",
        "rerank": "RetrieverQueryEngine",
        "generate": "Provider",
    },
}
#: LangChain does not tell a model's stream which run it is: the chain's is the nearest known.
_OF_STREAMS = {"langchain": {"generate": "RunnableSequence"}, "llamaindex": {}}


class Told:
    """The spans of each scenario, plain, on a miss and on a hit."""

    def __init__(self, framework, spans, log):
        self.framework, self.log = framework, log
        self.plain, self.miss, self.hit = (
            {scenario: one for (scenario, kind), one in spans.items() if kind == wanted}
            for wanted in ("plain", "miss", "hit")
        )

    def traced(self):
        """Every scenario of ours, with the plain one beside it."""
        return [
            (name, spans, self.plain[name])
            for kind in (self.miss, self.hit)
            for name, spans in kind.items()
            if name in self.plain
        ]


@pytest.fixture(scope="module", params=sorted(INSTRUMENTORS), ids="-".join)
def told(request, tmp_path_factory):
    """What one instrumentor and ragaccel told of the same requests."""
    file = tmp_path_factory.mktemp("told") / "spans"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.instrumented", *request.param, str(file)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return Told(request.param[0], pickle.loads(file.read_bytes()), done.stderr)


def theirs(spans):
    """The instrumentor's spans, by name."""
    return Counter(span.name for span in spans if span.scope != OURS)


def missing_parents(spans):
    """Names of spans whose parent never ended."""
    known = {span.span_id for span in spans}
    return Counter(
        (span.scope == OURS, span.name)
        for span in spans
        if span.parent_id is not None and span.parent_id not in known
    )


def test_a_request_is_one_trace(told):
    """Also without a span of the application's around it."""
    for spans in [*told.plain.values(), *told.miss.values(), *told.hit.values()]:
        assert len({span.trace_id for span in spans}) == 1, outlines(spans)


def test_alone_the_root_is_the_instrumentors(told):
    """There is no stage around it: one span is enough for the whole of a question."""
    roots = [span.scope for span in told.hit["alone"] if span.parent_id is None]
    assert len(roots) == 1
    assert OURS not in roots


def test_every_span_has_its_parent(told):
    """Ours never lack one, unless the instrumentor itself leaves theirs open at that place."""
    for name, spans, plain in told.traced():
        theirs_alone = Counter({one: n for one, n in missing_parents(spans).items() if not one[0]})
        assert theirs_alone == missing_parents(plain), name
        if not missing_parents(plain):
            assert problems(spans) == [], name


def test_stages_are_below_their_components(told):
    """A query is below the retriever's span, a generation below the model's."""
    for name, spans, plain in told.traced():
        components = dict(_COMPONENTS[told.framework])
        if name in {"stream", "astream", "left early"}:
            components |= _OF_STREAMS[told.framework]
        by_id = {span.span_id: span for span in spans}
        for span in spans:
            above = by_id.get(span.parent_id)
            if span.scope != OURS or (above is not None and above.scope == OURS):
                continue
            assert above is not None or missing_parents(plain), (name, span.name)
            assert above is None or components[span.name] in above.name, (name, span.name)


def test_a_stage_is_told_once(told):
    """As many stages as without the instrumentor, and none by a name that theirs have."""
    for name, spans, _ in told.traced():
        ours = Counter(span.name for span in spans if span.scope == OURS)
        times = 3 if name in {"gather", "batch"} else 1
        assert set(ours) & set(theirs(spans)) == set()
        assert ours["query"] == ours["generate"] == times, name
        assert ours["retrieve"] == ours["embed"] == ours["search"], name
        assert ours["retrieve"] in {0, times}, name


def test_the_instrumentors_spans_are_those_of_the_plain_pipeline(told):
    """A miss has as many of each as a plain call; what our store adds to that is a stage."""
    for name, spans in told.miss.items():
        assert theirs(spans) == theirs(told.plain[name]), name


def test_nothing_is_complained_about(told):
    """No context is detached where it was not attached, no span is ended twice."""
    for complaint in ("Failed to detach", "ended span", "Traceback", "different Context"):
        assert complaint not in told.log


# -- nothing configured ----------------------------------------------------------------------------

# Exceptions that a file of ours sees, whether it raises or calls who does. Not counted is how
# coroutines return, and the cache: it asks asyncio whether there is a loop.
_OFF = """
import asyncio, sys, warnings
from collections import Counter
warnings.simplefilter("ignore")
from ragaccel import MultiLevelCache, accelerate, telemetry
{setup}
seen = Counter()
def watch(frame, event, argument):
    file = frame.f_code.co_filename
    if "/ragaccel/" not in file or "/ragaccel/cache/" in file:
        return None
    if event == "exception" and not issubclass(argument[0], (StopIteration, StopAsyncIteration)):
        seen[argument[0].__name__, file.rpartition("/")[2]] += 1
    return watch
with MultiLevelCache.open() as cache:
    fast = accelerate(pipeline, cache=cache, identity="whole", cache_sampled=True)
    ask(fast, "warm the imports up")
    sys.settrace(watch)
    for question in ("which owls hunt mice", "which owls hunt mice"):
        ask(fast, question)
    sys.settrace(None)
    assert cache.stats().hits, "there was no hit"
    assert telemetry.stage("query") is telemetry.OFF
print(dict(seen))
"""
_SETUPS = {
    "langchain": """
from tests.support.pipelines import langchain_chain
pipeline = langchain_chain()
def ask(chain, question):
    chain.invoke(question)
    list(chain.stream(question))
    asyncio.run(chain.ainvoke(question))
""",
    "llamaindex": """
from tests.support.pipelines import llamaindex_engine
pipeline = llamaindex_engine()
def ask(engine, question):
    engine.query(question)
    asyncio.run(engine.aquery(question))
""",
}


@pytest.mark.parametrize("framework", sorted(_SETUPS))
def test_no_exception_is_swallowed_while_nothing_is_configured(framework):
    """Misses and hits, sync, async and streamed, raise nothing that somebody has to catch."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_OFF).format(setup=_SETUPS[framework])],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("{}\n", "")
