"""LangChain language models of text, wrapped at `_generate`, `_stream` and their async twins.

Callbacks lie above that seam and happen on a hit as on a miss. Each prompt has an entry of its own,
which `invoke`, `stream`, `batch` and their twins share; of several prompts only those that are not
kept are sent. `llm_output` tells of what was sent: where nothing was, there is none.
"""

from __future__ import annotations

import functools
import inspect
import operator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from ragaccel.cache import Kind, Stale, Uncacheable, flow
from ragaccel.io import run
from ragaccel.langchain import similar
from ragaccel.langchain.calls import canonical, check_one_answer, takes
from ragaccel.langchain.generations import CACHED, SCHEMA, Chunks, opened, packed, said
from ragaccel.langchain.instrumentors import below
from ragaccel.wrapping.fingerprint import identity
from ragaccel.wrapping.sampling import check_sampling, warn_of_sampling
from ragaccel.wrapping.seam import is_serving, serve, serve_many
from ragaccel.wrapping.semantic import Similar
from ragaccel.wrapping.tape import Tape
from ragaccel.wrapping.transparent import keep_defaults, options_of, plain_class, wrap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from ragaccel.cache.flow import IO
    from ragaccel.cache.values import Body
    from ragaccel.wrapping.seam import Options

    _Base = BaseLLM
else:
    _Base = object

_encoder: Final = msgspec.msgpack.Encoder()


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    """An answer to a prompt that was given whole, or in chunks."""

    schema: bytes
    generations: list[list[Any]]
    is_stream: bool


class _Reply(NamedTuple):
    """What a model said to a prompt.

    Attributes:
        generations: Each thing that it said, or the chunks of one; none if it gave something else.
        is_stream: Whether they are chunks.
        result: What the model gave, if it was asked this prompt alone.
    """

    generations: Sequence[Any]
    is_stream: bool = False
    result: LLMResult | None = None

    def whole(self) -> list[Generation]:
        """Return the answer as `_generate` gives it."""
        if not self.is_stream:
            return list(self.generations)
        one = functools.reduce(operator.add, self.generations)
        return [Generation(text=one.text, generation_info=one.generation_info)]

    def stream(self) -> Sequence[GenerationChunk]:
        """Return the answer as `_stream` gives it."""
        if self.is_stream:
            return self.generations
        return [
            GenerationChunk(text=one.text, generation_info=one.generation_info)
            for one in self.generations[:1]
        ]


def _pack(reply: _Reply) -> bytes:
    if not reply.generations:
        raise Uncacheable("value")
    try:
        generations = [packed(one) for one in reply.generations]
        return _encoder.encode((SCHEMA, generations, reply.is_stream))
    except (TypeError, ValueError, OverflowError) as error:
        raise Uncacheable("value") from error


def _open(body: Body) -> tuple[_Reply, None]:
    stored = _decoder.decode(body)
    if stored.schema != SCHEMA:
        raise Stale  # another version of langchain-core wrote it
    generations = [opened(*one) for one in stored.generations]
    for one in generations[-1:] if stored.is_stream else generations:
        one.generation_info = {**(one.generation_info or {}), **CACHED}
    return _Reply(generations, stored.is_stream), None


def _tokens(reply: _Reply) -> tuple[int, int]:
    """Return what the model read and wrote, where it was told for this prompt alone."""
    output = None if reply.result is None else reply.result.llm_output
    usage = (output or {}).get("token_usage")
    if not isinstance(usage, dict):
        return 0, 0
    return usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0


_decoder: Final = msgspec.msgpack.Decoder(_Stored)
_REPLY: Final[Kind[_Reply]] = Kind(
    "langchain.text",
    _pack,
    _open,
    result=lambda reply: said(reply.generations),
    tokens=_tokens,
)


