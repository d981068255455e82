"""An accelerated `ChatOpenAI` behaves as the plain one does, on a miss and on a hit.

The real class talks over HTTP to a server that speaks the OpenAI API. The matrix: plain, miss and
hit x every way to ask a chat model x everything that a user or LangChain does with one.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import itertools
import pickle
import re
import threading
import uuid
from collections.abc import Callable  # noqa: TC003 - pydantic reads it
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from enum import Enum
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumpd
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_tests.utils.stream_lifecycle import assert_valid_event_stream
from pydantic import BaseModel, Field

from ragaccel import MultiLevelCache, accelerate, unwrap
from ragaccel.cache import MemoryLevel
from ragaccel.cache.levels.disk import file as cache_file
from ragaccel.errors import RagaccelWarning
from tests.langchain.recorder import Recorder
from tests.support.openai_server import Behaviour, OpenAIServer

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
TOLD_OF_EVENTS = pytest.mark.filterwarnings(
    "ignore::langchain_core._api.beta_decorator.LangChainBetaWarning",
    "ignore:astream_events version='v1' is deprecated",
)
FOREVER = 600  # seconds: what waits so long in a test waits until the server stops


@pytest.fixture(scope="module")
def listening():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def server(listening) -> OpenAIServer:
    """The server, which has heard nothing yet and says something new to every request."""
    listening.reset()
    return listening


@pytest.fixture
def steady(server) -> OpenAIServer:
    """The server, which says the same to every request."""
    server.answer = lambda _body, _number: ANSWER
    return server


@pytest.fixture
def model(server):
    """Make a plain model that asks the server."""

    def make(**options) -> ChatOpenAI:
        usual = {
            "model": "gpt-x", "temperature": 0, "api_key": "secret", "max_retries": 0,
            "base_url": server.base_url, "stream_usage": True,
        }  # fmt: skip
        return ChatOpenAI(**{**usual, **options})

    return make


@pytest.fixture
def plain(model) -> ChatOpenAI:
    return model()


@pytest.fixture
def fast(plain, cache) -> ChatOpenAI:
    return accelerate(plain, cache=cache)


@pytest.fixture(params=["miss", "hit"])
def state(request) -> str:
    """Whether the cache knows the question."""
    return request.param


# -- ways to ask -----------------------------------------------------------------------------------


def invoke(model, question, config=None, **more):
    return model.invoke(question, config, **more)


async def ainvoke(model, question, config=None, **more):
    return await model.ainvoke(question, config, **more)


def stream(model, question, config=None, **more):
    return merged(model.stream(question, config, **more))


async def astream(model, question, config=None, **more):
    return merged([chunk async for chunk in model.astream(question, config, **more)])


def batch(model, question, config=None, **more):
    return model.batch([question], config, **more)[0]


async def abatch(model, question, config=None, **more):
    return (await model.abatch([question], config, **more))[0]


def generate(model, question, config=None, **more):
    made = model.generate([asked(question)], **(config or {}), **more)
    return made.generations[0][0].message


async def agenerate(model, question, config=None, **more):
    made = await model.agenerate([asked(question)], **(config or {}), **more)
    return made.generations[0][0].message


#: Every way to get one answer, and those that a binding has too.
WAYS = (invoke, ainvoke, stream, astream, batch, abatch, generate, agenerate)
BOUND_WAYS = WAYS[:6]
ONE_EACH = WAYS[:4]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
every_bound_way = pytest.mark.parametrize("way", BOUND_WAYS, ids=lambda way: way.__name__)
one_each = pytest.mark.parametrize("way", ONE_EACH, ids=lambda way: way.__name__)


async def ask(way, model, question=QUESTION, config=None, **more):
    """Ask a model in one of the ways."""
    answer = way(model, question, config, **more)
    return await answer if inspect.isawaitable(answer) else answer


async def reach(state, way, model, *question, **more):
    """Ask so that the next call of this sort is a miss or a hit."""
    if state == "hit":
        await ask(way, model, *question, **more)


def asked(question):
    return [HumanMessage(question)] if isinstance(question, str) else question


def merged(chunks):
    """Add up the chunks of a stream."""
    whole, *more = chunks
    for one in more:
        whole += one
    return message_chunk_to_message(whole)


_FRESH = re.compile(r"(lc_run-|chatcmpl-|call_|req_)[\w-]+")
_PER_CALL = {"run_id", "parent_ids", "ragaccel_cached", "total_cost"}


def told(value: Any) -> Any:
    """Return something with what is new in every call, and the marks of a hit, left out."""
    if isinstance(value, BaseModel):
        return type(value).__name__, told(dict(value))
    if isinstance(value, dict):
        return {key: told(one) for key, one in value.items() if key not in _PER_CALL}
    if isinstance(value, (list, tuple)):
        return [told(one) for one in value]
    return _FRESH.sub(r"\1", value) if isinstance(value, str) else value


def kept(message):
    """Return all of a message that a hit has in common with the miss before it."""
    fields = message.model_dump(exclude={"id"})
    fields["response_metadata"].pop("ragaccel_cached", None)
    (fields["usage_metadata"] or {}).pop("total_cost", None)
    return fields


def is_marked(message):
    """Tell whether a message says that it comes from the cache and cost nothing."""
    is_hit = message.response_metadata.get("ragaccel_cached", False)
    if message.usage_metadata is not None:
        assert message.usage_metadata.get("total_cost") == (0 if is_hit else None)
    return is_hit is True


# -- results ---------------------------------------------------------------------------------------


@every_way
async def test_answer_is_equal(way, state, steady, plain, fast):
    """The message is the plain one's, of the same class, and a hit says that it is one."""
    expected = await ask(way, plain)
    await reach(state, way, fast)
    found = await ask(way, fast)
    assert type(found) is type(expected)
    assert told(found) == told(expected)
    assert found.content == ANSWER
    assert is_marked(found) is (state == "hit")
    assert len(steady.requests) == 2


@every_way
async def test_hit_is_equal_to_its_miss(way, server, fast):
    """A hit is the recorded answer to the letter; only the message has an id of its own."""
    first, second, third = [await ask(way, fast) for _ in range(3)]
    assert kept(first) == kept(second) == kept(third)
    assert not is_marked(first)
    assert is_marked(second)
    assert is_marked(third)
    assert len({first.id, second.id, third.id}) == 3
    assert len(server.requests) == 1


@given(st.lists(st.sampled_from(WAYS), min_size=2, max_size=5), st.text(min_size=1))
@settings(max_examples=25, deadline=None)
def test_any_mixture_of_ways_asks_once(listening, ways, question):
    """However the same question is asked, one request is made, and all are told the same."""
    listening.reset()
    plain = ChatOpenAI(
        model="gpt-x", temperature=0, base_url=listening.base_url, api_key="secret", max_retries=0
    )
    with MultiLevelCache.open() as cache:
        fast = accelerate(plain, cache=cache)

        async def ask_all():
            return [await ask(way, fast, question) for way in ways]

        answers = asyncio.run(ask_all())
    assert len(listening.requests) == 1
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.id for answer in answers}) == len(ways)


