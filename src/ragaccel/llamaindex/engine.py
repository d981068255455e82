"""What `accelerate` does with a LlamaIndex object: it is wrapped, or what it holds is.

Query and chat engines are copied around their wrapped parts; indexes give wrapped retrievers and
engines.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.response_synthesizers.base import BaseSynthesizer

from ragaccel.errors import UnsupportedComponentError
from ragaccel.wrapping.transparent import adapter_of, options_of, unwrap, wrap

if TYPE_CHECKING:
    from ragaccel.wrapping.seam import Options

    _Base = BaseIndex[Any]
else:
    _Base = object

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
_WHOLES = (BaseQueryEngine, BaseChatEngine, BaseSynthesizer)


class _Engine:
    """An engine does what it did: only its parts are others."""


class _Index(_Base):
    """An index gives wrapped retrievers and engines."""

    def as_retriever(self, **kwargs: Any) -> Any:
        return _wrapped(super().as_retriever(**kwargs), options_of(self))  # type: ignore[safe-super]

    def as_query_engine(self, *args: Any, **kwargs: Any) -> Any:
        return _wrapped(super().as_query_engine(*args, **kwargs), options_of(self))

    def as_chat_engine(self, *args: Any, **kwargs: Any) -> Any:
        return _wrapped(super().as_chat_engine(*args, **kwargs), options_of(self))


def accelerated(obj: Any, options: Options) -> Any:
    """Return the object wrapped, or copied around its wrapped parts; see `ragaccel.accelerate`.

    Raises:
        UnsupportedComponentError: It is nothing that can be wrapped, and holds nothing such.
    """
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
    changed = _parts(plain, options) if isinstance(plain, (BaseIndex, *_WHOLES)) else {}
    if not changed and not isinstance(plain, BaseIndex):
        return part
    made = wrap(plain, _Index if isinstance(plain, BaseIndex) else _Engine, options, lambda: None)
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
