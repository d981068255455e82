"""LlamaIndex's global settings: the models that everything takes which is given none."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from llama_index.core import Settings

from ragaccel.llamaindex.engine import accelerated
from ragaccel.wrapping.seam import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ragaccel.cache import MultiLevelCache

_MODELS: Final = ("_llm", "_embed_model")


@contextlib.contextmanager
def accelerated_settings(cache: MultiLevelCache | None = None, **options: Any) -> Iterator[None]:
    """Wrap the models in LlamaIndex's `Settings` while the context is open.

    So an application is cached without a change in its code. It reaches what takes its language or
    embedding model from `Settings`, and takes it while the context is open: indexes and engines
    that were made before, and those that are given models of their own, are not wrapped.
    Retrievers and rerankers are not either: wrap those, or the engine.

    Args:
        cache: See `ragaccel.accelerate`.
        options: See `ragaccel.accelerate`: namespace, ttl, identity, cache_sampled, precision.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> from ragaccel import MultiLevelCache
        >>> Settings.llm = MockLLM()
        >>> with MultiLevelCache.open() as cache, accelerated_settings(cache):
        ...     Settings.llm.complete("Hello").text == Settings.llm.complete("Hello").text
        True
    """
    asked = Options(cache, **options)
    names = [name for name in _MODELS if getattr(Settings, name) is not None]
    before = {name: getattr(Settings, name) for name in names}
    ours = {name: accelerated(model, asked) for name, model in before.items()}
    for name, model in ours.items():
        setattr(Settings, name, model)
    try:
        yield
    finally:
        for name, model in ours.items():
            if getattr(Settings, name) is model:
                setattr(Settings, name, before[name])
