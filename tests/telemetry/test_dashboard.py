"""The Grafana dashboard says what the table of metrics says, and Prometheus can answer it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import shutil
import subprocess
import urllib.error
import urllib.parse
from http import HTTPStatus
from pathlib import Path

import pytest

from ragaccel.telemetry.metrics import METRICS
from tests.telemetry.test_prometheus import free_port, get, load, wait_for

_FOLDER = Path(__file__).parents[2] / "examples" / "grafana"
_VARIABLES = {
    "$__rate_interval": "10s",
    "$job": ".*",
    "$price_input": "0.15",
    "$price_output": "0.60",
}
_CONFIG = """
scrape_configs:
  - job_name: load
    scrape_interval: 1s
    static_configs: [{{ targets: ["127.0.0.1:{port}"] }}]
"""


def test_the_files_are_what_the_generator_writes():
    """After a change of the table, run `python examples/grafana/generate.py`."""
    for file, text in _generator().written().items():
        assert file.read_text(encoding="utf-8") == text, file.name


def test_every_metric_is_drawn():
    """Each has a panel of its own with its description."""
    panels = [one for one in _dashboard()["panels"] if one["type"] != "row"]
    series = _generator().series
    for name, metric in METRICS.items():
        drawn = [one for one in panels if one["description"] == metric.description]
        assert len(drawn) == 1, name
        assert all(series(name) in target["expr"] for target in drawn[0]["targets"])


def test_panels_do_not_overlap():
    """Each has a place of its own within the dashboard's 24 columns."""
    taken = set()
    for one in _dashboard()["panels"]:
        place = one["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, one["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.slow
def test_prometheus_answers_every_expression(tmp_path):
    """Of a process under load each has a number: none is wrong, and none is empty."""
    program = _prometheus(tmp_path)
    with load() as port, _running(program, tmp_path, port) as server:
        for panel in _dashboard()["panels"]:
            for target in panel.get("targets", ()):
                asked = _filled(target["expr"])
                found = wait_for(lambda asked=asked: _numbers(server, asked))
                assert min(found.values()) >= 0, panel["title"]
        states = _numbers(server, "sum by (ragaccel_cache_breaker) (ragaccel_cache_breakers)")
        rates = _numbers(server, _filled(_expression("Hit rate by level")))
    assert set(states) == {"closed", "open", "half-open"}
    assert 0 < sum(rates.values()) < 1


def _generator():
    spec = importlib.util.spec_from_file_location("generate", _FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _dashboard():
    return json.loads((_FOLDER / "dashboard.json").read_text(encoding="utf-8"))


def _expression(title: str) -> str:
    (panel,) = [one for one in _dashboard()["panels"] if one["title"] == title]
    return panel["targets"][0]["expr"]


def _filled(expression: str) -> str:
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def _prometheus(folder: Path) -> str:
    """Return the program, from the PATH or out of Debian's package."""
    program = shutil.which("prometheus")
    if program is not None:
        return program
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("there is no prometheus on the PATH, and no apt-get to have one from")
    done = subprocess.run(
        ["apt-get", "download", "prometheus"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    packages = list(folder.glob("prometheus_*.deb"))
    if not packages:
        pytest.skip(f"Debian's prometheus cannot be had; try `apt-get update`: {done.stderr}")
    subprocess.run(["dpkg", "-x", packages[0], folder / "package"], check=True)
    return str(folder / "package" / "usr" / "bin" / "prometheus")


@contextlib.contextmanager
def _running(program: str, folder: Path, scraped: int):
    """Run a server that reads a process's metrics every second, and give its address."""
    (folder / "prometheus.yml").write_text(_CONFIG.format(port=scraped), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}",
    ]  # fmt: skip
    log = (folder / "prometheus.log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: _numbers(f"http://{address}", "up == 1"))
            yield f"http://{address}"
        finally:
            process.terminate()


def _numbers(server: str, expression: str) -> dict[str, float]:
    """Return the numbers that an expression has now, by the values of their labels."""
    asked = urllib.parse.urlencode({"query": expression})
    try:
        answer = json.loads(get(f"{server}/api/v1/query?{asked}"))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
            raise  # it is not ready yet
        raise AssertionError(f"{expression}: {error.read().decode()}") from error
    found = {
        " ".join(one["metric"].values()): float(one["value"][1]) for one in answer["data"]["result"]
    }
    return {labels: value for labels, value in found.items() if math.isfinite(value)}
