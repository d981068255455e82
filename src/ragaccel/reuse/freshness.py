"""Fresh by construction: a cached answer is what a new search would give, or it is not served.

An entry keeps, for every search it came from, the query, the position of the collection's change
log, the rows found with some spare ones, their scores, and the floor: the score of the last of
them. On a hit the changes since then are replayed. A row that is gone leaves, a new one that scores
above the floor enters, and the entry holds as long as it has k rows: nothing below the floor can be
among them. (Yi et al., "Efficient maintenance of materialized top-k views", ICDE 2003.)

New rows are judged by the same filter. An answer that is one plain search is repaired. Where
something stands between the search and the answer (maximal marginal relevance, a threshold, several
searches), the entry is stale as soon as its rows change. Scores that differ by no more than
rounding have no provable order: the entry is stale, too. After a bulk load, more changes than
an eighth of the rows, it is stale without a replay. On compressed vectors the answer is as right as
the search that made it, not the one that a new search would make.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
import numpy as np

from ragaccel.cache import Kind, Stale, Uncacheable
from ragaccel.reuse.reads import Read, follow, reads
from ragaccel.vectors import SearchTrace, find_open
from ragaccel.vectors.filters import Filter  # noqa: TC001 - msgspec reads the annotation
from ragaccel.vectors.metric import prepare, scores
from ragaccel.vectors.watch import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ragaccel.cache.values import Body
    from ragaccel.vectors import Changes, Hit
    from ragaccel.vectors.spec import Metric

R = TypeVar("R")

#: After more changes than this, and than this share of the rows, a replay takes twice as long as a
#: search. From half as many on a search is faster, but its question must be embedded first.
_FEW_CHANGES: Final = 1000
_SHARE_OF_ROWS: Final = 1 / 8
_ROUNDING: Final = 1e-5


class Dependency(msgspec.Struct, array_like=True, frozen=True):
    """A search that an answer came from; see `SearchTrace`."""

    collection: str
    seq: int
    mark: int
    query: bytes
    floor: float
    slots: tuple[int, ...]
    scores: tuple[float, ...] = ()
    k: int = 0
    spare: int = 0
    where: Filter | None = None

    @property
    def answer(self) -> tuple[int, ...]:
        """The rows that were asked for, without the spare ones."""
        return self.slots[: self.k] if self.k else self.slots


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    dependencies: tuple[Dependency, ...]
    result: msgspec.Raw
    reads: tuple[Read, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """A result and the searches it came from: in our stores, and in followed ones of others."""

    result: R
    dependencies: tuple[Dependency, ...] = ()
    reads: tuple[Read, ...] = ()


def dependencies(traces: Sequence[SearchTrace]) -> tuple[Dependency, ...]:
    """Return what an answer depends on."""
    return tuple(
        Dependency(
            trace.collection,
            trace.seq,
            trace.mark,
            trace.query.tobytes(),
            trace.floor,
            trace.slots,
            trace.scores,
            trace.k,
            trace.spare,
            trace.where,
        )
        for trace in traces
    )


def retell(answer: Answer[Any]) -> None:
    """Tell a watcher around a served answer which searches it came from."""
    listening = reads()
    if listening is not None:
        listening += answer.reads
    traces = watched()
    if traces is None:
        return
    for one in answer.dependencies:
        query = np.frombuffer(one.query, dtype=np.float32)
        traces.append(
            SearchTrace(
                one.collection, one.seq, one.mark, query, one.floor, one.slots, one.scores,
                one.k, one.spare, one.where,
            )
        )  # fmt: skip


def answers(
    name: str,
    pack: Callable[[R], Any],
    unpack: Callable[[Any], R],
    shape: Any,
    *,
    documents: Callable[[R], Iterable[str]] = lambda _: (),
    shown: Callable[[R], Any] = lambda result: result,
    rebuild: Callable[[R, list[Hit]], R] | None = None,
) -> Kind[Answer[R]]:
    """Return the cache kind of answers that stay right under writes.

    Args:
        name: Of the kind, part of every key.
        pack: Turns a result into msgspec structs; raises `Uncacheable`.
        unpack: Turns them back into a fresh result.
        shape: The structs' type, which stored bytes are checked against.
        documents: Gives the ids of the documents in a result, by which it can be invalidated.
        shown: Gives what a ttl policy is shown of a result.
        rebuild: Makes a result anew from the one that was kept and the rows that a search would
            find now; None where a result is not just the rows of one search.
    """
    result_decoder = msgspec.msgpack.Decoder(shape)

    def pack_answer(answer: Answer[R]) -> bytes:
        try:
            result = msgspec.Raw(_encoder.encode(pack(answer.result)))
            return _encoder.encode(_Stored(answer.dependencies, result, answer.reads))
        except (TypeError, ValueError, OverflowError) as error:
            raise Uncacheable("value") from error

    def open_answer(body: Body) -> tuple[Answer[R], bytes | None]:
        stored = _decoder.decode(body)
        current = tuple(_follow(one) for one in stored.dependencies)
        followed = tuple(follow(one) for one in stored.reads)
        answer = Answer(unpack(result_decoder.decode(stored.result)), current, followed)
        if (current, followed) == (stored.dependencies, stored.reads):
            return answer, None
        if all(a.answer == b.answer for a, b in zip(current, stored.dependencies, strict=True)):
            return answer, _encoder.encode(_Stored(current, stored.result, followed))
        if rebuild is None or len(current) != 1:
            raise Stale
        repaired = Answer(rebuild(answer.result, _hits(current[0])), current, followed)
        return repaired, pack_answer(repaired)

    return Kind(
        name,
        pack_answer,
        open_answer,
        documents=lambda answer: documents(answer.result),
        result=lambda answer: shown(answer.result),
    )


def _follow(dependency: Dependency) -> Dependency:
    """Return the dependency at the collection's present position; raise `Stale` if none is sure."""
    collection = find_open(dependency.collection)
    if collection is None:
        raise Stale
    if collection.position == (dependency.seq, dependency.mark):
        return dependency
    changes = collection.changes_since(
        dependency.seq,
        mark=dependency.mark,
        limit=max(_FEW_CHANGES, int(len(collection) * _SHARE_OF_ROWS)),
        where=dependency.where,
    )
    if changes is None:
        raise Stale
    gone = set(changes.deleted.tolist())
    if not dependency.k:
        if len(changes.upserted) or not gone.isdisjoint(dependency.slots):
            raise Stale
        return msgspec.structs.replace(dependency, seq=changes.seq, mark=changes.mark)
    found = zip(dependency.slots, dependency.scores, strict=True)
    rows = {slot: score for slot, score in found if slot not in gone}
    for slot, score in _entering(dependency, changes, collection.metric).items():
        if any(abs(score - one) <= _ROUNDING * (1 + abs(one)) for one in rows.values()):
            raise Stale
        rows[slot] = score
    return _moved(dependency, rows, changes)


