# /// script
# requires-python = ">=3.10"
# dependencies = ["ragaccel[demo,tune]"]
# ///
"""Let a compressed collection, and a knob of your own, be tuned on recorded questions."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ragaccel import AutoTuner, CompressionSpec, Goal, Knob, VectorCollection
from ragaccel.cli.demo.models import load_model

DATA = Path(__file__).parent / "data" / "xquad_en"
STEP = 5


def texts(name: str) -> Iterator[str]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def main() -> None:
    model: Any = load_model("wordllama")
    # Passages cut in windows of words, as a splitter would, until there are some thousands.
    passages = [
        " ".join(words[start : start + 40])
        for words in map(str.split, texts("corpus.jsonl.gz"))
        for start in range(0, len(words), STEP)
    ]
    questions = list(texts("queries.jsonl.gz"))[:600]
    vectors = np.array(model.embed(passages), dtype=np.float32)
    asked = np.array(model.embed(questions), dtype=np.float32)

    collection = VectorCollection.open(
        dim=vectors.shape[1], compression=CompressionSpec("pq", oversample=48)
    )
    collection.upsert([str(at) for at in range(len(passages))], vectors)
    options = {"documents": True}

    def search(vector: Any) -> Any:
        return collection.search(vector, k=10, documents=options["documents"])[0]

    def turn(value: Any) -> None:
        options["documents"] = value

    knob = Knob("documents", [True, False], lambda: options["documents"], turn)
    goals = [Goal.minimize("latency_p50"), Goal.at_least("recall@10", 0.95)]
    report = AutoTuner([collection], goals=goals, knobs=[knob], ask=search).run(asked)
    print(report.reason)
    print(report.to_toml())


if __name__ == "__main__":
    main()