@pytest.mark.parametrize("second", ONE_EACH, ids=lambda way: way.__name__)
@one_each
async def test_what_one_way_recorded_serves_another(way, second, steady, plain, fast):
    """Text, usage, class, finish reason and model are as if the second way had asked itself."""
    expected = await ask(second, plain)
    await ask(way, fast)
    found = await ask(second, fast)
    assert type(found) is type(expected)
    assert found.content == expected.content
    assert told(found.usage_metadata) == told(expected.usage_metadata)
    for name in ("finish_reason", "model_name", "system_fingerprint", "model_provider"):
        assert found.response_metadata[name] == expected.response_metadata[name]
    assert ("token_usage" in found.response_metadata) <= (
        "token_usage" in expected.response_metadata
    )
    assert is_marked(found)
    assert len(steady.requests) == 2


@one_each
async def test_answers_are_the_callers_own(way, server, fast):
    """Changing what came back changes nothing for the next caller."""
    expected = kept(await ask(way, fast))
    for _ in range(3):
        found = await ask(way, fast)
        assert kept(found) == expected
        found.content = "changed"
        found.response_metadata.clear()
        found.additional_kwargs["added"] = True
        found.usage_metadata["input_tokens"] = -1
        found.tool_calls.append({"name": "no", "args": {}, "id": "1", "type": "tool_call"})
    assert len(server.requests) == 1


def test_chunks_are_the_callers_own(server, fast):
    """The same holds for chunks, even where they are changed while the stream is recorded."""
    texts = []
    for _ in range(3):
        chunks = []
        for chunk in fast.stream(QUESTION):
            chunks.append(chunk.content)
            chunk.content = "changed"
            chunk.response_metadata["added"] = True
        texts.append(chunks)
    assert texts[0] == texts[1] == texts[2]
    assert "added" not in merged(fast.stream(QUESTION)).response_metadata
    assert len(server.requests) == 1


@one_each
async def test_stream_without_usage_is_recorded_as_it_is(way, steady, model, cache):
    """Where the provider does not count, a hit has no usage, and still says what it is."""
    plain = model(stream_usage=False)
    fast = accelerate(plain, cache=cache)
    expected = await ask(way, plain)
    await ask(stream, fast)
    found = await ask(way, fast)
    assert found.content == expected.content
    assert found.response_metadata["ragaccel_cached"] is True
    if way in (stream, astream):
        assert found.usage_metadata is expected.usage_metadata is None


HOW = {
    "streams always": {"streaming": True},
    "never streams": {"disable_streaming": True},
    "content blocks": {"output_version": "v1"},
    "log probabilities": {"logprobs": True},
}


@pytest.mark.parametrize("name", HOW)
@every_way
async def test_ways_of_bringing_an_answer_are_kept(way, name, state, steady, model, cache):
    """A model that is told how to bring its answers and its tool calls brings hits so too."""
    plain = model(**HOW[name])
    fast = accelerate(plain, cache=cache)
    forms = [(lambda one: one, QUESTION), (with_tools, CALL_BOTH)]
    for form, question in forms[: 1 + (way in BOUND_WAYS)]:
        expected = await ask(way, form(plain), question)
        await reach(state, way, form(fast), question)
        found = await ask(way, form(fast), question)
        assert told(found) == told(expected)
        assert is_marked(found) is (state == "hit")
    assert len(steady.requests) == 2 * (1 + (way in BOUND_WAYS))


@pytest.mark.parametrize("second", ONE_EACH, ids=lambda way: way.__name__)
@one_each
async def test_content_blocks_recorded_by_one_way_serve_another(way, second, steady, model, cache):
    """In the newer format of content, text and tool calls are the plain model's, too."""
    plain = model(output_version="v1")
    fast = accelerate(plain, cache=cache)
    for form, question in ((lambda one: one, QUESTION), (with_tools, CALL_BOTH)):
        expected = await ask(second, form(plain), question)
        await ask(way, form(fast), question)
        found = await ask(second, form(fast), question)
        assert told(found.content_blocks) == told(expected.content_blocks)
        assert told(found.tool_calls) == told(expected.tool_calls)
    assert len(steady.requests) == 4


def test_several_choices_are_equal(state, steady, model, cache):
    """With `n` every choice comes back, and what the call cost as a whole."""
    plain = model(n=3)
    fast = accelerate(plain, cache=cache)
    expected = plain.generate([asked(QUESTION)])
    if state == "hit":
        fast.generate([asked(QUESTION)])
    found = fast.generate([asked(QUESTION)])
    assert told(found.generations) == told(expected.generations)
    assert told(found.llm_output) == told(expected.llm_output)
    assert len({choice.text for choice in found.generations[0]}) == 3
    assert len(steady.requests) == 2


@pytest.mark.parametrize("how", ["constructor", "call"])
def test_stream_of_one_choice_is_not_served_for_several(how, steady, model, cache):
    """A stream gives one choice; who asks for all of them later gets them."""
    plain = model(n=2) if how == "constructor" else model()
    more = {} if how == "constructor" else {"n": 2}
    fast = accelerate(plain, cache=cache)
    expected = merged(plain.stream(QUESTION, **more))
    for _ in range(2):
        assert told(merged(fast.stream(QUESTION, **more))) == told(expected)
    assert len(fast.generate([asked(QUESTION)], **more).generations[0]) == 2


def test_batches_are_equal(state, steady, plain, fast):
    """A batch gives every question its answer, in order, and asks each once."""
    questions = ["one", "two", "one", "three"]
    steady.answer = lambda body, _number: body["messages"][-1]["content"]
    expected = plain.batch(questions)
    if state == "hit":
        fast.batch(questions)
    found = fast.batch(questions)
    assert [told(one) for one in found] == [told(one) for one in expected]
    assert len(steady.requests) == len(questions) + 3
    assert len({one.id for one in found}) == len(questions)


async def test_several_conversations_in_one_call_are_equal(state, steady, plain, fast):
    """`generate` over several conversations adds up what they cost, as the plain one does."""
    conversations = [asked("one"), asked("two")]
    expected = plain.generate(conversations)
    if state == "hit":
        fast.generate(conversations)
    for found in (fast.generate(conversations), await fast.agenerate(conversations)):
        assert told(found.generations) == told(expected.generations)
        assert told(found.llm_output) == told(expected.llm_output)


# -- callbacks and events --------------------------------------------------------------------------


class ChatRecorder(Recorder):
    """Writes down what a chat model tells, too."""

    def on_chat_model_start(self, serialized, messages, **details):
        self.keep("chat start", told(serialized), told(messages), **told_details(details))

    def on_llm_new_token(self, token, *, chunk=None, logprobs=None, **details):
        self.keep("token", token, told(chunk), **told_details(details))

    def on_llm_end(self, response, **details):
        self.keep("llm end", told(response.generations), told(response.llm_output), **details)

    def on_llm_error(self, error, **details):
        self.keep("llm error", type(error), str(error), **told_details(details))


def told_details(details):
    """Return the details of an event without what is new in every call, but the run ids."""
    runs = {name: details.get(name) for name in ("run_id", "parent_run_id")}
    return {**told(details), **runs}


