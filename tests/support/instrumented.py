"""A process in which somebody else's instrumentation traces the same pipelines as ragaccel.

`python -m tests.support.instrumented FRAMEWORK INSTRUMENTOR FILE` runs every scenario and pickles
what was recorded. A process of its own, because instrumentations do not all let go of what they
patched.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import pickle
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from ragaccel import MultiLevelCache, accelerate
from tests.support.traces import recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    Scenarios = dict[str, tuple[Any, Callable[[Any], Any]]]

INSTRUMENTORS = {
    ("langchain", "openinference"): "openinference.instrumentation.langchain.LangChainInstrumentor",
    ("langchain", "openllmetry"): "opentelemetry.instrumentation.langchain.LangchainInstrumentor",
    ("llamaindex", "openinference"): (
        "openinference.instrumentation.llama_index.LlamaIndexInstrumentor"
    ),
    (
        "llamaindex",
        "openllmetry",
    ): "opentelemetry.instrumentation.llamaindex.LlamaIndexInstrumentor",
}
QUESTION = "which owls hunt mice"


def _consume() -> None:
    with trace.get_tracer("tests").start_as_current_span("consumer"):
        pass


def _read(stream: Any) -> None:
    for _ in stream:
        _consume()


async def _aread(stream: Any) -> None:
    async for _ in stream:
        _consume()


def _leave(stream: Any) -> None:
    next(stream)
    stream.close()
    gc.collect()


async def _gather(call: Callable[[str], Any]) -> None:
    await asyncio.gather(*(call(f"{QUESTION} {at}") for at in range(3)))


def _langchain() -> Scenarios:
    from tests.support.pipelines import langchain_chain

    made = langchain_chain()
    return {
        "invoke": (made, lambda chain: chain.invoke(QUESTION)),
        "ainvoke": (made, lambda chain: asyncio.run(chain.ainvoke(QUESTION))),
        "gather": (made, lambda chain: asyncio.run(_gather(chain.ainvoke))),
        "batch": (made, lambda chain: chain.batch([f"{QUESTION} {at}" for at in range(3)])),
        "stream": (made, lambda chain: _read(chain.stream(QUESTION))),
        "astream": (made, lambda chain: asyncio.run(_aread(chain.astream(QUESTION)))),
        "left early": (made, lambda chain: _leave(chain.stream(QUESTION))),
    }


def _llamaindex() -> Scenarios:
    from tests.support.pipelines import llamaindex_engine

    async def aread(engine: Any) -> None:
        response = await engine.aquery(QUESTION)
        await _aread(response.async_response_gen())

    whole, streaming = llamaindex_engine(), llamaindex_engine(streaming=True)
    return {
        "invoke": (whole, lambda engine: engine.query(QUESTION)),
        "ainvoke": (whole, lambda engine: asyncio.run(engine.aquery(QUESTION))),
        "gather": (whole, lambda engine: asyncio.run(_gather(engine.aquery))),
        "stream": (streaming, lambda engine: _read(engine.query(QUESTION).response_gen)),
        "astream": (streaming, lambda engine: asyncio.run(aread(engine))),
        "left early": (streaming, lambda engine: _leave(engine.query(QUESTION).response_gen)),
    }


def main(framework: str, instrumentor: str, file: str) -> None:
    """Run every scenario plain, on a miss and on a hit below a span of the application's.

    The first one is run without such a span, too.
    """
    logging.basicConfig(level=logging.WARNING)
    warnings.simplefilter("ignore")
    spans, tracer = recorder(), trace.get_tracer("tests")
    scenarios = {"langchain": _langchain, "llamaindex": _llamaindex}[framework]()
    module, _, name = INSTRUMENTORS[framework, instrumentor].rpartition(".")
    getattr(importlib.import_module(module), name)().instrument()
    told = {}
    for scenario, (plain, ask) in scenarios.items():
        with MultiLevelCache.open() as cache:
            fast = accelerate(plain, cache=cache, identity="whole", cache_sampled=True)
            for kind, asked in (("plain", plain), ("miss", fast), ("hit", fast)):
                spans.clear()
                with tracer.start_as_current_span("request"):
                    ask(asked)
                told[scenario, kind] = spans.spans()
            if scenario == "invoke":
                spans.clear()
                ask(fast)
                told["alone", "hit"] = spans.spans()
    Path(file).write_bytes(pickle.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
