"""The tuner's search on a grid of real settings, beside other engines at the same budget.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.tuner --measure   # some minutes; kept in a file
    python -m tests.benchmarks.tuner

The grid: {flat, IVF128 with 1, 4, 16, 64 probes, HNSW16 with 16, 64, 256} x {float32, SQ8, SQ4, PQ
of 96, 48 and 24 bytes} x 1, 4, 16 times the candidates, rescored exactly, x batches of 1, 16, 64,
over 10,000 MiniLM vectors: 351 settings that faiss has. Every query's recall, and its CPU time in
each of several rounds over all settings, are kept; an engine that asks a setting gets the times of
one round drawn at random, so it sees the noise of this machine. The optimum is what an exhaustive
search with the same rule (recall above the goal with 99% certainty) takes by the mean of all
rounds, which is what the draws are drawn from. Engines ask `SEARCHED` queries; `CONFIRMED` others
confirm our winner, and the rest judge all.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from ragaccel.tuning.certain import SURE
from ragaccel.tuning.goals import Goal
from ragaccel.tuning.search import Measured, Search
from ragaccel.tuning.study import Space, Study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

DATA: Final = Path(__file__).parents[3] / "shared" / "data" / "minilm"
GRID: Final = Path(tempfile.gettempdir()) / "ragaccel-tuner-grid.npz"
ROWS, QUERIES, ROUNDS, K = 10_000, 1600, 3, 10
SEARCHED, CONFIRMED = 320, 320
SHARE: Final = 0.15
SEEDS: Final = 10
PROBES: Final = {"flat": (1,), "ivf": (1, 4, 16, 64), "hnsw": (16, 64, 256)}
CODECS: Final = ("Flat", "SQ8", "SQ4", "PQ192x4fs", "PQ96x4fs", "PQ48x4fs")
BYTES: Final = (1536, 384, 192, 96, 48, 24)
TIMES, BATCHES = (1, 4, 16), (1, 16, 64)
BEST: Final = Goal.minimize("latency_mean")
GOALS: Final = {
    "tight memory": [Goal.at_least("recall@10", 0.98), Goal.at_most("bytes", 400)],
    "small": [Goal.at_least("recall@10", 0.95), Goal.at_most("bytes", 64)],
    "tiny": [Goal.at_least("recall@10", 0.85), Goal.at_most("bytes", 30)],
}
console = Console(width=150)


# -- the grid --------------------------------------------------------------------------------------


def structures() -> list[tuple[str, int]]:
    """Return structures with their probes; each is a value of the knob "index"."""
    return [(name, probes) for name, many in PROBES.items() for probes in many]


def exists(index: int, codec: int) -> bool:
    """Tell whether faiss has a structure over a codec."""
    return structures()[index][0] != "hnsw" or codec < 3


def settings() -> list[tuple[int, int, int, int]]:
    """Return all settings: index, codec, candidates, batch."""
    every = itertools.product(range(8), range(6), range(3), range(3))
    return [one for one in every if exists(one[0], one[1])]


def measure() -> None:
    """Measure the grid and keep it."""
    import faiss

    faiss.omp_set_num_threads(1)
    docs = np.load(DATA / "minilm_docs.f16.npy")[:ROWS].astype(np.float32)
    asked = np.load(DATA / "minilm_queries.f16.npy")[:QUERIES].astype(np.float32)
    docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    asked = np.random.default_rng(0).permutation(asked / np.linalg.norm(asked, axis=1)[:, None])
    right = np.argsort(-(asked @ docs.T), axis=1)[:, :K]
    every = settings()
    recalls = np.zeros((len(every), QUERIES), np.float32)
    seconds = np.zeros((ROUNDS, len(every), SEARCHED), np.float32)
    built: dict[tuple[str, int], Any] = {}
    for name, codec in {(structures()[i][0], c) for i, c, _, _ in every}:
        factory = {"flat": "", "ivf": "IVF128,", "hnsw": "HNSW16,"}[name] + CODECS[codec]
        index = faiss.index_factory(384, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(docs)
        index.add(docs)
        built[name, codec] = index
        console.print("built", factory)
    find = {one: _finder(built, docs, *one[:3]) for one in every}
    for at, one in enumerate(every):
        if one[3] == 0:
            found = find[one](asked)
            row = [np.isin(right[q], found[q]).mean() for q in range(QUERIES)]
            recalls[[at, at + 1, at + 2]] = row
    for number in range(ROUNDS):
        for at, one in enumerate(every):
            size = BATCHES[one[3]]
            find[one](asked[:64])
            for start in range(0, SEARCHED, size):
                began = time.thread_time_ns()
                find[one](asked[start : start + size])
                part = time.thread_time_ns() - began
                seconds[number, at, start : start + size] = part / size / 1e9
        console.print("round", number)
        np.savez(GRID, recalls=recalls, seconds=seconds[: number + 1])


def _finder(
    built: dict[tuple[str, int], Any], docs: NDArray[np.float32], at: int, codec: int, times: int
) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
    import faiss

    name, probes = structures()[at]
    index, count = built[name, codec], K * TIMES[times]
    parameters = None
    if name == "ivf":
        parameters = faiss.SearchParametersIVF(nprobe=probes)
    elif name == "hnsw":
        parameters = faiss.SearchParametersHNSW(efSearch=max(probes, count))

    def find(queries: NDArray[np.float32]) -> NDArray[np.int64]:
        _, found = index.search(queries, count, params=parameters)
        best = np.empty((len(queries), K), np.int64)
        for q, (query, all_found) in enumerate(zip(queries, found, strict=True)):
            row = all_found[all_found >= 0]
            best[q] = -1
            order = row[np.argsort(-(docs[row] @ query))[:K]]
            best[q, : len(order)] = order
        return best

    return find


class Grid:
    """The measured grid, replayed with its noise."""

    def __init__(self, seed: int) -> None:
        kept = np.load(GRID)
        self.recalls, self.seconds = kept["recalls"].astype(float), kept["seconds"].astype(float)
        self.row = {one: at for at, one in enumerate(settings())}
        self.true = self.seconds.mean(axis=(0, 2))
        self._random = np.random.default_rng(1000 + seed)
        self.spent = 0

    def known(self, setting: tuple[int, ...]) -> dict[str, float]:
        """Return what memory a setting takes; one that faiss has not takes more than there is."""
        if not exists(setting[0], setting[1]):
            return {"bytes": float("inf")}
        name = structures()[setting[0]][0]
        return {"bytes": BYTES[setting[1]] + {"flat": 0, "ivf": 0, "hnsw": 128}[name]}

    def measure(self, setting: tuple[int, ...], queries: NDArray[np.int64]) -> dict[str, Any]:
        """Return recalls, and the times of a round drawn at random."""
        at, number = self.row[setting], self._random.integers(len(self.seconds))
        self.spent += len(queries)
        return {
            "recall@10": self.recalls[at, queries], "seconds": self.seconds[number, at, queries]
        }  # fmt: skip

    def on(self, setting: tuple[int, ...], queries: NDArray[np.int64]) -> Measured:
        """Return a setting's recall on other queries."""
        one = Measured(setting, self.known(setting))
        one.add(queries.tolist(), {"recall@10": self.recalls[self.row[setting], queries]})
        return one

    def optimum(self, goals: list[Goal], *, surely: bool) -> float:
        """Return the least time of a setting that keeps the goals."""
        upto = np.arange(SEARCHED) if surely else np.arange(QUERIES)
        z = SURE if surely else 0.0
        kept = [one for one in settings() if self.on(one, upto).keeps(goals, z)]
        return min(float(self.true[self.row[one]]) for one in kept)


