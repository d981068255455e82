"""Calls of wrapped components that are made at the same time, sent as one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ragaccel.cache import flow
from ragaccel.io import run
from ragaccel.wrapping.transparent import state_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Many = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]


@dataclass(frozen=True)
class _Asked:
    """What a component is asked; copies of a component are other components."""

    component: int
    item: Any
    many: Many = field(compare=False)


async def together(io: flow.IO, component: object, item: Any, many: Many) -> Any:
    """Send an item together with those that the component is asked for now.

    Args:
        io: How to wait; see `ragaccel.cache.flow`.
        component: The wrapped object; there is a `batch` among its options.
        item: What it is asked; equal ones are sent once.
        many: Its call over several items.
    """
    state: Any = state_of(component)
    batcher = state.known.get("batcher")
    if batcher is None:
        pattern = state.options.batch
        batcher = state.known.setdefault("batcher", pattern.over(_send, _asend, _item))
    asked = _Asked(id(component), item, many)
    return batcher(asked) if io is flow.SYNC else await batcher.get(asked)


def _item(asked: _Asked) -> Any:
    return asked.item


def _send(asked: Sequence[_Asked]) -> Sequence[Any]:
    return run(_asend(asked))


async def _asend(asked: Sequence[_Asked]) -> Sequence[Any]:
    """Return the answers, sending what each component is asked together."""
    places: dict[int, list[int]] = {}
    for at, one in enumerate(asked):
        places.setdefault(one.component, []).append(at)
    answers: list[Any] = [None] * len(asked)
    for its in places.values():
        found = await asked[its[0]].many([asked[at].item for at in its])
        for at, answer in zip(its, found, strict=True):
            answers[at] = answer
    return answers
