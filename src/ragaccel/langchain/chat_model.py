"""LangChain chat models, wrapped at `_generate`, `_stream` and their async twins.

Callbacks, message ids, tools and structured output lie above that seam and happen on a hit as on a
miss. `invoke`, `stream`, `batch` and their twins share one entry.
"""

from __future__ import annotations

import functools
import inspect
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from langchain_core.language_models.chat_models import BaseChatModel, generate_from_stream
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from ragaccel.cache import Kind, Stale, Uncacheable, flow
from ragaccel.io import run
from ragaccel.langchain import limiter, similar
from ragaccel.langchain.calls import canonical, check_one_answer, takes
from ragaccel.langchain.generations import (
    CACHED,
    SCHEMA,
    Chunks,
    opened,
    packed,
    said,
    tokens,
    with_parsed,
)
from ragaccel.langchain.instrumentors import below
from ragaccel.wrapping.fingerprint import identity
from ragaccel.wrapping.sampling import check_sampling, warn_of_sampling
from ragaccel.wrapping.seam import is_serving, serve
from ragaccel.wrapping.semantic import Similar
from ragaccel.wrapping.tape import Tape
from ragaccel.wrapping.transparent import keep_defaults, options_of, plain_class, put_around, wrap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGeneration

    from ragaccel.cache.values import Body
    from ragaccel.wrapping.seam import Options

    _Base = BaseChatModel
else:
    _Base = object

#: Arguments that decide how an answer is brought, not what it is.
_HOW: Final = frozenset(("stream", "stream_usage"))
_encoder: Final = msgspec.msgpack.Encoder()


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    """An answer that was given whole, or in chunks."""

    schema: bytes
    generations: list[list[Any]]
    output: dict[str, Any] | None
    is_stream: bool


class _Reply(NamedTuple):
    """What a model said.

    Attributes:
        result: As a whole; None if it came in chunks.
        chunks: In chunks.
        recorded: The chunks, taken apart when they came: LangChain changes them afterwards.
    """

    result: ChatResult | None
    chunks: Sequence[ChatGenerationChunk] = ()
    recorded: Sequence[msgspec.Raw] = ()

    @property
    def generations(self) -> Sequence[ChatGeneration]:
        return self.chunks if self.result is None else self.result.generations

    def whole(self, schema: Any) -> ChatResult:
        """Return the answer as `_generate` gives it to who asks for a schema, or for None."""
        with_parsed(self.generations, schema)
        return generate_from_stream(iter(self.chunks)) if self.result is None else self.result

    def stream(self, schema: Any) -> Sequence[ChatGenerationChunk]:
        """Return the answer as `_stream` gives it to who asks for a schema, or for None."""
        with_parsed(self.generations, schema)
        if self.result is None:
            return self.chunks
        return [_as_chunk(one, self.result.llm_output) for one in self.result.generations[:1]]


def _pack(reply: _Reply) -> bytes:
    result = reply.result
    try:
        if result is None:
            return _encoder.encode((SCHEMA, reply.recorded, None, True))
        generations = [packed(one) for one in result.generations]
        return _encoder.encode((SCHEMA, generations, result.llm_output, False))
    except (TypeError, ValueError, OverflowError) as error:
        raise Uncacheable("value") from error


def _open(body: Body) -> tuple[_Reply, None]:
    stored = _decoder.decode(body)
    if stored.schema != SCHEMA:
        raise Stale  # another version of langchain-core wrote it
    generations = [opened(*one) for one in stored.generations]
    for one in generations if not stored.is_stream else generations[-1:]:
        one.message.response_metadata |= CACHED
    for one in generations:
        if one.message.usage_metadata is not None:  # as LangChain marks what costs nothing again
            one.message.usage_metadata["total_cost"] = 0
    if stored.is_stream:
        return _Reply(None, generations), None
    return _Reply(ChatResult(generations=generations, llm_output=stored.output)), None


_decoder: Final = msgspec.msgpack.Decoder(_Stored)
_REPLY: Final[Kind[_Reply]] = Kind(
    "langchain.chat",
    _pack,
    _open,
    result=lambda reply: said(reply.generations),
    tokens=lambda reply: tokens(reversed(reply.generations)),
)


