"""How a pipeline is asked one query: a function, or an object of LlamaIndex or LangChain."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, cast

from ragaccel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# `query` comes first: LlamaIndex query engines have a `retrieve` too, which most of them refuse.
_METHODS: Final = ("query", "retrieve", "invoke")

#: What an asynchronous pipeline is given to instead.
ASYNCHRONOUS: Final = "`async for outcome in agather(...)`, or `await awarm(...)` to warm a cache"

#: Methods whose default only calls the blocking one and so holds up the event loop, and where it is
#: defined. Source: LlamaIndex 0.14.
_BLOCKING_DEFAULTS: Final = {
    "_aretrieve": "llama_index.core.base.base_retriever",
    "acustom_query": "llama_index.core.query_engine.custom",
}


def blocking(pipeline: Any) -> Callable[[Any], Any]:
    """Return a blocking way to ask.

    Raises:
        ConfigurationError: There is none.
    """
    found = [getattr(pipeline, name, None) for name in _METHODS]
    ask = next(filter(callable, [*found, pipeline]), None)
    if is_async(ask) or (ask is None and awaiting(pipeline) is not None):
        raise ConfigurationError(f"{pipeline!r} is asynchronous; write {ASYNCHRONOUS}.")
    if ask is None:
        raise ConfigurationError(
            f"{type(pipeline).__name__} cannot be asked: a pipeline is a function of one query, or "
            "an object with `query`, `retrieve` or `invoke`."
        )
    return ask


def awaiting(pipeline: Any) -> Callable[[Any], Awaitable[Any]] | None:
    """Return a way to ask that awaits, or None if there is none, or one that holds up the loop."""
    if any(_is_defined_in(pipeline, *default) for default in _BLOCKING_DEFAULTS.items()):
        return None
    for name in _METHODS:
        twin, method = getattr(pipeline, f"a{name}", None), getattr(pipeline, name, None)
        if callable(twin):
            return cast("Callable[[Any], Awaitable[Any]]", twin)
        if callable(method):
            return method if is_async(method) else None
    return pipeline if is_async(pipeline) else None


def is_async(call: Any) -> bool:
    """Tell whether a call gives a coroutine, as far as can be known without making it."""
    method = getattr(call, "__call__", None)  # noqa: B004 - of objects whose call is `async def`
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(method)


def _is_defined_in(pipeline: Any, method: str, module: str) -> bool:
    """Tell whether a method, what ragaccel wraps around it left out, is that of a module."""
    own = (vars(cls)[method] for cls in type(pipeline).__mro__ if method in vars(cls))
    homes = (getattr(one, "__module__", "") for one in own)
    return next((one for one in homes if not one.startswith("ragaccel.")), "") == module
