"""What joining concurrent calls is worth, and what it costs.

    python -m tests.benchmarks.batching [--quick] [own] [search] [embed] [load]

own: the batcher's own work per item, around a call that does nothing. For tasks an event loop's own
work is told beside it: that of waiting for a future, which nobody can be without.
search: searches that look at every row, 32 one by one and 32 at once, through both adapters.
embed: questions of mixed lengths for callers that ask one after another, unbatched and through
`MicroBatcher`, with MiniLM (int8, one thread per call); again with sentences among them, and with
passages, which this model is hardly faster at in batches, or slower, on a processor: no bar.
load: p95 while questions come at random (Poisson, seeded) at 90% of what is answered unbatched by
all cores, measured just before; the same arrivals unbatched and batched, latencies from arrival on.
It needs a machine that nobody else uses: wall time is all there is.
Ratios are of processor time, by which other jobs on the machine count less; wall time stands
beside it. Each line says whether its bar is met.
Needs the extras `minilm`, `llamaindex` and `langchain`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A matrix product takes one thread, as its bar was set; it is read when numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from langchain_core.embeddings import Embeddings
from llama_index.core.vector_stores.types import VectorStoreQuery
from rich.console import Console
from rich.table import Table

from ragaccel import MicroBatcher
from ragaccel.langchain import CompressedVectorStore
from ragaccel.llamaindex import CompressedVectorStore as LlamaStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

DATA = Path(__file__).parents[2] / "examples" / "data" / "xquad_en"
ROUNDS = 1 if "--quick" in sys.argv else 3
TEXTS = 128 if ROUNDS == 1 else 192
ROWS, DIM, QUERIES = 60_000, 384, 32
#: That each caller asks for to measure the batcher's own work.
ITEMS = 1000
#: At this many callers both cores together are to beat a service that asks one at a time.
BUSY, ONE_BY_ONE = 32, 2.5
#: Padded tokens of a batch, about what a core's cache holds the layers of.
BUDGET = 256
#: How much of the unbatched capacity is asked for, and for how long.
LOAD, SECONDS = 0.9, 6


class MiniLM:
    """The model as a server runs it: one thread per call, calls side by side."""

    def __init__(self) -> None:
        import onnxruntime

        from ragaccel.cli.demo.models import load_model

        self._model: Any = load_model("minilm")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = self._model._session
        self._model._session = onnxruntime.InferenceSession(
            session._model_path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, texts: Sequence[str]) -> list[Any]:
        """Embed texts in one pass, as they come."""
        return list(self._model._embed_batch(list(texts)))

    def tokens(self, text: str) -> int:
        """Return how long a text is for the model."""
        return len(self._model._tokenizer.encode(text).ids)

    def batcher(self) -> MicroBatcher[str, Any]:
        """Return what joins calls."""
        return MicroBatcher(self, size=self.tokens, budget=BUDGET)

    def unbatched(self) -> Callable[[str], Any]:
        """Return what makes a call for each text, as many at a time as there are cores."""
        cores = threading.Semaphore(os.cpu_count() or 1)

        def ask(text: str) -> Any:
            with cores:
                return self([text])

        return ask


def texts(kind: str) -> list[str]:
    """Return questions; with sentences by turns, or with a passage after every seventh."""

    def read(name: str, field: str) -> list[str]:
        with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line)[field] for line in lines]

    asked, found = read("queries.jsonl.gz", "text"), read("corpus.jsonl.gz", "text")
    if kind == "passages":
        return [found[at % len(found)][:600] if at % 8 == 7 else asked[at] for at in range(TEXTS)]
    if kind == "sentences":
        sentences = [one for text in found for one in text.split(". ")]
        return [sentences[at * 6] if at % 2 else asked[at] for at in range(TEXTS)]
    return asked[: 6 * TEXTS : 6]


def spent(ask: Callable[[Any], Any], asked: Sequence[Any], callers: int) -> Any:
    """Return processor and wall seconds of callers that each ask one after another."""
    before = np.array([time.process_time(), time.perf_counter()])
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(ask, asked))
    return np.array([time.process_time(), time.perf_counter()]) - before


def bar(*checks: bool) -> str:
    """Return whether all of a line's bars are met, in words."""
    return "met" if all(checks) else "not met"


def embedding(table: Table) -> None:
    """Compare callers with and without a batcher, and with the best fixed batch in order."""
    for kind, least in (("questions", 1.6), ("sentences", 0.0), ("passages", 0.0)):
        embedding_of(kind, least, table)


