"""LangChain's own cache of model answers (`set_llm_cache`, `cache=`) over a `MultiLevelCache`.

What LangChain decides and no such cache can change: streams pass it by, and calls under way at the
same time are not joined.
"""

from __future__ import annotations

import itertools
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from langchain_core.caches import BaseCache

from ragaccel.cache import MISSING, Kind, Stale, Uncacheable, digest
from ragaccel.cache.terms import checked
from ragaccel.errors import ConfigurationError, InvalidationError
from ragaccel.langchain.generations import SCHEMA, opened, packed, said, tokens
from ragaccel.resources import Forkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.outputs import Generation

    from ragaccel.cache import Digest, MultiLevelCache
    from ragaccel.cache.ttl import TTL
    from ragaccel.cache.values import Body

_SHORT_PROMPT: Final = 16 * 1024
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder()


class LLMCache(BaseCache):
    """Keeps the answers of language and chat models on the levels of a cache.

    Every hit hands out objects of its own, with message ids of their own. An answer that would not
    come back equal (a message class of the user's own, a parsed object in `additional_kwargs`) is
    not kept; `cache.stats().bypasses` counts it. No fault of the cache reaches the model's caller,
    but `CacheClosedError` of one that was closed does.

    LangChain makes the key of the prompt and the model's settings. API keys, `configurable` and
    `metadata` are not among them: give each tenant a namespace.

    Args:
        cache: Where the answers are kept.
        namespace: The tenant; the cache's own by default.
        ttl: Lifetime of an answer, or a function of `(prompt, settings)` and the generations that
            gives it; the cache's own by default.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> from ragaccel import MultiLevelCache
        >>> cache = LLMCache(MultiLevelCache.open())
        >>> model = FakeListChatModel(responses=["first", "second"], cache=cache)
        >>> model.invoke("Hello").content, model.invoke("Hello").content
        ('first', 'first')
    """

    def __init__(
        self, cache: MultiLevelCache, *, namespace: str | None = None, ttl: TTL = None
    ) -> None:
        self._cache = cache
        self._namespace = cache.namespace if namespace is None else namespace
        self._ttl = None if ttl is None else checked(ttl)

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return fresh generations, or None for a miss."""
        key = self._key(prompt, llm_string)
        if key is None:
            return None
        found = self._cache.get(key, kind=_ANSWER, namespace=self._namespace)
        return None if found is MISSING else found

    async def alookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """Return what `lookup` does, without blocking the event loop."""
        key = self._key(prompt, llm_string)
        if key is None:
            return None
        found = await self._cache.aget(key, kind=_ANSWER, namespace=self._namespace)
        return None if found is MISSING else found

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep generations, if they come back equal."""
        try:
            self._cache.set((prompt, llm_string), return_val, **self._terms())
        except (ConfigurationError, InvalidationError) as error:
            self._pass_by(error)

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Do what `update` does, without blocking the event loop."""
        try:
            await self._cache.aset((prompt, llm_string), return_val, **self._terms())
        except (ConfigurationError, InvalidationError) as error:
            self._pass_by(error)

    def clear(self, **kwargs: Any) -> None:  # noqa: ARG002 - there is nothing to choose from
        """Serve none of the answers of this namespace any more; nothing else is touched.

        Raises:
            InvalidationError: It could not be written down; call it again.
        """
        self._cache.invalidate(tags=(_ANSWER.name,), namespace=self._namespace)

    async def aclear(self, **kwargs: Any) -> None:  # noqa: ARG002 - see clear
        """Do what `clear` does, without blocking the event loop."""
        await self._cache.ainvalidate(tags=(_ANSWER.name,), namespace=self._namespace)

    def _key(self, prompt: str, llm_string: str) -> Digest | None:
        """Return the key of a call, or None where there can be none."""
        make = _hot_key if len(prompt) < _SHORT_PROMPT else _hot_key.__wrapped__
        try:
            return make(self._namespace, prompt, llm_string)
        except Uncacheable as reason:
            self._cache.bypass(reason.reason)
            return None

    def _terms(self) -> dict[str, Any]:
        return {
            "kind": _ANSWER,
            "namespace": self._namespace,
            "ttl": self._ttl,
            "tags": (_ANSWER.name,),
        }

    def _pass_by(self, error: Exception) -> None:
        """Count a call that goes on without the cache."""
        cause = error.__cause__
        self._cache.bypass(cause.reason if isinstance(cause, Uncacheable) else "invalidation")


class _Ids(Forkable):
    """Message ids as LangChain makes them: random for each process, and counted within it."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        self.follow_forks()

    def draw(self) -> str:
        """Return what begins the ids of one answer's messages."""
        return f"{self._start}{next(self._count):012x}-"

    def after_fork_in_child(self) -> None:
        """Draw other ids than the parent."""
        self._start, self._count = f"lc_run--{str(uuid.uuid4())[:24]}", itertools.count()


_ids = _Ids()


@lru_cache(maxsize=256)
def _hot_key(namespace: str, prompt: str, llm_string: str) -> Digest:
    """Return the key of a call that may come again soon: hashing it costs more than finding it."""
    return digest(namespace, _ANSWER.name, (prompt, llm_string))


def _pack(generations: Sequence[Generation]) -> bytes:
    try:
        return _encoder.encode((SCHEMA, [packed(one) for one in generations]))
    except (TypeError, ValueError, OverflowError) as error:
        raise Uncacheable("value") from error


def _open(body: Body) -> tuple[list[Generation], None]:
    schema, stored = _decoder.decode(body)
    if schema != SCHEMA:
        raise Stale  # another version of langchain-core wrote it
    id_ = _ids.draw()
    return [_opened(f"{id_}{at}", *one) for at, one in enumerate(stored)], None


def _opened(
    id_: str, cls: int, fields: dict[str, Any], message: Any = None, extra: Any = None
) -> Any:
    """Return a generation with an id of its own, and with a usage of zero if it has none.

    Without usage LangChain would make it `{"total_cost": 0}`, which its own messages refuse.
    """
    if message is not None:
        message["id"] = id_
        if message["usage_metadata"] is None:
            message["usage_metadata"] = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    return opened(cls, fields, message, extra)


_ANSWER: Final[Kind[Sequence[Generation]]] = Kind(
    "langchain.llm", _pack, _open, result=said, tokens=tokens
)
