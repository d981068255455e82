"""Filtered search: recall against exact filtered search, time beside the unfiltered one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ragaccel.vectors import Field
from tests.benchmarks.vectors import ours, stores
from tests.benchmarks.vectors.clock import against
from tests.benchmarks.vectors.data import Data, K, exact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Ask = Callable[[Any, str | None, int], list[int]]

SHARES = (0.001, 0.01, 0.1, 0.5)
#: Rows of random ranks, and the rows nearest to one row: the hard case for graphs and lists.
RANKS = ("random", "near")
_QUERIES = 200


def run(data: Data, work: Path, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield recall and relative time of one contender by kind of filter and selectivity."""
    ask, setting = CONTENDERS[job["name"]](data, work, job)
    some = data.queries[:_QUERIES]
    queries = some if job["name"] == "ours" else some.tolist()
    for name in RANKS:
        ranks = ours.rank(data, name)
        for share in SHARES:
            most = max(K, int(share * len(data.base)))
            speed = against(
                lambda query, name=name, most=most: ask(query, name, most), queries,
                lambda query: ask(query, None, 0), queries, rounds=5,
            )  # fmt: skip
            allowed = np.flatnonzero(ranks < most)
            few = max(10, min(_QUERIES, int(4 / speed.seconds)))
            yield {
                "name": job["name"], "setting": setting, "filter": name, "share": share,
                "recall": _recall(data, allowed, few, lambda q, n=name, m=most: ask(q, n, m),
                                  queries),
                "milliseconds": speed.seconds * 1e3, "times": 1 / speed.ratio,
            }  # fmt: skip


def _recall(data: Data, allowed: Any, few: int, ask: Any, queries: Any) -> float:
    """Return the share of the exact filtered answers that came; a short answer misses some."""
    part = np.asarray(data.base[allowed])
    scores, _ = exact(part, data.queries[:few], K)
    floored = Data(data.name, data.base, data.queries, data.practice, scores[:, -1])
    inside = set(allowed.tolist())
    found = [[row for row in ask(queries[at]) if row in inside] for at in range(few)]
    return float(np.mean([floored.recall(at, rows) for at, rows in enumerate(found)]))


def _ours(data: Data, work: Path, job: dict[str, Any]) -> tuple[Ask, str]:
    setting = job["settings"][0]
    collection = ours.opened(work / "filtered", data.base.shape[1], setting)
    if not len(collection):
        ours.fill(collection, data, RANKS)

    def ask(query: Any, name: str | None, most: int) -> list[int]:
        where = None if name is None else Field(name, "lt", most)
        return [int(hit.id) for hit in collection.search(query, K, where=where)[0]]

    return ask, setting


def _langchain(make: Any, where: Callable[[str, int], Any], call: str) -> Any:
    def contender(data: Data, work: Path, _: dict[str, Any]) -> tuple[Ask, str]:
        store = make(stores.given(data), data.base.shape[1], work)
        stores.add_texts(store, data, RANKS)
        search = getattr(store, call)

        def ask(query: Any, name: str | None, most: int) -> list[int]:
            asked = {} if name is None else {"filter": where(name, most)}
            return [int(one.metadata["n"]) for one, _ in search(query, k=K, **asked)]

        return ask, "LangChain"

    return contender


_CALL = "similarity_search_with_score_by_vector"
CONTENDERS: dict[str, Any] = {
    "ours": _ours,
    "community FAISS": _langchain(
        stores.langchain_faiss, lambda name, most: {name: {"$lt": most}}, _CALL
    ),
    "turbovec 4-bit": _langchain(
        stores.langchain_turbovec,
        lambda name, most: lambda document: document.metadata[name] < most,
        _CALL,
    ),
    "Chroma": _langchain(
        stores.langchain_chroma,
        lambda name, most: {name: {"$lt": most}},
        "similarity_search_by_vector_with_relevance_scores",
    ),
}