CONFIG = {"tags": ["of the call"], "metadata": {"user": "u1"}, "run_name": "asking"}


async def recorded(way, model, *question, **more):
    """Ask, and return what a handler was told."""
    recorder = ChatRecorder()
    await ask(way, model, *question, {**CONFIG, "callbacks": [recorder]}, **more)
    return recorder.events


@every_way
async def test_callbacks_are_equal(way, state, steady, plain, fast):
    """A handler is told the same, in the same order, whether the cache knows the answer or not."""
    expected = await recorded(way, plain, QUESTION)
    await reach(state, way, fast)
    found = await recorded(way, fast, QUESTION)
    assert found == expected
    kinds = {event[0] for event in found}
    assert kinds == {"chat start", "llm end"} | ({"token"} if way in (stream, astream) else set())


async def events(model, version, question=QUESTION):
    return told([event async for event in model.astream_events(question, version=version)])


def chained(model):
    """Put a model where LangChain has to stream it though it is invoked."""
    return RunnableLambda(model.invoke, name="chain")


@TOLD_OF_EVENTS
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("form", [lambda model: model, chained], ids=["bare", "within a chain"])
async def test_events_are_equal(form, version, state, steady, plain, fast):
    """`astream_events` gives the same events, chunk by chunk."""
    expected = await events(form(plain), version)
    if state == "hit":
        await events(form(fast), version)
    assert await events(form(fast), version) == expected
    assert sum(event["event"] == "on_chat_model_stream" for event in expected) > 3
    assert len(steady.requests) == 2


@TOLD_OF_EVENTS
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_events_of_an_invoked_answer_add_up(version, steady, fast):
    """What `invoke` has recorded, `astream_events` gives as a stream of the same text."""
    fast.invoke(QUESTION)
    found = [event async for event in fast.astream_events(QUESTION, version=version)]
    chunks = [event["data"]["chunk"] for event in found if event["event"] == "on_chat_model_stream"]
    assert merged(chunks).content == ANSWER
    assert len(steady.requests) == 1


class ProtocolRecorder(ChatRecorder):
    """Writes down the events of the protocol of content blocks, too."""

    def on_stream_event(self, event, **details):
        self.keep("stream event", told(event), **told_details(details))


def protocol_events(model, question, config):
    """Stream by the protocol of content blocks: the events, and the message that they make."""
    streamed = model.stream_events(question, config, version="v3")
    return list(streamed), streamed.output


async def aprotocol_events(model, question, config):
    streamed = await model.astream_events(question, config, version="v3")
    found, message = [event async for event in streamed], await streamed.output
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # handlers are told last
    return found, message


@TOLD_OF_EVENTS
@pytest.mark.parametrize("form", ["text", "tools"])
@pytest.mark.parametrize("before", ["nothing", "stream", "invoke"])
@pytest.mark.parametrize("way", [protocol_events, aprotocol_events], ids=["sync", "async"])
async def test_protocol_events_are_equal(way, before, form, steady, plain, fast):
    """The third version's events follow their rules, and are the plain ones after a stream."""

    async def streamed(model):
        recorder = ProtocolRecorder()
        asked_ = model if form == "text" else with_tools(model)
        found, message = await ask(way, asked_, CALL_BOTH, {"callbacks": [recorder]})
        assert_valid_event_stream(found)
        assert [call["name"] for call in message.tool_calls] == (
            [] if form == "text" else ["get_weather", "get_time"]
        )
        return found, message, recorder.events

    expected, whole, told_plainly = await streamed(plain)
    if before == "stream":
        await streamed(fast)
    if before == "invoke":
        (fast if form == "text" else with_tools(fast)).invoke(CALL_BOTH)
    found, message, told_of_it = await streamed(fast)
    assert told(message.content) == told(whole.content)
    assert told(message.usage_metadata) == told(whole.usage_metadata)
    assert ("ragaccel_cached" in message.response_metadata) is (before != "nothing")
    assert {event[0] for event in told_of_it} == {event[0] for event in told_plainly}
    if before != "invoke":
        assert told(found) == told(expected)
        assert told(message) == told(whole)
        assert told_of_it == told_plainly
    assert len(steady.requests) == 2


# -- tools and structured output -------------------------------------------------------------------


@tool
def get_weather(city: str, days: int) -> str:
    """Tell the weather."""
    return f"Sunny in {city} for {days} days."


@tool
def get_time() -> str:
    """Tell the time."""
    return "noon"


CALL_BOTH = "Ask get_weather for 3 days, and get_time."


def with_tools(model, **options):
    return model.bind_tools([get_weather, get_time], **options)


@every_bound_way
async def test_tool_calls_are_equal(way, state, steady, plain, fast):
    """All calls come back with their arguments; a hit has the ids of the answer it repeats."""
    expected = await ask(way, with_tools(plain), CALL_BOTH)
    await reach(state, way, with_tools(fast), CALL_BOTH)
    found = await ask(way, with_tools(fast), CALL_BOTH)
    assert told(found) == told(expected)
    assert [call["name"] for call in found.tool_calls] == ["get_weather", "get_time"]
    assert found.tool_calls[0]["args"] == {"city": ANSWER, "days": 3}
    assert kept(await ask(way, with_tools(fast), CALL_BOTH)) == kept(found)
    assert len(steady.requests) == 2


@pytest.mark.parametrize("second", ONE_EACH, ids=lambda way: way.__name__)
@one_each
async def test_tool_calls_that_one_way_recorded_serve_another(way, second, server, fast):
    """Streamed calls and whole ones are the same calls."""
    first = await ask(way, with_tools(fast), CALL_BOTH)
    found = await ask(second, with_tools(fast), CALL_BOTH)
    assert found.tool_calls == first.tool_calls
    assert len(found.tool_calls) == 2
    assert found.invalid_tool_calls == []
    assert len(server.requests) == 1


@one_each
async def test_calls_that_cannot_be_parsed_are_equal(way, state, steady, plain, fast):
    """Arguments that are no JSON come back as an invalid call, and are streamed as they were."""
    expected = await ask(way, with_tools(plain), "get_weather", max_tokens=3)
    await reach(state, invoke, with_tools(fast), "get_weather", max_tokens=3)
    found = await ask(way, with_tools(fast), "get_weather", max_tokens=3)
    assert told(found.tool_calls) == told(expected.tool_calls)
    assert told(found.invalid_tool_calls) == told(expected.invalid_tool_calls)
    assert len(found.tool_calls + found.invalid_tool_calls) == 1


@one_each
async def test_an_agents_loop_is_served_whole(way, server, fast):
    """The question, the call and the tool's answer lead to cached answers at every step."""

    async def loop():
        model = with_tools(fast)
        messages = [HumanMessage(CALL_BOTH)]
        messages.append(await ask(way, model, messages))
        messages += [get_weather.invoke(messages[-1].tool_calls[0])]
        messages += [get_time.invoke(messages[1].tool_calls[1])]
        return [*messages, await ask(way, model, messages)]

    first, second = await loop(), await loop()
    assert first[-1].content == second[-1].content != ""
    assert is_marked(second[-1])
    assert len(server.requests) == 2


