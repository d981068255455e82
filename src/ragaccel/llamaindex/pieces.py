"""Which LlamaIndex objects are wrapped by which adapter."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms.llm import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragaccel.seam import Options

#: Base class of what is wrapped -> the module of the adapter, imported when there is such a thing.
_ADAPTERS: Final[dict[type, str]] = {
    LLM: "llm",
    BaseRetriever: "retriever",
    BaseEmbedding: "embedding",
    BaseNodePostprocessor: "reranker",
}


def adapter_of(obj: object) -> Callable[[Any, Options], Any] | None:
    """Return what wraps an object, or None."""
    name = next((name for base, name in _ADAPTERS.items() if isinstance(obj, base)), None)
    if name is None:
        return None
    adapter: Callable[[Any, Options], Any] = import_module(
        f"ragaccel.llamaindex.{name}"
    ).accelerated
    return adapter
