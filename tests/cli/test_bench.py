"""`ragaccel bench`: profiles a pipeline, and fails where a goal is missed."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from ragaccel.cli import app

PIPELINE = """
def answer(query):
    if query == "bad":
        raise ValueError(query)
    return query.upper()

def make():
    return answer
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "shop_pipeline.py").write_text(PIPELINE)
    (tmp_path / "queries.txt").write_text("one\ntwo\n\nthree\n" * 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("shop_pipeline", None)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.mark.parametrize("name", ["shop_pipeline:answer", "shop_pipeline:make()"])
def test_goals_that_are_met_end_well(folder, name):
    """Every query is asked, the report written, and the exit code 0."""
    (folder / "goals.toml").write_text("[query]\np95 = '10s'\nerror_rate = 0\n")
    done = run(
        name, "--queries", "queries.txt", "--goals", "goals.toml", "--html", "r.html", "--json"
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["requests"], told["missed"]) == (30, [])
    assert "<html" in (folder / "r.html").read_text(encoding="utf-8")


def test_a_goal_that_is_missed_fails(folder):
    """With 1, so that CI stops; the table says which."""
    (folder / "goals.toml").write_text("[query]\np50 = '1ns'\np99 = '10s'\n")
    done = run("shop_pipeline:answer", "--queries", "queries.txt", "--goals", "goals.toml")
    assert done.exit_code == 1
    assert "query.p50" in done.output
    assert "missed" in done.output


def test_json_lines_are_queries_too(folder):
    """Under "query" or "text"; errors of the pipeline are counted."""
    (folder / "q.jsonl").write_text('{"query": "one"}\n{"text": "bad"}\n')
    done = run("shop_pipeline:answer", "--queries", "q.jsonl", "--warmup", 1, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["requests"], told["errors"]) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shop_pipeline:none", "--queries", "queries.txt"], "module:name"),
        (["no_such_module:answer", "--queries", "queries.txt"], "module:name"),
        (["shop_pipeline:answer", "--queries", "none.txt"], "cannot be read"),
        (["shop_pipeline:answer", "--queries", "none[all].txt"], "none[all].txt"),
        (["shop_pipeline:answer", "--queries", "none[/all].txt"], "none[/all].txt"),
        (["shop_pipeline:answer"], "--queries"),
        (["none.sock"], "nothing listens"),
        (["shop_pipeline:answer", "--queries", "empty.txt"], "no queries"),
        (["shop_pipeline:answer", "--queries", "odd.jsonl"], "line 1"),
        (["shop_pipeline:answer", "--queries", "queries.txt", "--goals", "no.toml"], "goals"),
    ],
)
def test_what_cannot_be_used_is_said(folder, arguments, said):
    """With 2, and what to do."""
    (folder / "empty.txt").write_text("\n")
    (folder / "odd.jsonl").write_text("[1]\n")
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_an_error_is_printed_as_it_is(folder):
    """Brackets in it are not read as rich's markup."""
    done = run("shop_pipeline:answer", "--queries", "none[/b][red].txt")
    assert done.exit_code == 2, done.exception
    assert "none[/b][red].txt" in "".join(done.output.split())