def embedding_of(kind: str, at_64: float, table: Table) -> None:
    """Compare for one kind of texts."""
    model, asked = MiniLM(), texts(kind)
    unbatched, by_length = model.unbatched(), sorted(asked, key=model.tokens)

    def fixed(size: int) -> Any:
        batches = [by_length[at : at + size] for at in range(0, len(asked), size)]
        return spent(model, batches, os.cpu_count() or 1)

    fixed(8)  # so that no side begins cold
    for callers, least, of_fixed in ((1, 0.97, 0.0), (BUSY, 0.0, 0.0), (64, at_64, 0.9)):
        rows = []
        for _ in range(ROUNDS):
            plain = spent(unbatched, asked, callers)
            lone = spent(unbatched, asked, 1) if callers == BUSY else plain
            grouped = spent(model.batcher(), asked, callers)
            best = min(fixed(size)[0] for size in (4, 8, 16)) if of_fixed else grouped[0]
            rows.append([*(plain / grouped), (lone / grouped)[1], best / grouped[0]])
        cpu, wall, one_by_one, share = np.median(rows, axis=0)
        checks = [cpu >= least, share >= of_fixed, callers != BUSY or one_by_one >= ONE_BY_ONE]
        table.add_row(
            f"embed {'' if at_64 else 'with '}{kind}, {callers} callers",
            f"{cpu:.2f}x by processor time, wall {wall:.2f}x",
            f"{one_by_one:.2f}x of one at a time (wall)" if callers == BUSY
            else f"{share:.2f} of the best fixed batch" if of_fixed else "",
            bar(*checks) if at_64 else "no bar",
        )  # fmt: skip


def load(table: Table) -> None:
    """Compare p95 at 90% of the unbatched capacity, of the same arrivals."""
    model, asked = MiniLM(), texts("questions")
    generator, rows = np.random.default_rng(0), []
    sides = [model.unbatched(), model.batcher()]
    spent(sides[1], asked, BUSY)  # so that no side begins cold
    for turn in range(2 * ROUNDS):
        capacity = len(asked[:64]) / spent(sides[0], asked[:64], BUSY)[1]
        due = np.cumsum(generator.exponential(1 / (LOAD * capacity), int(capacity * SECONDS)))
        found = {at: p95(sides[at], asked, due) * 1e3 for at in ((0, 1), (1, 0))[turn % 2]}
        rows.append([capacity, found[0], found[1], found[1] / found[0]])
    capacity, plain, grouped, ratio = np.median(rows, axis=0)
    table.add_row(
        f"p95 at {LOAD:.0%} of unbatched capacity",
        f"{ratio:.2f} of unbatched: {grouped:.0f} ms, unbatched {plain:.0f} ms",
        f"{capacity:.0f} questions/s unbatched; all rounds: "
        + ", ".join(f"{row[3]:.2f}" for row in rows),
        bar(ratio <= 0.5),
    )


def p95(ask: Callable[[str], Any], asked: Sequence[str], due: Any) -> float:
    """Return the p95 in seconds of texts that are asked when they are due, ready or not."""
    started = time.perf_counter()

    def one(text: str, at: float) -> float:
        ask(text)
        return time.perf_counter() - started - at

    with ThreadPoolExecutor(256) as pool:
        waiting = []
        for text, at in zip(cycle(asked), due.tolist(), strict=False):
            time.sleep(max(0.0, started + at - time.perf_counter()))
            waiting.append(pool.submit(one, text, at))
        return float(np.percentile([one.result() for one in waiting], 95))


class Known(Embeddings):
    """Vectors by number."""

    def __init__(self, vectors: Any) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._vectors[int(text)].tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        vector: list[float] = self._vectors[int(text)].tolist()
        return vector


