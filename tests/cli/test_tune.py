"""`ragaccel tune` finds the settings of a stored collection from recorded traffic."""

from __future__ import annotations

import json
import sys

import faiss
import numpy as np
import pytest
from typer.testing import CliRunner

from ragaccel import CompressionSpec, VectorCollection
from ragaccel.cli import app
from ragaccel.tuning import Traffic

DIM = 32


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A collection of too much effort, recorded traffic, goals, and a module that embeds."""
    (tmp_path / "embedding_of_tune.py").write_text(
        "import numpy as np\n"
        "def embed(text):\n"
        f"    return np.random.default_rng(int(text)).standard_normal({DIM})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # on a busy machine, threads of a search wait for each other
    rows = np.random.default_rng(0).standard_normal((5000, DIM))
    with VectorCollection.open(tmp_path / "store", dim=DIM) as made:
        made.upsert([str(at) for at in range(len(rows))], rows)
        made.build(candidates=[CompressionSpec("int8")], memory_mb=100, progress=False)
        made.tunables()[0].set(48)
    Traffic.of(str(at) for at in range(120)).write(tmp_path / "traffic.jsonl")
    (tmp_path / "goals.toml").write_text(
        '[tune]\nminimize = "latency_mean"\nat_least = {"recall@10" = 0.9}\n'
    )
    yield tmp_path
    faiss.omp_set_num_threads(threads)


def run(*arguments):
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


def test_a_store_is_tuned_and_keeps_it(folder):
    """The settings are told, written, and in the store when it is opened again."""
    done = run(
        folder / "traffic.jsonl", "--store", folder / "store", "--goals", folder / "goals.toml",
        "--embed", "embedding_of_tune:embed", "--html", folder / "report.html",
        "--toml", folder / "found.toml", "--study", folder / "study.log", "--budget", 1500,
    )  # fmt: skip
    assert done.exit_code in {0, 1}, done.output
    told = (folder / "found.toml").read_text()
    assert told in done.output
    assert "Importance of the knobs" in (folder / "report.html").read_text()
    with VectorCollection.open(folder / "store") as collection:
        for knob in collection.tunables():
            assert f'"{knob.name}" = {json.dumps(knob.get())}\n' in told


def test_what_is_missing_is_told(folder):
    """Without a store or a pipeline, and for traffic without queries, it says what to give."""
    done = run(folder / "traffic.jsonl")
    assert done.exit_code == 2
    assert "--pipeline" in done.output
    done = run(folder / "none.jsonl", "--pipeline", "embedding_of_tune:embed")
    assert done.exit_code == 2
    assert "no traffic can be read" in done.output


def test_an_error_is_printed_as_it_is(tmp_path):
    """Brackets in it are not read as rich's markup."""
    done = run(tmp_path / "none[/b][red].jsonl", "--pipeline", "m:n")
    assert done.exit_code == 2, done.exception
    assert "none[/b][red].jsonl" in "".join(done.output.split())
