"""An application of its own process, traced from the question to the answer in both frameworks.

`python -m tests.support.application ENDPOINT PROTOCOL FILE` sends its spans to an OTLP endpoint,
writes them to a file as well, and prints the id of the one trace.
"""

from __future__ import annotations

import contextlib
import sys

from opentelemetry import trace

from ragaccel import MicroBatcher, MultiLevelCache, accelerate, telemetry
from ragaccel.telemetry import export_trace
from tests.langchain.embeddings import HashEmbeddings
from tests.langchain.retrievers import Failing
from tests.support.pipelines import langchain_chain, llamaindex_engine

SERVICE = "shop"
QUESTION = "which owls hunt mice"

_LOOK_UP = "preprocess cache.lookup"
_ANSWERED = f"rerank({_LOOK_UP}) generate({_LOOK_UP})"
_RETRIEVED = "retrieve(embed search)"
#: The trace; the batch that embeds a text for it is a trace of its own, linked to it.
OUTLINE = (
    f"request(query({_LOOK_UP} {_RETRIEVED}) {_ANSWERED}"
    f" query({_LOOK_UP}) {_ANSWERED}"
    f" query({_LOOK_UP} {_RETRIEVED}) generate({_LOOK_UP})"
    f" retrieve embed({_LOOK_UP}))"
)


def main(endpoint: str, protocol: str, file: str) -> None:
    """Ask: a miss and a hit, a stream, a failure, and an embedding that goes in a batch."""
    cache = MultiLevelCache.open()
    engine = accelerate(llamaindex_engine(), cache=cache, identity="engine")
    chain = accelerate(langchain_chain(), cache=cache, cache_sampled=True)
    failing = accelerate(Failing(error=LookupError(QUESTION)))
    batched = accelerate(HashEmbeddings(), cache=cache, batch=MicroBatcher())
    batched.embed_query("the first one is embedded by itself")

    telemetry.configure(endpoint, service_name=SERVICE, protocol=protocol)  # type: ignore[arg-type]
    with export_trace(file):
        with trace.get_tracer("tests").start_as_current_span("request") as request:
            engine.query(QUESTION)
            engine.query(QUESTION)
            list(chain.stream(QUESTION))
            with contextlib.suppress(LookupError):
                failing.invoke(QUESTION)
            batched.embed_query(QUESTION)
        telemetry.flush()
    print(f"{request.get_span_context().trace_id:032x}")  # noqa: T201 - who started it reads this


if __name__ == "__main__":
    main(*sys.argv[1:])
