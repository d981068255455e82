"""LlamaIndex embedding models, wrapped at the methods that its public ones call.

Events, spans and callbacks lie above that seam and happen on a hit as on a miss. A query, a text
and an image never share an entry.
"""

from __future__ import annotations

import functools
import hashlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.rate_limiter import BaseRateLimiter

from ragaccel.cache import Uncacheable, flow
from ragaccel.io import run
from ragaccel.llamaindex.events import leave_out
from ragaccel.wrapping.embedded import embed_many, embed_one
from ragaccel.wrapping.fingerprint import identity
from ragaccel.wrapping.seam import is_serving, serving
from ragaccel.wrapping.transparent import Around, options_of, put_around, wrap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from llama_index.core.base.embeddings.base import BaseEmbedding

    from ragaccel.wrapping.seam import Options

    _Base = MultiModalEmbedding
else:
    _Base = object


class MissLimiter(Around, BaseRateLimiter):
    """Lets LlamaIndex pass, which asks before it knows whether there will be a call."""

    def acquire(self, num_tokens: int = 0) -> None:
        """Do not wait."""

    async def async_acquire(self, num_tokens: int = 0) -> None:
        """Do not wait."""


class _Embedding(_Base):
    """The seam: everything else of the model is its own."""

    @classmethod
    def finish_clone(cls, clone: Any) -> None:
        """Let the rate limiter wait for calls only."""
        put_around(clone, "rate_limiter", MissLimiter)

    def _get_query_embedding(self, query: str) -> Any:
        batch, method = super()._get_text_embeddings, super()._get_query_embedding  # type: ignore[safe-super]
        return _one(self, "query", method, query, batch)

    async def _aget_query_embedding(self, query: str) -> Any:
        batch, method = super()._aget_text_embeddings, super()._aget_query_embedding  # type: ignore[safe-super]
        return await _aone(self, "query", method, query, batch)

    def _get_text_embedding(self, text: str) -> Any:
        batch, method = super()._get_text_embeddings, super()._get_text_embedding  # type: ignore[safe-super]
        return _one(self, "text", method, text, batch)

    async def _aget_text_embedding(self, text: str) -> Any:
        batch, method = super()._aget_text_embeddings, super()._aget_text_embedding
        return await _aone(self, "text", method, text, batch)

    def _get_text_embeddings(self, texts: list[str]) -> Any:
        return _many(self, "text", super()._get_text_embeddings, texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> Any:
        return await _amany(self, "text", super()._aget_text_embeddings, texts)


class _MultiModal(_Embedding):
    """The seam of a model that embeds images as well."""

    def _get_image_embedding(self, img_file_path: Any) -> Any:
        return _one(self, "image", super()._get_image_embedding, img_file_path)  # type: ignore[safe-super]

    async def _aget_image_embedding(self, img_file_path: Any) -> Any:
        return await _aone(self, "image", super()._aget_image_embedding, img_file_path)  # type: ignore[safe-super]

    def _get_image_embeddings(self, img_file_paths: list[Any]) -> Any:
        return _many(self, "image", super()._get_image_embeddings, img_file_paths)

    async def _aget_image_embeddings(self, img_file_paths: list[Any]) -> Any:
        return await _amany(self, "image", super()._aget_image_embeddings, img_file_paths)


def accelerated(model: BaseEmbedding, options: Options) -> BaseEmbedding:
    """Return the model wrapped; see `ragaccel.accelerate`."""
    mixin = _MultiModal if isinstance(model, MultiModalEmbedding) else _Embedding
    return wrap(model, mixin, options, lambda: identity(model, options))


def _one(
    model: Any,
    sort: str,
    method: Callable[[Any], Any],
    asked: Any,
    batch: Callable[[Any], Any] | None = None,
) -> Any:
    if is_serving(model):
        return method(asked)
    leave_out()

    async def call() -> Any:
        _wait(model)
        return method(asked)

    async def many(some: Sequence[Any]) -> Any:
        _wait(model)
        with serving(model):
            return [] if batch is None else batch(some)

    return run(_embed_one(flow.SYNC, model, sort, call, asked, many if batch else None))


async def _aone(
    model: Any,
    sort: str,
    method: Callable[[Any], Awaitable[Any]],
    asked: Any,
    batch: Callable[[Any], Awaitable[Any]] | None = None,
) -> Any:
    if is_serving(model):
        return await method(asked)
    leave_out()

    async def call() -> Any:
        await _await(model)
        return await method(asked)

    async def many(some: Sequence[Any]) -> Any:
        await _await(model)
        with serving(model):
            return [] if batch is None else await batch(some)

    return await _embed_one(flow.ASYNC, model, sort, call, asked, many if batch else None)


def _many(model: Any, sort: str, method: Callable[[Any], Any], asked: Sequence[Any]) -> Any:
    if is_serving(model):
        return method(asked)
    leave_out()

    async def call(some: Sequence[Any]) -> Any:
        _wait(model)
        return method(some)

    return run(embed_many(flow.SYNC, model, options_of(model), asked, _parts(model, sort), call))


async def _amany(
    model: Any, sort: str, method: Callable[[Any], Awaitable[Any]], asked: Sequence[Any]
) -> Any:
    if is_serving(model):
        return await method(asked)
    leave_out()

    async def call(some: Sequence[Any]) -> Any:
        await _await(model)
        return await method(some)

    options = options_of(model)
    return await embed_many(flow.ASYNC, model, options, asked, _parts(model, sort), call)


def _embed_one(
    io: flow.IO,
    model: Any,
    sort: str,
    call: Callable[[], Awaitable[Any]],
    asked: Any,
    many: Callable[[Sequence[Any]], Awaitable[Any]] | None,
) -> Coroutine[Any, Any, Any]:
    parts = functools.partial(_parts(model, sort), asked)
    return embed_one(
        io, model, options_of(model), parts, call, text=asked, many=many, is_query=sort == "query"
    )


def _wait(model: Any) -> None:
    limiter = model.rate_limiter
    if isinstance(limiter, MissLimiter):
        limiter.inner.acquire()


async def _await(model: Any) -> None:
    limiter = model.rate_limiter
    if isinstance(limiter, MissLimiter):
        await limiter.inner.async_acquire()


def _parts(model: Any, sort: str) -> Callable[[Any], Any]:
    """Return what gives everything a vector depends on; settings are read once for all texts."""
    shared = functools.cache(lambda: (identity(model, options_of(model)), sort))
    seen = {"image": _pixels, "query": options_of(model).worded}.get(sort, lambda text: text)
    return lambda asked: (*shared(), seen(asked))


def _pixels(image: Any) -> tuple[int, bytes]:
    """Return a digest of an image's bytes, and where a model begins to read them.

    Raises:
        Uncacheable: They cannot be read.
    """
    try:
        if isinstance(image, BytesIO):
            start, data = image.tell(), image.getvalue()
        elif Path(image).is_file():
            start, data = 0, Path(image).read_bytes()
        else:
            raise Uncacheable("key")
    except (OSError, TypeError, ValueError) as error:
        raise Uncacheable("key") from error
    return start, hashlib.blake2b(data, digest_size=20).digest()
