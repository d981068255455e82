"""Hit rate, stale hits and time of maintained answers, beside other ways to keep a cache right.

    python -m tests.benchmarks.freshness --rows 20000 --operations 3000 --figure freshness.png

Reads are Zipf-distributed over real questions, writes are 70% upserts and 30% deletes, of any rows
or of rows among the nearest twenty of a question that is drawn as the reads are. All ways see the
same operations over one exact collection and keep their entries in the same kind of cache; a hit is
stale if its ids are not those of a search made now. `selective` drops, at every write, exactly the
entries whose answer it changes; `never invalidated` has the hits that the same questions would have
without writes. A miss is the search alone: embedding its question comes on top.
Vectors: all-MiniLM-L6-v2 of passages and headings of Debian manuals.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ragaccel import MultiLevelCache, VectorCollection
from ragaccel.cache import MISSING
from ragaccel.reuse import Answer, answers
from ragaccel.reuse.freshness import dependencies
from ragaccel.vectors import watch
from ragaccel.wrapping.seam import SPARE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

DATA: Final = Path(__file__).parents[3] / "shared" / "data" / "minilm"
K: Final = 10
TTL_OPERATIONS: Final = 1000
WRITES: Final = (0.0, 0.001, 0.01, 0.1, 0.3)
DRAWN: Final = (0.1, 0.3)
UPSERTS: Final = 0.7
NEAR: Final = 20  # rows of a question that are on its topic
CHANGES: Final = (1, 10, 100, 1000, 2500, 7500)
KIND: Final = answers("ids", list, list, list[str], rebuild=lambda _, hits: [h.id for h in hits])


@dataclass
class Way:
    """A way to keep cached answers, and what came of it."""

    collection: VectorCollection
    queries: Vectors
    cache: MultiLevelCache = field(default_factory=MultiLevelCache.open)
    floors: Vectors = field(init=False)  # of the answers that are kept, in score
    held: dict[str, set[int]] = field(default_factory=dict)
    reads: int = 0
    misses: int = 0
    stale: int = 0
    reading: float = 0.0
    writing: float = 0.0

    def __post_init__(self) -> None:
        """Keep no answer yet."""
        self.floors = np.full(len(self.queries), np.inf, np.float32)

    @property
    def hits(self) -> int:
        """Questions that were answered without a search."""
        return self.reads - self.misses

    @property
    def shares(self) -> tuple[float, float]:
        """The hit rate, and the share of stale ones among the hits."""
        return self.hits / self.reads, self.stale / max(1, self.hits)

    def search(self, query: int) -> list[str]:
        """Return the ids that a search finds now."""
        self.misses += 1
        return [hit.id for hit in self.collection.search(self.queries[query], K)[0]]

    def find(self, query: int, now: int) -> list[str]:
        """Answer a question; by default what was ever found is served."""
        del now
        found = self.cache.get(query)
        if found is MISSING:
            found = self.search(query)
            self.cache.set(query, found)
        return found

    def wrote(self, row: str, vector: Vectors | None) -> None:
        """Hear of a row that was written, or is gone."""

    def ask(self, query: int, now: int, true: list[str]) -> None:
        """Answer a question and note what came of it."""
        began, missed = time.perf_counter(), self.misses
        found = self.find(query, now)
        self.reading += time.perf_counter() - began
        self.reads += 1
        self.stale += self.misses == missed and found != true


class Maintained(Way):
    """Ours."""

    def find(self, query: int, now: int) -> list[str]:
        """Answer a question; see `Way`."""
        del now

        def compute() -> Answer[list[str]]:
            with watch(SPARE) as traces:
                found = self.search(query)
            return Answer(found, dependencies(traces))

        return self.cache.get_or_compute(query, compute, kind=KIND).result


class Flush(Way):
    """Everything goes at every write."""

    def wrote(self, row: str, vector: Vectors | None) -> None:
        """Forget all answers."""
        del row, vector
        self.cache.clear()


class Lifetime(Way):
    """An answer is served for so many operations."""

    def find(self, query: int, now: int) -> list[str]:
        """Answer a question; see `Way`."""
        kept = self.cache.get(query)
        if kept is MISSING or kept[0] + TTL_OPERATIONS < now:
            kept = [now, self.search(query)]
            self.cache.set(query, kept)
        found: list[str] = kept[1]
        return found


class Selective(Way):
    """What a write changes goes: by the ids that an answer holds, and by the score of its last."""

    def search(self, query: int) -> list[str]:
        """Search, and note what the answer depends on."""
        self.misses += 1
        hits = self.collection.search(self.queries[query], K)[0]
        self.floors[query] = hits[-1].score
        for hit in hits:
            self.held.setdefault(hit.id, set()).add(query)
        return [hit.id for hit in hits]

    def wrote(self, row: str, vector: Vectors | None) -> None:
        """Forget the answers that a row was in, or is in now."""
        gone = self.held.pop(row, set())
        if vector is not None:
            near = self.queries @ (vector / np.linalg.norm(vector)) >= self.floors
            gone |= set(np.flatnonzero(near).tolist())
        if gone:
            self.floors[list(gone)] = np.inf
            self.cache.delete(*gone)


WAYS: Final[dict[str, type[Way]]] = {
    "maintained": Maintained,
    "flush on write": Flush,
    f"ttl of {TTL_OPERATIONS} operations": Lifetime,
    "never invalidated": Way,
    "selective": Selective,
}


def load(rows: int, count: int) -> tuple[Vectors, Vectors, NDArray[np.int64]]:
    """Return documents, queries, and the rows that are nearest to each query."""
    documents = np.load(DATA / "minilm_docs.f16.npy", mmap_mode="r")[:rows].astype(np.float32)
    queries = np.load(DATA / "minilm_queries.f16.npy")[:count].astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    near = np.argpartition(-(queries @ documents.T), NEAR, axis=1)[:, :NEAR]
    return documents, queries, near


def filled(documents: Vectors, compression: Any = "float32") -> VectorCollection:
    """Return a collection of all documents, in memory."""
    collection = VectorCollection.open(dim=documents.shape[1], compression=compression)
    collection.upsert([str(row) for row in range(len(documents))], documents)
    collection.flush()
    return collection


def play(
    documents: Vectors,
    queries: Vectors,
    near: NDArray[np.int64] | None,
    share: float,
    operations: int,
) -> dict[str, Way]:
    """Read and write in random order, rows near to questions or any, and return what came of it."""
    chance = np.random.default_rng(1)
    collection = filled(documents)
    ways = {name: way(collection, queries) for name, way in WAYS.items()}
    weights = 1 / np.arange(1, len(queries) + 1)
    asked = chance.choice(len(queries), operations, p=weights / weights.sum())
    for now, query in enumerate(asked.tolist()):
        if chance.random() < share:
            row = chance.integers(len(documents)) if near is None else chance.choice(near[query])
            _write(collection, documents, int(row), chance, ways)
            continue
        true = [hit.id for hit in collection.search(queries[query], K)[0]]
        for way in ways.values():
            way.ask(query, now, true)
    collection.close()
    for way in ways.values():
        way.cache.close()
    return ways


def _write(
    collection: VectorCollection,
    documents: Vectors,
    row: int,
    chance: np.random.Generator,
    ways: dict[str, Way],
) -> None:
    vector = None
    if chance.random() < UPSERTS:
        vector = documents[row] + 0.01 * chance.standard_normal(documents.shape[1])
        vector = vector.astype(np.float32)
        collection.upsert([str(row)], [vector])
    else:
        collection.delete([str(row)])
    for way in ways.values():
        began = time.perf_counter()
        way.wrote(str(row), vector)
        way.writing += time.perf_counter() - began


def show(console: Console, title: str, played: dict[float, dict[str, Way]]) -> None:
    """Print a table of the ways by the share of writes."""
    table = Table(title=title)
    for heading in ("writes", "way", "hits", "stale of hits", "ms per question", "ms of writes"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for share, ways in played.items():
        for name, way in ways.items():
            hits, stale = way.shares
            table.add_row(
                f"{share:.1%}",
                name,
                f"{hits:.1%}",
                f"{stale:.2%}",
                f"{1000 * (way.reading + way.writing) / way.reads:.3f}",
                f"{1000 * way.writing / way.reads:.3f}",
            )
        table.add_section()
    console.print(table)


def draw(axis: Axes, played: dict[float, dict[str, Way]]) -> None:
    """Draw the stale share of the hits against the hit rate: a colour a way, a marker a share."""
    for share, marker in zip(played, "osD^v", strict=False):
        for at, (name, way) in enumerate(played[share].items()):
            hits, stale = way.shares
            axis.scatter(
                100 * hits, 100 * stale, marker=marker, color=f"C{at}", label=f"{name}, {share:.0%}"
            )
    axis.set(xlabel="hit rate, %", ylabel="stale answers per hit, %")
    axis.legend(fontsize="small")


def _milliseconds(calls: Sequence[Any]) -> list[float]:
    """Return the median time of each call, made in turn and given its number."""
    spent: list[list[float]] = [[] for _ in calls]
    for at in range(100):
        for one, call in zip(spent, calls, strict=True):
            began = time.perf_counter()
            call(at)
            one.append(1000 * (time.perf_counter() - began))
    return [float(np.median(one)) for one in spent]


def _search(collection: VectorCollection, queries: Vectors, spare: int, at: int) -> None:
    with watch(spare):
        collection.search(queries[at % len(queries)], K)


def misses(console: Console, documents: Vectors, queries: Vectors) -> None:
    """Print what spare rows cost a search."""
    table = Table(title=f"a search for {K} rows, ms")
    for heading in ("codes", "without spare rows", f"with {SPARE}"):
        table.add_column(heading, justify="right")
    for compression in ("float32", "int8", "rabitq4"):
        with filled(documents, compression) as collection:
            search = functools.partial(_search, collection, queries)
            without, with_ = _milliseconds(
                [functools.partial(search, spare) for spare in (0, SPARE)]
            )
        table.add_row(compression, f"{without:.3f}", f"{with_:.3f} ({with_ / without - 1:+.0%})")
    console.print(table)


def replays(console: Console, documents: Vectors, queries: Vectors) -> None:
    """Print what replaying a number of changes costs, beside a search."""
    table = Table(title="replaying changes onto an entry, ms")
    for heading in ("changes", "replay", "search"):
        table.add_column(heading, justify="right")
    chance = np.random.default_rng(2)
    for count in CHANGES:
        if count > max(1000, len(documents) // 8):
            break
        with filled(documents) as collection:
            with watch(SPARE) as traces:
                found = [hit.id for hit in collection.search(queries[0], K)[0]]
            body = KIND.pack(Answer(found, dependencies(traces)))
            far = chance.choice(np.argsort(documents @ queries[0])[: len(documents) // 2], count)
            collection.upsert([f"new {at}" for at in range(count)], documents[far])
            replay, search = _milliseconds(
                [
                    lambda _, body=body: KIND.open(body),
                    functools.partial(_search, collection, queries, 0),
                ]
            )
        table.add_row(f"{count:,}", f"{replay:.3f}", f"{search:.3f}")
    console.print(table)


def main() -> None:
    """Play all shares of writes, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--operations", type=int, default=30_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--only", choices=["any", "topic", "costs"], default=None)
    parser.add_argument("--figure", help="a PNG or SVG file to draw writes on the topic to")
    asked = parser.parse_args()
    console = Console(width=110)
    documents, queries, near = load(asked.rows, asked.queries)
    console.print(
        f"{len(documents):,} documents, {len(queries):,} questions, {asked.operations:,} operations"
    )
    if asked.only in (None, "costs"):
        misses(console, documents, queries)
        replays(console, documents, queries)
    for name, topic, rows in (("any", "any topic", None), ("topic", "the readers' topic", near)):
        if asked.only in (None, name):
            played = {
                share: play(documents, queries, rows, share, asked.operations) for share in WRITES
            }
            show(console, f"writes on {topic}", played)
            if asked.figure and name == "topic":
                figure = Figure((6, 4.5), layout="constrained")
                draw(figure.subplots(), {share: played[share] for share in DRAWN})
                figure.savefig(asked.figure, dpi=100)


if __name__ == "__main__":
    main()
