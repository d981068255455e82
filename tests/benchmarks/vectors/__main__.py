"""Our compressed vector collection beside its peers: memory, recall and throughput in one run.

    python -m tests.benchmarks.vectors --plot frontier.png --markdown frontier.md

Single queries on one thread of one core. Every contender runs in a process of its own, where its
throughput is the median ratio to `faiss.IndexFlatIP` of rounds that measure both in turn, so that a
noisy machine disturbs both alike. Needs `uv sync --group bench`; peers that are not installed are
left out with a message.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tests.benchmarks.vectors import ONE_THREAD, data, filters, ours, peers, report, stores
from tests.benchmarks.vectors.child import MARK
from tests.benchmarks.vectors.contender import Line

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[3]
PARTS = ("raw", "llamaindex", "langchain", "filters", "writes")
_SLOW_BUILD_SECONDS = 400
console = Console(width=None if sys.stdout.isatty() else 180)


class Run:
    """One run: where its files are, and what was measured so far."""

    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        """Prepare the vectors."""
        self.asked, self.work = asked, work
        self.lines: list[Line] = []
        self.filtered: list[dict[str, Any]] = []
        self.writes: list[dict[str, Any]] = []
        self.small, missing = data.prepare(asked.rows, work / "small")
        if missing:
            console.print(f"[yellow]{missing}[/]")

    def wanted(self, names: Iterable[str]) -> list[str]:
        """Return the names that were asked for; a part of a name is enough."""
        asked = self.asked.peers.split(",")
        return [
            one for one in names
            if "all" in asked or any(part.strip().lower() in one.lower() for part in asked)
        ]  # fmt: skip

    def child(self, kind: str, name: str, folder: str, *, keep: bool = False, **job: Any) -> list:
        """Measure a contender in a process of its own and return what it told."""
        place = self.work / "contenders" / f"{kind} {name} {folder}".replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        full = {"kind": kind, "name": name, "data": str(self.work / folder), "work": str(place),
                "core": self.asked.core,
                **job}  # fmt: skip
        if "work" in job:
            full["work"] = str(self.work / job["work"])
            Path(full["work"]).mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        done = _call(full, self.asked.timeout)
        found = [
            json.loads(line.removeprefix(MARK))
            for line in done.stdout.splitlines()
            if line.startswith(MARK)
        ]
        for line in done.stdout.splitlines():
            if line.startswith("left out"):
                console.print(f"[yellow]{line}[/]", highlight=False)
        if done.returncode:
            last = ([line for line in done.stderr.splitlines() if line.strip()] or ["no message"])[
                -1
            ]
            console.print(f"[red]left out: {kind} {name}: {last}[/]", highlight=False)
        console.print(f"[dim]{kind} {name}: {time.perf_counter() - started:.0f} s[/]")
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
        return found

    def group(self, kind: str, names: Iterable[str], folder: str, title: str, **job: Any) -> None:
        """Measure several contenders of a group and print its table."""
        made = [
            Line(**one) for name in names for one in self.child(kind, name, folder, **job)
        ]  # fmt: skip
        for line in made:
            line.group = title
        self.lines += made
        console.print(report.lines_table(title, made))


def _call(job: dict[str, Any], timeout: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks.vectors.child", json.dumps(job)]
    source = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": f"{source}:{ROOT}".strip(":")}
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        told = error.stdout or b""
        told = told if isinstance(told, str) else told.decode(errors="replace")
        return subprocess.CompletedProcess(command, 1, told, f"took over {timeout:.0f} s")


def sixty_thousand(run: Run) -> list[report.Bar]:
    """Measure the parts that run on the real vectors; return their bars."""
    name, dim, parts = run.small.name, run.small.base.shape[1], run.asked.parts.split(",")
    bars: list[report.Bar] = []
    settings = run.asked.ours.split(",") if run.asked.ours else list(ours.SETTINGS)
    if "raw" in parts:
        title = f"{name}, raw calls"
        run.group("raw", run.wanted(["ours", *peers.PEERS]), "small", title, settings=settings)
        bars.append(report.floor_bar(run.lines, 0.995, 20, dim, 1 / 24))
        bars += report.peer_bars(run.lines)
    for kind, known in (("llamaindex", stores.LLAMAINDEX), ("langchain", stores.LANGCHAIN)):
        if kind in parts:
            title = f"{name}, {kind} query call"
            run.group(kind, run.wanted(known), "small", title)
            bars += report.peer_bars([one for one in run.lines if one.group == title])
    if "filters" in parts:
        for one in run.wanted(filters.CONTENDERS):
            run.filtered += run.child("filters", one, "small", settings=[run.asked.setting])
        console.print(report.filter_table(run.filtered))
        bars += report.filter_bars(run.filtered)
    if "writes" in parts:
        same = {"work": "own", "settings": [run.asked.setting]}
        run.writes += run.child("writes", "ours", "small", **same)
        run.writes += run.child("opening", "ours", "small", place="writes", **same)
        console.print(report.write_table(run.writes))
        bars += report.write_bars(run.writes)
    return bars


def million(run: Run) -> list[report.Bar]:
    """Measure ours, exact search and the fastest peers on a million rows; return the bars."""
    large = data.million(run.small, run.asked.million_rows, run.work / "large")
    title = f"{large.name}, raw calls"
    settings = run.asked.ours.split(",") if run.asked.ours else list(ours.MILLION)
    names = run.wanted(["ours", *peers.FAST])
    run.group("raw", names, "large", title, settings=settings, work="own-large")
    lines = [line for line in run.lines if line.group == title]
    where = {"work": "own-large", "place": "ours", "settings": [run.asked.setting]}
    opened = run.child("opening", "ours", "large", **where)
    console.print(report.write_table(opened))
    run.writes += opened
    dim = large.base.shape[1]
    return [
        report.floor_bar(lines, 0.97, 50, dim),
        report.floor_bar(lines, 0.99, 15, dim),
        *report.peer_bars(lines),
        *report.write_bars(opened),
    ]


def _arguments() -> argparse.Namespace:
    told = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told.add_argument("--rows", type=int, default=60_000)
    told.add_argument("--million", action="store_true", help="the derived rows as well")
    told.add_argument("--million-rows", type=int, default=1_000_000)
    told.add_argument("--peers", default="all", help="parts of names, with commas; ours counts")
    told.add_argument("--parts", default=",".join(PARTS), help='some of them; "" for none')
    told.add_argument("--ours", help="settings as codec[/structure][*oversample][@recall]")
    told.add_argument("--setting", default="auto@0.99", help="ours in filters and writes")
    told.add_argument("--timeout", type=float, default=_SLOW_BUILD_SECONDS, help="per contender")
    told.add_argument("--work", type=Path, help="keep vectors there for another run")
    told.add_argument("--core", type=int, help="the one to measure on; by default the last")
    told.add_argument("--plot", type=Path)
    told.add_argument("--markdown", type=Path)
    told.add_argument("--json", type=Path, help="everything that was measured")
    return told.parse_args()


def main() -> None:
    """Measure what was asked for and print it with the bars."""
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="ragaccel-bench-") as temporary:
        work = asked.work or Path(temporary)
        for stale in ("own", "own-large", "contenders"):
            shutil.rmtree(work / stale, ignore_errors=True)
        run = Run(asked, work)
        load = os.getloadavg()[0]
        console.print(f"{run.small.name}, {len(run.small.queries)} questions; load {load:.1f}")
        bars = sixty_thousand(run)
        if asked.million:
            bars += million(run)
        console.print(report.bars_table(bars))
        if asked.markdown:
            asked.markdown.write_text(report.markdown(run.lines, bars))
        if asked.plot and run.lines:
            first = run.lines[0].group
            drawn = [line for line in run.lines if line.group == first]
            report.plot(drawn, asked.plot, first)
        if asked.json:
            made = {"lines": [line.to_dict() for line in run.lines], "filters": run.filtered,
                    "writes": run.writes, "bars": bars}  # fmt: skip
            asked.json.write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