class Means(Enum):
    TRAIN = "train"
    SHIP = "ship"


class Trip(BaseModel):
    """A trip."""

    where: str = Field(alias="placeName")
    days: int
    means: Means
    begins: date


OF_PARSED = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # openai's own
TRIP = "A trip of 3 days: 'placeName', 'days', 'means' and 'begins'."


async def parsed(way, model, schema, **more):
    """Ask for structured output in one of the ways; of a stream it is what comes last."""
    chain = model.with_structured_output(schema, **more)
    if way is stream:
        return list(chain.stream(TRIP))[-1]
    if way is astream:
        return [one async for one in chain.astream(TRIP)][-1]
    return await ask(way, chain, TRIP)


@OF_PARSED
@pytest.mark.parametrize("schema", [Trip, Trip.model_json_schema()], ids=["class", "dict"])
@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@one_each
async def test_structured_output_is_equal(way, method, schema, state, steady, plain, fast):
    """The parsed object is the plain one's: aliases, dates and enumerations included."""
    expected = await parsed(way, plain, schema, method=method)
    if state == "hit":
        await parsed(way, fast, schema, method=method)
    found = await parsed(way, fast, schema, method=method)
    assert found == expected
    assert type(found) is type(expected)
    assert len(steady.requests) == 2


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
@pytest.mark.parametrize("way", [invoke, ainvoke], ids=lambda way: way.__name__)
async def test_raw_structured_output_is_equal(way, method, state, steady, plain, fast):
    """With `include_raw` the message, what was parsed and what went wrong are the plain ones."""
    expected = await parsed(way, plain, Trip, method=method, include_raw=True)
    if state == "hit":
        await parsed(way, fast, Trip, method=method, include_raw=True)
    found = await parsed(way, fast, Trip, method=method, include_raw=True)
    assert told(found["raw"]) == told(expected["raw"])
    assert found["parsed"] == expected["parsed"]
    assert type(found["parsing_error"]) is type(expected["parsing_error"])
    assert len(steady.requests) == 2


@OF_PARSED
@pytest.mark.parametrize("second", ONE_EACH, ids=lambda way: way.__name__)
@one_each
async def test_parsed_by_one_way_serves_another(way, second, server, fast):
    """What was parsed of a stream and of a whole answer is the same."""
    first = await parsed(way, fast, Trip)
    found = await parsed(second, fast, Trip)
    assert type(found) is Trip
    assert found == first
    assert len(server.requests) == 1


class Rounded(BaseModel):
    """Does not come back from what it is written as."""

    days: int

    def __eq__(self, other):
        return self is other

    __hash__ = None


def test_what_does_not_come_back_equal_is_not_cached(server, fast, cache):
    """An object that its own fields do not make again goes to the caller only."""
    for _ in range(2):
        assert fast.with_structured_output(Rounded).invoke(TRIP).days == 3
    assert len(server.requests) == 2
    assert cache.stats().bypasses == {"value": 2}


# -- what is asked is the key ----------------------------------------------------------------------

DIFFERENT = {
    "question": lambda model: model.invoke("Another question?"),
    "case": lambda model: model.invoke(QUESTION.lower()),
    "system message": lambda model: model.invoke([SystemMessage("Be brief."), *asked(QUESTION)]),
    "other system message": lambda model: model.invoke([SystemMessage("Go."), *asked(QUESTION)]),
    "role": lambda model: model.invoke([AIMessage(QUESTION)]),
    "name": lambda model: model.invoke([HumanMessage(QUESTION, name="Ann")]),
    "two messages": lambda model: model.invoke([*asked(QUESTION), *asked(QUESTION)]),
    "stop": lambda model: model.invoke(QUESTION, stop=["Paris"]),
    "other stop": lambda model: model.invoke(QUESTION, stop=["Par"]),
    "two stops": lambda model: model.invoke(QUESTION, stop=["Par", "is"]),
    "bound stop": lambda model: model.bind(stop=["capital"]).invoke(QUESTION),
    "keyword": lambda model: model.invoke(QUESTION, max_tokens=5),
    "bound keyword": lambda model: model.bind(seed=7).invoke(QUESTION),
    "model of the call": lambda model: model.invoke(QUESTION, model="gpt-y"),
    "tool": lambda model: model.bind_tools([get_time]).invoke(QUESTION),
    "tools": lambda model: with_tools(model).invoke(QUESTION),
    "tool choice": lambda model: with_tools(model, tool_choice="any").invoke(QUESTION),
    "schema": lambda model: model.with_structured_output(Trip).invoke(QUESTION),
    "list": lambda model: model.invoke([HumanMessage([{"type": "text", "text": QUESTION}])]),
    "top_p": lambda model: changed(model, top_p=0.5).invoke(QUESTION),
    "other model": lambda model: changed(model, model_name="gpt-z").invoke(QUESTION),
    "setting": lambda model: changed(model, max_tokens=7).invoke(QUESTION),
    "model_kwargs": lambda model: changed(model, model_kwargs={"user": "u"}).invoke(QUESTION),
    "default stop": lambda model: changed(model, stop=["Pa"]).invoke(QUESTION),
}


def changed(model, **update):
    return model.model_copy(update=update)


def test_different_questions_share_nothing(server, fast):
    """Models, prompts, roles, tools, stops and settings that differ in one thing are told apart."""
    fast.invoke(QUESTION)
    for ask_ in DIFFERENT.values():
        ask_(fast)
    assert len(server.requests) == 1 + len(DIFFERENT)
    for ask_ in DIFFERENT.values():
        ask_(fast)
    assert len(server.requests) == 1 + len(DIFFERENT)


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_questions_are_answered_as_plainly(name, state, steady, plain, fast):
    """Each of them is answered as the plain model answers it."""
    expected = DIFFERENT[name](plain)
    if state == "hit":
        DIFFERENT[name](fast)
    assert told(DIFFERENT[name](fast)) == told(expected)
    sent, ours = steady.requests
    assert ours.body == sent.body


def test_changes_of_an_attribute_are_seen_at_once(server, fast):
    """An attribute set on the wrapped model is sent, and has a key of its own."""
    fast.invoke(QUESTION)
    fast.model_name = "gpt-y"
    answer = fast.invoke(QUESTION)
    assert server.requests[-1].body["model"] == "gpt-y"
    assert answer.response_metadata["model_name"] == "gpt-y"
    fast.model_name = "gpt-x"
    fast.invoke(QUESTION)
    assert len(server.requests) == 2


def test_configurable_fields_are_seen(server, fast):
    """A setting that comes with the call is sent, and has a key of its own."""
    open_ = fast.configurable_fields(model_name=ConfigurableField(id="which"))
    for _ in range(2):
        for which in ("gpt-x", "gpt-y"):
            answer = open_.with_config(configurable={"which": which}).invoke(QUESTION)
            assert answer.response_metadata["model_name"] == which
    assert fast.invoke(QUESTION).response_metadata["ragaccel_cached"]
    assert len(server.requests) == 2


