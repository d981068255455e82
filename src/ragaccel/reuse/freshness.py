"""Fresh by construction: a cached answer is served only if a new search would give it again.

An entry keeps, for every search it came from, the query, the position of the collection's change
log, the rows found and the score of the last one. On a hit the changes since then are looked at: a
found row that is gone, or a new row that scores high enough to enter, makes the entry stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
import numpy as np

from ragaccel.cache import Kind, Stale, Uncacheable
from ragaccel.vectors import SearchTrace, find_open
from ragaccel.vectors.metric import prepare, scores
from ragaccel.vectors.watch import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ragaccel.cache.values import Body

R = TypeVar("R")

_ROUNDING: Final = 1e-5


class Dependency(msgspec.Struct, array_like=True, frozen=True):
    """A search that an answer came from; see `SearchTrace`."""

    collection: str
    seq: int
    mark: int
    query: bytes
    floor: float
    slots: tuple[int, ...]


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    dependencies: tuple[Dependency, ...]
    result: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """A result and the searches it came from."""

    result: R
    dependencies: tuple[Dependency, ...] = ()


def dependencies(traces: Sequence[SearchTrace]) -> tuple[Dependency, ...]:
    """Return what an answer depends on."""
    return tuple(
        Dependency(
            trace.collection, trace.seq, trace.mark, trace.query.tobytes(), trace.floor, trace.slots
        )
        for trace in traces
    )


def retell(answer: Answer[Any]) -> None:
    """Tell a watcher around a served answer which searches it came from."""
    traces = watched()
    if traces is None:
        return
    for one in answer.dependencies:
        query = np.frombuffer(one.query, dtype=np.float32)
        traces.append(SearchTrace(one.collection, one.seq, one.mark, query, one.floor, one.slots))


def answers(
    name: str,
    pack: Callable[[R], Any],
    unpack: Callable[[Any], R],
    shape: Any,
    *,
    documents: Callable[[R], Iterable[str]] = lambda _: (),
    shown: Callable[[R], Any] = lambda result: result,
) -> Kind[Answer[R]]:
    """Return the cache kind of answers that stay right under writes.

    Args:
        name: Of the kind, part of every key.
        pack: Turns a result into msgspec structs; raises `Uncacheable`.
        unpack: Turns them back into a fresh result.
        shape: The structs' type, which stored bytes are checked against.
        documents: Gives the ids of the documents in a result, by which it can be invalidated.
        shown: Gives what a ttl policy is shown of a result.
    """
    result_decoder = msgspec.msgpack.Decoder(shape)

    def pack_answer(answer: Answer[R]) -> bytes:
        try:
            result = msgspec.Raw(_encoder.encode(pack(answer.result)))
        except (TypeError, ValueError, OverflowError) as error:
            raise Uncacheable("value") from error
        return _encoder.encode(_Stored(answer.dependencies, result))

    def open_answer(body: Body) -> tuple[Answer[R], bytes | None]:
        stored = _decoder.decode(body)
        current = tuple(_follow(one) for one in stored.dependencies)
        answer = Answer(unpack(result_decoder.decode(stored.result)), current)
        if current == stored.dependencies:
            return answer, None
        return answer, _encoder.encode(_Stored(current, stored.result))

    return Kind(
        name,
        pack_answer,
        open_answer,
        documents=lambda answer: documents(answer.result),
        result=lambda answer: shown(answer.result),
    )


def _follow(dependency: Dependency) -> Dependency:
    """Return the dependency at the collection's present position; raise `Stale` if it changed."""
    collection = find_open(dependency.collection)
    if collection is None:
        raise Stale
    if collection.position == (dependency.seq, dependency.mark):
        return dependency
    changes = collection.changes_since(dependency.seq, mark=dependency.mark)
    if changes is None or not set(dependency.slots).isdisjoint(changes.deleted.tolist()):
        raise Stale
    if len(changes.upserted):
        metric = collection.metric
        query = prepare(np.frombuffer(dependency.query, dtype=np.float32)[None, :], metric)[0]
        reached = scores(query, prepare(changes.vectors, metric), metric)
        # The floor and this score may differ in the last bits for equal vectors.
        if float(reached.max()) >= dependency.floor - _ROUNDING * (1 + abs(dependency.floor)):
            raise Stale
    return msgspec.structs.replace(dependency, seq=changes.seq, mark=changes.mark)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)