def _entering(dependency: Dependency, changes: Changes, metric: Metric) -> dict[int, float]:
    """Return the new rows above the floor; raise `Stale` if one is so near that it is not sure."""
    if not len(changes.upserted):
        return {}
    query = prepare(np.frombuffer(dependency.query, dtype=np.float32)[None, :], metric)[0]
    reached, floor = scores(query, prepare(changes.vectors, metric), metric), dependency.floor
    # Scores of equal vectors may differ in the last bits.
    if math.isfinite(floor) and (np.abs(reached - floor) <= _ROUNDING * (1 + abs(floor))).any():
        raise Stale
    above = np.flatnonzero(reached > floor)
    return dict(zip(changes.upserted[above].tolist(), reached[above].tolist(), strict=True))


def _moved(dependency: Dependency, rows: dict[int, float], changes: Changes) -> Dependency:
    """Return the dependency with other rows; raise `Stale` if some below the floor may be missing.

    Where fewer rows existed than were looked for, the floor is minus infinity: none is missing.
    """
    if len(rows) < min(dependency.k, len(dependency.slots)) and math.isfinite(dependency.floor):
        raise Stale
    ranked = sorted(rows.items(), key=lambda row: (-row[1], row[0]))
    reach, floor = dependency.k + dependency.spare, dependency.floor
    if len(ranked) > reach:
        ranked = ranked[:reach]
        floor = ranked[-1][1]
    slots, values = tuple(one for one, _ in ranked), tuple(score for _, score in ranked)
    return msgspec.structs.replace(
        dependency, seq=changes.seq, mark=changes.mark, slots=slots, scores=values, floor=floor
    )


def _hits(dependency: Dependency) -> list[Hit]:
    """Return the rows of the answer as they are stored; raise `Stale` if one is gone meanwhile."""
    collection = find_open(dependency.collection)
    if collection is None:
        raise Stale
    hits = collection.hits_at(dependency.answer, dependency.scores[: dependency.k])
    if len(hits) != len(dependency.answer):
        raise Stale
    return hits


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)
