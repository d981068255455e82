"""The server against the real `openai` client, sync and async."""

from __future__ import annotations

import json
import math
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.support.openai_server import Behaviour, OpenAIServer, Request, embedding

QUESTION = [{"role": "user", "content": "Which 7 towns are there?"}]
ANSWER = "Answer {} to: Which 7 towns are there?"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
    for name in ("weather", "time")
]


@pytest.fixture
def server():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key="secret", max_retries=0) as client:
        yield client


@pytest.fixture
def ask(client):
    """Ask for a chat completion."""

    def ask(messages=QUESTION, **more):
        return client.chat.completions.create(model="gpt-x", messages=messages, **more)

    return ask


def text_of(stream):
    """Add up the text of a stream of chat chunks."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


# -- chat ------------------------------------------------------------------------------------------


def test_every_answer_is_a_new_one(ask):
    """The number of the request is in the text, and ids are fresh; usage is the same."""
    first, second = ask(), ask()
    assert first.choices[0].message.content == ANSWER.format(1)
    assert second.choices[0].message.content == ANSWER.format(2)
    assert first.id != second.id
    assert first.usage == second.usage
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (5, 8)
    assert first.choices[0].finish_reason == "stop"


def test_a_stream_adds_up(ask):
    """Its chunks make the text of a whole answer, and its last one tells the usage if asked to."""
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks) == ANSWER.format(1)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage) == ([], ask().usage)
    assert len(chunks) > 5
    assert all(chunk.usage is None for chunk in ask(stream=True))


async def test_async_clients_are_served(server):
    """The async client gets the same, whole and in chunks."""
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="secret") as client:
        whole = await client.chat.completions.create(model="gpt-x", messages=QUESTION)
        assert whole.choices[0].message.content == ANSWER.format(1)
        stream = await client.chat.completions.create(model="gpt-x", messages=QUESTION, stream=True)
        assert text_of([chunk async for chunk in stream]) == ANSWER.format(2)


def test_answers_can_be_scripted(server, ask):
    """A test gives the text, which may depend on the request, and takes it back."""
    server.answer = lambda body, number: f"{body['model']} {number}"
    assert ask().choices[0].message.content == "gpt-x 1"
    server.reset()
    assert server.requests == []
    assert ask().choices[0].message.content == ANSWER.format(1)


def test_stops_and_limits_cut(ask):
    """A text ends before a stop word, or where it has as many words as it may."""
    assert ask(stop="towns").choices[0].message.content == "Answer 1 to: Which 7 "
    assert ask(stop=["no", "7"]).choices[0].message.content == "Answer 2 to: Which "
    assert ask(max_completion_tokens=2).choices[0].message.content == "Answer 3"


def test_choices_differ(ask):
    """With `n` there are so many, each with its own text and place, streamed too."""
    answer = ask(n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert {chunk.choices[0].index for chunk in ask(n=2, stream=True)} == {0, 1}


def test_tools_are_called(ask):
    """The tools that the question names are called, or the first, or the one that is chosen."""

    def called(question, **more):
        asked = [{"role": "user", "content": question}]
        message = ask(asked, tools=TOOLS, **more).choices[0].message
        return [call.function.name for call in message.tool_calls or []]

    assert called("time and weather") == ["weather", "time"]
    assert called("time") == ["time"]
    assert called("hello") == ["weather"]
    chosen = {"type": "function", "function": {"name": "time"}}
    assert called("weather", tool_choice=chosen) == ["time"]
    assert called("weather", tool_choice="none") == []


def test_tool_calls_have_arguments_and_fresh_ids(ask):
    """Arguments follow the tool's schema; the answer to a tool's message is a text."""
    calls = [ask(tools=TOOLS).choices[0].message.tool_calls[0] for _ in range(2)]
    assert json.loads(calls[0].function.arguments) == {"town": ANSWER.format(1), "days": 7}
    assert calls[0].id != calls[1].id
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "sunny"}
    said = {"role": "assistant", "tool_calls": [calls[0].model_dump()]}
    answer = ask([*QUESTION, said, result], tools=TOOLS)
    assert answer.choices[0].message.content == "Answer 3 to: sunny"


def test_streamed_tool_calls_add_up(ask):
    """Their pieces make the same calls as a whole answer has."""
    asked = [{"role": "user", "content": "weather and time"}]
    made = {}
    for chunk in ask(asked, tools=TOOLS, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            call = made.setdefault(piece.index, {"id": piece.id, "name": "", "arguments": ""})
            call["name"] += piece.function.name or ""
            call["arguments"] += piece.function.arguments or ""
    assert [call["name"] for call in made.values()] == ["weather", "time"]
    assert json.loads(made[0]["arguments"]) == {"town": "Answer 1 to: weather and time", "days": 1}
    assert made[0]["id"] != made[1]["id"]


class Town(BaseModel):
    """A town."""

    name: str
    size: float
    is_old: bool
    streets: list[str]
    neighbour: Part | None


class Part(BaseModel):
    """A part of a town."""

    number: int


def test_schemas_are_followed(client):
    """The client parses what came back into the class that it asked for."""
    answer = client.chat.completions.parse(model="gpt-x", messages=QUESTION, response_format=Town)
    text = ANSWER.format(1)
    assert answer.choices[0].message.parsed == Town(
        name=text, size=7.5, is_old=True, streets=[text], neighbour=Part(number=7)
    )


def test_json_mode_has_the_quoted_keys(ask):
    """A JSON object has the keys that the question puts in quotes."""
    asked = [{"role": "user", "content": "Give me 'setup' and 'punchline'."}]
    answer = ask(asked, response_format={"type": "json_object"})
    assert set(json.loads(answer.choices[0].message.content)) == {"setup", "punchline"}


# -- completions, embeddings, models ---------------------------------------------------------------


def test_prompts_are_completed(client):
    """One prompt or several, whole or streamed."""
    whole = client.completions.create(model="instruct-x", prompt="Once", n=2)
    assert [choice.text for choice in whole.choices] == ["Answer 1 to: Once"] * 2
    several = client.completions.create(model="instruct-x", prompt=["Once", "Twice"])
    assert [choice.index for choice in several.choices] == [0, 1]
    stream = client.completions.create(model="instruct-x", prompt="Once", stream=True, stop="On")
    assert "".join(chunk.choices[0].text for chunk in stream) == "Answer 3 to: "


def test_texts_and_tokens_are_embedded(client):
    """Vectors are of length one and depend on the text only; base64 and floats agree."""

    def embedded(given, **more):
        answer = client.embeddings.create(model="embedding-x", input=given, **more)
        return [one.embedding for one in answer.data]

    (red,) = embedded("red")
    again, blue = embedded(["red", "blue"])
    assert red == again != blue
    assert math.isclose(math.hypot(*red), 1, rel_tol=1e-6)
    assert embedded("red", encoding_format="float")[0] == pytest.approx(red)
    assert embedded("red", encoding_format="float")[0] == embedding("red")
    (tokens,) = embedded([1, 2])
    assert embedded([[1, 2], [3]])[0] == tokens
    assert len(embedded("red", dimensions=8)[0]) == 8


def test_models_are_listed(client):
    """The list has those that tests use."""
    assert "gpt-x" in [model.id for model in client.models.list()]


# -- misbehaviour ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, openai.AuthenticationError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_answered_in_turn(server, ask, status, error, stream):
    """Each behaviour is for one request, in the order they were given."""
    server.behave(Behaviour(status, retry_after=2), Behaviour())
    with pytest.raises(error) as refused:
        ask(stream=stream)
    assert refused.value.response.headers["retry-after"] == "2"
    assert ask().choices[0].message.content == ANSWER.format(2)


def test_slow_answers_time_out(server, ask):
    """A client with less patience than the answer takes gives up."""
    server.behave(Behaviour(seconds=60))
    with pytest.raises(openai.APITimeoutError):
        ask(timeout=0.2)


@pytest.mark.parametrize("behaviour", [Behaviour(breaks=True, after=3), Behaviour(breaks=True)])
def test_streams_break(server, ask, behaviour):
    """The connection is closed after so many events, and the client sees that it is not the end."""
    server.behave(behaviour)
    stream = ask(stream=True)
    assert len(list(islice(stream, behaviour.after))) == behaviour.after
    with pytest.raises(httpx.RemoteProtocolError):
        next(stream)


def test_streams_stall(server, ask):
    """A stream waits after so many events."""
    server.behave(Behaviour(seconds=60, after=2))
    stream = ask(stream=True, timeout=0.3)
    assert len(list(islice(stream, 2))) == 2
    with pytest.raises(httpx.ReadTimeout):
        next(stream)


def test_answers_break_and_are_no_json(server, ask):
    """An answer can be cut, or be something else than JSON."""
    server.behave(Behaviour(breaks=True), Behaviour(body=b'{"choices": ['))
    with pytest.raises(openai.APIConnectionError):
        ask()
    with pytest.raises(json.JSONDecodeError):
        ask()


def test_without_a_key_or_a_known_path_there_is_no_answer(server):
    """As at the real one."""
    body = {"model": "gpt-x", "messages": QUESTION}
    assert httpx.post(f"{server.base_url}/chat/completions", json=body).status_code == 401
    assert httpx.post(f"{server.base_url}/other", json=body).status_code == 404
    assert httpx.get(f"{server.base_url}/other").status_code == 404


# -- the server ------------------------------------------------------------------------------------


def test_requests_are_kept(server, ask):
    """Path, body and headers can be looked at afterwards."""
    ask(temperature=0)
    (request,) = server.requests
    assert isinstance(request, Request)
    assert request.path == "/v1/chat/completions"
    assert request.body == {"messages": QUESTION, "model": "gpt-x", "temperature": 0}
    assert request.headers["authorization"] == "Bearer secret"


def test_many_clients_are_served_at_once(ask):
    """Every one of them gets an answer of its own."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask().choices[0].message.content, range(32)))
    assert sorted(answers) == sorted(ANSWER.format(number) for number in range(1, 33))


def test_leaving_frees_threads_and_port():
    """A server that still waits with an answer leaves neither a thread nor a listening socket."""
    before = set(threading.enumerate())
    with (
        OpenAIServer() as short,
        openai.OpenAI(base_url=short.base_url, api_key="secret", max_retries=0) as client,
    ):
        short.behave(Behaviour(seconds=600))
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="gpt-x", messages=QUESTION, timeout=0.2)
        port = short._server.server_port
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
