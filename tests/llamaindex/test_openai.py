"""LlamaIndex's `OpenAI` and `OpenAIEmbedding` over HTTP: plain, on a miss and on a hit."""

from __future__ import annotations

import asyncio

import openai
import pytest
from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel

from ragaccel import MultiLevelCache, accelerate, unwrap
from tests.llamaindex.embeddings import HashEmbedding
from tests.llamaindex.recorders import recording
from tests.support.openai_server import Behaviour, OpenAIServer

QUESTION = "what is red?"


class Colour(BaseModel):
    """A colour and why it was chosen."""

    name: str
    strength: int


def add(left: int, right: int) -> int:
    """Add two numbers."""
    return left + right


ADD = FunctionTool.from_defaults(add)


@pytest.fixture(scope="module")
def running():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def server(running):
    running.reset()
    return running


def made(server, **settings):
    return OpenAI(
        **{
            "model": "gpt-4o-mini", "temperature": 0, "api_base": server.base_url,
            "api_key": "secret-key", "max_retries": 0, "timeout": 5, **settings,
        }
    )  # fmt: skip


@pytest.fixture
def fast(server, cache):
    return accelerate(made(server), cache=cache)


def test_it_is_openai_still(server, fast):
    """By class, settings, dumps and what it says of itself."""
    plain = made(server)
    assert isinstance(fast, OpenAI)
    assert fast.metadata == plain.metadata
    assert fast.to_dict() == plain.to_dict()
    assert fast.to_payload() == plain.to_payload()
    assert type(unwrap(fast)) is OpenAI


@pytest.mark.parametrize("first", ["chat", "stream_chat", "achat", "astream_chat"])
def test_one_request_for_a_question_however_it_is_asked(server, fast, first):
    """Each twin is served what the first one got, equal to what it got."""

    async def later(name):
        found = await getattr(fast, name)([ChatMessage(QUESTION)])
        if name == "astream_chat":
            found = [one async for one in found][-1]
        return found

    def answer(name):
        if name.startswith("a"):
            return asyncio.run(later(name))
        found = getattr(fast, name)([ChatMessage(QUESTION)])
        return list(found)[-1] if name == "stream_chat" else found

    text = answer(first).message.content
    assert QUESTION in text
    for name in ("chat", "stream_chat", "achat", "astream_chat"):
        assert answer(name).message.content == text
        assert answer(name).message.role == "assistant"
    assert len(server.requests) == 1


