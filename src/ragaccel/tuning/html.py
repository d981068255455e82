"""A tuner's report as one page that loads nothing: tables and inline SVG, every text escaped."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Final

from ragaccel.observe.html import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ragaccel.tuning.report import Row, TuningReport

_WIDTH, _HEIGHT, _MARGIN = 500, 260, 30
_ROW: Final = 22
_LABEL: Final = 180
_MOST: Final = 50


def page(report: TuningReport) -> str:
    """Return the page."""
    template = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        summary="".join(f"<p>{escape(line)}</p>" for line in report.summary()),
        goals="".join(f"<li>{escape(str(goal))}</li>" for goal in report.goals),
        pareto=_pareto(report),
        importances=_bars(report),
        table=table(report.cells(_MOST)),
        toml=escape(report.to_toml()),
        python=escape(report.to_python()),
    )


def _pareto(report: TuningReport) -> str:
    """Draw what is to be best against each bound, the front in dark."""
    best, *others = dict.fromkeys(goal.metric for goal in report.goals)
    front = {id(row) for row in report.pareto}
    drawn = [_scatter(report.rows, best, other, front) for other in others]
    return "".join(drawn) or "<p>There is one goal only, and so nothing to trade.</p>"


def _scatter(rows: Sequence[Row], best: str, other: str, front: set[int]) -> str:
    across_all = [row.metrics[other].value for row in rows]
    up_all = [row.metrics[best].value for row in rows]
    left, right, low, high = min(across_all), max(across_all), min(up_all), max(up_all)
    circles = []
    for x, y, row in zip(across_all, up_all, rows, strict=True):
        across = _MARGIN + (x - left) / ((right - left) or 1) * (_WIDTH - 2 * _MARGIN)
        down = _HEIGHT - _MARGIN - (y - low) / ((high - low) or 1) * (_HEIGHT - 2 * _MARGIN)
        told = ", ".join(f"{name}={value}" for name, value in row.settings.items())
        kind = "front" if id(row) in front else "aside"
        circles.append(
            f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="4">'
            f"<title>{escape(told)}: {other} {x:.4g}, {best} {y:.4g}</title></circle>"
        )
    axis = (
        f'<text x="{_MARGIN}" y="{_HEIGHT - 6}">{escape(other)} {left:.4g} to {right:.4g}</text>'
        f'<text x="{_MARGIN}" y="14">{escape(best)} {low:.4g} to {high:.4g} (upwards)</text>'
    )
    return (
        f"<figure><figcaption>{escape(best)} against {escape(other)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{axis}{"".join(circles)}</svg></figure>'
    )


def _bars(report: TuningReport) -> str:
    if not report.importances:
        return "<p>Too few settings were measured to tell.</p>"
    bars = []
    for at, (name, share) in enumerate(report.importances.items()):
        top = at * _ROW
        bars.append(
            f'<text x="0" y="{top + 15}">{escape(name)}</text>'
            f'<rect class="front" x="{_LABEL}" y="{top + 3}" height="{_ROW - 6}" '
            f'width="{share * (_WIDTH - _LABEL - 60):.1f}"/>'
            f'<text x="{_LABEL + share * (_WIDTH - _LABEL - 60) + 6:.1f}" y="{top + 15}">'
            f"{share:.0%}</text>"
        )
    height = len(bars) * _ROW
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(bars)}</svg>'
