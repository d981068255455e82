"""What of a collection can be turned while it is searched."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ragaccel.knobs import Knob
from ragaccel.vectors import choice
from ragaccel.vectors.engines import faiss_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragaccel.vectors.engines import Effort
    from ragaccel.vectors.index import Index
    from ragaccel.vectors.locks import ReadWriteLock
    from ragaccel.vectors.segment import Segment
    from ragaccel.vectors.spec import CompressionSpec
    from ragaccel.vectors.upkeep import Upkeep

_OVERSAMPLE: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48)
_LEAST_PROBES: Final = {"ivf": 1, "hnsw": 16}
_MOST_PROBES: Final = {"ivf": 256, "hnsw": 512}


class _Compressions:
    """The codes of an index in several compressions, each made once."""

    def __init__(self, find: Callable[[], Index | None], index: Index, upkeep: Upkeep) -> None:
        self._find, self._upkeep = find, upkeep
        self._dim, self._rows = index.dim, index.live_count
        self._specs = {_named(one): one for one in (*choice.usual(self._rows), index.spec)}
        self._made: dict[str, Segment] = {}

    def knob(self) -> Knob:
        return Knob(
            "compression", list(self._specs), self._now, self._turn, rebuild=True,
            bytes_at=lambda value: faiss_engine.bytes_of(self._specs[value], self._dim, self._rows),
        )  # fmt: skip

    def _now(self) -> str | None:
        index = self._find()
        return None if index is None else _named(index.spec)

    def _turn(self, value: str) -> None:
        index = self._find()
        if index is not None and index.segment is not None:
            self._made[_named(index.spec)] = index.segment
        if value not in self._made:
            self._made[value] = self._upkeep.encoded(self._specs[value])
        self._upkeep.search_with(self._made[value])


def knobs(
    find: Callable[[], Index | None], lock: ReadWriteLock, upkeep: Upkeep | None = None
) -> tuple[Knob, ...]:
    """Return the knobs of a compressed index; none while all rows are compared with.

    What they are turned to holds until the codes are made anew, as when rows become many more.

    Args:
        find: Gives the index there is now.
        lock: The lock that searches take.
        upkeep: What makes codes; None where the compression is not to be turned.
    """
    index = find()
    if index is None or index.effort is None:
        return ()

    def of(field: str) -> Any:
        effort = _effort(find)
        return None if effort is None else getattr(effort, field)

    def turn(field: str, value: int) -> None:
        with lock.write():
            found, effort = find(), _effort(find)
            if found is not None and effort is not None:
                found.effort = effort._replace(**{field: value})

    names = {"oversample": _with(_OVERSAMPLE, index.effort.oversample)}
    least = _LEAST_PROBES.get(index.spec.structure)
    if least is not None:
        most = min(index.most_probes, _MOST_PROBES[index.spec.structure])
        ladder = [least << step for step in range(16) if least << step < most]
        names["probes"] = _with((*ladder, most), index.effort.probes)
    efforts = tuple(
        Knob(
            f"search.{field}",
            values,
            partial(of, field),
            partial(turn, field),
            monotone=True,
        )
        for field, values in names.items()
    )
    return efforts if upkeep is None else (*efforts, _Compressions(find, index, upkeep).knob())


def _effort(find: Callable[[], Index | None]) -> Effort | None:
    index = find()
    return None if index is None else index.effort


def _named(spec: CompressionSpec) -> str:
    return spec.codec if spec.structure == "flat" else f"{spec.structure} {spec.codec}"


def _with(values: tuple[int, ...], current: int) -> tuple[int, ...]:
    return tuple(sorted({*values, current}))