def test_configurable_alternatives_are_seen(server, fast, model, cache):
    """One wrapped model can stand beside another."""
    other = accelerate(model(model="gpt-y"), cache=cache)
    either = fast.configurable_alternatives(ConfigurableField(id="which"), y=other)
    for _ in range(2):
        assert either.invoke(QUESTION).response_metadata["model_name"] == "gpt-x"
        found = either.with_config(configurable={"which": "y"}).invoke(QUESTION)
        assert found.response_metadata["model_name"] == "gpt-y"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "form",
    [
        lambda model: model.bind(stop=["Paris"]),
        lambda model: model.with_config(tags=["mine"], metadata={"a": 1}),
        lambda model: model.with_retry(stop_after_attempt=2),
        lambda model: model.with_fallbacks([model]),
        lambda model: ChatPromptTemplate.from_messages([("human", "{question}")]) | model,
        lambda model: (
            {"a": model, "b": model.bind(stop=["x"])} | RunnableLambda(lambda both: both["a"])
        ),
    ],
    ids=["bind", "with_config", "with_retry", "with_fallbacks", "prompt", "parallel"],
)
@every_bound_way
async def test_compositions_are_equal(way, form, state, steady, plain, fast):
    """What LangChain builds of a model works as with the plain one."""
    expected = await ask(way, form(plain))
    await reach(state, way, form(fast))
    sent = len(steady.requests)
    found = await ask(way, form(fast))
    assert told(found) == told(expected)
    assert is_marked(found) is (state == "hit")
    assert (len(steady.requests) == sent) is (state == "hit")


def test_what_is_bound_can_be_wrapped_whole(server, plain, cache):
    """`accelerate` takes a binding, whose answers are those of a wrapped model that is bound."""
    bound = accelerate(plain.bind(stop=["Paris"]), cache=cache)
    inner = accelerate(plain, cache=cache).bind(stop=["Paris"])
    assert bound.invoke(QUESTION).content == inner.invoke(QUESTION).content
    assert len(server.requests) == 1


def test_namespaces_share_nothing(server, plain, cache):
    """Two tenants never see each other's answers."""
    one, other = (accelerate(plain, cache=cache, namespace=name) for name in ("one", "other"))
    assert one.invoke(QUESTION).content != other.invoke(QUESTION).content
    assert one.invoke(QUESTION).content != merged(other.stream(QUESTION)).content
    assert len(server.requests) == 2


def test_servers_share_nothing(model, server, cache):
    """Two base URLs are two providers."""
    with OpenAIServer() as elsewhere:
        for _ in range(2):
            accelerate(model(), cache=cache).invoke(QUESTION)
            accelerate(model(base_url=elsewhere.base_url), cache=cache).invoke(QUESTION)
        assert len(server.requests) == len(elsewhere.requests) == 1


def test_api_key_is_nowhere(server, model, tmp_path):
    """Two keys share answers within a namespace, and no file of the cache has either."""
    folder = tmp_path / "cache"
    with MultiLevelCache.open(folder) as cache:
        for secret in ("sk-first-secret", "sk-second-secret"):
            fast = accelerate(model(api_key=secret), cache=cache)
            fast.invoke(QUESTION)
            list(fast.stream(QUESTION, stop=["is"]))
            assert secret not in repr(fast) + str(fast)
    assert len(server.requests) == 2
    assert server.requests[0].headers["authorization"] == "Bearer sk-first-secret"
    stored = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert b"Answer 1 to:" in stored
    assert b"secret" not in stored


@st.composite
def conversations(draw):
    """A conversation; two of them are often equal in what is said."""
    says = st.sampled_from(["yes", "no"])
    made = []
    roles = st.sampled_from([HumanMessage, AIMessage, SystemMessage])
    for role in draw(st.lists(roles, max_size=3)):
        aside = {"id": str(uuid.uuid4()), "response_metadata": {"at": draw(st.integers(0, 9))}}
        if role is AIMessage:
            tokens = draw(st.integers(1, 9))
            aside["usage_metadata"] = {
                "input_tokens": tokens, "output_tokens": tokens, "total_tokens": 2 * tokens
            }  # fmt: skip
        made.append(role(draw(says), **aside))
    return [*made, HumanMessage(draw(says))]


@given(st.lists(conversations(), min_size=2, max_size=4))
@settings(max_examples=25, deadline=None)
def test_history_counts_by_what_was_said(listening, talks):
    """Ids, usage and metadata of earlier messages tell no two conversations apart; words do."""
    listening.reset()
    plain = ChatOpenAI(
        model="gpt-x", temperature=0, base_url=listening.base_url, api_key="secret", max_retries=0
    )
    different = {tuple((one.type, one.content) for one in talk) for talk in talks}
    with MultiLevelCache.open() as cache:
        fast = accelerate(plain, cache=cache)
        for talk, way in zip(talks, itertools.cycle((invoke, stream))):
            way(fast, talk)
    assert len(listening.requests) == len(different)


def test_artifacts_of_tools_tell_nothing_apart(server, fast, cache):
    """What a tool kept for the application is not sent to the model, and counts for nothing."""
    for artifact in (object(), None):
        called = AIMessage("", tool_calls=[{"name": "get_time", "args": {}, "id": "1"}])
        answer = ToolMessage("noon", tool_call_id="1", artifact=artifact)
        fast.invoke([*asked(QUESTION), called, answer])
    assert len(server.requests) == 1
    assert cache.stats().bypasses == {}


class OwnMessage(HumanMessage):
    """A message of the user's own class, which may hold what its fields do not tell."""


class Lenient(ChatOpenAI):
    """Takes an argument that is not sent."""

    def _get_request_payload(self, input_, *, stop=None, opaque=None, **kwargs):
        return super()._get_request_payload(input_, stop=stop, **kwargs)


class Unschematic(BaseModel):
    """A class that JSON schema has no words for."""

    call: Callable[[], int]


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
OPAQUE = {
    "object": object(),
    "function": print,
    "set": {1, 2},
    "dict with a tuple for a key": {(1, 2): 3},
    "class without a schema": Unschematic,
    "object that cannot be dumped": Unschematic(call=print),
    "list within itself": CYCLE,
}


@pytest.mark.parametrize("name", OPAQUE)
@one_each
async def test_opaque_arguments_go_past_the_cache(way, name, server, cache):
    """What no key can be made of is passed on, and counted."""
    fast = accelerate(lenient(server), cache=cache)
    answers = [await ask(way, fast, opaque=OPAQUE[name]) for _ in range(2)]
    assert answers[0].content != answers[1].content
    assert not any(map(is_marked, answers))
    assert cache.stats().bypasses == {"key": 2}


def lenient(server):
    return Lenient(
        model="gpt-x", temperature=0, api_key="secret", base_url=server.base_url, max_retries=0
    )


@one_each
async def test_unknown_messages_go_past_the_cache(way, server, fast, cache):
    """A message of a class that LangChain does not know is passed on, and counted."""
    answers = [await ask(way, fast, [OwnMessage(QUESTION)]) for _ in range(2)]
    assert answers[0].content != answers[1].content
    assert cache.stats().bypasses == {"key": 2}


