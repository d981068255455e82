"""A reused answer is replayed as an exact hit is, by both frameworks' language models."""

from __future__ import annotations

import pytest
from langchain_core.language_models import BaseLLM
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel, PrivateAttr

from ragaccel import MultiLevelCache, accelerate, telemetry
from ragaccel.reuse import VerifiedReuse
from ragaccel.telemetry import attributes
from tests.llamaindex.models import Provider
from tests.reuse.clerk import EMBED, NEW, TOPICS, Clerk, questions, teach
from tests.support.openai_server import OpenAIServer

NEW_QUESTION = NEW.format(TOPICS[1])


@pytest.fixture
def cache():
    """A cache in memory."""
    with MultiLevelCache.open() as cache:
        yield cache


@pytest.fixture
def semantic() -> VerifiedReuse:
    return VerifiedReuse(0.2, embed=EMBED, audit=1e-9, seed=1)


# -- LangChain chat models ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    """A server of the OpenAI API that says what a question is about."""
    with OpenAIServer() as server:
        server.answer = lambda body, _number: "about " + _last_word(body)
        yield server


def _last_word(body) -> str:
    return str(body["messages"][-1]["content"]).split()[-1]


@pytest.fixture
def chat(server, cache, semantic) -> ChatOpenAI:
    """A taught chat model, whose server has heard nothing since."""
    model = ChatOpenAI(
        model="gpt-x", temperature=0, api_key="secret", max_retries=0, base_url=server.base_url
    )
    model = accelerate(model, cache=cache, semantic=semantic)
    teach(model)
    del server.requests[:]
    return model


async def _streamed(stream) -> str:
    return "".join([chunk.content async for chunk in stream])


CHATS = {
    "invoke": lambda model: model.invoke(NEW_QUESTION).content,
    "stream": lambda model: "".join(chunk.content for chunk in model.stream(NEW_QUESTION)),
    "batch": lambda model: model.batch([NEW_QUESTION])[0].content,
}
ACHATS = {
    "ainvoke": lambda model: model.ainvoke(NEW_QUESTION),
    "astream": lambda model: _streamed(model.astream(NEW_QUESTION)),
}


@pytest.mark.parametrize("how", CHATS)
def test_every_way_to_ask_a_chat_model_is_served(chat, server, how):
    """A chat model answers a new wording without a request."""
    assert CHATS[how](chat) == "about hat"
    assert not server.requests


@pytest.mark.parametrize("how", ACHATS)
async def test_every_awaited_way_to_ask_a_chat_model_is_served(chat, server, how):
    """So it does where it is awaited."""
    answer = await ACHATS[how](chat)
    assert getattr(answer, "content", answer) == "about hat"
    assert not server.requests


def test_a_hit_says_that_it_was_not_asked_for_now(chat):
    """It carries the marks of an exact hit: cached, and no new tokens paid for."""
    answer = chat.invoke(NEW_QUESTION)
    assert answer.response_metadata["ragaccel_cached"] is True
    assert answer.usage_metadata["total_cost"] == 0


@tool
def weather(city: str) -> str:
    """Tell the weather."""
    return city


class Thing(BaseModel):
    """Something that is shown."""

    name: str


@pytest.mark.parametrize(
    "shaped",
    [
        lambda model: model.bind_tools([weather]),
        lambda model: model.bind(response_format={"type": "json_object"}),
        lambda model: model.bind(logit_bias={"1": 2}),
    ],
)
def test_tools_and_structured_output_are_left_to_the_exact_cache(chat, semantic, server, shaped):
    """Where an answer may be more than a text nothing is looked up, and nothing learned."""
    before = semantic.stats()
    shaped(chat).invoke(NEW_QUESTION)
    assert len(server.requests) == 1
    assert semantic.stats() == before


def test_a_question_of_more_than_text_is_left_to_the_exact_cache(chat, semantic, server):
    """A picture has no gate and no vector."""
    before = semantic.stats()
    parts = [{"type": "text", "text": NEW_QUESTION}]
    chat.invoke([HumanMessage(parts)])
    assert len(server.requests) == 1
    assert semantic.stats() == before


def test_a_stream_teaches_too(cache, semantic, server):
    """What is streamed to its end is judged and kept as what is given whole."""
    model = ChatOpenAI(
        model="gpt-y", temperature=0, api_key="secret", max_retries=0, base_url=server.base_url
    )
    model = accelerate(model, cache=cache, semantic=semantic)
    for question in questions():
        assert "".join(chunk.content for chunk in model.stream(question)).startswith("about")
    assert semantic.stats().hits > 0
    assert semantic.stats().faults == 0


# -- LangChain language models of text ------------------------------------------------------------