class _Chat(_Base):
    """The seam: everything else of the model is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Keep what LangChain tells by identity: whether a model streams, and how."""
        keep_defaults(made, base, BaseChatModel, "_agenerate", "_stream", "_astream")
        for name in ("_stream_chat_model_events", "_astream_chat_model_events"):
            if getattr(base, name, None) is not None:
                setattr(made, name, None)  # LangChain drives `_stream` instead

    @classmethod
    def finish_clone(cls, clone: Any) -> None:
        """Let the rate limiter wait for calls only."""
        put_around(clone, "rate_limiter", limiter.MissLimiter)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        given = _given(self, "_generate", run_manager)
        call = super()._generate  # type: ignore[safe-super]
        if is_serving(self):
            return call(messages, stop=stop, **given, **kwargs)

        async def compute() -> _Reply:
            limiter.wait(self.rate_limiter)
            return _Reply(call(messages, stop=stop, **given, **kwargs))

        options = options_of(self)
        asked = functools.partial(_parts, self, options, messages, stop, kwargs)
        with below(run_manager):
            reply = run(
                serve(
                    flow.SYNC, self, options, _REPLY, asked, compute, query=messages,
                    stage="generate", similar=_similar(self, messages, stop, kwargs),
                )
            )  # fmt: skip
        return reply.whole(kwargs.get("response_format"))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        given = _given(self, "_agenerate", run_manager)
        call = super()._agenerate
        if is_serving(self):
            return await call(messages, stop=stop, **given, **kwargs)

        async def compute() -> _Reply:
            await limiter.await_(self.rate_limiter)
            return _Reply(await call(messages, stop=stop, **given, **kwargs))

        options = options_of(self)
        asked = functools.partial(_parts, self, options, messages, stop, kwargs)
        with below(run_manager):
            reply = await serve(
                flow.ASYNC, self, options, _REPLY, asked, compute, query=messages,
                stage="generate", similar=_similar(self, messages, stop, kwargs),
            )  # fmt: skip
        return reply.whole(kwargs.get("response_format"))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        given = {} if run_manager is None else {"run_manager": run_manager}
        call = functools.partial(super()._stream, messages, stop=stop, **given, **kwargs)
        if is_serving(self):
            yield from call()
            return
        tape = _tape(self, messages, stop, kwargs)
        with below(run_manager):
            found = run(tape.find(flow.SYNC))
        if found is None:
            limiter.wait(self.rate_limiter)
            yield from tape.record(call())
            return
        for chunk in found.stream(kwargs.get("response_format")):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        given = {} if run_manager is None else {"run_manager": run_manager}
        call = functools.partial(super()._astream, messages, stop=stop, **given, **kwargs)
        if is_serving(self):
            async for chunk in call():
                yield chunk
            return
        tape = _tape(self, messages, stop, kwargs)
        with below(run_manager):
            found = await tape.find(flow.ASYNC)
        if found is None:
            await limiter.await_(self.rate_limiter)
            async for chunk in tape.arecord(call()):
                yield chunk
            return
        for chunk in found.stream(kwargs.get("response_format")):
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


# LangChain asks for it at every call, and working it out takes as long as finding the answer.
_Chat._generate.__signature__ = inspect.signature(_Chat._generate)  # type: ignore[attr-defined]
_Chat._agenerate.__signature__ = inspect.signature(_Chat._agenerate)  # type: ignore[attr-defined]


def accelerated(model: BaseChatModel, options: Options) -> BaseChatModel:
    """Return the model wrapped; see `ragaccel.accelerate`."""
    warn_of_sampling(model, options)
    return wrap(model, _Chat, options, lambda: identity(model, options))


def _given(model: Any, name: str, run_manager: Any) -> dict[str, Any]:
    """Return the run manager for models whose method has a parameter for it."""
    method = getattr(plain_class(type(model)), name)
    return {"run_manager": run_manager} if takes(method, "run_manager") else {}


def _parts(
    model: Any,
    options: Options,
    messages: list[BaseMessage],
    stop: list[str] | None,
    kwargs: dict[str, Any],
) -> Any:
    """Return everything an answer depends on."""
    check_sampling(model, options, kwargs)
    asked = {name: canonical(value) for name, value in kwargs.items() if name not in _HOW}
    return identity(model, options), [canonical(one) for one in messages], stop, asked


def _similar(
    model: Any, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
) -> Similar[_Reply] | None:
    """Return how the call may be answered as a similar question was; None where it never is."""
    options = options_of(model)
    if options.semantic is None:
        return None
    asked = {name: value for name, value in kwargs.items() if name not in _HOW}
    return Similar(
        functools.partial(similar.of_messages, model, options, messages, stop, asked),
        lambda reply: similar.said(reply.generations, is_stream=reply.result is None),
    )


def _tape(
    model: Any, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
) -> Tape[_Reply]:
    def parts() -> Any:
        check_one_answer(model, kwargs)
        return _parts(model, options_of(model), messages, stop, kwargs)

    chunks = Chunks(functools.partial(_Reply, None))
    similar_ = _similar(model, messages, stop, kwargs)
    return Tape(model, _REPLY, parts, chunks, messages, similar_)


def _as_chunk(generation: ChatGeneration, output: dict[str, Any] | None) -> ChatGenerationChunk:
    """Return a whole answer as the one chunk of a stream."""
    message: Any = generation.message
    calls: list[Any] = [
        {
            "name": one["name"],
            "args": json.dumps(one["args"]) if isinstance(one["args"], dict) else one["args"],
            "id": one["id"],
            "index": at,
            "type": "tool_call_chunk",
        }
        for at, one in enumerate([*message.tool_calls, *message.invalid_tool_calls])
    ]
    told = {key: value for key, value in (output or {}).items() if key != "token_usage"}
    chunk = AIMessageChunk(
        content=message.content,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        name=message.name,
        tool_call_chunks=calls,
        usage_metadata=message.usage_metadata,
    )
    about = {**told, **(generation.generation_info or {})}
    return ChatGenerationChunk(message=chunk, generation_info=about or None)
