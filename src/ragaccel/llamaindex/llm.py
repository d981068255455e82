"""LlamaIndex language models, wrapped at the eight methods that all others end in.

On a miss events, spans and callbacks are the provider's own; on a hit LlamaIndex's own decorators
tell the same. A call and its streaming and async twins share one entry.
"""

from __future__ import annotations

import contextlib
import functools
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index_instrumentation import get_dispatcher

from ragaccel.cache import flow
from ragaccel.io import run
from ragaccel.llamaindex import similar
from ragaccel.llamaindex.prompts import canonical
from ragaccel.llamaindex.responses import ANSWER, Answer, Recorder
from ragaccel.wrapping.fingerprint import identity
from ragaccel.wrapping.sampling import check_sampling, warn_of_sampling
from ragaccel.wrapping.seam import is_serving, serve
from ragaccel.wrapping.semantic import Similar
from ragaccel.wrapping.tape import Tape
from ragaccel.wrapping.transparent import (
    Around,
    keep_defaults,
    options_of,
    plain_class,
    put_around,
    wrap,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Coroutine,
        Iterator,
    )

    from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
    from llama_index.core.llms.llm import LLM

    from ragaccel.wrapping.seam import Options

    Response = ChatResponse | CompletionResponse
    _Base = LLM
else:
    _Base = object

#: Methods that `CustomLLM` makes of `complete` and `stream_complete`, which are wrapped.
_DERIVED: Final = (
    "chat", "stream_chat", "achat", "astream_chat", "acomplete", "astream_complete",
)  # fmt: skip
_CALLBACKS: Final = llm_chat_callback.__code__.co_filename
_replayed: ContextVar[Answer | None] = ContextVar("ragaccel_replayed", default=None)
_dispatcher = get_dispatcher(__name__)


class _LLM(_Base):
    """The seam: everything else of the model is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Leave what a custom model makes of its completions to LlamaIndex."""
        if issubclass(base, CustomLLM):
            keep_defaults(made, base, CustomLLM, *_DERIVED)

    @classmethod
    def finish_clone(cls, clone: Any) -> None:
        """Let the rate limiter wait for calls only."""
        put_around(clone, "rate_limiter", CallLimiter)

    def chat(self, *args: Any, **kwargs: Any) -> Any:
        return _whole(_Call(self, "chat", args, kwargs), super().chat)  # type: ignore[safe-super]

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        return _whole(_Call(self, "complete", args, kwargs), super().complete)  # type: ignore[safe-super]

    def stream_chat(self, *args: Any, **kwargs: Any) -> Any:
        return _stream(_Call(self, "stream_chat", args, kwargs), super().stream_chat)  # type: ignore[safe-super]

    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        return _stream(_Call(self, "stream_complete", args, kwargs), super().stream_complete)  # type: ignore[safe-super]

    async def achat(self, *args: Any, **kwargs: Any) -> Any:
        return await _awhole(_Call(self, "achat", args, kwargs), super().achat)  # type: ignore[safe-super]

    async def acomplete(self, *args: Any, **kwargs: Any) -> Any:
        return await _awhole(_Call(self, "acomplete", args, kwargs), super().acomplete)  # type: ignore[safe-super]

    async def astream_chat(self, *args: Any, **kwargs: Any) -> Any:
        return await _astream(_Call(self, "astream_chat", args, kwargs), super().astream_chat)  # type: ignore[safe-super]

    async def astream_complete(self, *args: Any, **kwargs: Any) -> Any:
        call = super().astream_complete  # type: ignore[safe-super]
        return await _astream(_Call(self, "astream_complete", args, kwargs), call)


class CallLimiter(Around, BaseRateLimiter):
    """Waits for calls to the provider only, not for what the cache serves."""

    def acquire(self, num_tokens: int = 0) -> None:
        """Wait until a call may be made."""
        if _replayed.get() is None:
            self.inner.acquire(num_tokens)

    async def async_acquire(self, num_tokens: int = 0) -> None:
        """Wait until a call may be made, without blocking the event loop."""
        if _replayed.get() is None:
            await self.inner.async_acquire(num_tokens)


def accelerated(model: LLM, options: Options) -> LLM:
    """Return the model wrapped; see `ragaccel.accelerate`."""
    warn_of_sampling(model, options)
    return wrap(model, _LLM, options, lambda: identity(model, options))


