"""What `accelerate` does with a LangChain object: it is wrapped, or what it holds is.

Chains are built again around their wrapped parts.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.vectorstores import VectorStore
from pydantic import BaseModel

from ragaccel import telemetry
from ragaccel.errors import UnsupportedComponentError
from ragaccel.langchain import followed_store
from ragaccel.langchain.instrumentors import will_trace
from ragaccel.wrapping.fingerprint import class_name
from ragaccel.wrapping.transparent import adapter_of, plain_class, unwrap, wrap
from ragaccel.wrapping.whole import in_turns, in_turns_async, whole_stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.runnables import RunnableConfig

    from ragaccel.wrapping.seam import Options

    _Base = Runnable[Any, Any]
    _Config = RunnableConfig | None
else:
    _Base = object

#: Base class of what is wrapped -> the module of the adapter, imported when there is such a thing.
_ADAPTERS: Final[dict[type, str]] = {
    BaseChatModel: "chat_model",
    BaseLLM: "llm",
    BaseRetriever: "retriever",
    Embeddings: "embeddings",
    BaseDocumentCompressor: "reranker",
    BaseCrossEncoder: "reranker",
}
#: Retrievers that add nothing to what they ask, so that it is their parts that are wrapped.
_RETRIEVERS: Final = frozenset(
    f"langchain_classic.retrievers.{name}"
    for name in (
        "contextual_compression.ContextualCompressionRetriever",
        "ensemble.EnsembleRetriever",
        "merger_retriever.MergerRetriever",
        "multi_query.MultiQueryRetriever",
    )
)


class _Chain(_Base):
    """A chain does what it did: its parts are others, and a question of its own is one stage."""

    def invoke(self, input: Any, config: _Config = None, **kwargs: Any) -> Any:  # noqa: A002
        with _stage(self, input, config):
            return super().invoke(input, config, **kwargs)  # type: ignore[safe-super]

    async def ainvoke(self, input: Any, config: _Config = None, **kwargs: Any) -> Any:  # noqa: A002
        with _stage(self, input, config):
            return await super().ainvoke(input, config, **kwargs)

    def stream(
        self,
        input: Any,  # noqa: A002
        config: _Config = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        stage = _stage(self, input, config)
        stream = super().stream(input, config, **kwargs)
        return stream if stage is telemetry.OFF else in_turns(stage.begin(), stream)

    async def astream(
        self,
        input: Any,  # noqa: A002
        config: _Config = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        stage = _stage(self, input, config)
        stream: Any = super().astream(input, config, **kwargs)
        if stage is not telemetry.OFF:
            stream = await in_turns_async(stage.begin(), stream)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk


def _stage(chain: Any, asked: Any, config: _Config) -> telemetry.Stage:
    stage = whole_stage(chain, asked)
    return telemetry.OFF if stage is not telemetry.OFF and will_trace(config) else stage


def accelerated(obj: Any, options: Options) -> Any:
    """Return the object wrapped, or built again around its wrapped parts; see `accelerate`.

    Prompts, parsers, functions and tools are taken over as they are.

    Raises:
        UnsupportedComponentError: It is nothing that can be wrapped, and holds nothing such.
    """
    if isinstance(obj, VectorStore):
        return followed_store.accelerated(obj, options)
    made = _wrapped(obj, options)
    if made is obj:
        raise UnsupportedComponentError(
            f"{type(obj).__name__} cannot be wrapped, and holds nothing that can, or hides it in a "
            "function; wrap the model, retriever, embeddings or reranker that it is built with."
        )
    return made


def _wrapped(part: Any, options: Options) -> Any:
    """Return a part wrapped, or as it is where nothing in it can be."""
    plain = unwrap(part)
    adapter = adapter_of(plain, _ADAPTERS, "ragaccel.langchain")
    if adapter is not None and class_name(plain_class(type(plain))) not in _RETRIEVERS:
        return adapter(plain, options)
    if isinstance(plain, Runnable) and isinstance(plain, BaseModel):
        made = _rebuilt(plain, options)
        return part if made is plain else made
    return part


def _rebuilt(whole: BaseModel, options: Options) -> Any:
    """Return a copy of an object with its parts wrapped, or the object if there are none."""
    parts = {
        name: _within(value, options.part(name))
        for name, value in whole.__dict__.items()
        if name in type(whole).model_fields
    }
    changed = {name: value for name, value in parts.items() if value is not whole.__dict__[name]}
    if not changed:
        return whole
    made = wrap(whole, _Chain, options, lambda: None)
    made.__dict__.update(changed)
    return made


def _within(value: Any, options: Options) -> Any:
    """Return a field's value with the parts in it wrapped; the same object if there are none."""
    if isinstance(value, dict):
        made: Any = {key: _within(one, options.part(str(key))) for key, one in value.items()}
        return made if any(made[key] is not value[key] for key in value) else value
    if type(value) in (list, tuple):
        made = type(value)(_within(one, options.part(str(at))) for at, one in enumerate(value))
        return made if any(new is not old for new, old in zip(made, value, strict=True)) else value
    return _wrapped(value, options)
