"""Single texts that are embedded at the same time, sent together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.cache import Uncacheable, flow
from ragaccel.fingerprint import fingerprint
from ragaccel.io import run
from ragaccel.transparent import state_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Many = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]

_ALIKE: Final = 1e-4


@dataclass(frozen=True)
class _Text:
    """A text that a component is to embed; copies of a component are other components."""

    component: int
    text: Any
    many: Many = field(compare=False)


async def joined(
    io: flow.IO,
    component: object,
    text: Any,
    call: Callable[[], Awaitable[Any]],
    many: Many,
    *,
    is_query: bool,
) -> Any:
    """Embed a text together with those that others ask for now.

    A query goes with texts only where its model embeds it as it does a text: that is measured with
    the first one, which is embedded both ways.

    Args:
        io: How to wait; see `ragaccel.cache.flow`.
        component: The wrapped model.
        text: The text.
        call: The model's call for it alone.
        many: The model's call over several texts.
        is_query: Whether it is a query.
    """
    state: Any = state_of(component)
    batcher = state.known.get("batcher")
    if batcher is None:
        batcher = state.known.setdefault("batcher", state.options.batch.over(_send, _asend))
    if is_query:
        try:
            measured = "queries are texts", fingerprint(component)
        except Uncacheable:  # its settings may change unseen, and with them what queries are
            return await call()
        are_texts = state.known.get(measured)
        if are_texts is None:
            alone, among = await call(), (await many([text]))[0]
            state.known[measured] = _are_alike(alone, among)
            return alone
        if not are_texts:
            return await call()
    asked = _Text(id(component), text, many)
    return batcher(asked) if io is flow.SYNC else await batcher.get(asked)


def _are_alike(one: Any, other: Any) -> bool:
    """Tell whether two vectors are the same but for rounding."""
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if first.shape != second.shape:
        return False
    size = float(np.linalg.norm(first)) + float(np.linalg.norm(second))
    return float(np.linalg.norm(first - second)) <= _ALIKE * size


def _send(texts: Sequence[_Text]) -> Sequence[Any]:
    return run(_asend(texts))


async def _asend(texts: Sequence[_Text]) -> Sequence[Any]:
    """Return the vectors of texts, sending those of each component together."""
    places: dict[int, list[int]] = {}
    for at, text in enumerate(texts):
        places.setdefault(text.component, []).append(at)
    vectors: list[Any] = [None] * len(texts)
    for its in places.values():
        found = await texts[its[0]].many([texts[at].text for at in its])
        for at, vector in zip(its, found, strict=True):
            vectors[at] = vector
    return vectors