# -- the engines -----------------------------------------------------------------------------------

SPACE: Final = Space(
    ("index", "codec", "candidates", "batch"), (8, 6, 3, 3), (False, False, True, False)
)
#: The same settings with the probes as a monotone knob of their own, as a collection has it.
SPLIT: Final = Space(
    ("structure", "codec", "probes", "candidates", "batch"), (3, 6, 4, 3, 3),
    (False, False, True, True, False),
)  # fmt: skip
Engine = Any


class Split:
    """The grid with the probes as a knob of their own."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @staticmethod
    def whole(setting: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the setting in the grid; None if there is none."""
        many = list(PROBES.values())
        if setting[2] >= len(many[setting[0]]):
            return None
        index = sum(len(one) for one in many[: setting[0]]) + setting[2]
        return (index, setting[1], *setting[3:])

    def known(self, setting: tuple[int, ...]) -> dict[str, float]:
        """See `Grid`."""
        whole = self.whole(setting)
        return {"bytes": float("inf")} if whole is None else self._grid.known(whole)

    def measure(self, setting: tuple[int, ...], queries: NDArray[np.int64]) -> dict[str, Any]:
        """See `Grid`."""
        whole = self.whole(setting)
        assert whole is not None
        return self._grid.measure(whole, queries)


def ours(grid: Grid, goals: list[Goal], budget: int, seed: int) -> tuple[int, ...] | None:
    """Return what the search of the product takes, confirmed on other queries."""
    search = Search(
        SPLIT, Split(grid), BEST, goals, queries=SEARCHED, budget=budget,
        study=Study(SPLIT, seed=seed), seed=seed,
    )  # fmt: skip
    confirm = np.arange(SEARCHED, SEARCHED + CONFIRMED)
    for one in search.run().ranked:
        whole = Split.whole(one.setting)
        if whole is not None and grid.on(whole, confirm).keeps(goals):
            return whole
    return None


def _full(grid: Grid, tried: dict[Any, Measured], setting: tuple[int, ...]) -> Measured:
    """Return a setting measured on all queries, each once."""
    if setting not in tried:
        one = Measured(setting, grid.known(setting))
        one.add(range(SEARCHED), grid.measure(setting, np.arange(SEARCHED)))
        tried[setting] = one
    return tried[setting]


