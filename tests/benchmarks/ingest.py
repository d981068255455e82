"""What a second worker brings, what memory it takes, and what one more document costs.

    python -m tests.benchmarks.ingest [--documents 1000000] [--workers]

`--workers` is for what a second one brings alone. Every part runs in processes of its own. Needs
the extras llamaindex, langchain and demo.
"""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from ragaccel import VectorCollection
from ragaccel.cli.demo.corpus import load_corpus
from ragaccel.cli.demo.models import langchain_embeddings, llamaindex_embedding, load_model
from ragaccel.ingest import ingest

DATA = Path(__file__).parents[2] / "examples" / "data" / "xquad_en"
ROUNDS = 3
HEAVY_DOCUMENTS = 600
DIM = 64
CHUNKS = 7


# -- workers ---------------------------------------------------------------------------------------


def page(number: int) -> str:
    """Return a page of HTML."""
    parts = (f"<p>{number}.{at} <b>bold</b> &amp; <i>more</i> of it</p>" for at in range(800))
    return f"<html><body>{''.join(parts)}</body></html>"


class Paragraphs(HTMLParser):
    """Takes the paragraphs out of a page, in Python: some 10 ms of CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found = [""]

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and len(self.found[-1]) > 2000:
            self.found.append("")

    def handle_data(self, data: str) -> None:
        self.found[-1] += data


def heavy(document: tuple[str, str]) -> list[str]:
    """Split a page into its paragraphs."""
    parser = Paragraphs()
    parser.feed(document[1])
    return parser.found


def shake(texts: list[str]) -> np.ndarray[Any, Any]:
    """Embed without a model, the same in every process."""
    rows = b"".join(hashlib.shake_256(text.encode()).digest(DIM) for text in texts)
    return np.frombuffer(rows, np.uint8).reshape(-1, DIM).astype(np.float32) - 127.5


def cost(workers: int) -> tuple[float, float, float]:
    """Return seconds for the documents, the start of processes included; and CPU of both sides."""
    documents = ((f"{number}", page(number)) for number in range(HEAVY_DOCUMENTS))
    with VectorCollection.open(compression="float32") as collection:  # no codec to be trained
        started, before = time.perf_counter(), _cpu()
        ingest(documents, collection, embed=shake, transform=heavy, workers=workers)
        took, after = time.perf_counter() - started, _cpu()
    return took, after[0] - before[0], after[1] - before[1]


def _cpu() -> tuple[float, float]:
    """Return the CPU seconds of this process, and of its children that have ended."""
    own, children = (resource.getrusage(who) for who in _WHO)
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def spun(count: int) -> float:
    """Return how long so many bare processes take for the same work, shared evenly."""
    program = (
        "from tests.benchmarks.ingest import heavy, page, HEAVY_DOCUMENTS as n\n"
        f"for number in range(n // {count}): heavy(('a', page(number)))"
    )
    started = time.perf_counter()
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    for one in running:
        one.wait()
    return time.perf_counter() - started


def workers(table: Table) -> None:
    """One and two workers by turns, and what the machine itself gives for a second process.

    On a machine that others use there is no second core to be had; from CPU seconds it can be told
    what two free ones would give: all work shared by both, beside one worker alone. The load stands
    beside each round; the best of each is what others disturbed least.
    """
    rounds = []
    for number in range(1, ROUNDS + 1):
        one, two, load = cost(1), cost(2), os.getloadavg()[0]
        bare = spun(1) / spun(2)
        walls, free = one[0] / two[0], one[2] / ((two[1] + two[2]) / 2)
        rounds.append((walls, bare, free))
        table.add_row(
            f"1 to 2 workers, round {number}, load {load:.1f}: {one[0]:.1f} s, {two[0]:.1f} s",
            f"wall {walls:.2f}x", f"bare processes {bare:.2f}x", f"by CPU {free:.2f}x",
        )  # fmt: skip
    middle, best = (map(which, zip(*rounds, strict=True)) for which in (statistics.median, max))
    for name, (walls, bare, free) in (("the median", middle), ("the best", best)):
        table.add_row(
            f"1 to 2 workers, {name}", f"wall {walls:.2f}x", f"bare processes {bare:.2f}x",
            f"by CPU {free:.2f}x",
        )  # fmt: skip


# -- memory ----------------------------------------------------------------------------------------


def short(document: tuple[str, str]) -> list[str]:
    """Return a short text as it is."""
    return [document[1]]


def anonymous(process: psutil.Process) -> int:
    """Return the anonymous bytes of a process and its children; mapped files are not among them."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            status = Path(f"/proc/{one.pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        lines = dict(line.split(":", 1) for line in status.splitlines())
        total += int(lines.get("RssAnon", "0").split()[0]) * 1024
    return total


def ingested(collection: VectorCollection, count: int) -> None:
    """Ingest short documents."""
    documents = ((f"{number}", f"short document {number}") for number in range(count))
    ingest(documents, collection, embed=shake, transform=short, workers=1)


def written(collection: VectorCollection, count: int) -> None:
    """Write the same rows with nothing but `upsert`."""
    for start in range(0, count, 2000):
        texts = [f"short document {number}" for number in range(start, start + 2000)]
        ids = [hashlib.sha256(text.encode()).hexdigest()[:44] for text in texts]
        collection.upsert(ids, shake(texts), texts, document_ids=texts)


def measured(part: str, count: int) -> None:
    """Do one of them; print the most anonymous bytes, those of the collection, and seconds."""
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        process = psutil.Process()
        while not ended.wait(0.1):
            peak = max(peak, anonymous(process))

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder, VectorCollection.open(folder) as collection:
        started = time.perf_counter()
        PARTS[part](collection, count)
        took = time.perf_counter() - started
        own = collection.stats().bytes_in_memory
    ended.set()
    print(peak, own, took)  # noqa: T201 - the parent reads it


PARTS = {"ingest": ingested, "bare upserts": written}


def memory(table: Table, most: int) -> None:
    """Peaks from 10,000 documents on, beside the bare writing of as many rows."""
    first: dict[str, float] = {}
    for count in (10_000, 100_000, most):
        for name in PARTS:
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.ingest", name, str(count)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            high, own, took = (float(one) for one in done.stdout.split())
            above = first.setdefault(name, high)
            table.add_row(
                f"{count:,} documents: {name}, {count / took:,.0f}/s",
                f"{high / 1e6:.0f} MB", f"codes {own / 1e6:.0f} MB", f"{high / above:.2f}x",
            )  # fmt: skip


# -- one more document -----------------------------------------------------------------------------


class Counts:
    """Counts what is split and what is embedded."""

    def __init__(self) -> None:
        self.split = self.embedded = 0


@functools.cache
def passages() -> list[tuple[str, str]]:
    """Return the passages of the demo's corpus as 1,000 documents of seven chunks each."""
    found = load_corpus(DATA, distractors=8000).passages
    return [
        (f"document-{at}", "\n\n".join(one.text for one in found[at : at + CHUNKS]))
        for at in range(0, 1000 * CHUNKS, CHUNKS)
    ]


def one_more_llamaindex(table: Table) -> None:
    """The same documents and one more: ours, and the pipeline with its cache and its docstore."""
    from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
    from llama_index.core.schema import Document, TransformComponent
    from llama_index.core.storage.docstore import SimpleDocumentStore

    from ragaccel.llamaindex import CompressedVectorStore

    counts = Counts()

    class Split(TransformComponent):
        def __call__(self, nodes: Any, **_: Any) -> Any:
            counts.split += len(nodes)
            return [
                Document(text=part, metadata=node.metadata)
                for node in nodes
                for part in node.text.split("\n\n")
            ]

    model = llamaindex_embedding(load_model("wordllama"))

    class Counting(type(model)):  # type: ignore[misc]
        def _get_text_embeddings(self, texts: list[str]) -> Any:
            counts.embedded += len(texts)
            return super()._get_text_embeddings(texts)

    embed = Counting(model_name="wordllama", embed_batch_size=512)

    def documents(count: int) -> list[Document]:
        return [Document(id_=id_, text=text) for id_, text in passages()[:count]]

    def ours(store: Any) -> Any:
        return lambda some: ingest(some, store, embed=embed, transform=Split(), workers=0)

    def pipeline(**options: Any) -> Any:
        made = IngestionPipeline(
            transformations=[Split(), embed], vector_store=CompressedVectorStore.open(), **options
        )
        return lambda some: made.run(documents=some)

    store = SimpleDocumentStore()
    strategy = DocstoreStrategy.UPSERTS
    for name, run in (
        ("ragaccel over LlamaIndex", ours(CompressedVectorStore.open())),
        ("IngestionPipeline, cache", pipeline()),
        ("IngestionPipeline, docstore", pipeline(docstore=store, docstore_strategy=strategy)),
    ):
        _one_more(table, name, run, documents, counts)


def one_more_langchain(table: Table) -> None:
    """The same documents and one more: ours, and incremental `index()`."""
    from langchain_core.documents import Document
    from langchain_core.indexing import InMemoryRecordManager, index

    from ragaccel.langchain import CompressedVectorStore

    counts = Counts()
    embeddings = langchain_embeddings(load_model("wordllama"))

    class Counting(type(embeddings)):  # type: ignore[misc]
        def embed_documents(self, texts: list[str]) -> Any:
            counts.embedded += len(texts)
            return super().embed_documents(texts)

    def split(document: Document) -> list[Document]:
        counts.split += 1
        parts = document.page_content.split("\n\n")
        return [Document(part, metadata=document.metadata) for part in parts]

    def documents(count: int) -> list[Document]:
        return [
            Document(text, id=id_, metadata={"source": id_}) for id_, text in passages()[:count]
        ]

    records = InMemoryRecordManager(namespace="benchmark")
    records.create_schema()
    ours, theirs = (CompressedVectorStore.open(None, Counting()) for _ in range(2))

    def indexed(some: list[Document]) -> Any:
        chunks = [chunk for document in some for chunk in split(document)]
        return index(
            chunks, records, theirs, cleanup="incremental", source_id_key="source",
            key_encoder="sha256",
        )  # fmt: skip

    runs = {
        "ragaccel over LangChain": lambda some: ingest(some, ours, transform=split, workers=0),
        "index(), incremental": indexed,
    }
    for name, run in runs.items():
        _one_more(table, name, run, documents, counts)


def _one_more(table: Table, name: str, run: Any, documents: Any, counts: Counts) -> None:
    before, after = documents(999), documents(1000)
    started = time.process_time()
    run(before)
    first = time.process_time() - started
    counts.split = counts.embedded = 0
    started = time.process_time()
    run(after)
    again = time.process_time() - started
    table.add_row(
        f"999 documents and one more: {name}", f"split {counts.split:,}",
        f"embedded {counts.embedded:,}", f"{first / again:.0f}x ({again * 1e3:.0f} ms CPU)",
    )  # fmt: skip


def main() -> None:
    """Run everything and print it."""
    if len(sys.argv) == 3 and sys.argv[1] in PARTS:
        measured(sys.argv[1], int(sys.argv[2]))
        return
    most = int(sys.argv[2]) if "--documents" in sys.argv else 1_000_000
    os.environ["OMP_NUM_THREADS"] = "1"
    table = Table("", "", "", "ratio", title="Ingestion")
    workers(table)
    if "--workers" not in sys.argv:
        one_more_llamaindex(table)
        one_more_langchain(table)
        memory(table, most)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
