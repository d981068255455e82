"""Vectors for `tests.benchmarks.neighbours`: passages, cached questions, and what is asked then."""

from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.cli.demo.models import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

DATA: Final = Path(__file__).parents[3] / "shared" / "data"
CORPORA: Final = (
    "embeddings/squad_sentences_dev.c",
    "embeddings/scifact.c",
    "minilm/minilm_docs.f16",
)
REWORDED: Final = 3000


@dataclass(frozen=True)
class Traffic:
    """Questions that were searched for, and questions that come afterwards, as unit vectors."""

    name: str
    cached: Vectors
    asked: Vectors


def documents() -> Vectors:
    """Return vectors of sentences of Wikipedia, scientific abstracts and passages of manuals."""
    return np.concatenate([_unit(DATA / f"{name}.npy") for name in CORPORA])


def traffic() -> list[Traffic]:
    """Return rewordings of cached questions, and other questions about the same corpus."""
    questions = _unit(DATA / "embeddings/squad_sentences_dev.q.npy")
    places = {
        _plain(row["text"]): at
        for at, row in enumerate(_rows("retrieval/squad_sentences_dev/queries.jsonl.gz"))
    }
    pairs = [
        (places[_plain(row["a"])], row["b"])
        for row in _rows("pairs/disfl_qa.jsonl.gz")
        if _plain(row["a"]) in places
    ][:REWORDED]
    order = np.random.default_rng(0).permutation(len(questions))
    return [
        Traffic(
            "rewordings",
            questions[sorted({at for at, _ in pairs})],
            _embedded([text for _, text in pairs]),
        ),
        Traffic("other questions", questions[order[:5000]], questions[order[5000:10000]]),
    ]


def _embedded(texts: Sequence[str]) -> Vectors:
    """Return vectors of all-MiniLM-L6-v2 in int8, made once."""
    path = Path(tempfile.gettempdir()) / f"ragaccel-neighbours-{len(texts)}.npy"
    if not path.exists():
        np.save(path, load_model("minilm").embed(texts))
    return np.load(path)


def _unit(path: Path) -> Vectors:
    rows = np.load(path).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
