"""Our collection through its own call, which like the peers' gives ids and scores."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ragaccel.vectors import CompressionSpec, VectorCollection
from tests.benchmarks.vectors.contender import Setting
from tests.benchmarks.vectors.data import K

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.benchmarks.vectors.data import Data

#: What is tried, as codec[/structure][*oversample][@recall][+real]; with +real the effort is set
#: with other questions of the same sort, and from then on: those come last.
SETTINGS = (
    "auto@0.9", "auto@0.95", "auto@0.99", "auto@0.995", "auto@0.999",
    "pq@0.9", "pq@0.95", "pq@0.99", "pq@0.995", "pq@0.999", "pq2@0.99", "pq2@0.999", "pq6@0.995",
    "rabitq1@0.99", "rabitq4@0.99", "int8@0.99", "pq/ivf@0.95", "pq/ivf@0.99", "int8/hnsw@0.99",
    "pq/ivf@0.95+real", "pq/ivf@0.97+real", "pq@0.95+real", "pq@0.99+real", "pq@0.993+real",
    "pq@0.995+real", "pq2@0.995+real",
)  # fmt: skip
MILLION = (
    "pq@0.97", "pq@0.99", "pq/ivf@0.97", "pq@0.99+real", "pq/ivf@0.97+real", "pq/ivf@0.99+real",
    "pq/ivf@0.995+real",
)  # fmt: skip
_BATCH = 5_000
_FORM = re.compile(
    r"(?P<codec>\w+)(?:/(?P<structure>\w+))?(?:\*(?P<oversample>\d+))?(?:@(?P<recall>[\d.]+))?(?P<real>\+real)?"
)
WORDS = "retrieval brings passages that a model has not seen, and it must bring them soon "


def options(setting: str) -> dict[str, Any]:
    """Return the arguments of `VectorCollection.open` for a setting of the lists above."""
    found = _FORM.fullmatch(setting)
    if found is None:
        raise ValueError(f"{setting!r} is not codec[/structure][*oversample][@recall]")
    codec: Any = found["codec"]
    if codec != "auto":
        asked: dict[str, Any] = {"structure": found["structure"]} if found["structure"] else {}
        if found["oversample"]:
            asked["oversample"] = int(found["oversample"])
        codec = CompressionSpec(codec, **asked)
    return {"compression": codec, "recall": float(found["recall"] or 0.99)}


def text(row: int) -> str:
    """Return the text of a row: about what a chunk is, 330 characters."""
    return f"passage {row}: {WORDS * 4}"


def opened(folder: Path, dim: int, setting: str) -> VectorCollection:
    """Open a collection with a setting; where rows are there, they are encoded anew."""
    collection = VectorCollection.open(folder, dim=dim, warm=True, **options(setting))
    asked, kept = options(setting)["compression"], collection.stats()
    if kept.rows and asked != "auto":
        now = kept.compression
        if (now.codec, getattr(now, "structure", None)) != (
            asked.codec,
            getattr(asked, "structure", None),
        ):
            collection.compact()
    collection.flush()  # an effort for another recall is set in the background
    return collection


def fill(collection: VectorCollection, data: Data, extra: Sequence[str] = ()) -> None:
    """Write all rows with texts and metadata: row number, and ranks to select by."""
    ranks = {name: rank(data, name) for name in extra}
    for start in range(0, len(data.base), _BATCH):
        rows = range(start, min(start + _BATCH, len(data.base)))
        collection.upsert(
            [str(row) for row in rows],
            np.asarray(data.base[rows.start : rows.stop]),
            texts=[text(row) for row in rows],
            metadata=[
                {"n": row, **{name: int(ranks[name][row]) for name in extra}} for row in rows
            ],
        )
    collection.flush()


def rank(data: Data, name: str) -> np.ndarray:
    """Return a rank of each row: "random", or "near" by its nearness to one row."""
    draw = np.random.default_rng(1)
    if name == "random":
        return draw.permutation(len(data.base))
    scores = np.asarray(data.base) @ data.base[int(draw.integers(len(data.base)))]
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores)] = np.arange(len(scores))
    return ranks


def search(data: Data, folder: Path, settings: Sequence[str] = SETTINGS) -> Iterator[Setting]:
    """Yield the collection with each setting; one that is not there yet is told and passed over."""
    place = folder / "ours"
    is_new = not place.exists()
    for setting in settings:
        try:
            collection = opened(place, data.base.shape[1], setting)
        except Exception as error:  # noqa: BLE001 - a codec that is not there must not end the run
            print(f"left out: ours {setting}: {error}", flush=True)  # noqa: T201
            continue
        with collection:
            if is_new:
                fill(collection, data)
                is_new = False
            if setting.endswith("+real"):
                collection.calibrate(data.practice)
            kept = collection.stats()
            spec = kept.compression
            label = f"{setting} → {spec.codec}/{getattr(spec, 'structure', 'flat')}"
            yield Setting(
                label,
                lambda query, c=collection: c.search(query, K, documents=False)[0],
                lambda hits: [int(hit.id) for hit in hits],
                resident=kept.bytes_in_memory,
                how="collection.stats()",
            )