class Text(BaseLLM):
    """Says what a prompt is about."""

    temperature: float = 0
    _asked: list[str] = PrivateAttr(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "text"

    def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
        self._asked.extend(prompts)
        return LLMResult(generations=[[Generation(text=f"about {p.split()[-1]}")] for p in prompts])

    def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
        self._asked.append(prompt)
        for word in ("about ", prompt.split()[-1]):
            yield GenerationChunk(text=word)


async def test_a_language_model_of_text_is_served(cache, semantic):
    """Whole or streamed, blocking or awaited."""
    model = accelerate(Text(), cache=cache, semantic=semantic)
    teach(model)
    asked = len(model._asked)
    assert model.invoke(NEW_QUESTION) == "about hat"
    assert await model.ainvoke(NEW_QUESTION) == "about hat"
    assert "".join(model.stream(NEW_QUESTION)) == "about hat"
    assert "".join([chunk async for chunk in model.astream(NEW_QUESTION)]) == "about hat"
    assert len(model._asked) == asked


# -- LlamaIndex -----------------------------------------------------------------------------------


class Topical(Provider):
    """A LlamaIndex model that says what it is asked about."""

    def words(self, asked):
        self._calls.append(str(asked))
        return ["about ", str(asked).split()[-1]]


@pytest.fixture
def llm(cache, semantic) -> Topical:
    return accelerate(Topical(), cache=cache, semantic=semantic)


async def test_completions_of_llamaindex_are_served(llm):
    """Whole or streamed, blocking or awaited, without a call."""
    for question in questions():
        llm.complete(question)
    calls = len(llm._calls)
    assert llm.complete(NEW_QUESTION).text == "about hat"
    assert (await llm.acomplete(NEW_QUESTION)).text == "about hat"
    assert [one.text for one in llm.stream_complete(NEW_QUESTION)][-1] == "about hat"
    stream = await llm.astream_complete(NEW_QUESTION)
    assert [one.text async for one in stream][-1] == "about hat"
    assert len(llm._calls) == calls


def _messages(question, *before):
    return [*before, ChatMessage(role="user", content=question)]


async def test_chats_of_llamaindex_are_served(llm, semantic):
    """Whole or streamed, blocking or awaited; another system prompt is another question."""
    for question in questions():
        llm.chat(_messages(question))
    calls, asked = len(llm._calls), _messages(NEW_QUESTION)
    assert llm.chat(asked).message.content == "about hat"
    assert (await llm.achat(asked)).message.content == "about hat"
    assert [one.message.content for one in llm.stream_chat(asked)][-1] == "about hat"
    stream = await llm.astream_chat(asked)
    assert [one.message.content async for one in stream][-1] == "about hat"
    assert len(llm._calls) == calls
    assert semantic.stats().faults == 0

    system = ChatMessage(role="system", content="Be brief.")
    llm.chat(_messages(NEW_QUESTION, system))
    llm.chat(asked, tools=[{"type": "function"}])
    assert len(llm._calls) == calls + 2


async def test_chats_and_completions_share_no_answer(llm, semantic):
    """A prompt and a message of the same text are asked in different ways."""
    for question in questions():
        llm.complete(question)
    hits = semantic.stats().hits
    llm.chat(_messages(NEW_QUESTION))
    assert semantic.stats().hits == hits


# -- telemetry ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    """Where this process's spans go: there is one tracer provider in a process."""
    exporter = InMemorySpanExporter()
    telemetry.configure(processors=[SimpleSpanProcessor(exporter)])
    return exporter


def test_a_span_tells_what_kind_of_hit_it_is_and_no_content(cache, semantic, exporter):
    """Kind and similarity are told; question and answer are not."""
    model = accelerate(Clerk(), cache=cache, semantic=semantic)
    teach(model)
    exporter.clear()
    model.invoke(NEW_QUESTION)
    spans = exporter.get_finished_spans()
    told = next(one.attributes for one in spans if one.name == "generate")
    assert told[attributes.CACHE_HIT] is True
    assert told[attributes.CACHE_HIT_KIND] == "semantic"
    assert 0.5 < told[attributes.CACHE_SIMILARITY] < 1
    assert not any("hatish" in str(value) for one in spans for value in one.attributes.values())


def test_metrics_tell_of_hits_and_labels(cache, semantic):
    """By namespace, as far as it has come."""
    teach(accelerate(Clerk(), cache=cache, semantic=semantic))
    figures = {(one.name, *one.attributes.values()): one.value for one in semantic.figures()}
    stats = semantic.stats()
    assert figures["ragaccel.reuse.lookups", "default", "hit"] == stats.hits > 0
    assert figures["ragaccel.reuse.lookups", "default", "miss"] == stats.misses
    assert figures["ragaccel.reuse.labels", "default", "right"] == stats.right
    assert figures["ragaccel.reuse.labels", "default", "wrong"] == stats.wrong
