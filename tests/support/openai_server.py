"""A local HTTP server that speaks enough of the OpenAI API to test real clients without a network.

The default answers follow from the question: the last message's text, an example of the schema that
was asked for, or a call of the tool that the message names. Each has the number of the request in
it, so that a new answer can be told from a cached one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import re
import struct
import time
import uuid
from collections import deque
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Self

    Json = dict[str, Any]

_EMBEDDING_SIZE = 64
_READ = ("cached_tokens", "cache_write_tokens", "audio_tokens")
_WRITTEN = (
    "reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"
)  # fmt: skip
_MODELS = ("gpt-x", "gpt-y", "instruct-x", "embedding-x")


@dataclass(frozen=True)
class Request:
    """One request as it arrived: JSON decoded, names of headers in lower case."""

    path: str
    body: Json
    headers: dict[str, str]


@dataclass(frozen=True)
class Behaviour:
    """How one request is answered otherwise than well and at once.

    Attributes:
        status: An error instead of an answer, where it is not 200.
        retry_after: Seconds that the error asks the client to wait.
        seconds: To wait before the answer, or in a stream after some events.
        after: How many events of a stream are sent before it waits or breaks.
        breaks: Whether the connection is closed before the answer is complete.
        body: What is sent instead of the answer, such as broken JSON.
    """

    status: int = HTTPStatus.OK
    retry_after: float | None = None
    seconds: float = 0
    after: int = 0
    breaks: bool = False
    body: bytes | None = None


class OpenAIServer:
    """Listens on a free loopback port while its context is open.

    Attributes:
        requests: What arrived, in order.
        answer: Gives the text of an answer, of the request's body and its number.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all requests and behaviours, and answer by the default rule again."""
        self.requests: list[Request] = []
        self.answer: Callable[[Json, int], str] = echo
        self._behaviours: deque[Behaviour] = deque()

    @property
    def base_url(self) -> str:
        """What clients are configured with."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def behave(self, *behaviours: Behaviour) -> None:
        """Answer the next requests so, in this order, and those after them well again."""
        self._behaviours.extend(behaviours)

    def accept(self, request: Request) -> tuple[int, Behaviour]:
        """Keep a request; return its number and how to answer it."""
        with self._lock:
            self.requests.append(request)
            behaviour = self._behaviours.popleft() if self._behaviours else Behaviour()
            return len(self.requests), behaviour

    def arrival(self) -> None:
        """Wait for a request."""
        while not (self.requests or self._stopping.is_set()):
            self._stopping.wait(0.01)

    def wait(self, seconds: float) -> None:
        """Wait, unless the server is to stop."""
        self._stopping.wait(seconds)

    def __enter__(self) -> Self:
        self._lock, self._stopping = Lock(), Event()
        self._server = _Listener(("127.0.0.1", 0), partial(_Exchange, self))
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exit_: object) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = False  # so that closing joins them
    request_queue_size = 128


def echo(body: Json, number: int) -> str:
    """Answer with the last message or the prompt, and the number of the request."""
    return f"Answer {number} to: {_question(body)}"


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer; the connection ends with it, as event loops of tests do."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def __init__(self, server: OpenAIServer, *connection: Any) -> None:
        self._openai = server
        super().__init__(*connection)

    def do_GET(self) -> None:
        """List the models."""
        if self.path != "/v1/models":
            self._refuse(Behaviour(HTTPStatus.NOT_FOUND))
            return
        models = [{"id": name, "object": "model", "owned_by": "tests"} for name in _MODELS]
        self._send({"object": "list", "data": models})

    def do_POST(self) -> None:
        """Answer as the request asks, or misbehave as the test asks."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        headers = {name.lower(): value for name, value in self.headers.items()}
        number, behaviour = self._openai.accept(Request(self.path, body, headers))
        answers = {
            "/v1/chat/completions": _chat,
            "/v1/completions": _completions,
            "/v1/embeddings": _embeddings,
        }
        with contextlib.suppress(ConnectionError):  # the client may have left
            if self.path not in answers:
                self._refuse(Behaviour(HTTPStatus.NOT_FOUND))
            elif not headers.get("authorization", "").startswith("Bearer "):
                self._refuse(Behaviour(HTTPStatus.UNAUTHORIZED))
            elif behaviour.status != HTTPStatus.OK:
                self._refuse(behaviour)
            else:
                answer = answers[self.path](body, self._openai.answer(body, number))
                if body.get("stream"):
                    self._stream(_events(answer, body), behaviour)
                else:
                    self._openai.wait(behaviour.seconds)
                    self._send(answer, behaviour)

    def _refuse(self, behaviour: Behaviour) -> None:
        self._send({"error": {"message": f"HTTP {behaviour.status}", "type": "error"}}, behaviour)

    def _send(self, answer: Json, behaviour: Behaviour | None = None) -> None:
        behaviour = behaviour or Behaviour()
        sent = json.dumps(answer).encode() if behaviour.body is None else behaviour.body
        self._begin(behaviour, "application/json")
        self.send_header("Content-Length", str(len(sent) + behaviour.breaks))
        self.end_headers()
        self.wfile.write(sent)

    def _stream(self, events: Iterable[Json], behaviour: Behaviour) -> None:
        self._begin(behaviour, "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at, line in enumerate([*map(json.dumps, events), "[DONE]"]):
            if at == behaviour.after:
                self._openai.wait(behaviour.seconds)
                if behaviour.breaks:
                    return
            self._chunk(b"data: " + (behaviour.body or line.encode()) + b"\n\n")
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _begin(self, behaviour: Behaviour, kind: str) -> None:
        self.send_response(behaviour.status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.send_header("x-request-id", f"req_{uuid.uuid4().hex}")
        if behaviour.retry_after is not None:
            self.send_header("Retry-After", str(behaviour.retry_after))

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def _chat(body: Json, text: str) -> Json:
    """Return a whole chat completion."""
    choices = []
    for index in range(body.get("n") or 1):
        message: Json = {"role": "assistant", "content": None, "refusal": None}
        calls = _tool_calls(body, text)
        if calls:
            message["tool_calls"] = calls
        else:
            content = _formatted(body, text) or text + f" ({index})" * (index > 0)
            message["content"] = _stopped(content, body)
        choices.append(_choice(index, "tool_calls" if calls else "stop", message=message))
    said = [_text(choice["message"]) for choice in choices]
    asked = [_text(message) for message in body["messages"]]
    return _completion("chat.completion", "chatcmpl", body, choices, _usage(asked, said))


def _completions(body: Json, text: str) -> Json:
    """Return a whole completion of one or more prompts."""
    prompts = _inputs(body["prompt"])
    texts = [_stopped(text, body) for _ in prompts for _ in range(body.get("n") or 1)]
    choices = [_choice(index, "stop", text=one) for index, one in enumerate(texts)]
    return _completion("text_completion", "cmpl", body, choices, _usage(map(str, prompts), texts))


def _choice(index: int, reason: str | None, **said: Any) -> Json:
    return {"index": index, "logprobs": None, "finish_reason": reason, **said}


def _completion(kind: str, prefix: str, body: Json, choices: list[Json], usage: Json) -> Json:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": body["model"],
        "choices": choices,
        "usage": usage,
        "system_fingerprint": "fp_tests",
    }


def _usage(asked: Iterable[str], said: Iterable[str]) -> Json:
    """Count words as tokens."""
    prompt, written = (sum(len(text.split()) for text in texts) for texts in (asked, said))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": dict.fromkeys(_READ, 0),
        "completion_tokens_details": dict.fromkeys(_WRITTEN, 0),
    }


