"""The online guard: how soon a bad setting is taken back, how often a harmless one, and its cost.

    python -m tests.benchmarks.guard [--runs N]

Latencies are those of a real retriever, recorded by a `TrafficHandler` while it answered 2,000
queries, and drawn from at random for the trials, of which 5% of the requests are canaries. The cost
is CPU time of the caller's thread, in the best of many loops that take turns: an accelerated
retriever's hit with a guard and without one, while nobody else hears of stages, and while a
listener does, so that there are stages anyway; and `guard.request()` alone. Needs the extras
langchain and demo.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from langchain_core.vectorstores import InMemoryVectorStore
from rich.console import Console
from rich.table import Table

from ragaccel import MultiLevelCache, accelerate, telemetry
from ragaccel.cli.demo.models import langchain_embeddings, load_model
from ragaccel.knobs import Knob
from ragaccel.langchain import TrafficHandler
from ragaccel.tuning.canary import Canary, Terms
from ragaccel.tuning.guard import Guard
from ragaccel.tuning.recorder import TrafficRecorder
from ragaccel.tuning.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SHARE: Final = 0.05
MOST_CANARIES: Final = 2000
BLOCK: Final = 4096
ROUNDS: Final = 60
CALLS: Final = 30


class Planted(NamedTuple):
    """A setting, and how the requests that see it change.

    Attributes:
        name: What it does.
        factor: What all its requests take as much of.
        tail_share: How many of its requests take `tail_factor` times as long.
        tail_factor: See above.
        drift: How far the load swings for all requests, such as 0.3.
        within: The bar: canaries until it is taken back; None if it must not be.
    """

    name: str
    factor: float = 1.0
    tail_share: float = 0.0
    tail_factor: float = 1.0
    drift: float = 0.0
    within: int | None = None


PLANTED: Final = (
    Planted("all requests x 3", factor=3, within=20),
    Planted("all requests x 3, drift ±30%", factor=3, drift=0.3, within=20),
    Planted("10% of requests x 10", tail_share=0.1, tail_factor=10, within=400),
    Planted("10% of requests x 5", tail_share=0.1, tail_factor=5, within=400),
    Planted("harmless"),
    Planted("harmless, drift ±30%", drift=0.3),
)


def retriever(cache: MultiLevelCache | None) -> Any:
    """Return a real retriever over 1,000 passages."""
    store = InMemoryVectorStore(langchain_embeddings(load_model("wordllama")))
    store.add_texts([f"passage {one} speaks of {one % 7} and of {one % 11}" for one in range(1000)])
    return accelerate(store.as_retriever(), cache=cache)


def recorded() -> NDArray[np.float64]:
    """Return the seconds of real requests, as the recorder has written them."""
    found = retriever(None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traffic.jsonl"
        with TrafficRecorder.open(path) as recorder:
            config = {"callbacks": [TrafficHandler(recorder)]}
            for one in range(2000):
                found.invoke(f"who speaks of {one}?" + " and of that" * (one % 9), config=config)
        return np.array([one.seconds for one in Traffic.read(path)][100:])


def tried(
    planted: Planted, draw: Callable[[np.random.Generator, int], NDArray[np.float64]], seed: int
) -> Canary:
    """Try a setting, until it is taken back, is for all, or has had 2,000 requests."""
    random = np.random.default_rng(seed)
    canary = Canary(Terms(shares=(SHARE,)))
    period, phase, at = random.uniform(500, 20_000), random.uniform(0, 2 * math.pi), 0
    while True:
        seconds = draw(random, BLOCK)
        load = np.sin(phase + 2 * math.pi * (at + np.arange(BLOCK)) / period)
        seconds = seconds * (1 + planted.drift * load)
        slow = np.where(random.random(BLOCK) < planted.tail_share, planted.tail_factor, 1)
        changed = seconds * planted.factor * slow
        for is_canary, old, new in zip(
            random.random(BLOCK) < SHARE, seconds.tolist(), changed.tolist(), strict=True
        ):
            if not is_canary or canary.share == 0:
                canary.hear_control(old)
                continue
            canary.hear_canary(new)
            if canary.is_bad or canary.is_through or canary.canaries == MOST_CANARIES:
                return canary
        at += BLOCK


def row(planted: Planted, draw: Any, runs: int) -> tuple[str, ...]:
    """Return what came of the runs, as a row of the table."""
    found = [tried(planted, draw, seed) for seed in range(runs)]
    taken = [one.canaries for one in found if one.is_bad]
    back = f"{len(taken) / runs:.2%}"
    if planted.within is None:
        through = sum(one.is_through for one in found) / runs
        return planted.name, back, "", "", "", f"{through:.0%}", "back <= 1%"
    soon = sum(one <= planted.within for one in taken) / runs
    middle, late = np.percentile(taken, [50, 95]) if taken else (math.nan, math.nan)
    return planted.name, back, f"{middle:.0f}", f"{late:.0f}", f"{soon:.1%}", "", (
        f"within {planted.within}"
    )  # fmt: skip


class Hears:
    """Hears of requests, as a monitor does."""

    def started(self, stage: telemetry.Stage) -> None:
        pass

    def ended(self, stage: telemetry.Stage) -> None:
        pass


def cost() -> list[tuple[str, float, float]]:
    """Return for each way of guarding the microseconds of a call without it, and what it adds."""
    setting = {"top_k": 1}
    knob = Knob("top_k", [1, 2], lambda: setting["top_k"], lambda to: setting.update(top_k=to))
    terms = Terms(shares=(SHARE,), warm_up=10**9)  # so that the trial does not end
    with MultiLevelCache.open() as cache:
        found = retriever(cache)

        def hit() -> None:
            found.invoke("what is asked again and again?")

        def guarded() -> float:
            with Guard.attach(found, [(knob, 2)], terms=terms):
                for _ in range(110):
                    hit()
                return cpu(hit)

        def heard(call: Callable[[], float]) -> float:
            hears = Hears()
            telemetry.listen(hears, ["query"])
            seconds = call()
            telemetry.unlisten(hears)
            return seconds

        hit()
        loops = [
            (cpu(hit), guarded(), heard(lambda: cpu(hit)), heard(guarded)) for _ in range(ROUNDS)
        ]
    plain, alone, monitored, both = (min(times) for times in zip(*loops, strict=True))
    return [
        ("a retriever's hit", plain, alone - plain),
        ("the same, monitored already", monitored, both - monitored),
        ("guard.request(query)", 0.0, bare(knob, terms)),
    ]


def bare(knob: Knob, terms: Terms) -> float:
    """Return the microseconds of a guarded request that does nothing."""
    with Guard.attach(None, [(knob, 2)], terms=terms) as guard:

        def request() -> None:
            with guard.request("a query"):
                pass

        for _ in range(110):
            request()
        return min(cpu(request) for _ in range(ROUNDS))


def cpu(call: Callable[[], Any]) -> float:
    """Return the microseconds of CPU that this thread spends on a call."""
    started = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - started) / CALLS * 1e6


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    console = Console(width=110)
    real = recorded()
    spread = np.std(np.log(real))
    sources = {
        f"recorded (spread {spread:.2f} of the logarithm)": lambda random, n: random.choice(
            real, n
        ),
        "lognormal, spread 0.60": lambda random, n: random.lognormal(0, 0.6, n),
    }
    for source, draw in sources.items():
        table = Table(title=f"{runs} runs each, latencies {source}", title_justify="left")
        for name in ("setting", "back", "p50", "p95", "in time", "for all", "bar"):
            table.add_column(name, justify="left" if name in {"setting", "bar"} else "right")
        for planted in PLANTED:
            table.add_row(*row(planted, draw, runs))
        console.print(table)
    table = Table(title="What a guard costs a request, CPU (bar: 20 µs)", title_justify="left")
    for name in ("request", "without, µs", "added, µs"):
        table.add_column(name, justify="right" if "µs" in name else "left")
    for name, plain, added in cost():
        table.add_row(name, f"{plain:.1f}", f"{added:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
