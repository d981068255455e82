"""`accelerate` and `unwrap`: find the adapter of an object by the names of its base classes.

By name, so that a framework is imported only where an object of it already exists.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, get_args

from ragaccel.errors import ConfigurationError, UnsupportedComponentError
from ragaccel.wrapping.seam import SPARE, Options, Precision
from ragaccel.wrapping.transparent import unwrap

if TYPE_CHECKING:
    from ragaccel.batching import MicroBatcher
    from ragaccel.cache import MultiLevelCache
    from ragaccel.cache.ttl import TTL
    from ragaccel.wrapping.semantic import Semantic

__all__ = ["accelerate", "unwrap"]

T = TypeVar("T")

#: Where a framework's base classes live -> the module whose `accelerated` wraps its objects.
_FRAMEWORKS: Final = {
    "llama_index.core.": "ragaccel.llamaindex.engine",
    "langchain_core.": "ragaccel.langchain.chain",
}

#: Base class of something a user may try -> what to do instead.
_INSTEAD: Final = {
    "llama_index.core.vector_stores.types.BasePydanticVectorStore": (
        "wrap the retriever above it, or swap it for ragaccel.llamaindex.CompressedVectorStore"
    ),
    "llama_index.core.response_synthesizers.base.BaseSynthesizer": (
        "wrap the LLM that it is built with, or the query engine around it"
    ),
    "langchain_core.vectorstores.base.VectorStore": (
        "wrap store.as_retriever(), or swap it for ragaccel.langchain.CompressedVectorStore"
    ),
}

_WHAT_CAN: Final = (
    "pass a retriever, embedding model, reranker or language model of LlamaIndex or LangChain, or "
    "an engine, index or chain that holds some"
)


def accelerate(
    obj: T,
    /,
    *,
    cache: MultiLevelCache | None = None,
    namespace: str | None = None,
    ttl: TTL = None,
    identity: str | None = None,
    cache_sampled: bool = False,
    precision: Precision = "float32",
    batch: MicroBatcher[Any, Any] | bool = False,
    semantic: Semantic | None = None,
    spare: int = SPARE,
) -> T:
    """Return an object of the same class that traces and, if asked to, caches.

    The original is not changed. Attributes changed on the returned object take effect, those
    changed on the original afterwards do not. Calling it on an accelerated object replaces the
    options.

    Over a `CompressedVectorStore` a cached answer is never older than the last write: that of a
    plain search, filtered or not, is repaired by what was written since. Over another store an
    entry is served until its `ttl` ends, whatever is written meanwhile, and is found again only by
    this process unless an `identity` is given.

    Args:
        obj: A retriever, embedding model, reranker or language model of LlamaIndex or LangChain; or
            what holds such: a query or chat engine, an index, a chain, a retriever around others.
            Then the parts are wrapped, and named `identity/part` where there is an `identity`.
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
        batch: Whether what is asked at the same time is sent together: texts of an embedding model,
            pairs of a cross-encoder, and the queries that a retriever over a vector store embeds;
            others are not changed by it. A `MicroBatcher(max_size=…, workers=…)` says how. Queries
            are sent with texts where the model embeds them as it does texts, which is measured
            with the first one.
        semantic: A `VerifiedReuse(delta=…, embed=…)`, which answers a question to a language model
            as a similar one was answered; others are not changed by it. It needs a `cache`.
        spare: How many rows beyond those asked for a cached retrieval over a
            `CompressedVectorStore` keeps. It outlives as many deletes among its rows; after more it
            is searched for anew.

    Returns:
        An instance of the object's own class.

    Raises:
        UnsupportedComponentError: The object is none that can be wrapped; the message says what is.
        ConfigurationError: It cannot be told apart from others of its class; give an `identity`.
            Or an option is none of those it can be.
    """
    names = [f"{base.__module__}.{base.__qualname__}" for base in type(obj).__mro__]
    home = next(
        (home for name in names for start, home in _FRAMEWORKS.items() if name.startswith(start)),
        None,
    )
    advice = next((_INSTEAD[name] for name in names if name in _INSTEAD), None)
    if home is None or advice is not None:
        raise UnsupportedComponentError(
            f"{type(obj).__name__} cannot be wrapped; {advice or _WHAT_CAN}."
        )
    if ttl is not None:
        from ragaccel.cache.terms import checked

        checked(ttl)
    if precision not in get_args(Precision):
        raise ConfigurationError(f"precision must be float32 or float16, got {precision!r}.")
    if semantic is not None and cache is None:
        raise ConfigurationError("semantic reuse needs a cache, which keeps the answers.")
    given: Any = spare
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ConfigurationError(f"spare must be a whole number of at least 0, got {spare!r}.")
    pattern = None
    if batch:
        from ragaccel.batching import MicroBatcher

        pattern = MicroBatcher() if batch is True else batch
    options = Options(
        cache, namespace, ttl, identity, cache_sampled, precision, pattern, semantic, spare
    )
    return cast("T", import_module(home).accelerated(obj, options))
