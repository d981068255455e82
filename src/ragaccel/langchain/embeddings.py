"""LangChain embedding models, wrapped at their four methods.

A query and a document never share an entry: many models embed them differently.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings

from ragaccel.cache import Uncacheable, flow
from ragaccel.io import run
from ragaccel.wrapping.embedded import embed_many, embed_one
from ragaccel.wrapping.fingerprint import identity
from ragaccel.wrapping.seam import is_serving, serving
from ragaccel.wrapping.transparent import keep_defaults, options_of, wrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragaccel.wrapping.seam import Options

    _Base = Embeddings
else:
    _Base = object

#: Arguments that decide how texts are sent, not what their vectors are.
_HOW: Final = frozenset(("batch_size", "chunk_size"))


class _Embeddings(_Base):
    """The seam: everything else of the model is its own."""

    @classmethod
    def finish_class(cls, made: Any, base: Any) -> None:
        """Leave the async methods to LangChain where they call the sync ones."""
        keep_defaults(made, base, Embeddings, "aembed_query", "aembed_documents")

    def embed_query(self, text: str, *args: Any, **kwargs: Any) -> Any:
        method: Any = super().embed_query  # type: ignore[safe-super]
        if is_serving(self):
            return method(text, *args, **kwargs)

        async def call() -> Any:
            return method(text, *args, **kwargs)

        async def many(some: Any) -> Any:
            with serving(self):
                return batch(some)

        parts = functools.partial(_parts(self, "query", method, args, kwargs), text)
        batch: Any = super().embed_documents  # type: ignore[safe-super]
        together = None if args or kwargs else many
        return run(
            embed_one(
                flow.SYNC, self, options_of(self), parts, call,
                text=text, many=together, is_query=True,
            )
        )  # fmt: skip

    async def aembed_query(self, text: str, *args: Any, **kwargs: Any) -> Any:
        method: Any = super().aembed_query
        if is_serving(self):
            return await method(text, *args, **kwargs)

        async def call() -> Any:
            return await method(text, *args, **kwargs)

        async def many(some: Any) -> Any:
            with serving(self):
                return await batch(some)

        parts = functools.partial(_parts(self, "query", method, args, kwargs), text)
        batch: Any = super().aembed_documents
        together = None if args or kwargs else many
        return await embed_one(
            flow.ASYNC, self, options_of(self), parts, call,
            text=text, many=together, is_query=True,
        )  # fmt: skip

    def embed_documents(self, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        method: Any = super().embed_documents  # type: ignore[safe-super]
        if is_serving(self) or not isinstance(texts, (list, tuple)):
            return method(texts, *args, **kwargs)

        async def call(some: Any) -> Any:
            return method(some, *args, **kwargs)

        parts = _parts(self, "text", method, args, kwargs)
        return run(embed_many(flow.SYNC, self, options_of(self), texts, parts, call))

    async def aembed_documents(self, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        method: Any = super().aembed_documents
        if is_serving(self) or not isinstance(texts, (list, tuple)):
            return await method(texts, *args, **kwargs)

        async def call(some: Any) -> Any:
            return await method(some, *args, **kwargs)

        parts = _parts(self, "text", method, args, kwargs)
        return await embed_many(flow.ASYNC, self, options_of(self), texts, parts, call)


def accelerated(model: Embeddings, options: Options) -> Embeddings:
    """Return the model wrapped; see `ragaccel.accelerate`."""
    return wrap(model, _Embeddings, options, lambda: identity(model, options))


def _parts(
    model: Any, sort: str, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[str], Any]:
    """Return what gives everything a vector depends on; settings are read once for all texts."""

    @functools.cache
    def shared() -> tuple[Any, ...]:
        return identity(model, options_of(model)), sort, _asked(method, args, kwargs)

    worded = options_of(model).worded if sort == "query" else lambda text: text
    return lambda text: (*shared(), worded(text))


def _asked(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments beside the texts, by name.

    Raises:
        Uncacheable: One of them may say something about each text, such as a list of titles.
    """
    if not args and not kwargs:
        return {}
    given = inspect.signature(method).bind_partial(None, *args).arguments
    named = {**dict(list(given.items())[1:]), **kwargs}
    asked = {name: value for name, value in named.items() if name not in _HOW}
    if not all(isinstance(one, (str, int, float, type(None))) for one in asked.values()):
        raise Uncacheable("key")
    return asked
