"""LangChain vector stores of other houses, with a change log beside them.

What is written through them is known to cached retrievals over them; see `ragaccel.reuse.reads`.
Only of `InMemoryVectorStore` the vectors can be seen: an answer of another store's is stale as soon
as anything is written.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from ragaccel.errors import ConfigurationError
from ragaccel.langchain.vector_store import CompressedVectorStore
from ragaccel.reuse.changes import EVERYTHING, Change
from ragaccel.reuse.followed import (
    attach,
    follow_store,
    following_of,
    note_other_writes,
    read,
    read_now,
    write,
    write_now,
)
from ragaccel.reuse.reads import UNSURE, have_order, reads
from ragaccel.wrapping.transparent import keep_defaults, plain_class

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from ragaccel.reuse.reads import Read
    from ragaccel.wrapping.seam import Options

    _Base = VectorStore
    _MemoryBase = InMemoryVectorStore
else:
    _Base = _MemoryBase = object

_WRITES: Final = (
    "add_texts", "aadd_texts", "add_documents", "aadd_documents", "delete", "adelete",
)  # fmt: skip
_SEARCHES: Final = (
    "similarity_search", "similarity_search_with_score", "similarity_search_by_vector",
    "similarity_search_with_relevance_scores", "max_marginal_relevance_search",
    "max_marginal_relevance_search_by_vector",
)  # fmt: skip
_ALL_SEARCHES: Final = (*_SEARCHES, *(f"a{name}" for name in _SEARCHES))


class _Store(_Base):
    """The seam of writes: everything else of the store is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Leave to LangChain what it has defaults for, and note writes that it does not know."""
        keep_defaults(made, base, VectorStore, *_WRITES)
        note_other_writes(made, base, VectorStore)

    @classmethod
    def finish_clone(cls, clone: Any) -> None:
        """Begin or open the change log."""
        attach(clone, "cosine" if _is_in_memory(clone) else None)

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = object.__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def add_texts(self, *args: Any, **kwargs: Any) -> Any:
        return _add(self, partial(super().add_texts, *args, **kwargs))

    async def aadd_texts(self, *args: Any, **kwargs: Any) -> Any:
        call = partial(super().aadd_texts, *args, **kwargs)
        return await write(self, EVERYTHING, call, partial(_added, self))

    def add_documents(self, *args: Any, **kwargs: Any) -> Any:
        return _add(self, partial(super().add_documents, *args, **kwargs))

    async def aadd_documents(self, *args: Any, **kwargs: Any) -> Any:
        call = partial(super().aadd_documents, *args, **kwargs)
        return await write(self, EVERYTHING, call, partial(_added, self))

    def delete(self, ids: Any = None, **kwargs: Any) -> Any:
        ids = ids if ids is None or isinstance(ids, str) else list(ids)
        call = partial(super().delete, ids, **kwargs)
        return write_now(self, _deleted(ids, kwargs), call)

    async def adelete(self, ids: Any = None, **kwargs: Any) -> Any:
        ids = ids if ids is None or isinstance(ids, str) else list(ids)
        call = partial(super().adelete, ids, **kwargs)
        return await write(self, _deleted(ids, kwargs), call)


class _InMemory(_Store, _MemoryBase):
    """The seam of `InMemoryVectorStore`, all of whose searches are made by one method."""

    def _similarity_search_with_score_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        filter: Any = None,  # noqa: A002
    ) -> Any:
        # One row more is looked for: which of two with equal scores is found is chance.
        more = 1 if k > 0 and reads() is not None else 0
        search = super()._similarity_search_with_score_by_vector
        call = partial(search, embedding, k + more, filter)
        told = partial(_told, self, embedding, k, is_filtered=filter is not None)
        return read_now(self, call, told, lambda found: found)[: k if more else None]


class _Other(_Store):
    """The seam of another store: of a search nothing is told but that it was made."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """See above; asynchronous searches that call synchronous ones are left to LangChain."""
        super().finish_class(made, base)
        keep_defaults(made, base, VectorStore, *_ALL_SEARCHES)


def _searching(name: str) -> Callable[..., Any]:
    def search(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = partial(getattr(super(_Other, self), name), *args, **kwargs)
        return read_now(self, call, _told_nothing, lambda found: found)

    async def asearch(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = partial(getattr(super(_Other, self), name), *args, **kwargs)
        return await read(self, call, _told_nothing, lambda found: found)

    made: Callable[..., Any] = asearch if name.startswith("a") else search
    made.__name__, made.__qualname__ = name, f"_Other.{name}"
    return made


for _name in _ALL_SEARCHES:
    setattr(_Other, _name, _searching(_name))


def accelerated(store: VectorStore, options: Options) -> Any:
    """Return the store with a change log; see `ragaccel.accelerate`.

    Raises:
        ConfigurationError: The options do not suit it.
    """
    if isinstance(store, CompressedVectorStore):
        return store  # its collection has a log of its own
    if options.metric is not None:
        raise ConfigurationError(
            "metric= is for LlamaIndex stores: what LangChain ones find comes without vectors and "
            "often without scores; leave it out."
        )
    is_ours = _is_in_memory(store)
    return follow_store(store, _InMemory if is_ours else _Other, options, is_private=is_ours)


def check_seen(retriever: Any) -> None:
    """Tell whoever keeps an answer if the store was searched where nobody could see it."""
    listening = reads()
    if listening is not None and not listening and following_of(retriever.vectorstore) is not None:
        listening.append(UNSURE)


def _is_in_memory(store: Any) -> bool:
    return plain_class(type(store)) is InMemoryVectorStore


def _add(store: Any, method: Callable[[], Any]) -> Any:
    return write_now(store, EVERYTHING, method, partial(_added, store))


def _added(store: Any, ids: Any) -> Change:
    if not _is_in_memory(store):
        return EVERYTHING
    rows = [store.store.get(one) for one in ids]
    if None in rows:  # another thread has deleted it
        return EVERYTHING
    vectors = np.asarray([one["vector"] for one in rows], np.float32)
    return Change("upsert", tuple(ids), vectors.tobytes())


def _deleted(ids: Any, more: dict[str, Any]) -> Change:
    is_plain = isinstance(ids, list) and ids and not more
    return Change("delete", tuple(map(str, ids))) if is_plain else EVERYTHING


def _told_nothing(told: Read, found: Any) -> Read:
    del found
    return told


def _told(
    store: Any,
    embedding: Sequence[float],
    k: int,
    told: Read,
    found: Sequence[tuple[Any, float, Any]],
    *,
    is_filtered: bool,
) -> Read:
    """Return what an answer depends on: the nearest rows, or more than is known."""
    reached = [score for _, score, _ in found]
    rows = tuple(document.id for document, _, _ in found[:k])
    is_full = len(rows) == k
    if k < 1 or not have_order(reached) or (is_filtered and not is_full):
        return told
    return msgspec.structs.replace(
        told,
        rows=rows,
        query=np.asarray(embedding, np.float32).tobytes(),
        floor=reached[k - 1] if is_full else -math.inf,
        metric=following_of(store).metric,
    )