def _winner(tried: dict[Any, Measured], goals: list[Goal]) -> tuple[int, ...] | None:
    kept = [one for one in tried.values() if one.keeps(goals)]
    best = min(kept, key=lambda one: one.value(BEST), default=None)
    return None if best is None else best.setting


def random(grid: Grid, goals: list[Goal], budget: int, seed: int) -> tuple[int, ...] | None:
    """Try settings at random."""
    tried: dict[Any, Measured] = {}
    every = settings()
    for at in np.random.default_rng(seed).permutation(len(every)):
        if grid.spent + SEARCHED > budget:
            break
        _full(grid, tried, every[at])
    return _winner(tried, goals)


def with_optuna(sampler: str) -> Engine:
    """Return an engine: Optuna with constraints; a setting that was tried before is free."""

    def engine(grid: Grid, goals: list[Goal], budget: int, seed: int) -> tuple[int, ...] | None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kind = getattr(optuna.samplers, sampler)
        study = optuna.create_study(sampler=kind(seed=seed))
        tried: dict[Any, Measured] = {}
        for _ in range(150):
            trial = study.ask()
            index = trial.suggest_categorical("index", range(8))
            codec = trial.suggest_categorical("codec", range(6))
            rest = (trial.suggest_int("candidates", 0, 2), trial.suggest_int("batch", 0, 2))
            setting = (index, codec, *rest)
            if not exists(index, codec):
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            if setting not in tried and grid.spent + SEARCHED > budget:
                break
            one = _full(grid, tried, setting)
            for goal in goals:
                trial.set_constraint(str(goal), one.excess(goal))
            study.tell(trial, one.value(BEST))
        return _winner(tried, goals)

    return engine


def greedy(grid: Grid, goals: list[Goal], budget: int, seed: int) -> tuple[int, ...] | None:
    """Turn one knob at a time to where a weighted score is best, as the original article does."""
    random = np.random.default_rng(seed)
    tried: dict[Any, Measured] = {}
    every = settings()
    at = every[random.integers(len(every))]

    def score(setting: tuple[int, ...]) -> float:
        one = _full(grid, tried, setting)
        recall = one.value(goals[0]) / (goals[0].bound or 1)
        memory = (goals[1].bound or 1) / one.value(goals[1])
        return recall + min(1.0, memory) + 1e-4 / one.value(BEST)

    while True:
        for knob in random.permutation(4):
            for value in range(SPACE.sizes[knob]):
                other = (*at[:knob], value, *at[knob + 1 :])
                if not exists(other[0], other[1]):
                    continue
                if other not in tried and grid.spent + SEARCHED > budget:
                    return at
                if score(other) > score(at):
                    at = other
        at_random = every[random.integers(len(every))]
        at = max(at, at_random, key=score) if grid.spent + SEARCHED <= budget else at
        if grid.spent + SEARCHED > budget:
            return at


ENGINES: Final[dict[str, Engine]] = {
    "ragaccel": ours, "random": random, "NSGA-II": with_optuna("NSGAIISampler"),
    "TPE": with_optuna("TPESampler"), "greedy": greedy,
}  # fmt: skip


def race(names: list[str], seeds: int) -> Iterator[tuple[str, ...]]:
    """Yield a line for each engine and goals."""
    budget = int(SHARE * len(settings()) * SEARCHED)
    unseen = np.arange(SEARCHED + CONFIRMED, QUERIES)
    for title, goals in GOALS.items():
        whole = Grid(0)
        surely, plainly = (whole.optimum(goals, surely=one) for one in (True, False))
        console.print(f"{title}: optimum {1e6 * surely:.1f} us surely, {1e6 * plainly:.1f} plainly")
        for name in names:
            ratios, spent, broken, began = [], [], 0, time.process_time()
            for seed in range(seeds):
                grid = Grid(seed)
                winner = ENGINES[name](grid, goals, budget, seed)
                spent.append(grid.spent)
                kept = winner is not None and grid.on(winner, unseen).keeps(goals)
                broken += winner is not None and not kept
                found = np.inf if winner is None else grid.true[grid.row[winner]]
                ratios.append(found / surely if kept else np.inf)
            seconds = (time.process_time() - began) / seeds
            evaluations = float(np.mean(spent)) / SEARCHED
            within = [str(sum(one <= most for one in ratios)) for most in (1.05, 1.15)]
            share = f"{evaluations:.1f} ({evaluations / len(settings()):.1%})"
            yield title, name, *within, f"{max(ratios):.2f}", str(broken), share, f"{seconds:.1f}"


def noise() -> None:
    """Print how much the same settings differ between rounds."""
    means = np.load(GRID)["seconds"].mean(axis=2)
    spread = np.std(np.log(means / np.median(means, axis=0)))
    console.print(f"noise of this machine: a round's mean differs by {spread:.1%} (std)")


def main() -> None:
    """Measure or race."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    asked = parser.parse_args()
    if asked.measure:
        measure()
        return
    noise()
    table = Table("goals", "engine", "<= 5%", "<= 15%", "worst", "broken", "evaluations", "CPU s")
    for line in race(asked.engines.split(","), asked.seeds):
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    main()
