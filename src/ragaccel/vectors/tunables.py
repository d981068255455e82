"""What of a collection can be turned while it is searched."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ragaccel.knobs import Knob

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragaccel.vectors.engines import Effort
    from ragaccel.vectors.index import Index
    from ragaccel.vectors.locks import ReadWriteLock

_OVERSAMPLE: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48)
_LEAST_PROBES: Final = {"ivf": 1, "hnsw": 16}
_MOST_PROBES: Final = {"ivf": 256, "hnsw": 512}


def knobs(find: Callable[[], Index | None], lock: ReadWriteLock) -> tuple[Knob, ...]:
    """Return the knobs of a compressed index; none while all rows are compared with.

    What they are turned to holds until the codes are made anew, as when rows become many more.

    Args:
        find: Gives the index there is now.
        lock: The lock that searches take.
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
    return tuple(
        Knob(
            f"search.{field}",
            values,
            partial(of, field),
            partial(turn, field),
            monotone=True,
        )
        for field, values in names.items()
    )


def _effort(find: Callable[[], Index | None]) -> Effort | None:
    index = find()
    return None if index is None else index.effort


def _with(values: tuple[int, ...], current: int) -> tuple[int, ...]:
    return tuple(sorted({*values, current}))
