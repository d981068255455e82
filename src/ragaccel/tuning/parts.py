"""The tunable parts of components, the accelerated objects of frameworks among them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ragaccel.wrapping import transparent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ragaccel.knobs import Knob

#: Where objects of both frameworks, and ours, keep the parts that they ask.
_HELD: Final = (
    "collection", "vector_store", "_vector_store", "vectorstore", "retriever", "_retriever",
    "base_retriever", "embeddings", "_embed_model", "_index",
)  # fmt: skip
_DEPTH: Final = 5


def tunables(component: Any) -> tuple[Knob, ...]:
    """Return the knobs of a component and of the parts that it holds.

    Args:
        component: A cache, batcher or collection, an accelerated object or store of a framework,
            anything with a method `tunables`, or several of these. A name that is there twice gets
            a number.
    """
    found: dict[str, Knob] = {}
    for part in parts(component):
        for knob in part.tunables():
            name, number = knob.name, 2
            while name in found:
                name, number = f"{knob.name}.{number}", number + 1
            found[name] = replace(knob, name=name)
    return tuple(found.values())


def parts(component: Any) -> list[Any]:
    """Return the parts of a component that can be turned, each once."""
    found: dict[int, Any] = {}
    several = component if isinstance(component, (list, tuple)) else [component]
    for one in _held(several, _DEPTH, set()):
        if callable(getattr(type(one), "tunables", None)):
            found.setdefault(id(one), one)
    return list(found.values())


@contextmanager
def uncached(component: Any) -> Iterator[None]:
    """Have accelerated objects, and those that they hold, ask anew and keep nothing meanwhile."""
    several = component if isinstance(component, (list, tuple)) else [component]
    found = (transparent.state_of(one) for one in _held(several, _DEPTH, set()))
    states = [(state, state.options) for state in found if state is not None]
    try:
        for state, options in states:
            state.options = replace(options, cache=None)
        yield
    finally:
        for state, options in states:
            state.options = options


def _held(several: Iterable[Any], depth: int, seen: set[int]) -> Iterator[Any]:
    for one in several:
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if depth:
            options = transparent.options_of(one)
            inside = [options.cache, options.batch, options.neighbours]
            inside += [getattr(one, name, None) for name in _HELD]
            yield from _held(inside, depth - 1, seen)