def test_completions_are_chats_of_their_own_entry(server, fast):
    """`complete` goes through the chat endpoint, and is kept as a completion."""
    first = fast.complete(QUESTION)
    assert str(fast.complete(QUESTION)) == str(first)
    assert "".join(one.delta for one in fast.stream_complete(QUESTION)) == str(first)
    assert len(server.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_come_back_as_they_were(server, fast, stream):
    """So that LlamaIndex reads the calls off a hit as off the provider's answer."""

    def ask():
        asked = {"tools": [ADD], "user_msg": "call add", "tool_required": True}
        if stream:
            return list(fast.stream_chat_with_tools(**asked))[-1]
        return fast.chat_with_tools(**asked)

    def calls(response):
        return fast.get_tool_calls_from_response(response)

    first, second = ask(), ask()
    assert len(server.requests) == 1
    assert calls(first)[0].tool_name == "add"
    assert calls(second) == calls(first)
    assert second.message.blocks == first.message.blocks
    assert second.message.additional_kwargs == first.message.additional_kwargs
    assert type(second.message.additional_kwargs["tool_calls"][0]) is type(
        first.message.additional_kwargs["tool_calls"][0]
    )
    assert "tool_choice" in server.requests[0].body


def test_structured_answers(server, fast):
    """By the class, by the prompt, and by a model made of it."""
    prompt = PromptTemplate("a colour like {what}")
    first = fast.structured_predict(Colour, prompt, what="red")
    assert isinstance(first, Colour)
    assert fast.structured_predict(Colour, prompt, what="red") == first
    assert asyncio.run(fast.astructured_predict(Colour, prompt, what="red")) == first
    assert len(server.requests) == 1
    structured = fast.as_structured_llm(Colour)
    one, two = (structured.chat([ChatMessage("a colour")]).raw for _ in range(2))
    assert one == two
    assert isinstance(one, Colour)
    assert len(server.requests) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, within workflows
async def test_an_agent_runs_on_what_is_kept(server, fast):
    """It calls its tool and answers; the second run sends nothing."""
    answers, asked = [], []
    for _ in range(2):
        agent = FunctionAgent(tools=[ADD], llm=fast, system_prompt="brief")
        answers.append(str(await agent.run("what is 3 and 3?")))
        asked.append(len(server.requests))
    assert answers[0] == answers[1]
    assert asked[0] == asked[1] >= 2


@pytest.mark.parametrize("streaming", [False, True])
def test_a_query_engine_answers_from_the_cache(server, fast, streaming):
    """With retrieval, synthesis and streaming as they are."""
    index = VectorStoreIndex.from_documents(
        [Document(text="red trees"), Document(text="blue skies")], embed_model=HashEmbedding()
    )
    engine = index.as_query_engine(llm=fast, streaming=streaming)

    def ask():
        found = engine.query(QUESTION)
        return "".join(found.response_gen) if streaming else str(found)

    assert ask() == ask()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (Behaviour(status=429), openai.RateLimitError),
        (Behaviour(status=500), openai.InternalServerError),
        (Behaviour(status=401), openai.AuthenticationError),
        (Behaviour(breaks=True), openai.APIConnectionError),
    ],
    ids=["429", "500", "401", "broken"],
)
def test_errors_pass_through_and_are_not_kept(server, fast, behaviour, error):
    """The next question is sent."""
    server.behave(behaviour)
    with pytest.raises(error):
        fast.chat([ChatMessage(QUESTION)])
    assert QUESTION in str(fast.chat([ChatMessage(QUESTION)]))
    assert len(server.requests) == 2


def test_a_time_out_passes_through(server, cache):
    """And is not kept."""
    fast = accelerate(made(server, timeout=0.2), cache=cache)
    server.behave(Behaviour(seconds=2))
    with pytest.raises(openai.APITimeoutError):
        fast.chat([ChatMessage(QUESTION)])
    assert QUESTION in str(fast.chat([ChatMessage(QUESTION)]))


def test_a_broken_stream_is_not_kept(server, fast):
    """What came is the caller's, then the error."""
    server.behave(Behaviour(after=3, breaks=True))
    came = []
    with pytest.raises(Exception, match=r"closed|incomplete|read"):
        came.extend(fast.stream_chat([ChatMessage(QUESTION)]))
    assert list(fast.stream_chat([ChatMessage(QUESTION)]))
    assert len(server.requests) == 2


@pytest.mark.parametrize("method", ["chat", "stream_chat"])
def test_events_and_spans_are_those_of_a_call(server, fast, method):
    """A listener hears the same plain, on a miss and on a hit."""
    heard = []
    for model in (made(server), fast, fast):
        with recording() as told:
            found = getattr(model, method)([ChatMessage("a b c d")])
            if method == "stream_chat":
                list(found)
        heard.append((told.event_names, told.tree))
    assert heard[0] == heard[1] == heard[2]
    assert heard[0][0]


async def test_many_at_once_send_one_request(server, fast):
    """The others wait for it."""
    server.behave(Behaviour(seconds=0.3))
    found = await asyncio.gather(*(fast.achat([ChatMessage(QUESTION)]) for _ in range(20)))
    assert len({str(one) for one in found}) == 1
    assert len(server.requests) == 1


def test_no_secret_reaches_the_disk(server, tmp_path):
    """Neither the key nor an answer's headers."""
    with MultiLevelCache.open(tmp_path) as cache:
        fast = accelerate(made(server), cache=cache)
        fast.chat([ChatMessage(QUESTION)])
        fast.chat([ChatMessage(QUESTION)])
    assert len(server.requests) == 1
    assert not any(
        b"secret-key" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
    )
