"""Which LangChain objects are wrapped by which adapter."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.retrievers import BaseRetriever

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragaccel.seam import Options

#: Base class of what is wrapped -> the module of the adapter, imported when there is such a thing.
_ADAPTERS: Final[dict[type, str]] = {
    BaseChatModel: "chat_model",
    BaseLLM: "llm",
    BaseRetriever: "retriever",
    Embeddings: "embeddings",
    BaseDocumentCompressor: "reranker",
    BaseCrossEncoder: "reranker",
}


def adapter_of(obj: object) -> Callable[[Any, Options], Any] | None:
    """Return what wraps an object, or None."""
    name = next((name for base, name in _ADAPTERS.items() if isinstance(obj, base)), None)
    if name is None:
        return None
    adapter = import_module(f"ragaccel.langchain.{name}").accelerated
    return cast("Callable[[Any, Options], Any]", adapter)


def of_part(options: Options, name: str) -> Options:
    """Return the options for a part of an object that the user has named."""
    if options.identity is None:
        return options
    return replace(options, identity=f"{options.identity}/{name}")
