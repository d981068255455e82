"""Measures one contender in a process of its own: `python -m tests.benchmarks.vectors.child JOB`.

JOB is JSON: {"kind": ..., "name": ..., "data": folder, "work": folder, "settings": [...]}. Lines of
results are printed as JSON behind a mark; whatever else a peer prints goes by.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from tests.benchmarks.vectors import data as datasets
from tests.benchmarks.vectors.clock import against, hold_one_thread, private_bytes
from tests.benchmarks.vectors.contender import GROWN, Line
from tests.benchmarks.vectors.data import K

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.vectors.contender import Contender, Setting
    from tests.benchmarks.vectors.data import Data

MARK = "ragaccel-bench "
_RECALL_SECONDS = 4.0
_WARM_UP_SECONDS = 3.0


def tell(result: dict[str, Any]) -> None:
    """Print a result for the parent."""
    print(MARK + json.dumps(result), flush=True)  # noqa: T201


def flat(data: Data) -> Any:
    """Return exact float32 search of faiss over the base."""
    index = faiss.IndexFlatIP(data.base.shape[1])
    for start in range(0, len(data.base), 50_000):
        index.add(np.asarray(data.base[start : start + 50_000]))
    return index


def measure(group: str, name: str, contender: Contender, data: Data, work: Path) -> Iterator[Line]:
    """Yield what was measured of each setting of a contender, beside exact search."""
    index = flat(data)
    single = [query[None, :] for query in data.queries]
    before, started = private_bytes(), time.perf_counter()
    for setting in contender(data, work):
        built, grown = time.perf_counter() - started, private_bytes() - before
        asked = [setting.question(query) for query in data.queries]
        _warm_up(setting, asked)
        speed = against(setting.search, asked, lambda query: index.search(query, K), single)
        recall, count = _recall(setting, asked, data, speed.seconds)
        resident = grown if setting.resident is None else setting.resident
        rows = len(data.base)
        yield Line(
            group, name, setting.label, recall, speed.ratio, speed.cpu_ratio,
            speed.seconds * 1e3, resident / rows,
            setting.how if setting.resident is not None else GROWN, grown / rows, built, count,
        )  # fmt: skip
        del asked
        started = time.perf_counter()


def _warm_up(setting: Setting, asked: list[Any]) -> None:
    """Ask every question once, or as many as there is time for, so that nothing is new to it."""
    end = time.perf_counter() + _WARM_UP_SECONDS
    for question in asked:
        setting.search(question)
        if time.perf_counter() > end:
            return


def _recall(setting: Setting, asked: list[Any], data: Data, seconds: float) -> tuple[float, int]:
    """Return the mean recall, of all questions or of as many as there is time for."""
    count = min(len(asked), max(20, int(_RECALL_SECONDS / seconds)))
    found = [data.recall(at, setting.rows(setting.search(asked[at]))) for at in range(count)]
    return float(np.mean(found)), count


def main() -> None:
    """Do the job that the command line names."""
    job = json.loads(sys.argv[1])
    hold_one_thread(job["core"])
    data, work = datasets.load(Path(job["data"])), Path(job["work"])
    kind, name = job["kind"], job["name"]
    if kind in ("filters", "writes", "opening"):
        from tests.benchmarks.vectors import filters, writes

        todo = {"filters": filters.run, "writes": writes.run, "opening": writes.opening}
        for result in todo[kind](data, work, job):
            tell(result)
        return
    for line in measure(kind, name, _contender(kind, name, job), data, work):
        tell(line.to_dict())


def _contender(kind: str, name: str, job: dict[str, Any]) -> Contender:
    from tests.benchmarks.vectors import ours, peers, stores

    if kind == "llamaindex":
        return stores.LLAMAINDEX[name]
    if kind == "langchain":
        return stores.LANGCHAIN[name]
    if name == "ours":
        return lambda data, work: ours.search(data, work, job["settings"])
    return peers.PEERS[name]


if __name__ == "__main__":
    main()
