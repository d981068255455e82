"""Generations of language and chat models, taken apart for a cache and put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.base import TextAccessor
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
)
from pydantic import BaseModel

from ragaccel.cache import Uncacheable, digest
from ragaccel.cache.values import check_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")
R = TypeVar("R")

#: How an answer is marked that was not asked for now.
CACHED: Final = {"ragaccel_cached": True}

_TEXTS: Final = (Generation, GenerationChunk)
_CHATS: Final = ((ChatGeneration, AIMessage), (ChatGenerationChunk, AIMessageChunk))
#: What is stored is made of; entries of a langchain-core with other fields are not served.
SCHEMA: Final = digest(
    "", "langchain.llm", [[*cls.model_fields] for cls in (*_TEXTS, *sum(_CHATS, ()))]
)[:4]
_encoder: Final = msgspec.msgpack.Encoder()
_new: Final = object.__new__
_set: Final = object.__setattr__
_text: Final = str.__new__


def packed(generation: Generation) -> list[Any]:
    """Return the fields of a generation, and those of its message.

    The text of a chat generation is its message's, unless somebody changed it.

    Raises:
        Uncacheable: It would not come back equal: a class or a value of somebody's own.
    """
    cls, fields = type(generation), dict(generation.__dict__)
    parts: list[Any]
    if cls in _TEXTS:
        parts = [_TEXTS.index(cls), fields]
    else:
        message = fields.pop("message", None)
        if (cls, type(message)) not in _CHATS:
            raise Uncacheable("value")
        text = fields["text"]
        fields["text"] = None if text == message.content else str(text)
        its = {**message.__dict__, "id": None}
        parsed = its["additional_kwargs"].get("parsed")
        if isinstance(parsed, BaseModel):
            its["additional_kwargs"] = {**its["additional_kwargs"], "parsed": _dumped(parsed)}
        at = len(_TEXTS) + _CHATS.index((cls, type(message)))
        parts = [at, fields, its, message.__pydantic_extra__ or None]
    check_plain(parts)
    return parts


def opened(
    cls: int,
    fields: dict[str, Any],
    message: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Any:
    """Return a generation made of what `packed` gave, as validation would leave it."""
    if message is None:
        return _made(_TEXTS[cls], fields, None)
    generation, kind = _CHATS[cls - len(_TEXTS)]
    text = fields["text"]
    fields["text"] = _text(TextAccessor, message["content"] if text is None else text)
    fields["message"] = _made(kind, message, {} if extra is None else extra)
    return _made(generation, fields, None)


def with_parsed(generations: Sequence[ChatGeneration], schema: Any) -> None:
    """Make what was parsed an object of its class again, where the call names the class."""
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        return
    for one in generations:
        its = one.message.additional_kwargs
        if isinstance(its.get("parsed"), dict):
            its["parsed"] = schema(**its["parsed"])


def _dumped(parsed: BaseModel) -> dict[str, Any]:
    """Return a parsed answer as a dict, of which LangChain's parsers make it again.

    Raises:
        Uncacheable: They would not, or would make another one.
    """
    try:
        dumped = parsed.model_dump(mode="json", by_alias=True, warnings=False)
        if type(parsed)(**dumped) == parsed:
            return dumped
    except (TypeError, ValueError) as error:
        raise Uncacheable("value") from error
    raise Uncacheable("value")


def tokens(generations: Iterable[Generation]) -> tuple[int, int]:
    """Return the tokens of the call, which providers repeat in each of its messages."""
    for one in generations:
        usage = getattr(getattr(one, "message", None), "usage_metadata", None)
        if usage:
            return usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    return 0, 0


def said(generations: Iterable[Generation]) -> list[Generation]:
    """Return the generations that say something or call a tool."""
    return [
        one
        for one in generations
        if one.text or (isinstance(one, ChatGeneration) and _holds(one.message))
    ]


def _holds(message: Any) -> bool:
    return bool(message.content or message.tool_calls or message.invalid_tool_calls)


def _made(cls: type[T], fields: dict[str, Any], extra: dict[str, Any] | None) -> T:
    """Return a pydantic object without validating: what was packed had been validated."""
    made = _new(cls)
    _set(made, "__dict__", fields)
    _set(made, "__pydantic_fields_set__", set(fields))
    _set(made, "__pydantic_extra__", extra)
    _set(made, "__pydantic_private__", None)
    return made


class Chunks(Generic[R]):
    """Records the chunks of a stream; of an empty one there is nothing to keep.

    Args:
        reply: Makes an answer of chunks, and of the same as they are stored.
    """

    def __init__(self, reply: Callable[[Sequence[Any], Sequence[msgspec.Raw]], R]) -> None:
        self._reply = reply
        self._stored: list[msgspec.Raw] | None = []

    def add(self, chunk: Generation) -> None:
        """Keep a copy of a chunk as it is now."""
        if self._stored is None:
            return
        try:
            self._stored.append(msgspec.Raw(_encoder.encode(packed(chunk))))
        except (Uncacheable, TypeError, ValueError, OverflowError):
            self._stored = None

    def answer(self) -> R | None:
        """Return the answer that the chunks make, or None if there were none.

        Raises:
            Uncacheable: One of them would not come back equal.
        """
        if self._stored is None:
            raise Uncacheable("value")
        if not self._stored:
            return None
        chunks = [opened(*msgspec.msgpack.decode(one)) for one in self._stored]
        return self._reply(chunks, self._stored)