class _LLM(_Base):
    """The seam: everything else of the model is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Keep what LangChain tells by identity: whether a model streams, and how."""
        keep_defaults(made, base, BaseLLM, "_agenerate", "_stream", "_astream")

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        given = _given(self, "_generate", run_manager, kwargs)
        method: Any = super()._generate  # type: ignore[safe-super]
        if is_serving(self):
            return cast("LLMResult", method(prompts, stop=stop, **given))

        async def call(some: Any) -> LLMResult:
            return cast("LLMResult", method(some, stop=stop, **given))

        with below(run_manager):
            return run(_served(flow.SYNC, self, prompts, stop, kwargs, call))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        given = _given(self, "_agenerate", run_manager, kwargs)
        method: Any = super()._agenerate
        if is_serving(self):
            return cast("LLMResult", await method(prompts, stop=stop, **given))

        async def call(some: Any) -> LLMResult:
            return cast("LLMResult", await method(some, stop=stop, **given))

        with below(run_manager):
            return await _served(flow.ASYNC, self, prompts, stop, kwargs, call)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        call = functools.partial(
            super()._stream, prompt, stop=stop, run_manager=run_manager, **kwargs
        )
        if is_serving(self):
            yield from call()
            return
        tape = _tape(self, prompt, stop, kwargs)
        with below(run_manager):
            found = run(tape.find(flow.SYNC))
        if found is None:
            yield from tape.record(call())
            return
        for chunk in found.stream():
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call = functools.partial(
            super()._astream, prompt, stop=stop, run_manager=run_manager, **kwargs
        )
        if is_serving(self):
            async for chunk in call():
                yield chunk
            return
        tape = _tape(self, prompt, stop, kwargs)
        with below(run_manager):
            found = await tape.find(flow.ASYNC)
        if found is None:
            async for chunk in tape.arecord(call()):
                yield chunk
            return
        for chunk in found.stream():
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


# LangChain asks for it at every call, and working it out takes as long as finding the answer.
_LLM._generate.__signature__ = inspect.signature(_LLM._generate)  # type: ignore[attr-defined]
_LLM._agenerate.__signature__ = inspect.signature(_LLM._agenerate)  # type: ignore[attr-defined]


def accelerated(model: BaseLLM, options: Options) -> BaseLLM:
    """Return the model wrapped; see `ragaccel.accelerate`."""
    warn_of_sampling(model, options)
    return wrap(model, _LLM, options, lambda: identity(model, options))


async def _served(
    io: IO,
    model: Any,
    prompts: list[str],
    stop: list[str] | None,
    kwargs: dict[str, Any],
    call: Callable[[Any], Awaitable[LLMResult]],
) -> LLMResult:
    """Serve a call over prompts; what the model gave to all of them is given as it is."""
    options, parts = options_of(model), _parts(model, stop, kwargs)
    if len(prompts) == 1:

        async def compute() -> _Reply:
            result = await call(prompts)
            whole = result.generations[0] if len(result.generations) == 1 else ()
            return _Reply(whole, result=result)

        asked = functools.partial(parts, prompts[0])
        reply = await serve(
            io, model, options, _REPLY, asked, compute, query=prompts[0], stage="generate",
            similar=_similar(model, prompts[0], stop, kwargs),
        )  # fmt: skip
        return LLMResult(generations=[reply.whole()]) if reply.result is None else reply.result

    sent, given = None, LLMResult(generations=[])

    async def compute_some(some: Any) -> list[_Reply]:
        nonlocal sent, given
        sent, given = some, await call(some)
        return [_Reply(one) for one in given.generations]

    replies = await serve_many(
        io, model, options, _REPLY, prompts, parts, compute_some, stage="generate"
    )
    if sent == prompts:
        return given
    return LLMResult(generations=[one.whole() for one in replies], llm_output=given.llm_output)


def _given(model: Any, name: str, run_manager: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what LangChain gives to a method: nothing to one that takes no run manager."""
    method = getattr(plain_class(type(model)), name)
    return {"run_manager": run_manager, **kwargs} if takes(method, "run_manager") else {}


def _parts(model: Any, stop: list[str] | None, kwargs: dict[str, Any]) -> Callable[[str], Any]:
    """Return what gives everything an answer depends on; settings are read once for all prompts."""

    @functools.cache
    def shared() -> tuple[Any, ...]:
        options = options_of(model)
        check_sampling(model, options, kwargs)
        return identity(model, options), stop, canonical(kwargs)

    return lambda prompt: (*shared(), prompt)


def _similar(
    model: Any, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]
) -> Similar[_Reply] | None:
    """Return how a prompt may be answered as a similar one was; None where it never is."""
    options = options_of(model)
    if options.semantic is None:
        return None
    return Similar(
        functools.partial(similar.of_text, model, options, prompt, stop, kwargs),
        lambda reply: similar.said(reply.generations, is_stream=reply.is_stream),
    )


def _tape(model: Any, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]) -> Tape[_Reply]:
    def parts() -> Any:
        check_one_answer(model, kwargs)
        return _parts(model, stop, kwargs)(prompt)

    chunks = Chunks(lambda chunks, _: _Reply(chunks, is_stream=True))
    return Tape(model, _REPLY, parts, chunks, prompt, _similar(model, prompt, stop, kwargs))
