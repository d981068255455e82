"""Writes `dashboard.json` and the table in `README.md` from ragaccel's table of metrics.

Every metric has a panel that its kind decides; a few panels more say what only several tell.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ragaccel.telemetry import attributes
from ragaccel.telemetry.metrics import ERROR, METRICS, NAMESPACE, RESULT, TOKENS, Metric

Json = dict[str, Any]

_HERE = Path(__file__).parent
_BEGIN, _END = "<!-- metrics: written by generate.py -->\n", "<!-- end -->\n"
_ROWS = {
    "stage": "Stages",
    "cache": "Cache",
    "reuse": "Reuse",
    "batch": "Batches",
    "index": "Indexes",
}
_UNITS = {"s": ("seconds", "s"), "By": ("bytes", "bytes")}  # Prometheus's and Grafana's names
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_PRICED = ("input", "output")
_NOT_DRAWN = (NAMESPACE, ERROR)  # what a panel adds up
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 24
_JOB = 'job=~"$job"'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def series(name: str) -> str:
    """Return the name that a metric has in Prometheus."""
    metric = METRICS[name]
    unit = _UNITS[metric.unit][0] if metric.unit in _UNITS else ""
    parts = [label(name), unit, "total" if metric.kind == "counter" else ""]
    return "_".join(part for part in parts if part)


def label(name: str) -> str:
    """Return the name that a label has in Prometheus."""
    return name.replace(".", "_")


def rate(name: str, suffix: str = "", only: str = "") -> str:
    """Return how fast a metric grows, per second."""
    matchers = ",".join(filter(None, (_JOB, only)))
    return f"rate({series(name)}{suffix}{{{matchers}}}[$__rate_interval])"


def by(*labels: str) -> str:
    """Return what a sum is parted by."""
    return f" by ({', '.join(map(label, labels))})" if labels else ""


def legend(*labels: str) -> str:
    """Return what a line is called by the values of its labels."""
    return " ".join(f"{{{{{label(one)}}}}}" for one in labels)


def of_metric(name: str, metric: Metric) -> Json:
    """Return the panel of a metric."""
    drawn = [one for one in metric.labels if one not in _NOT_DRAWN]
    called = legend(*drawn)
    unit = _UNITS[metric.unit][1] if metric.unit in _UNITS else "short"
    if metric.kind == "histogram":
        buckets = f"sum{by('le', *drawn)} ({rate(name, '_bucket')})"
        targets = {
            f"{called} {quantile}".strip(): f"histogram_quantile({share}, {buckets})"
            for quantile, share in _QUANTILES.items()
        }
    elif metric.kind == "counter":
        targets = {called: f"sum{by(*drawn)} ({rate(name)})"}
        unit = "short" if unit == "short" else "percentunit"  # seconds saved in a second
    else:
        worst = "min" if metric.kind == "gauge" else "sum"
        targets = {called: f"{worst}{by(*drawn)} ({series(name)}{{{_JOB}}})"}
    title = name.removeprefix("ragaccel.") + (" per second" if metric.kind == "counter" else "")
    return panel(title, metric.description, unit, targets)


def derived() -> dict[str, list[Json]]:
    """Return by row the panels of what several series tell together."""
    stage, level = attributes.STAGE, attributes.CACHE_LEVEL
    durations, lookups = "ragaccel.stage.duration", "ragaccel.cache.lookups"
    ended = rate(durations, "_count")
    failed = rate(durations, "_count", f'{label(ERROR)}!=""')
    hits = rate(lookups, only=f'{label(RESULT)}="hit"')
    money = " + ".join(f"{_tokens(kind)} * $price_{kind}" for kind in _PRICED)
    return {
        "stage": [
            panel(
                "Stages per second", "How often each stage ended", "ops",
                {legend(stage): f"sum{by(stage)} ({ended})"},
            ),
            panel(
                "Errors per second", "Stages that an exception ended", "ops",
                {legend(stage, ERROR): f"sum{by(stage, ERROR)} ({failed})"},
            ),
        ],
        "cache": [
            panel(
                "Hit rate by level", "Share of all look-ups that each level served; together they "
                "are the cache's hit rate", "percentunit",
                {legend(level): f"sum{by(level)} ({hits}) / scalar(sum({rate(lookups)}))"},
            ),
            panel(
                "Money saved per hour", "Tokens that served values had taken, at the prices above",
                "short", {"saved": f"({money}) / 1e6 * 3600"},
            ),
        ],
    }  # fmt: skip


def _tokens(kind: str) -> str:
    only = f'{label(TOKENS)}="{kind}"'
    return f"sum({rate('ragaccel.cache.saved_tokens', only=only)})"


def panel(title: str, description: str, unit: str, targets: dict[str, str]) -> Json:
    """Return a panel over time; targets are expressions by their legend."""
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": _DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": _DATASOURCE,
                "expr": expression,
                "legendFormat": legend or "all",
                "exemplar": "histogram_quantile" in expression,
            }
            for at, (legend, expression) in enumerate(targets.items())
        ],
    }


def panels() -> list[Json]:
    """Return all panels in rows, each with its place."""
    placed: list[Json] = []
    top, more = 0, derived()
    for prefix, title in _ROWS.items():
        of_row = more.get(prefix, []) + [
            of_metric(name, metric)
            for name, metric in METRICS.items()
            if name.startswith(f"ragaccel.{prefix}.")
        ]
        placed.append({"type": "row", "title": title, "collapsed": False, "panels": []})
        placed[-1]["gridPos"] = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        top += 1
        for at, one in enumerate(of_row):
            row, column = divmod(at * _WIDTH, _COLUMNS)
            place = {"x": column, "y": top + row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            placed.append({**one, "gridPos": place})
        top += -(-len(of_row) * _WIDTH // _COLUMNS) * _HEIGHT
    return [{"id": number, **one} for number, one in enumerate(placed, 1)]


def variables() -> list[Json]:
    """Return what is chosen at the top of the dashboard."""
    asked = f"label_values({series('ragaccel.stage.duration')}_count, job)"
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "job", "label": "Application", "type": "query", "datasource": _DATASOURCE,
            "query": asked, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
        *(
            {
                "name": f"price_{one}", "label": f"Price of 1M {one} tokens", "type": "textbox",
                "query": "1", "current": {"text": "1", "value": "1"},
            }
            for one in _PRICED
        ),
    ]  # fmt: skip


def dashboard() -> Json:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "ragaccel",
        "title": "ragaccel",
        "tags": ["ragaccel", "rag"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables()},
        "panels": panels(),
    }


def table() -> str:
    """Return the metrics as a table in Markdown."""
    lines = ["| metric | in Prometheus | kind | labels | what it tells |", "|---|---|---|---|---|"]
    for name, metric in METRICS.items():
        labels = ", ".join(f"`{one}`" for one in metric.labels)
        kind = f"{metric.kind}, {metric.unit}"
        told = f"`{name}` | `{series(name)}` | {kind} | {labels} | {metric.description}"
        lines.append(f"| {told} |")
    return "\n".join(lines) + "\n"


def written() -> dict[Path, str]:
    """Return what the files hold."""
    readme = (_HERE / "README.md").read_text(encoding="utf-8")
    before, rest = readme.split(_BEGIN)
    return {
        _HERE / "dashboard.json": json.dumps(dashboard(), indent=2) + "\n",
        _HERE / "README.md": before + _BEGIN + table() + _END + rest.split(_END)[1],
    }


if __name__ == "__main__":
    for file, text in written().items():
        file.write_text(text, encoding="utf-8")