# -- the object ------------------------------------------------------------------------------------


def test_object_is_equal(plain, fast):
    """Dumps, names, class and looks are the plain model's, and the original can be had back."""
    assert isinstance(fast, ChatOpenAI)
    assert isinstance(fast, BaseChatModel)
    assert unwrap(fast) is plain
    assert unwrap(accelerate(fast)) is plain
    assert dumpd(fast) == dumpd(plain)
    assert fast.model_dump() == plain.model_dump()
    assert fast.model_dump_json() == plain.model_dump_json()
    assert fast.asdict() == plain.asdict()
    assert repr(fast) == repr(plain)
    assert str(fast) == str(plain)
    assert fast.get_name() == plain.get_name() == "ChatOpenAI"
    assert fast._llm_type == plain._llm_type
    assert fast._get_ls_params(stop=["a"]) == plain._get_ls_params(stop=["a"])
    assert fast._identifying_params == plain._identifying_params
    assert fast.lc_id() == plain.lc_id()
    assert fast.get_input_jsonschema() == plain.get_input_jsonschema()
    assert fast.get_graph().to_json() == plain.get_graph().to_json()
    assert fast.profile == plain.profile
    assert "ragaccel" not in str(dumpd(fast))


def test_wrapping_leaves_the_original_alone(server, plain, fast):
    """The plain model still asks every time."""
    fast.invoke(QUESTION)
    assert len({plain.invoke(QUESTION).content for _ in range(2)}) == 2
    assert len(server.requests) == 3
    assert type(plain) is ChatOpenAI


@pytest.mark.parametrize(
    "again",
    [copy.copy, lambda model: model.model_copy(), lambda model: model.with_config().bound],
    ids=["copy", "model_copy", "with_config"],
)
def test_copies_share_the_cache(again, server, fast):
    """A copy is served what the first one asked."""
    first = fast.invoke(QUESTION)
    other = again(fast)
    assert type(other) is type(fast)
    assert kept(other.invoke(QUESTION)) == kept(first)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "again",
    [pickle.dumps, copy.deepcopy, lambda model: model.model_copy(deep=True)],
    ids=["pickle", "deepcopy", "deep model_copy"],
)
def test_what_the_plain_model_refuses_is_refused_alike(again, plain, fast):
    """`ChatOpenAI` holds clients that cannot be copied; the wrapped one says the same."""
    with pytest.raises(TypeError) as expected:
        again(plain)
    with pytest.raises(TypeError) as found:
        again(fast)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "again",
    [
        lambda model: pickle.loads(pickle.dumps(model)),
        copy.deepcopy,
        lambda model: model.model_copy(deep=True),
    ],
    ids=["pickle", "deepcopy", "deep model_copy"],
)
def test_deep_copies_work_where_the_plain_model_has_them(again, tmp_path):
    """A model that can be copied whole is served from the cache in its copies."""
    with MultiLevelCache.open(tmp_path / "cache") as cache:
        plain = OwnStream()
        fast = accelerate(plain, cache=cache)
        fast.invoke(QUESTION)
        other = again(fast)
        assert type(other) is type(fast)
        assert dumpd(other) == dumpd(plain)
        assert is_marked(other.invoke(QUESTION))
        assert is_marked(merged(other.stream(QUESTION)))
        assert other.seen == plain.seen
        assert not is_marked(other.invoke("Another question?"))


# -- sampling and rate limits ----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, None])
@one_each
async def test_samples_are_not_cached(way, temperature, server, model, cache):
    """A model that samples is warned about once, where it is wrapped, and asked every time."""
    with pytest.warns(RagaccelWarning, match=f"temperature={temperature}") as warned:
        fast = accelerate(model(temperature=temperature), cache=cache)
    assert len(warned) == 1
    answers = [await ask(way, fast) for _ in range(2)]
    assert answers[0].content != answers[1].content
    assert not any(map(is_marked, answers))
    assert cache.stats().bypasses == {"sampled": 2}
    assert len(server.requests) == 2


@pytest.mark.parametrize("temperature", [0.7, None])
@one_each
async def test_samples_are_cached_on_demand(way, temperature, server, model, cache):
    """With `cache_sampled` the same question gets the same sample, and there is no warning."""
    fast = accelerate(model(temperature=temperature), cache=cache, cache_sampled=True)
    first, second = [await ask(way, fast) for _ in range(2)]
    assert kept(first) == kept(second)
    assert len(server.requests) == 1


@one_each
async def test_temperature_of_the_call_counts(way, server, model, fast, cache):
    """A call that samples is not cached, and one that does not is, whatever the model says."""
    for _ in range(2):
        await ask(way, fast, temperature=0.7)
        await ask(way, fast.bind(temperature=None))
    assert cache.stats().bypasses == {"sampled": 4}
    with pytest.warns(RagaccelWarning):
        sampling = accelerate(model(temperature=0.7), cache=cache)
    for _ in range(2):
        await ask(way, sampling, temperature=0)
    assert cache.stats().misses == 1
    assert len(server.requests) == 5


class Counting(InMemoryRateLimiter):
    """Lets everybody pass, and counts."""

    def __init__(self):
        super().__init__()
        self.passed = 0

    def acquire(self, *, blocking=True):
        self.passed += blocking
        return True

    async def aacquire(self, *, blocking=True):
        return self.acquire(blocking=blocking)


@every_way
async def test_only_requests_wait_for_the_rate_limiter(way, model, server, cache):
    """It is asked once for each request, and not for hits."""
    plain = model(rate_limiter=Counting())
    fast = accelerate(plain, cache=cache)
    limiter = plain.rate_limiter
    await ask(way, plain)
    assert limiter.passed == 1
    for _ in range(3):
        await ask(way, fast)
    await ask(way, fast, temperature=0.7)
    await ask(way, accelerate(plain))
    assert limiter.passed == len(server.requests) == 4
    assert plain.rate_limiter is limiter


async def test_callers_who_wait_together_count_once(model, server, cache):
    """Of callers who share one request only the one who makes it waits for the limiter."""
    plain = model(rate_limiter=Counting())
    fast = accelerate(plain, cache=cache)
    server.behave(Behaviour(seconds=0.2))
    await asyncio.gather(*(fast.ainvoke(QUESTION) for _ in range(5)))
    assert plain.rate_limiter.passed == len(server.requests) == 1


# -- errors ----------------------------------------------------------------------------------------


async def failure(way, model, question=QUESTION):
    """Return the error that a call ends with, and what handlers were told."""
    recorder = ChatRecorder()
    with pytest.raises(Exception) as caught:
        await ask(way, model, question, {"callbacks": [recorder]})
    return caught.value, recorder.events


