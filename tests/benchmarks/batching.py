"""What joining concurrent calls is worth, and what it costs.

    python -m tests.benchmarks.batching [--quick]

Embeds questions and sentences of mixed lengths with MiniLM (int8, one thread per call) for callers
that ask one text after another: unbatched, and through `MicroBatcher`; and again with passages
among them, which this model is slower at in batches than alone on a processor. Then searches that
look at every row, one by one and at once, through both adapters; then the batcher's own work per
item.
Ratios of embedding are of processor time, by which other jobs on the machine count less; wall time
stands beside it. Each line says whether its bar is met.
Needs the extras `minilm`, `llamaindex` and `langchain`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.embeddings import Embeddings
from llama_index.core.vector_stores.types import VectorStoreQuery
from rich.console import Console
from rich.table import Table

from ragaccel import MicroBatcher
from ragaccel.langchain import CompressedVectorStore
from ragaccel.llamaindex import CompressedVectorStore as LlamaStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DATA = Path(__file__).parents[2] / "examples" / "data" / "xquad_en"
ROUNDS = 1 if "--quick" in sys.argv else 3
TEXTS = 128 if ROUNDS == 1 else 192
ROWS, DIM, QUERIES = 60_000, 384, 32
#: At this many callers both cores together are to beat a service that asks one at a time.
BUSY, ONE_BY_ONE = 32, 2.5


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


def texts(*, passages: bool) -> list[str]:
    """Return questions and sentences by turns; or questions, and a passage after every seventh."""

    def read(name: str, field: str) -> list[str]:
        with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line)[field] for line in lines]

    asked, found = read("queries.jsonl.gz", "text"), read("corpus.jsonl.gz", "text")
    if passages:
        return [found[at % len(found)][:600] if at % 8 == 7 else asked[at] for at in range(TEXTS)]
    sentences = [one for text in found for one in text.split(". ")]
    return [sentences[at * 7] if at % 2 else asked[at] for at in range(TEXTS)]


def spent(ask: Callable[[Any], Any], asked: Sequence[Any], callers: int) -> Any:
    """Return processor and wall seconds of callers that each ask one after another."""
    before = np.array([time.process_time(), time.perf_counter()])
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(ask, asked))
    return np.array([time.process_time(), time.perf_counter()]) - before


def bar(*checks: bool) -> str:
    """Return whether all of a line's bars are met, in words."""
    return "met" if all(checks) else "not met"


def embedding(table: Table, *, passages: bool) -> None:
    """Compare callers with and without a batcher, and with the best fixed batch in order."""
    model, asked = MiniLM(), texts(passages=passages)
    workers = os.cpu_count() or 1
    cores = threading.Semaphore(workers)
    by_length = sorted(asked, key=len)

    def unbatched(text: str) -> Any:
        with cores:
            return model([text])

    def fixed(size: int) -> Any:
        batches = [by_length[at : at + size] for at in range(0, len(asked), size)]
        return spent(model, batches, workers)

    for callers, least, of_fixed in ((1, 0.97, 0.0), (BUSY, 0.0, 0.0), (64, 1.6, 0.9)):
        rows = []
        for _ in range(ROUNDS):
            plain = spent(unbatched, asked, callers)
            lone = spent(unbatched, asked, 1) if callers == BUSY else plain
            grouped = spent(MicroBatcher(model, size=len), asked, callers)
            best = min(fixed(size)[0] for size in (4, 8, 16)) if of_fixed else grouped[0]
            rows.append([*(plain / grouped), (lone / grouped)[1], best / grouped[0]])
        cpu, wall, one_by_one, share = np.median(rows, axis=0)
        checks = [cpu >= least, share >= of_fixed, callers != BUSY or one_by_one >= ONE_BY_ONE]
        table.add_row(
            f"embed {'with passages' if passages else 'questions'}, {callers} callers",
            f"{cpu:.2f}x by processor time, wall {wall:.2f}x",
            f"{one_by_one:.2f}x of one at a time (wall)" if callers == BUSY
            else f"{share:.2f} of the best fixed batch" if of_fixed else "",
            "no bar" if passages else bar(*checks),
        )  # fmt: skip


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
        ratios = [_at_once(ask, later) for _ in range(ROUNDS)]
        threads, tasks = (statistics.median(column) for column in zip(*ratios, strict=True))
        table.add_row(
            f"exact search, {name}",
            f"threads {threads:.1f}x",
            f"tasks {tasks:.1f}x",
            bar(threads >= 4, tasks >= 4),
        )


def _at_once(ask: Callable[[int], Any], later: Callable[[int], Any]) -> tuple[float, float]:
    async def tasks() -> None:
        await asyncio.gather(*map(later, range(QUERIES)))

    started = time.perf_counter()
    for at in range(QUERIES):
        ask(at)
    one_by_one = time.perf_counter() - started
    with ThreadPoolExecutor(QUERIES) as pool:
        started = time.perf_counter()
        list(pool.map(ask, range(QUERIES)))
        threads = time.perf_counter() - started
    started = time.perf_counter()
    asyncio.run(tasks())
    return one_by_one / threads, one_by_one / (time.perf_counter() - started)


def overhead(table: Table) -> None:
    """Measure the batcher's own processor time per item, around a call that does nothing."""

    async def later(items: Sequence[int]) -> Sequence[int]:
        return items

    def lone() -> float:
        batcher: MicroBatcher[int, int] = MicroBatcher(list)
        started = time.process_time()
        for at in range(10_000):
            batcher(at)
        return (time.process_time() - started) / 10_000 * 1e6

    async def loop(callers: int) -> float:
        batcher: MicroBatcher[int, int] = MicroBatcher(list, acall=later)

        async def one() -> None:
            for at in range(300):
                await batcher.get(at)

        started = time.process_time()
        await asyncio.gather(*(one() for _ in range(callers)))
        return (time.process_time() - started) / (300 * callers) * 1e6

    def threads(callers: int) -> float:
        batcher: MicroBatcher[int, int] = MicroBatcher(list)
        started = time.process_time()
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(lambda _: [batcher(at) for at in range(2000)], range(callers)))
        return (time.process_time() - started) / (2000 * callers) * 1e6

    told = {
        "a lone caller": (15, min(lone() for _ in range(ROUNDS))),
        "8 tasks": (5, min(asyncio.run(loop(8)) for _ in range(ROUNDS))),
        "32 tasks": (5, min(asyncio.run(loop(32)) for _ in range(ROUNDS))),
        "8 threads": (5, min(threads(8) for _ in range(ROUNDS))),
    }
    for who, (most, each) in told.items():
        table.add_row(f"own work, {who}", f"{each:.1f} us per item", "", bar(each <= most))


def main() -> None:
    """Measure and print."""
    table = Table("", "batched", "", "bar")
    overhead(table)
    scans(table)
    embedding(table, passages=False)
    embedding(table, passages=True)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
