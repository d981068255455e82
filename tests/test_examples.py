"""The examples run as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.otlp import HttpReceiver, problems
from tests.support.traces import outlines

_EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("wrap_llamaindex_retriever.py", "hits={'memory': 1}"),
        ("fresh_over_any_store.py", "50% of the searches were not made"),
        ("cache_in_production.py", "3 queries asked"),
        ("adapt_haystack.py", "red apples grow on trees {'memory': 2}"),
        ("many_queries.py", "9 of 10 answered"),
        ("auto_tune.py", '"search.oversample" = '),
        ("record_traffic.py", "1 to study, 1 to confirm"),
        ("ingest_documents.py", "1 stored in 6 chunks, 1,945 unchanged, 0 failed"),
        ("compressed_store_llamaindex.py", "Super Bowl 50: The Panthers defense"),
        ("compressed_store_langchain.py", "Super Bowl 50: The Panthers defense"),
    ],
)
def test_example(script, told):
    """The script ends well and prints what it promises."""
    assert told in _run(script)


def test_traces_reach_the_collector():
    """The Jaeger example sends two whole traces, a miss and a hit, to the endpoint it is given."""
    with HttpReceiver() as server:
        _run("jaeger/trace_a_pipeline.py", server.endpoint)
        spans = server.spans()
    assert not problems(spans)
    looked_up = "preprocess cache.lookup"
    answered = f"rerank({looked_up}) generate({looked_up})"
    assert outlines(spans) == [
        "ingest",
        f"new question(query({looked_up} retrieve(embed search)) {answered})",
        f"same question(query({looked_up}) {answered})",
    ]


def test_jaeger_listens_where_the_example_sends():
    """The compose file opens the ports of OTLP and of the page, to this machine only."""
    compose = (_EXAMPLES / "jaeger" / "compose.yaml").read_text(encoding="utf-8")
    ports = re.findall(r'- "([^"]+)"', compose)
    assert ports == [f"127.0.0.1:{port}:{port}" for port in (16686, 4317, 4318)]
    assert "jaegertracing/jaeger:" in compose


def test_examples_are_short():
    """A script is read in one glance: under 60 lines."""
    for file in [*_EXAMPLES.glob("*.py"), *_EXAMPLES.glob("jaeger/*.py")]:
        assert len(file.read_text(encoding="utf-8").splitlines()) < 60, file.name


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(_EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