TROUBLES = {
    "429": Behaviour(429, retry_after=3),
    "500": Behaviour(500),
    "401": Behaviour(401),
    "400": Behaviour(400),
    "no JSON": Behaviour(body=b'{"choices": ['),
    "an error with a good status": Behaviour(body=b'{"error": {"message": "overloaded"}}'),
    "cut": Behaviour(breaks=True, after=3),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@one_each
async def test_errors_come_through_unchanged(way, trouble, server, plain, fast, cache):
    """The caller and the handlers get the plain model's error, and the next call asks again."""
    behaviour = TROUBLES[trouble]
    server.behave(*[behaviour] * 3)
    expected, events_ = await failure(way, plain)
    for _ in range(2):
        found, found_events = await failure(way, fast)
        assert type(found) is type(expected)
        assert _FRESH.sub("", str(found)) == _FRESH.sub("", str(expected))
        assert getattr(found, "status_code", None) == getattr(expected, "status_code", None)
        assert [event[0] for event in found_events] == [event[0] for event in events_]
    if behaviour.retry_after:
        assert found.response.headers["retry-after"] == "3"
    answer = await ask(way, fast)
    assert answer.content == f"Answer 4 to: {QUESTION}"
    assert not is_marked(answer)
    assert cache.stats().hits == {}


@one_each
async def test_time_outs_come_through(way, server, model, cache):
    """A request that takes too long ends as the plain model's does, and is not cached."""
    plain = model(timeout=0.2)
    fast = accelerate(plain, cache=cache)
    server.behave(*[Behaviour(seconds=FOREVER)] * 2)
    expected, _ = await failure(way, plain)
    found, _ = await failure(way, fast)
    assert type(found) is type(expected)
    assert isinstance(found, openai.APITimeoutError | httpx.ReadTimeout)
    assert not is_marked(await ask(way, fast))
    assert is_marked(await ask(way, fast))


async def test_retries_of_the_client_are_the_clients(server, model, cache):
    """What the client tries again by itself is one call, and its answer is kept."""
    fast = accelerate(model(max_retries=2), cache=cache)
    server.behave(Behaviour(500, retry_after=0.01))
    first, second = fast.invoke(QUESTION), await fast.ainvoke(QUESTION)
    assert kept(first) == kept(second)
    assert len(server.requests) == 2


def test_failed_model_falls_back(server, fast, model, cache):
    """`with_fallbacks` and `with_retry` see the error, and the cache keeps what came of it."""
    other = accelerate(model(model="gpt-y"), cache=cache)
    server.behave(Behaviour(500))
    safe = fast.with_fallbacks([other])
    assert safe.invoke(QUESTION).response_metadata["model_name"] == "gpt-y"
    assert safe.invoke(QUESTION).response_metadata["model_name"] == "gpt-x"
    server.behave(Behaviour(500))
    again = fast.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    assert again.invoke("Another question?").content == "Answer 5 to: Another question?"
    assert is_marked(again.invoke("Another question?"))


def test_batch_returns_errors_beside_answers(server, fast, cache):
    """In a batch one error takes nothing from the others."""
    server.behave(Behaviour(500))
    found = fast.batch(["one", "two"], {"max_concurrency": 1}, return_exceptions=True)
    assert isinstance(found[0], openai.InternalServerError)
    assert found[1].content == "Answer 2 to: two"
    assert cache.stats().misses == 2


def test_stream_that_breaks_gives_what_came_before(steady, plain, fast):
    """The chunks before the break reach the caller as from the plain model."""
    steady.behave(*[Behaviour(breaks=True, after=4)] * 2)
    seen = []
    for one in (plain, fast):
        chunks = one.stream(QUESTION)
        before = [told(next(chunks)) for _ in range(4)]
        with pytest.raises(Exception) as caught:
            next(chunks)
        seen.append((before, type(caught.value)))
    assert seen[0] == seen[1]
    assert merged(fast.stream(QUESTION)).content == ANSWER
    assert len(steady.requests) == 3


def test_abandoned_stream_is_not_kept(server, fast, cache):
    """A stream that the caller closes early is no answer."""
    chunks = fast.stream(QUESTION)
    next(chunks)
    next(chunks)
    chunks.close()
    assert not is_marked(fast.invoke(QUESTION))
    assert cache.stats().hits == {}
    assert len(server.requests) == 2


async def test_abandoned_asynchronous_stream_is_not_kept(server, fast, cache):
    """Neither is an async one."""
    chunks = fast.astream(QUESTION)
    await anext(chunks)
    await chunks.aclose()
    gc.collect()
    assert not is_marked(await fast.ainvoke(QUESTION))
    assert cache.stats().hits == {}
    assert len(server.requests) == 2


@pytest.mark.parametrize("way", [ainvoke, astream], ids=lambda way: way.__name__)
async def test_cancelled_call_is_not_kept(way, server, fast, cache):
    """A task that is cancelled while it waits ends, and the next one asks anew."""
    server.behave(Behaviour(seconds=FOREVER, after=2))
    task = asyncio.create_task(ask(way, fast))
    await asyncio.to_thread(server.arrival)
    while not task.done():  # before Python 3.12, `wait_for` loses one that comes with a chunk
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_marked(await ask(way, fast))
    assert is_marked(await ask(way, fast))
    assert len(server.requests) == 2


# -- many callers at once --------------------------------------------------------------------------


async def test_tasks_that_ask_at_once_share_a_request(server, fast):
    """Of equal questions under way one is sent, and every caller gets a message of its own."""
    server.behave(Behaviour(seconds=0.2))
    answers = await asyncio.gather(*(fast.ainvoke(QUESTION) for _ in range(20)))
    assert len(server.requests) == 1
    assert {answer.content for answer in answers} == {f"Answer 1 to: {QUESTION}"}
    assert len({answer.id for answer in answers}) == len({id(answer) for answer in answers}) == 20


def test_threads_that_ask_at_once_share_a_request(server, fast):
    """The same holds for threads."""
    server.behave(Behaviour(seconds=0.2))
    meeting = threading.Barrier(20)

    def ask_(_):
        meeting.wait()
        return fast.invoke(QUESTION)

    with ThreadPoolExecutor(meeting.parties) as pool:
        answers = list(pool.map(ask_, range(meeting.parties)))
    assert len(server.requests) == 1
    assert {answer.content for answer in answers} == {f"Answer 1 to: {QUESTION}"}
    assert len({answer.id for answer in answers}) == 20


async def test_streams_at_once_are_all_right(server, fast):
    """Streams under way do not wait for each other, and each is whole."""
    answers = await asyncio.gather(*(astream(fast, QUESTION) for _ in range(5)))
    assert all(one.content.endswith(f" to: {QUESTION}") for one in answers)
    sent = len(server.requests)
    assert is_marked(await astream(fast, QUESTION))
    assert len(server.requests) == sent


# -- a cache that fails ----------------------------------------------------------------------------


class Failing(MemoryLevel):
    """A level that fails at everything."""

    def get_many(self, keys):
        raise OSError("the machine is on fire")

    def put_many(self, entries):
        raise OSError("the machine is on fire")

    async def aget_many(self, keys):
        raise OSError("the machine is on fire")

    async def aput_many(self, entries):
        raise OSError("the machine is on fire")


def _in_the_way(folder, monkeypatch):
    folder.write_text("a file")
    return MultiLevelCache.open(folder)


def _full(folder, monkeypatch):
    connect = cache_file._connect

    def limited(path):
        db = connect(path)
        db.execute("PRAGMA max_page_count = 2")
        return db

    monkeypatch.setattr(cache_file, "_connect", limited)
    return MultiLevelCache.open(folder)


def _read_only(folder, monkeypatch):
    with MultiLevelCache.open(folder) as cache:
        cache.set("a", 1)
    connect = cache_file._connect

    def limited(path):
        db = connect(path)
        db.execute("PRAGMA query_only = 1")
        return db

    monkeypatch.setattr(cache_file, "_connect", limited)
    return MultiLevelCache.open(folder)


def _garbage(folder, monkeypatch):
    with MultiLevelCache.open(folder) as cache:
        cache.set("a", 1)
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"garbage" * 1000)
    return MultiLevelCache.open(folder)