def _events(whole: Json, body: Json) -> Iterator[Json]:
    """Return the events of a stream whose parts add up to the whole answer."""
    usage, has_usage = whole["usage"], (body.get("stream_options") or {}).get("include_usage")
    kind = whole["object"].replace("chat.completion", "chat.completion.chunk")
    event = {**whole, "object": kind, "usage": None}
    for choice in whole["choices"]:
        index, reason = choice["index"], choice["finish_reason"]
        if "text" in choice:
            parts: list[Json] = [{"text": part} for part in _words(choice["text"])]
            end: Json = {"text": ""}
        else:
            parts, end = [{"delta": delta} for delta in _deltas(choice["message"])], {"delta": {}}
        for part in parts:
            yield {**event, "choices": [_choice(index, None, **part)]}
        yield {**event, "choices": [_choice(index, reason, **end)]}
    if has_usage:
        yield {**event, "choices": [], "usage": usage}


def _deltas(message: Json) -> Iterator[Json]:
    calls = message.get("tool_calls", [])
    yield {"role": "assistant", "content": None if calls else "", "refusal": None}
    for part in _words(message["content"] or ""):
        yield {"content": part}
    for index, call in enumerate(calls):
        function = {"name": call["function"]["name"], "arguments": ""}
        yield {"tool_calls": [{**call, "index": index, "function": function}]}
        for part in _words(call["function"]["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _embeddings(body: Json, text: str) -> Json:
    """Return a vector for each input."""
    del text
    inputs, data = _inputs(body["input"]), []
    for index, one in enumerate(inputs):
        vector: Any = embedding(one, body.get("dimensions") or _EMBEDDING_SIZE)
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(len(one.split() if isinstance(one, str) else one) for one in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def embedding(text: str | list[int], size: int = _EMBEDDING_SIZE) -> list[float]:
    """Return the unit vector of a text or of its token ids."""
    drawn = hashlib.shake_256(json.dumps(text).encode()).digest(4 * size)
    numbers = struct.unpack(f"<{size}i", drawn)
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


def _inputs(given: Any) -> list[Any]:
    """Return the items of an input that may be one text, one list of token ids, or several."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


def _question(body: Json) -> str:
    return _text(body["messages"][-1]) if "messages" in body else str(body.get("prompt"))


def _text(message: Json) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part.get("text", part["type"]) for part in content)
    return content or json.dumps(message.get("tool_calls", ""), ensure_ascii=False)


def _stopped(text: str, body: Json) -> str:
    """Cut a text at the first stop word, and where it has as many tokens as it may."""
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0]
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return "".join(_words(text)[:limit])


def _tool_calls(body: Json, text: str) -> list[Json]:
    """Call the tools that the last message names, or the first one, unless they were called."""
    tools = {tool["function"]["name"]: tool["function"] for tool in body.get("tools") or []}
    choice = body.get("tool_choice") or "auto"
    was_called = body["messages"][-1]["role"] == "tool"
    if not tools or choice == "none" or (was_called and choice == "auto"):
        return []
    if isinstance(choice, dict):
        names = [choice["function"]["name"]]
    else:
        names = [name for name in tools if name in _question(body)] or list(tools)[:1]
    calls = []
    for name in names:
        arguments = _example(tools[name].get("parameters") or {}, text, _number(body))
        text_of_them = _stopped(json.dumps(arguments, ensure_ascii=False), body)
        function = {"name": name, "arguments": text_of_them}
        calls.append({"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function})
    return calls


def _formatted(body: Json, text: str) -> str | None:
    """Return an answer in the format that was asked for, or None for any text."""
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        made = _example(wanted["json_schema"]["schema"], text, _number(body))
    elif wanted.get("type") == "json_object":
        made = dict.fromkeys(re.findall(r"'(\w+)'", _question(body)) or ["answer"], text)
    else:
        return None
    return json.dumps(made, ensure_ascii=False)


def _number(body: Json) -> int:
    """Return the first number in the question."""
    return int((re.findall(r"\d+", _question(body)) or ["1"])[0])


def _example(schema: Json, text: str, number: int, root: Json | None = None) -> Any:
    """Return something of a JSON schema, made of a text and a number."""
    root = root or schema
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], text, number, root)
    kind = schema.get("type", "object")
    if kind == "array":
        return [_example(schema["items"], text, number, root)]
    if schema.get("format") == "date":
        return "2024-02-29"
    if kind == "object":
        fields = schema.get("properties", {})
        return {name: _example(field, text, number, root) for name, field in fields.items()}
    return {"integer": number, "number": number + 0.5, "boolean": True}.get(kind, text)
