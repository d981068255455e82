"""`accelerate` and `unwrap`: find the adapter of an object by the names of its base classes.

By name, so that a framework is imported only where an object of it already exists.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal, TypeVar, cast

from ragaccel.errors import UnsupportedComponentError
from ragaccel.seam import Options
from ragaccel.transparent import unwrap

if TYPE_CHECKING:
    from ragaccel.cache import MultiLevelCache
    from ragaccel.cache.ttl import TTL

__all__ = ["accelerate", "unwrap"]

T = TypeVar("T")

#: Base class of a component -> the adapter module whose `accelerated` wraps it.
_ADAPTERS: Final = {
    "llama_index.core.base.base_retriever.BaseRetriever": "ragaccel.llamaindex.retriever",
    "llama_index.core.base.embeddings.base.BaseEmbedding": "ragaccel.llamaindex.embedding",
    "llama_index.core.llms.llm.LLM": "ragaccel.llamaindex.llm",
    "llama_index.core.postprocessor.types.BaseNodePostprocessor": "ragaccel.llamaindex.reranker",
    "langchain_core.retrievers.BaseRetriever": "ragaccel.langchain.retriever",
    "langchain_core.embeddings.embeddings.Embeddings": "ragaccel.langchain.embeddings",
    "langchain_core.language_models.chat_models.BaseChatModel": "ragaccel.langchain.chat_model",
    "langchain_core.language_models.llms.BaseLLM": "ragaccel.langchain.llm",
    "langchain_core.documents.compressor.BaseDocumentCompressor": "ragaccel.langchain.reranker",
    "langchain_core.cross_encoders.BaseCrossEncoder": "ragaccel.langchain.reranker",
}

#: Base class of something a user may try -> what to do instead.
_INSTEAD: Final = {
    "llama_index.core.indices.base.BaseIndex": "wrap index.as_retriever()",
    "llama_index.core.base.base_query_engine.BaseQueryEngine": (
        "wrap its retriever and build it with RetrieverQueryEngine.from_args(retriever)"
    ),
    "llama_index.core.vector_stores.types.BasePydanticVectorStore": (
        "wrap the retriever above it, or swap it for ragaccel.llamaindex.CompressedVectorStore"
    ),
    "langchain_core.vectorstores.base.VectorStore": (
        "wrap store.as_retriever(), or swap it for ragaccel.langchain.CompressedVectorStore"
    ),
    "langchain_core.runnables.base.Runnable": "wrap the retriever inside and build it again",
}


def accelerate(
    obj: T,
    /,
    *,
    cache: MultiLevelCache | None = None,
    namespace: str | None = None,
    ttl: TTL = None,
    identity: str | None = None,
    cache_sampled: bool = False,
    precision: Literal["float32", "float16"] = "float32",
) -> T:
    """Return an object of the same class that traces and, if asked to, caches.

    The original is not changed. Attributes changed on the returned object take effect, those
    changed on the original afterwards do not. Calling it on an accelerated object replaces the
    options.

    Over a `CompressedVectorStore` a cached answer is never older than the last write. Over another
    store an entry is served until its `ttl` ends, whatever is written meanwhile, and is found again
    only by this process unless an `identity` is given.

    Args:
        obj: A LlamaIndex or LangChain retriever, or a LangChain chat model.
        cache: Where results are kept; without it nothing is cached.
        namespace: The tenant whose entries these are; by default the cache's own namespace.
        ttl: Seconds (or a timedelta) to serve a result for, or a function of query and result that
            gives them, such as `adaptive_ttl()`; by default the cache's own.
        identity: A name for everything that decides the answers and cannot be read off the object.
            Needed for classes that ragaccel does not know, such as a retriever of your own; change
            it when the answers change. Its searches in a `CompressedVectorStore` are watched, so
            that its entries stay right under writes, as long as it makes them in this context: not
            in a bare thread pool of its own.
        cache_sampled: Whether to keep answers of a language model that samples (a temperature above
            0, or none set), so that the same question gets the same sample again.
        precision: How exactly cached embeddings are kept; what is given out is rounded so at once,
            the first time too.

    Returns:
        An instance of the object's own class.

    Raises:
        UnsupportedComponentError: The object is none that can be wrapped; the message says what is.
        ConfigurationError: It cannot be told apart from others of its class; give an `identity`.
    """
    names = [f"{base.__module__}.{base.__qualname__}" for base in type(obj).__mro__]
    for name in names:
        if name in _ADAPTERS:
            if ttl is not None:
                from ragaccel.cache.terms import checked

                checked(ttl)
            adapter = import_module(_ADAPTERS[name])
            options = Options(cache, namespace, ttl, identity, cache_sampled, precision)
            return cast("T", adapter.accelerated(obj, options))
    advice = next((_INSTEAD[name] for name in names if name in _INSTEAD), None)
    if advice is None:
        advice = "pass a LlamaIndex or LangChain retriever"
    raise UnsupportedComponentError(f"{type(obj).__name__} cannot be wrapped; {advice}.")
