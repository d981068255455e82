"""Embeddings, as the adapters of both frameworks keep them: a vector to a text, in one precision.

With a cache a vector is given out rounded to that precision, by a miss as by a hit, as a list of
Python floats. What no cache is asked for comes out exactly as the model gave it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from ragaccel.cache import PLAIN, Kind, Uncacheable, flow
from ragaccel.wrapping.fingerprint import fingerprint
from ragaccel.wrapping.joined import together
from ragaccel.wrapping.seam import serve, serve_many
from ragaccel.wrapping.transparent import state_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ragaccel.cache.flow import IO
    from ragaccel.cache.values import Body
    from ragaccel.wrapping.seam import Options

    Vector = list[float]
    Many = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]

#: How far, of their length, two vectors may be apart that are the same but for rounding.
_ALIKE: Final = 1e-4


def rounded(vector: Sequence[float], precision: str) -> Any:
    """Return a vector as an array of a precision.

    Raises:
        Uncacheable: It is no vector of numbers, or one of them is not finite in that precision.
    """
    try:
        exact = np.asarray(vector)
    except ValueError as error:
        raise Uncacheable("value") from error
    if exact.ndim != 1 or exact.dtype.kind not in "fiu":
        raise Uncacheable("value")
    with np.errstate(over="ignore"):
        array = exact.astype(precision)
    if not np.isfinite(array).all():
        raise Uncacheable("value")
    return array


def _kind(precision: str) -> Kind[Vector]:
    def pack(vector: Vector) -> bytes:
        return PLAIN.pack(rounded(vector, precision))

    def open_(body: Body) -> tuple[Vector, None]:
        return PLAIN.open(body)[0].tolist(), None

    def open_many(bodies: Sequence[Body]) -> list[Vector] | None:
        arrays = PLAIN.open_many(bodies)
        return None if arrays is None else [one.tolist() for one in arrays]

    return Kind(f"embedding.{precision}", pack, open_, open_many)


#: Of each precision, how a vector is kept.
EMBEDDING: Final[dict[str, Kind[Vector]]] = {one: _kind(one) for one in ("float32", "float16")}


async def embed_one(
    io: IO,
    component: object,
    options: Options,
    parts: Callable[[], Any],
    call: Callable[[], Awaitable[Vector]],
    *,
    text: Any,
    many: Callable[[Sequence[Any]], Awaitable[Sequence[Vector]]] | None = None,
    is_query: bool = False,
) -> Vector:
    """Embed one text; calls for the same one at the same time are made once.

    With a `batch` among the options, texts that are embedded at the same time are sent together.

    Args:
        io: How to wait; see `ragaccel.cache.flow`.
        component: The wrapped model.
        options: What `accelerate` was asked for.
        parts: Gives everything that decides the vector, the text included; raises `Uncacheable` if
            it cannot.
        call: The model's own call.
        text: What a ttl policy is shown.
        many: The model's call over several texts, if it has one.
        is_query: Whether the text is a query, which a model may embed in a way of its own.
    """
    if many is not None and options.batch is not None:
        call = partial(_joined, io, component, text, call, many, is_query=is_query)
    return await serve(
        io, component, options, EMBEDDING[options.precision], parts, call,
        query=text, stage="embed", kept=partial(_kept, options.precision),
    )  # fmt: skip


async def embed_many(
    io: IO,
    component: object,
    options: Options,
    texts: Sequence[Any],
    parts: Callable[[Any], Any],
    call: Callable[[Sequence[Any]], Awaitable[Sequence[Vector]]],
) -> list[Vector]:
    """Embed texts, each under an entry of its own; only those that are not kept are sent, once.

    Args:
        io: See `embed_one`.
        component: See `embed_one`.
        options: See `embed_one`.
        texts: The texts.
        parts: Gives everything that decides the vector of a text.
        call: The model's own call over some of the texts.
    """
    vectors = await serve_many(
        io, component, options, EMBEDDING[options.precision], texts, parts, call,
        stage="embed", kept=partial(_kept, options.precision),
    )  # fmt: skip
    return cast("list[Vector]", vectors)


def _kept(precision: str, vector: Vector) -> Vector:
    """Return a vector as it is kept; what cannot be kept, as it is."""
    try:
        return cast("Vector", rounded(vector, precision).tolist())
    except Uncacheable:
        return vector


async def _joined(
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
    if is_query:
        state: Any = state_of(component)
        known = state.known
        try:
            measured = "queries are texts", fingerprint(component)
        except Uncacheable:  # its settings may change unseen, and with them what queries are
            return await call()
        are_texts = known.get(measured)
        if are_texts is None:
            alone, among = await call(), (await many([text]))[0]
            known[measured] = _are_alike(alone, among)
            return alone
        if not are_texts:
            return await call()
    return await together(io, component, text, many)


def _are_alike(one: Any, other: Any) -> bool:
    """Tell whether two vectors are the same but for rounding."""
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if first.shape != second.shape:
        return False
    size = float(np.linalg.norm(first)) + float(np.linalg.norm(second))
    return float(np.linalg.norm(first - second)) <= _ALIKE * size
