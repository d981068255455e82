"""What the guarantees of `examples/guarantees/README.md` come to, and its figure.

    python -m tests.benchmarks.guarantees --figure examples/guarantees/guarantees.png

Stale answers per hit against the hit rate, by `tests.benchmarks.freshness`; wrong answers per hit
against the hit rate, by `tests.benchmarks.verified`. Needs the extra minilm.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from rich.console import Console

from tests.benchmarks import freshness, verified

if TYPE_CHECKING:
    from collections.abc import Sequence

QUERIES = 2_000
DATA = "hwu64"


def draw(
    played: dict[float, dict[str, freshness.Way]], rows: Sequence[verified.Row], path: str
) -> None:
    """Draw both panels to a file."""
    figure = Figure((11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    freshness.draw(left, played)
    left.set(title="documents are written: how many hits are stale?")
    verified.draw(right, rows)
    right.set(title=f"questions are alike ({DATA}): how many hits are wrong?")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, print, and draw if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--operations", type=int, default=6_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", help="a PNG or SVG file to draw to")
    given: Any = parser.parse_args()
    console = Console(width=110)
    documents, queries, near = freshness.load(given.rows, QUERIES)
    played = {
        share: freshness.play(documents, queries, near, share, given.operations)
        for share in freshness.DRAWN
    }
    freshness.show(console, "writes on the readers' topic", played)
    rows = [row for seed in range(given.seeds) for row in verified.measured(DATA, seed)]
    verified.show(rows, console)
    if given.figure:
        draw(played, rows, given.figure)


if __name__ == "__main__":
    main()
