"""The stage of a stream: it ends with the stream, and is nobody else's parent."""

from __future__ import annotations

import asyncio
import gc

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from llama_index.core.llms import MockLLM

from ragaccel import MultiLevelCache, accelerate, telemetry


class Generations:
    """Keeps the stages that generate, and the parent of each stage."""

    def __init__(self):
        self.ended_ones, self.parents = [], {}

    def started(self, stage):
        self.parents[stage.name] = None if stage.parent is None else stage.parent.name

    def ended(self, stage):
        if stage.name == "generate":
            self.ended_ones.append(stage)

    def abandoned(self):
        return [one.attributes["ragaccel.stream.abandoned"] for one in self.ended_ones]


@pytest.fixture
def heard():
    listener = Generations()
    telemetry.listen(listener)
    yield listener
    telemetry.unlisten(listener)


@pytest.fixture(params=["traced only", "cached"])
def cache(request):
    if request.param == "traced only":
        yield None
    else:
        with MultiLevelCache.open() as opened:
            yield opened


def langchain(cache):
    model = GenericFakeChatModel(messages=iter([AIMessage("one two three")]))
    return accelerate(model, cache=cache, identity="fake").stream("Go on")


def llamaindex(cache):
    return accelerate(MockLLM(max_tokens=3), cache=cache).stream_complete("one two three")


@pytest.fixture(params=[langchain, llamaindex])
def ask(request, cache):
    return lambda: request.param(cache)


def test_it_ends_with_the_last_chunk(ask, heard):
    """It tells how many chunks there were, and when the first came."""
    with telemetry.stage("query"):
        for _ in ask():
            assert not heard.ended_ones
            with telemetry.stage("the consumer's"):
                pass
    (stage,) = heard.ended_ones
    assert heard.parents["the consumer's"] == "query"
    assert heard.abandoned() == [False]
    assert stage.attributes["ragaccel.stream.chunks"] > 1
    assert 0 < stage.attributes["gen_ai.response.time_to_first_chunk"] * 1e9 < stage.duration_ns
    assert stage.error is None


@pytest.mark.parametrize("end", ["close", "drop", "never begin"])
def test_it_ends_when_nobody_reads_on(ask, heard, end):
    """Closed, dropped or never read: it is ended once, and abandoned."""
    stream = ask()
    if end != "never begin":
        next(stream)
    if end == "close":
        stream.close()
    del stream
    gc.collect()
    has_begun = (
        "generate" in heard.parents
    )  # LangChain asks the model when the first chunk is wanted
    assert heard.abandoned() == [True] * has_begun
    assert has_begun or end == "never begin"


def test_it_ends_when_a_task_gives_up(heard, cache, caplog):
    """Closed by the event loop, in another task than the one that read."""

    async def main():
        model = accelerate(MockLLM(max_tokens=3), cache=cache)
        stream = await model.astream_complete("one two three")
        await asyncio.create_task(anext(stream))
        await asyncio.create_task(stream.aclose())

    asyncio.run(main())
    assert heard.abandoned() == [True]
    assert "detach" not in caplog.text


def test_an_error_of_the_model_is_told(heard, cache):
    """By its name, with the chunks that had come."""

    class Broken(MockLLM):
        def stream_complete(self, prompt, formatted=False, **kwargs):
            def chunks():
                yield from list(super(Broken, self).stream_complete(prompt))[:2]
                raise ConnectionError("reset")

            return chunks()

    with pytest.raises(ConnectionError):
        list(accelerate(Broken(max_tokens=3), cache=cache).stream_complete("one two three"))
    (stage,) = heard.ended_ones
    assert (stage.error, stage.attributes["ragaccel.stream.chunks"]) == ("ConnectionError", 2)


def test_a_hit_ends_at_once(heard):
    """A replayed stream has its stage, too."""
    with MultiLevelCache.open() as cache:
        model = accelerate(MockLLM(max_tokens=3), cache=cache)
        first, second = (
            [one.delta for one in model.stream_complete("one two three")] for _ in range(2)
        )
    assert first == second
    assert [one.attributes["ragaccel.cache.hit"] for one in heard.ended_ones] == [False, True]