@pytest.mark.parametrize(
    "broken",
    [
        lambda folder, monkeypatch: MultiLevelCache([Failing()]),
        _in_the_way,
        _full,
        _read_only,
        _garbage,
    ],
    ids=["failing level", "file in the way", "full disk", "read only", "garbage"],
)
@every_way
async def test_broken_cache_breaks_no_call(way, broken, steady, plain, tmp_path, monkeypatch):
    """Whatever the cache's faults are, the caller gets the plain model's answer."""
    expected = await ask(way, plain)
    with broken(tmp_path / "cache", monkeypatch) as cache:
        fast = accelerate(plain, cache=cache)
        for _ in range(3):
            assert told(await ask(way, fast)) == told(expected)


@one_each
async def test_ttl_policy_that_fails_breaks_no_call(way, server, plain, cache):
    """A policy's own error is warned about, and the answer is the caller's."""

    def policy(query, result):
        raise LookupError("no such policy")

    fast = accelerate(plain, cache=cache, ttl=policy)
    with pytest.warns(RagaccelWarning):
        answer = await ask(way, fast)
    assert answer.content == f"Answer 1 to: {QUESTION}"


@one_each
async def test_without_a_cache_nothing_is_cached(way, server, plain):
    """Without `cache=` the wrapped model asks every time, and says nothing of a cache."""
    fast = accelerate(plain)
    answers = [await ask(way, fast) for _ in range(2)]
    assert [answer.content for answer in answers] == [
        f"Answer {number} to: {QUESTION}" for number in (1, 2)
    ]
    assert not any(map(is_marked, answers))


# -- models of one's own ---------------------------------------------------------------------------


class Own(BaseChatModel):
    """A model that a user wrote, whose methods have other parameters than LangChain's."""

    seen: list[Any] = Field(default_factory=list, exclude=True)

    @property
    def _llm_type(self):
        return "own"

    def _generate(self, messages, stop=None, **kwargs):
        self.seen.append(kwargs)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(ANSWER))])


class OwnStream(Own):
    """One that streams, and makes its whole answers of its streams, as many integrations do."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append("generate")
        text = "".join(chunk.text for chunk in self._stream(messages, stop, **kwargs))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    def _stream(self, messages, stop=None, *args, **kwargs):
        self.seen.append(kwargs)
        for word in re.findall(r"\s*\S+", ANSWER):
            yield ChatGenerationChunk(message=AIMessageChunk(word))


class OwnWhole(Own):
    """One that makes its streams of its whole answers, sync and async."""

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return super()._generate(messages, stop, **kwargs)

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        return super()._generate(messages, stop, **kwargs)

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        yield self._chunk(self._generate(messages, stop, **kwargs))

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        yield self._chunk(await self._agenerate(messages, stop, **kwargs))

    def _chunk(self, made):
        return ChatGenerationChunk(message=AIMessageChunk(made.generations[0].text))


@pytest.mark.parametrize(
    ("sort", "way"),
    [(Own, way) for way in (invoke, stream, batch, generate)]
    + [(sort, way) for sort in (OwnStream, OwnWhole) for way in WAYS],
    ids=lambda of: of.__name__,
)
async def test_own_models_get_what_they_would_get(sort, way, cache):
    """Methods are called with what LangChain gives them, within one look-up; a hit calls none."""
    plain, limiter = sort(), Counting()
    expected = await ask(way, plain, colour="red")
    wrapped = sort(rate_limiter=limiter)
    fast = accelerate(wrapped, cache=cache)
    found = await ask(way, fast, colour="red")
    assert told(found) == told(expected)
    assert wrapped.seen == plain.seen
    assert limiter.passed == 1
    assert (cache.stats().misses, cache.stats().lookups) == (1, 1)
    again = await ask(way, fast, colour="red")
    assert again.content == ANSWER
    assert wrapped.seen == plain.seen


class Giving(Own):
    """Gives a message that was made for it, whole or as a chunk."""

    message: AIMessage = Field(exclude=True)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append(kwargs)
        given = self.message.model_copy()
        return ChatResult(generations=[ChatGeneration(message=given)])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append(kwargs)
        fields = self.message.model_dump(exclude={"type"})
        yield ChatGenerationChunk(message=AIMessageChunk(**fields))


class OwnAnswer(AIMessage):
    """An answer of the user's own class."""


@one_each
async def test_ids_that_a_provider_gives_are_not_repeated(way, cache):
    """A hit has an id of its own even where the message came with one."""
    plain = Giving(message=AIMessage(ANSWER, id="msg_1"))
    fast = accelerate(plain, cache=cache)
    answers = [await ask(way, fast) for _ in range(3)]
    assert answers[0].id == "msg_1"
    assert len({answer.id for answer in answers}) == 3
    assert len(plain.seen) == 1


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("a tuple", additional_kwargs={"pair": (1, 2)}),
        AIMessage("a date", response_metadata={"day": date(2024, 2, 29)}),
        AIMessage("a number for a key", additional_kwargs={"keys": {1: "one"}}),
        AIMessage([{"type": "text", "text": "an object", "extra": Means.SHIP}]),
    ],
    ids=lambda message: message.text,
)
@one_each
async def test_answers_that_cannot_be_stored_are_not(way, message, cache):
    """They come back as they are, every time, and are counted."""
    plain = Giving(message=message)
    expected = await ask(way, plain)
    fast = accelerate(plain, cache=cache)
    for _ in range(2):
        found = await ask(way, fast)
        assert told(found) == told(expected)
    assert cache.stats().bypasses == {"value": 2}
    assert cache.stats().hits == {}


def test_answers_of_another_class_are_not_stored(cache):
    """A class that LangChain does not know comes back as itself."""
    fast = accelerate(Giving(message=OwnAnswer(ANSWER)), cache=cache)
    for _ in range(2):
        assert type(fast.invoke(QUESTION)) is OwnAnswer
    assert cache.stats().bypasses == {"value": 2}


class Silent(Own):
    """Streams nothing."""

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        self.seen.append(kwargs)
        yield from ()


def test_empty_stream_is_no_answer(cache):
    """The error is LangChain's own, every time."""
    fast = accelerate(Silent(), cache=cache)
    for _ in range(2):
        with pytest.raises(ValueError, match="No generation chunks were returned"):
            list(fast.stream(QUESTION))
    assert len(fast.seen) == 2
