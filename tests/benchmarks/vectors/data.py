"""The vectors that everything is measured on, as files that the child processes map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

MINILM = Path(__file__).parents[4] / "shared" / "data" / "minilm"
K = 10
SEED = 20_261_123
_BLOCK = 50_000
_TIE = 1e-6
_LISTS = 64


@dataclass(frozen=True)
class Data:
    """A base, real questions to it, and the scores of the exact answers.

    Attributes:
        name: Where the vectors come from.
        base: Normalised float32 vectors (n, dim), mapped.
        queries: Normalised float32 questions (m, dim).
        practice: Other questions, which a collection may be calibrated with (p, dim).
        floors: The score of each question's K-th exact answer (m,).
    """

    name: str
    base: Rows
    queries: Rows
    practice: Rows
    floors: Rows

    def save(self, folder: Path) -> Data:
        """Write the arrays to a folder and return them mapped from there."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "base.npy").exists():
            np.save(folder / "base.npy", self.base)
        np.save(folder / "queries.npy", self.queries)
        np.save(folder / "practice.npy", self.practice)
        np.save(folder / "floors.npy", self.floors)
        (folder / "name").write_text(self.name)
        return load(folder)

    def recall(self, query: int, rows: Sequence[int]) -> float:
        """Return recall@K of an answer; rows that score like the K-th exact one are right."""
        found = np.unique(np.asarray([row for row in rows if row >= 0], dtype=np.int64))
        scores = self.base[found] @ self.queries[query]
        return min(K, int((scores >= self.floors[query] - _TIE).sum())) / K


def load(folder: Path) -> Data:
    """Return what `save` wrote; the base stays in the page cache."""
    base = np.load(folder / "base.npy", mmap_mode="r")
    names = ("queries", "practice", "floors")
    return Data((folder / "name").read_text(), base, *(np.load(folder / f"{n}.npy") for n in names))


def prepare(rows: int, folder: Path) -> tuple[Data, str | None]:
    """Write the first `rows` real vectors, or synthetic ones and why; return them mapped."""
    missing = None
    if MINILM.is_dir():
        base, queries = (unit(np.load(MINILM / f"minilm_{n}.f16.npy")) for n in ("docs", "queries"))
        name = f"{min(rows, len(base)):,} real MiniLM vectors"
    else:
        missing = f"{MINILM} is not there: synthetic clustered vectors instead"
        base, queries = clustered(rows)
        name = f"{rows:,} synthetic clustered vectors"
    base = base[:rows]
    practice, queries = queries[::4], np.concatenate([queries[at::4] for at in (1, 2, 3)])
    return Data(name, base, queries, practice, _floors(base, queries)).save(folder), missing


def million(small: Data, rows: int, folder: Path) -> Data:
    """Write `rows` vectors derived from real ones, or return those that are there.

    The real rows; convex mixes of a row with one of its 10 neighbours plus 0.2 times the difference
    of two random rows. The questions stay the real ones, the first 500.
    """
    if (folder / "floors.npy").exists() and len(load(folder).base) == rows:
        return load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(SEED)
    real = np.asarray(small.base)
    neighbours = _neighbours(real)
    made = np.lib.format.open_memmap(folder / "base.npy", "w+", np.float32, (rows, real.shape[1]))
    made[: len(real)] = real[:rows]
    for start in range(len(real), rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        one = draw.integers(len(real), size=count)
        other = neighbours[one, draw.integers(neighbours.shape[1], size=count)]
        share = draw.random((count, 1), dtype=np.float32)
        apart = real[draw.integers(len(real), size=count)]
        apart = apart - real[draw.integers(len(real), size=count)]
        mixed = share * real[one] + (1 - share) * real[other] + np.float32(0.2) * apart
        made[start : start + count] = unit(mixed)
    made.flush()
    queries = small.queries[:500]
    return Data(f"{rows:,} vectors derived from real ones", made, queries, small.practice,
                _floors(made, queries)).save(folder)  # fmt: skip


def clustered(rows: int, dim: int = 384, queries: int = 1000) -> tuple[Rows, Rows]:
    """Return synthetic vectors around common centres, and questions a little further off."""
    draw = np.random.default_rng(SEED)
    centres = draw.standard_normal((_LISTS * 8, dim), dtype=np.float32)

    def around(count: int, spread: float) -> Rows:
        noise = draw.standard_normal((count, dim), dtype=np.float32)
        return unit(centres[draw.integers(len(centres), size=count)] + np.float32(spread) * noise)

    return around(rows, 0.8), around(queries, 1.1)


def unit(vectors: NDArray[np.floating]) -> Rows:
    """Return float32 vectors of length 1."""
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))


def exact(base: Rows, queries: Rows, k: int) -> tuple[Rows, NDArray[np.int64]]:
    """Return the scores and rows of the k nearest, block by block in bounded memory."""
    scores = np.zeros((len(queries), 0), np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for start in range(0, len(base), _BLOCK):
        block = np.ascontiguousarray(base[start : start + _BLOCK])
        one, two = faiss.knn(queries, block, min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.hstack((scores, one)), np.hstack((rows, two + start))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
    return scores, rows


def _floors(base: Rows, queries: Rows) -> Rows:
    _, rows = exact(base, queries, K)
    last = base[np.sort(rows[:, -1])][np.argsort(np.argsort(rows[:, -1]))]
    return np.einsum("ij,ij->i", last, queries).astype(np.float32)


def _neighbours(rows: Rows) -> NDArray[np.int64]:
    """Return about 10 near rows of each: of 16 nearest by codes, without the row itself."""
    index = faiss.index_factory(rows.shape[1], "IVF1,PQ192x4fs", faiss.METRIC_INNER_PRODUCT)
    index.train(rows[:20_000])
    index.add(rows)
    _, found = index.search(rows, 17)
    return np.asarray(found[:, 1:11])