def scans(table: Table) -> None:
    """Compare 32 exact searches one by one with 32 at once, through both adapters."""
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((QUERIES, DIM)).astype(np.float32)
    rows = generator.standard_normal((ROWS, DIM)).astype(np.float32)
    chain = CompressedVectorStore(Known(queries), compression="float32")
    for start in range(0, ROWS, 5000):
        part = rows[start : start + 5000]
        chain.collection.upsert([str(start + at) for at in range(len(part))], part)
    llama = LlamaStore(compression="float32")
    for start in range(0, ROWS, 5000):
        part = rows[start : start + 5000]
        llama.collection.upsert([str(start + at) for at in range(len(part))], part)

    def ask_chain(at: int) -> Any:
        return chain.similarity_search(str(at), 10)

    def ask_llama(at: int) -> Any:
        return llama.query(VectorStoreQuery(queries[at].tolist(), similarity_top_k=10))

    async def ask_chain_later(at: int) -> Any:
        return await chain.asimilarity_search(str(at), 10)

    async def ask_llama_later(at: int) -> Any:
        query = VectorStoreQuery(queries[at].tolist(), similarity_top_k=10)
        return await llama.aquery(query)

    sides: list[tuple[str, Any, Any]] = [
        ("LangChain", ask_chain, ask_chain_later),
        ("LlamaIndex", ask_llama, ask_llama_later),
    ]
    for name, ask, later in sides:
        ratios = [_at_once(ask, later) for _ in range(2 * ROUNDS + 1)]
        threads, wall, tasks, wall_of_tasks = np.median(ratios, axis=0)
        table.add_row(
            f"exact search, {name}",
            f"threads {threads:.1f}x by processor time, wall {wall:.1f}x",
            f"tasks {tasks:.1f}x, wall {wall_of_tasks:.1f}x",
            bar(threads >= 4, tasks >= 4),
        )


def _at_once(ask: Callable[[int], Any], later: Callable[[int], Any]) -> list[float]:
    """Return how much faster 32 are at once, from threads that are there already and as tasks."""

    async def tasks() -> None:
        await asyncio.gather(*map(later, range(QUERIES)))

    def ask_together(at: int) -> None:
        together.wait()
        ask(at)

    one_by_one = spent(ask, range(QUERIES), 1)
    together = threading.Barrier(QUERIES)
    threads = spent(ask_together, range(QUERIES), QUERIES)
    as_tasks = spent(lambda _: asyncio.run(tasks()), [0], 1)
    return [*(one_by_one / threads), *(one_by_one / as_tasks)]


def overhead(table: Table) -> None:
    """Measure the batcher's own processor time per item, around a call that does nothing."""

    def told(who: str, most: float, each: float, bare: float = 0.0) -> None:
        own = f"{each - bare:.1f} us without the loop's own {bare:.1f}" if bare else ""
        table.add_row(f"own work, {who}", f"{each:.1f} us per item", own, bar(each - bare <= most))

    rounds = range(5 * ROUNDS)
    told("a lone caller", 15, min(_from_threads(1) for _ in rounds))
    told("8 threads", 5, min(_from_threads(8) for _ in rounds))
    for callers in (8, 32):
        both = [[asyncio.run(_from_tasks(callers, item)) for item in (_got, _bare)] for _ in rounds]
        each, bare = np.min(both, axis=0)
        told(f"{callers} tasks", 5, each, bare)


def _from_threads(callers: int) -> float:
    batcher: MicroBatcher[int, int] = MicroBatcher(list)

    def one(caller: int) -> None:
        for at in range(ITEMS):
            batcher(ITEMS * caller + at)

    return float(spent(one, range(callers), callers)[0] / (ITEMS * callers) * 1e6)


async def _from_tasks(callers: int, make: Callable[[], Callable[[int], Awaitable[Any]]]) -> float:
    item = make()

    async def one(caller: int) -> None:
        for at in range(ITEMS):
            await item(ITEMS * caller + at)

    started = time.process_time()
    await asyncio.gather(*map(one, range(callers)))
    return (time.process_time() - started) / (ITEMS * callers) * 1e6


def _got() -> Callable[[int], Awaitable[Any]]:
    async def later(items: Sequence[int]) -> Sequence[int]:
        return items

    return MicroBatcher(list, acall=later).get


def _bare() -> Callable[[int], Awaitable[Any]]:
    """Return what waits for a future that ends, as all others, at the end of the loop's turn."""
    waiting: list[asyncio.Future[None]] = []

    def end() -> None:
        while waiting:
            waiting.pop().set_result(None)

    async def item(_: int) -> None:
        if not waiting:
            asyncio.get_running_loop().call_soon(end)
        waiting.append(asyncio.get_running_loop().create_future())
        await waiting[-1]

    return item


PARTS = {"own": overhead, "search": scans, "embed": embedding, "load": load}


def main() -> None:
    """Measure and print."""
    table = Table("", "batched", "", "bar")
    for name in [one for one in sys.argv[1:] if one in PARTS] or PARTS:
        PARTS[name](table)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
