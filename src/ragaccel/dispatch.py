"""`accelerate` and `unwrap`: find the adapter of an object by the names of its base classes.

By name, so that a framework is imported only where an object of it already exists.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast, get_args

from ragaccel.errors import ConfigurationError, UnsupportedComponentError
from ragaccel.wrapping.seam import SPARE, Options, Precision
from ragaccel.wrapping.transparent import unwrap

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from ragaccel.batching import MicroBatcher
    from ragaccel.cache import MultiLevelCache
    from ragaccel.cache.ttl import TTL
    from ragaccel.wrapping.seam import Neighbours
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
    "llama_index.core.response_synthesizers.base.BaseSynthesizer": (
        "wrap the LLM that it is built with, or the query engine around it"
    ),
}

_WHAT_CAN: Final = (
    "pass a retriever, embedding model, reranker, language model or vector store of LlamaIndex or "
    "LangChain, or an engine, index or chain that holds some"
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
    changes: str | os.PathLike[str] | None = None,
    metric: Literal["cosine", "dot"] | None = None,
    normalise: Callable[[str], str] | None = None,
    neighbours: Neighbours | None = None,
) -> T:
    """Return an object of the same class that traces and, if asked to, caches.

    The original is not changed. Attributes changed on the returned object take effect, those
    changed on the original afterwards do not. Calling it on an accelerated object replaces the
    options.

    Over a `CompressedVectorStore` a cached answer is never older than the last write: that of a
    plain search, filtered or not, is repaired by what was written since. Over another store that is
    accelerated itself, and written to through the object that this returns, an answer is searched
    for anew as soon as it may differ: as soon as one of its rows is replaced or deleted, a new row
    may score higher, or something was written of which that cannot be told. Over any other store
    an entry is served until its `ttl` ends, whatever is written meanwhile, and is found again only
    by this process unless an `identity` is given.

    What a vector store has beside its framework's methods is taken for a write by its name, such as
    `merge_from`, `reset_collection` or `drop_tables`. Writes by methods of other names, to its
    attributes, by its client or by other programs are not seen.

    Args:
        obj: A retriever, embedding model, reranker, language model or vector store of LlamaIndex or
            LangChain; or what holds such: a query or chat engine, an index, a chain, a retriever
            around others. Then the parts are wrapped, vector stores excepted, and named
            `identity/part` where there is an `identity`. A `CompressedVectorStore` comes back as it
            is.
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
        changes: The file in which a vector store's writes are noted for the other processes of this
            machine that write to it or cache retrievals over it, and for later ones. One file per
            store; all of them give it. By default they are noted in memory, for this process. Not
            for stores whose rows or texts are in the process.
        metric: By which a LlamaIndex vector store scores, if its similarities are that and nothing
            derived from it; believed once a row written by this process was found with it. That of
            `SimpleVectorStore` and LangChain's `InMemoryVectorStore` is known; over others every
            new row makes cached answers stale, and over LangChain's every write does.
        normalise: Gives the same text for questions that are to get the same answer, such as
            `ragaccel.reuse.same_words()`, which leaves out case, white space and other forms of
            characters. The one that was asked first is answered, and its answer, or its embedding,
            is that of the others: a model that tells capitals from small letters may have given
            another. It is for retrievals and embeddings of queries; others are not changed by it.
        neighbours: A `NeighbourReuse(…)`, which answers a plain search of a retriever over a
            `CompressedVectorStore` by what searches for similar questions found; others are not
            changed by it. It needs a `cache`, which is asked first.

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
    _check_parts(cache, namespace, batch, semantic, neighbours)
    if semantic is not None and cache is None:
        raise ConfigurationError("semantic reuse needs a cache, which keeps the answers.")
    if neighbours is not None and cache is None:
        raise ConfigurationError("neighbours need a cache, which keeps the answers.")
    given: Any = spare
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ConfigurationError(f"spare must be a whole number of at least 0, got {spare!r}.")
    if metric not in {None, "cosine", "dot"}:
        raise ConfigurationError(f"metric must be cosine or dot, got {metric!r}.")
    asked: Any = normalise
    if asked is not None and not callable(asked):
        raise ConfigurationError(
            f"normalise must be a function of a text, such as same_words(), got {normalise!r}."
        )
    noted = None if changes is None else str(Path(changes).absolute())
    pattern = None
    if batch:
        from ragaccel.batching import MicroBatcher

        pattern = MicroBatcher() if batch is True else batch
    options = Options(
        cache, namespace, ttl, identity, cache_sampled, precision, pattern, semantic, spare,
        noted, metric, normalise,
        neighbours,
    )  # fmt: skip
    return cast("T", import_module(home).accelerated(obj, options))


def _check_parts(cache: Any, namespace: Any, batch: Any, semantic: Any, neighbours: Any) -> None:
    """Refuse what would fail, or never be asked, at the first call only."""
    from ragaccel.batching import MicroBatcher
    from ragaccel.cache import MultiLevelCache

    for name, given, is_one, such in (
        ("cache", cache, isinstance(cache, MultiLevelCache), "MultiLevelCache.open(path)"),
        ("namespace", namespace, isinstance(namespace, str), "'tenant-a'"),
        ("batch", batch, isinstance(batch, (bool, MicroBatcher)), "True or MicroBatcher()"),
        ("semantic", semantic, _has(semantic, "learn"), "VerifiedReuse(embed=...)"),
        ("neighbours", neighbours, _has(neighbours, "within"), "NeighbourReuse()"),
    ):
        if given is not None and not is_one:
            got = type(given).__name__  # a text may be a URL with a password
            raise ConfigurationError(f"{name} must be such as {such}, got an object of type {got}.")


def _has(part: object, method: str) -> bool:
    return hasattr(part, method) and not isinstance(part, type)
