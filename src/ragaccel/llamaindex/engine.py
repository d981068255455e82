"""What `accelerate` does with a LlamaIndex object: it is wrapped, or what it holds is.

Query and chat engines are copied around their wrapped parts; indexes give wrapped retrievers and
engines.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.response_synthesizers.base import BaseSynthesizer
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index_instrumentation import get_dispatcher

from ragaccel import telemetry
from ragaccel.errors import UnsupportedComponentError
from ragaccel.io import run
from ragaccel.llamaindex import followed_store
from ragaccel.wrapping.transparent import adapter_of, options_of, unwrap, wrap
from ragaccel.wrapping.whole import in_turns, in_turns_async, whole_stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llama_index.core.schema import QueryType

    from ragaccel.wrapping.seam import Options

    _Base = BaseIndex[Any]
    _QueryBase = BaseQueryEngine
    _ChatBase = BaseChatEngine
else:
    _Base = _QueryBase = _ChatBase = object

#: Base class of what is wrapped -> the module of the adapter, imported when there is such a thing.
_ADAPTERS: Final[dict[type, str]] = {
    LLM: "llm",
    BaseRetriever: "retriever",
    BaseEmbedding: "embedding",
    BaseNodePostprocessor: "reranker",
}
#: Post-processors that cost less than a look into the cache.
_CHEAP: Final = frozenset(
    f"llama_index.core.postprocessor.{name}"
    for name in ("metadata_replacement", "node", "node_recency")
)
#: Whose spans for LlamaIndex's calls go where ours go.
_INSTRUMENTORS: Final = (
    "openinference.", "opentelemetry.instrumentation.llamaindex.", "llama_index.observability.",
)  # fmt: skip


class _Synthesizer:
    """A synthesizer does what it did: only its parts are others."""


class _QueryEngine(_QueryBase):
    """A query engine does what it did: its parts are others, and a question is one stage."""

    def query(self, str_or_query_bundle: QueryType) -> Any:
        async def call() -> Any:
            return super(_QueryEngine, self).query(str_or_query_bundle)

        return run(_whole(self, str_or_query_bundle, call))

    async def aquery(self, str_or_query_bundle: QueryType) -> Any:
        return await _whole(self, str_or_query_bundle, partial(super().aquery, str_or_query_bundle))


class _ChatEngine(_ChatBase):
    """A chat engine does what it did: its parts are others, and a question is one stage.

    That of a streamed answer ends when the first of it can be read: engines read on in a thread.
    """

    def chat(self, message: str, *args: Any, **kwargs: Any) -> Any:
        with _stage(self, message):
            return super().chat(message, *args, **kwargs)  # type: ignore[safe-super]

    async def achat(self, message: str, *args: Any, **kwargs: Any) -> Any:
        with _stage(self, message):
            return await super().achat(message, *args, **kwargs)  # type: ignore[safe-super]

    def stream_chat(self, message: str, *args: Any, **kwargs: Any) -> Any:
        with _stage(self, message):
            return super().stream_chat(message, *args, **kwargs)  # type: ignore[safe-super]

    async def astream_chat(self, message: str, *args: Any, **kwargs: Any) -> Any:
        with _stage(self, message):
            return await super().astream_chat(message, *args, **kwargs)  # type: ignore[safe-super]


class _Index(_Base):
    """An index gives wrapped retrievers and engines."""

    def as_retriever(self, **kwargs: Any) -> Any:
        return _wrapped(super().as_retriever(**kwargs), options_of(self))  # type: ignore[safe-super]

    def as_query_engine(self, *args: Any, **kwargs: Any) -> Any:
        return _wrapped(super().as_query_engine(*args, **kwargs), options_of(self))

    def as_chat_engine(self, *args: Any, **kwargs: Any) -> Any:
        return _wrapped(super().as_chat_engine(*args, **kwargs), options_of(self))


#: Base class of what is copied around its parts -> its seam.
_WHOLES: Final[dict[type, type]] = {
    BaseIndex: _Index,
    BaseQueryEngine: _QueryEngine,
    BaseChatEngine: _ChatEngine,
    BaseSynthesizer: _Synthesizer,
}


def accelerated(obj: Any, options: Options) -> Any:
    """Return the object wrapped, or copied around its wrapped parts; see `ragaccel.accelerate`.

    Raises:
        UnsupportedComponentError: It is nothing that can be wrapped, and holds nothing such.
    """
    if isinstance(obj, BasePydanticVectorStore):
        return followed_store.accelerated(obj, options)
    made = _wrapped(obj, options)
    if made is obj:
        raise UnsupportedComponentError(
            f"{type(obj).__name__} cannot be wrapped, and holds nothing that can; wrap the "
            "retriever, embedding model, reranker or LLM that it is built with."
        )
    return made


def _wrapped(part: Any, options: Options) -> Any:
    """Return a part wrapped, or as it is where nothing in it can be."""
    plain = unwrap(part)
    adapter = adapter_of(plain, _ADAPTERS, "ragaccel.llamaindex")
    if adapter is not None:
        return adapter(plain, options)
    mixin = next((mixin for base, mixin in _WHOLES.items() if isinstance(plain, base)), None)
    changed = {} if mixin is None else _parts(plain, options)
    if mixin is None or (not changed and mixin is not _Index):
        return part
    made = wrap(plain, mixin, options, lambda: None)
    attributes = vars(made)
    attributes.update(changed)
    for name, value in attributes.items():
        if isinstance(value, MethodType) and value.__self__ is plain:
            attributes[name] = MethodType(value.__func__, made)
    return made


def _parts(whole: Any, options: Options) -> dict[str, Any]:
    """Return the attributes that hold what can be wrapped, with it wrapped."""
    changed = {}
    for name, value in vars(whole).items():
        its = options.part(name)
        if isinstance(value, list):
            made: Any = [
                one if type(one).__module__ in _CHEAP else _wrapped(one, its) for one in value
            ]
            same = all(new is old for new, old in zip(made, value, strict=True))
        else:
            made = _wrapped(value, its)
            same = made is value
        if not same:
            changed[name] = made
    return changed


async def _whole(engine: Any, query: QueryType, call: Callable[[], Awaitable[Any]]) -> Any:
    """Answer a question in a stage that ends with the answer, also with one that is streamed."""
    stage = _stage(engine, query)
    if stage is telemetry.OFF:
        return await call()
    stage.begin()
    try:
        with stage.turn():
            answer = await call()
    except BaseException as error:
        stage.end(error)
        raise
    if isinstance(answer, StreamingResponse):
        answer.response_gen = in_turns(stage, answer.response_gen)
    elif isinstance(answer, AsyncStreamingResponse):
        answer.response_gen = await in_turns_async(stage, answer.response_gen)
    else:
        stage.end()
    return answer


def _stage(engine: Any, query: QueryType) -> telemetry.Stage:
    stage = whole_stage(engine, query)
    if stage is telemetry.OFF:
        return stage
    houses = [type(one).__module__ for one in get_dispatcher().span_handlers]
    return telemetry.OFF if any(one.startswith(_INSTRUMENTORS) for one in houses) else stage
