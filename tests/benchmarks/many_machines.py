"""What taking in documents costs a core, from which many machines can be reckoned up.

    python -m tests.benchmarks.many_machines [--documents 4000]

Rates are by CPU seconds of one thread, by which other jobs on the machine count less. Documents are
passages of the Python library's documentation and of Wikipedia, ten to each; vectors have 384
dimensions. Ends with the table of examples/many_machines/README.md. Needs the extras langchain,
llamaindex, demo and minilm, and langchain-text-splitters.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.cli.demo.corpus import load_corpus
from ragaccel.ingest import ingest
from ragaccel.vectors.segment import Segment
from tests.benchmarks.batching import MiniLM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DATA = Path(__file__).parents[2] / "examples" / "data" / "xquad_en"
DIM = 384
PASSAGES = 10
EMBEDDED, BATCH, QUERIES = 256, 16, 200
SIZES = (10_000_000, 100_000_000, 1_000_000_000)


class Given:
    """Gives vectors that were made before, in no time."""

    def __init__(self, count: int) -> None:
        centres = np.random.default_rng(1).standard_normal((1000, DIM))
        generator = np.random.default_rng(2)
        near = centres[generator.integers(0, 1000, count)]
        made = near + generator.standard_normal((count, DIM))
        self._vectors = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
        self._at = 0

    def embed(self, texts: list[str]) -> Any:
        """Return the next vectors, whatever the texts."""
        at, self._at = self._at, self._at + len(texts)
        return self._vectors.take(range(at, self._at), axis=0, mode="wrap")


class Watch:
    """Adds up the CPU seconds of the calling thread, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Time a block."""
        started = time.thread_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - started


def documents(count: int) -> list[tuple[str, str]]:
    """Return (id, text) of ten passages each."""
    found = [one.text for one in load_corpus(DATA, distractors=20_000).passages]
    passages = (f"{at} {found[at % len(found)]}" for at in range(count * PASSAGES))
    return [(f"{at}", "\n\n".join(islice(passages, PASSAGES))) for at in range(count)]


def split_rate(some: Sequence[tuple[str, str]]) -> float:
    """Return chunks per CPU second of LangChain's recursive splitter, 600 characters each."""
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=600, chunk_overlap=100)
    started = time.process_time()
    made = [part for _, text in some[:500] for part in splitter.split_text(text)]
    return len(made) / (time.process_time() - started)


def embed_rate(some: Sequence[tuple[str, str]]) -> float:
    """Return chunks per CPU second of MiniLM in int8, on one thread."""
    model = MiniLM()
    parts = sorted((part for _, text in some for part in paragraphs(("", text))), key=len)
    parts = parts[:: max(1, len(parts) // EMBEDDED)]
    model(parts[:BATCH])
    started = time.process_time()
    for at in range(0, len(parts), BATCH):
        model(parts[at : at + BATCH])
    return len(parts) / (time.process_time() - started)


class Costs:
    """What a local ingestion took.

    Attributes:
        rows: How many rows it stored.
        here: CPU microseconds a row of what stays in this process: reading, writing and encoding.
        encode: Of these, what making codes took.
        disk: Bytes a row on disk.
        memory: Bytes a row in memory.
        query: CPU milliseconds of a query for a million rows, all of whose codes are read.
        codec: Bytes of a trained codec without codes.
    """

    def __init__(self, some: Sequence[tuple[str, str]]) -> None:
        self.rows = len(some) * PASSAGES
        given, watch = Given(self.rows), Watch()
        add = Segment.add

        def timed(self: Segment, slots: Any, prepared: Any) -> None:
            with watch.on("encode"):
                add(self, slots, prepared)

        with tempfile.TemporaryDirectory() as folder, VectorCollection.open(
            folder, compression="pq"
        ) as collection:  # fmt: skip
            started = time.process_time()
            Segment.add = timed  # type: ignore[method-assign]
            ingest(some, collection, embed=given.embed, transform=paragraphs, workers=0)
            collection.flush()
            Segment.add = add  # type: ignore[method-assign]
            self.here = (time.process_time() - started) / self.rows * 1e6
            self.encode = watch.seconds["encode"] / self.rows * 1e6
            self.memory = collection.stats().bytes_in_memory / self.rows
            started = time.process_time()
            collection.search(given.embed(["x"] * QUERIES), k=10)
            self.query = (time.process_time() - started) / QUERIES / self.rows * 1e9
            sizes = [one.stat().st_size for one in Path(folder).iterdir()]
            self.disk = sum(sizes) / self.rows
        self.codec = _codec_bytes()


def paragraphs(document: tuple[str, str]) -> list[str]:
    """Split at blank lines."""
    return document[1].split("\n\n")


def _codec_bytes() -> int:
    parts: list[bytes] = []
    sample = Given(2000).embed(["x"] * 2000)
    Segment.train(CompressionSpec("pq"), "cosine", sample, 2000).codes.write(parts.append)
    return sum(map(len, parts))


def network(some: Sequence[tuple[str, str]]) -> float:
    """Return the bytes a chunk over the network: its text three times, and its vector."""
    texts = [part for _, text in some[:100] for part in paragraphs(("", text))]
    return 3 * len(pickle.dumps(texts)) / len(texts) + 4 * DIM


def main() -> None:
    """Measure, print the rates and what they come to."""
    count = int(sys.argv[2]) if "--documents" in sys.argv else 4000
    some = documents(count)
    split, embed, costs, sent = split_rate(some), embed_rate(some), Costs(some), network(some)
    load = f"{costs.rows:,} chunks, one core, load {os.getloadavg()[0]:.1f}"
    rates = Table("a chunk of 384 dimensions", "", title=load)
    for name, told in (
        ("split (RecursiveCharacterTextSplitter)", f"{1e6 / split:,.0f} us"),
        ("embed (int8 MiniLM)", f"{1e6 / embed:,.0f} us"),
        ("look up, write, encode here", f"{costs.here:,.0f} us"),
        ("of these, encode", f"{costs.encode:.1f} us, {costs.encode / costs.here:.1%}"),
        ("on disk", f"{costs.disk:,.0f} bytes"),
        ("in memory", f"{costs.memory:,.0f} bytes"),
        ("over the network", f"{sent:,.0f} bytes"),
        ("a query, for each million of rows", f"{costs.query:,.1f} ms"),
        ("a trained codec", f"{costs.codec:,} bytes in all"),
    ):
        rates.add_row(name, told)
    model = Table("chunks", "split", "embed", "here", "of it encode", "disk", "memory", "network",
                  title="core hours, and bytes")  # fmt: skip
    for size in SIZES:
        hours = [size * one / 3600e6 for one in (1e6 / split, 1e6 / embed, costs.here)]
        encode = size * costs.encode / 3600e6
        held = [size * one / 1e9 for one in (costs.disk, costs.memory, sent)]
        model.add_row(
            f"{size:,}", *(f"{one:,.1f} h" for one in (*hours, encode)),
            *(f"{one:,.0f} GB" for one in held),
        )  # fmt: skip
    busy = (1e6 / split + 1e6 / embed) / costs.here
    console = Console(width=120)
    console.print(rates, model, f"one ingestion keeps {busy:.0f} worker cores busy")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
