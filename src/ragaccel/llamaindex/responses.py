"""Answers of LlamaIndex language models, taken apart for a cache and put together again."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    TextBlock,
)
from pydantic import BaseModel

from ragaccel.cache import Kind, Stale, Uncacheable, digest
from ragaccel.cache.values import check_plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.cache.values import Body

    Response = ChatResponse | CompletionResponse

CACHED: Final = "ragaccel_cached"
_SCHEMA: Final = digest(
    "", "llamaindex.llm",
    [[*cls.model_fields] for cls in (ChatMessage, ChatResponse, CompletionResponse)],
)[:4]  # fmt: skip
_GROWN: Final = "grown"
_OBJECT: Final = "\0class"
#: Where provider objects come from that messages hold and LlamaIndex reads by attribute.
_PROVIDERS: Final = ("openai.types.",)
_encoder: Final = msgspec.msgpack.Encoder()


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    schema: bytes
    responses: list[dict[str, Any]]


class Answer(NamedTuple):
    """What a model answered.

    Attributes:
        responses: One, or all of a stream.
        recorded: Those of a stream as they came: providers change what they gave out.
    """

    responses: Sequence[Response]
    recorded: Sequence[msgspec.Raw] = ()

    def whole(self) -> Response:
        """Return the answer as `chat` and `complete` give it."""
        last = self.responses[-1]
        last.delta = None
        return last

    def stream(self) -> Sequence[Response]:
        """Return the answer as `stream_chat` and `stream_complete` give it."""
        if len(self.responses) == 1 and self.responses[0].delta is None:
            self.responses[0].delta = _text(self.responses[0])
        return self.responses


class Recorder:
    """Takes the responses of a stream apart as they come."""

    def __init__(self) -> None:
        self._responses: list[Response] = []
        self._packed: list[msgspec.Raw] | None = []
        self._before = ""

    def add(self, response: Response) -> None:
        """Record a response as it is now."""
        if self._packed is None:
            return
        try:
            self._packed.append(_encoded(response, self._before))
        except Uncacheable:
            self._packed = None
        else:
            self._responses.append(response)
            self._before = _text(response) or ""

    def answer(self) -> Answer:
        """Return what was recorded.

        Raises:
            Uncacheable: Some of it would not come back equal, or there is nothing.
        """
        if not self._packed:
            raise Uncacheable("value")
        return Answer(self._responses, self._packed)


def _pack(answer: Answer) -> bytes:
    return _encoder.encode((_SCHEMA, answer.recorded or [_encoded(answer.responses[0], "")]))


def _encoded(response: Response, before: str) -> msgspec.Raw:
    packed = _packed(response, before)
    check_plain(packed)
    try:
        return msgspec.Raw(_encoder.encode(packed))
    except (TypeError, ValueError, OverflowError) as error:
        raise Uncacheable("value") from error


def _packed(response: Response, before: str) -> dict[str, Any]:
    """Return the fields of a response; of a text that has grown by its delta, that it has."""
    fields: dict[str, Any] = {
        "raw": response.raw.model_dump() if isinstance(response.raw, BaseModel) else response.raw,
        "delta": response.delta,
        "logprobs": response.logprobs and [
            [one.model_dump() for one in token] for token in response.logprobs
        ],
        "additional_kwargs": response.additional_kwargs,
    }  # fmt: skip
    text = _text(response)
    grown = bool(before) and text == before + (response.delta or "")
    if isinstance(response, CompletionResponse):
        if type(response) is not CompletionResponse:
            raise Uncacheable("value")
        return {**fields, "text": _GROWN if grown else [response.text]}
    message = response.message
    if type(response) is not ChatResponse or type(message) is not ChatMessage:
        raise Uncacheable("value")
    fields["role"] = message.role.value
    fields["blocks"] = _GROWN if grown else [one.model_dump() for one in message.blocks]
    fields["about"] = _flat(message.additional_kwargs)
    return fields


def _text(response: Response) -> str | None:
    """Return the text of a response that is nothing else."""
    if isinstance(response, CompletionResponse):
        return response.text
    blocks = response.message.blocks
    return blocks[0].text if len(blocks) == 1 and type(blocks[0]) is TextBlock else None


def _flat(value: Any) -> Any:
    """Return provider objects as dicts that say what they are."""
    if isinstance(value, BaseModel):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        if not name.startswith(_PROVIDERS):
            raise Uncacheable("value")
        return {_OBJECT: name, **value.model_dump()}
    if isinstance(value, list):
        return [_flat(one) for one in value]
    if isinstance(value, dict):
        return {key: _flat(one) for key, one in value.items()}
    return value


def _object(value: Any) -> Any:
    """Return what `_flat` was given."""
    if isinstance(value, list):
        return [_object(one) for one in value]
    if not isinstance(value, dict):
        return value
    if _OBJECT not in value:
        return {key: _object(one) for key, one in value.items()}
    module, _, name = value.pop(_OBJECT).partition(":")
    cls = getattr(import_module(module), name) if module.startswith(_PROVIDERS) else None
    if not isinstance(cls, type) or not issubclass(cls, BaseModel):
        raise Stale
    return cls.model_validate(value)


def _open(body: Body) -> tuple[Answer, None]:
    stored = _decoder.decode(body)
    if stored.schema != _SCHEMA:
        raise Stale  # another version of llama-index-core wrote it
    responses: list[Response] = []
    for fields in stored.responses:
        responses.append(_opened(fields, (_text(responses[-1]) if responses else None) or ""))
    _mark(responses[-1])
    return Answer(responses), None


def _mark(last: Response) -> None:
    """Say that it was not asked for now, where no prompt will ever say it.

    What a completion has besides its text becomes part of a message, and of the next prompt.
    """
    if isinstance(last, ChatResponse):
        last.additional_kwargs[CACHED] = True
    elif isinstance(last.raw, dict):
        last.raw[CACHED] = True


def _opened(fields: dict[str, Any], before: str) -> Response:
    probabilities = fields["logprobs"] and [
        [LogProb(**one) for one in token] for token in fields["logprobs"]
    ]
    about = {
        "raw": fields["raw"],
        "delta": fields["delta"],
        "logprobs": probabilities,
        "additional_kwargs": fields["additional_kwargs"],
    }
    grown = before + (fields["delta"] or "")
    if "text" in fields:
        text = fields["text"]
        return CompletionResponse(text=grown if text == _GROWN else text[0], **about)
    blocks = fields["blocks"]
    message = ChatMessage(
        role=fields["role"],
        blocks=[TextBlock(text=grown)] if blocks == _GROWN else blocks,
        additional_kwargs=_object(fields["about"]),
    )
    return ChatResponse(message=message, **about)


def _tokens(answer: Answer) -> tuple[int, int]:
    """Return how many tokens the model read and wrote, where the provider tells."""
    for one in reversed(answer.responses):
        raw = one.raw
        usage = raw.get("usage") if isinstance(raw, dict) else getattr(raw, "usage", None)
        usage = usage.model_dump() if isinstance(usage, BaseModel) else usage
        if isinstance(usage, dict):
            return usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return 0, 0


def _said(answer: Answer) -> Any:
    """Return the last response unless it says nothing and calls nothing."""
    last = answer.responses[-1] if answer.responses else None
    if isinstance(last, ChatResponse):
        says = last.message.blocks and _text(last) != ""
        return last if says or last.message.additional_kwargs else None
    return last if last is not None and last.text else None


_decoder: Final = msgspec.msgpack.Decoder(_Stored)
ANSWER: Final[Kind[Answer]] = Kind("llamaindex.llm", _pack, _open, result=_said, tokens=_tokens)