@dataclass(frozen=True)
class _Call:
    """One call of a method of a wrapped model."""

    model: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def parts(self) -> Any:
        """Return everything that decides the answer; twins share it."""
        given, kwargs = self._given()
        return self.is_chat, self._identity(kwargs), canonical(given), canonical(kwargs)

    def question(self) -> tuple[str, Any] | None:
        """Return the text that may be another one, and everything else; see `Similar`."""
        given, kwargs = self._given()
        found = similar.asked(self.model, given, kwargs, is_chat=self.is_chat)
        if found is None:
            return None
        text, rest = found
        return text, (self.is_chat, self._identity(kwargs), rest, canonical(kwargs))

    @property
    def is_chat(self) -> bool:
        """Whether messages are given, not a prompt."""
        return self.name.endswith("chat")

    def _identity(self, kwargs: dict[str, Any]) -> Any:
        options = options_of(self.model)
        check_sampling(self.model, options, kwargs)
        return identity(self.model, options)

    def _given(self) -> tuple[list[Any], dict[str, Any]]:
        """Return what is asked, and the other arguments."""
        kwargs = dict(self.kwargs)
        names = ("messages",) if self.is_chat else ("prompt", "formatted")
        given = [*self.args, *(kwargs.pop(name) for name in names if name in kwargs)]
        if not self.is_chat and len(given) == 1:
            given.append(False)
        return given, kwargs

    @contextlib.contextmanager
    def replaying(self, answer: Answer) -> Iterator[Callable[..., Any]]:
        """Give a method that answers so, and tells listeners what the model's own would."""
        told = _TOLD if _tells(plain_class(type(self.model)), self.name) else _UNTOLD
        token = _replayed.set(answer)
        try:
            yield functools.partial(
                told[self.name].__get__(self.model, type(self.model)), *self.args, **self.kwargs
            )
        finally:
            _replayed.reset(token)


# -- answers as a whole ----------------------------------------------------------------------------


def _whole(call: _Call, method: Callable[..., Response]) -> Response:
    made: list[Response] = []

    async def compute() -> Answer:
        made.append(method(*call.args, **call.kwargs))
        return Answer(made)

    if is_serving(call.model):
        return method(*call.args, **call.kwargs)
    answer = run(_serve(flow.SYNC, call, compute))
    if made:
        return made[0]
    with call.replaying(answer) as replay:
        return cast("Response", replay())


async def _awhole(call: _Call, method: Callable[..., Awaitable[Response]]) -> Response:
    made: list[Response] = []

    async def compute() -> Answer:
        made.append(await method(*call.args, **call.kwargs))
        return Answer(made)

    if is_serving(call.model):
        return await method(*call.args, **call.kwargs)
    answer = await _serve(flow.ASYNC, call, compute)
    if made:
        return made[0]
    with call.replaying(answer) as replay:
        return cast("Response", await replay())


def _serve(
    io: flow.IO, call: _Call, compute: Callable[[], Awaitable[Answer]]
) -> Coroutine[Any, Any, Answer]:
    options = options_of(call.model)
    return serve(
        io, call.model, options, ANSWER, call.parts, compute, query=call.args, stage="generate",
        similar=Similar(call.question, similar.said),
    )  # fmt: skip


# -- streams ---------------------------------------------------------------------------------------


def _tape(call: _Call) -> Tape[Answer]:
    similar_ = Similar(call.question, similar.said)
    return Tape(call.model, ANSWER, call.parts, Recorder(), call.args, similar_)


def _stream(call: _Call, method: Callable[..., Any]) -> Any:
    if is_serving(call.model):
        return method(*call.args, **call.kwargs)
    tape = _tape(call)
    found = run(tape.find(flow.SYNC))
    if found is None:
        return tape.record(method(*call.args, **call.kwargs))
    with call.replaying(found) as replay:
        return replay()


async def _astream(call: _Call, method: Callable[..., Awaitable[Any]]) -> Any:
    if is_serving(call.model):
        return await method(*call.args, **call.kwargs)
    tape = _tape(call)
    found = await tape.find(flow.ASYNC)
    if found is None:
        return tape.arecord(await method(*call.args, **call.kwargs))
    with call.replaying(found) as replay:
        return await replay()


# -- answers from the cache ------------------------------------------------------------------------


def _answer() -> Answer:
    answer = _replayed.get()
    assert answer is not None  # noqa: S101 - it is set around every call
    return answer


def _replays(asked: str) -> dict[str, Any]:
    """Return methods that give the answer at hand, by the names of LlamaIndex's own."""

    def whole(self: Any, *_: Any, **__: Any) -> Any:  # noqa: ARG001 - the answer is known
        return _answer().whole()

    def stream(self: Any, *_: Any, **__: Any) -> Any:  # noqa: ARG001 - see whole
        return (one for one in _answer().stream())

    async def awhole(self: Any, *_: Any, **__: Any) -> Any:  # noqa: ARG001 - see whole
        return _answer().whole()

    async def astream(self: Any, *_: Any, **__: Any) -> Any:  # noqa: ARG001 - see whole
        answer = _answer()
        return _later(answer)

    methods = {asked: whole, f"stream_{asked}": stream, f"a{asked}": awhole}
    methods[f"astream_{asked}"] = astream
    for name, method in methods.items():
        method.__name__ = method.__qualname__ = name
    return methods


async def _later(answer: Answer) -> AsyncGenerator[Response, None]:
    for one in answer.stream():
        yield one


def _with_spans(decorators: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    return {
        name: _dispatcher.span(decorate(method))
        for asked, decorate in decorators.items()
        for name, method in _replays(asked).items()
    }


#: For models that tell of their calls by LlamaIndex's decorators, and for those that do not.
_TOLD: Final = _with_spans({"chat": llm_chat_callback(), "complete": llm_completion_callback()})
_UNTOLD: Final = _with_spans({"chat": lambda method: method, "complete": lambda method: method})


@functools.cache
def _tells(cls: type, name: str) -> bool:
    """Tell whether a model's own method is decorated to tell of its calls."""
    code = getattr(getattr(cls, name), "__code__", None)
    return code is not None and code.co_filename == _CALLBACKS
