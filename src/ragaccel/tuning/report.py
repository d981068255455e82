"""What a tuner found, as a table, a page, and settings to paste."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ragaccel.tuning import html

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from rich.console import RenderableType

    from ragaccel.tuning.certain import Interval
    from ragaccel.tuning.goals import Goal


@dataclass(frozen=True)
class Row:
    """A setting that was measured.

    Attributes:
        settings: Values by the names of the knobs.
        queries: How many it was measured on.
        metrics: What was measured for each goal, with bounds that are right in 95 of 100 cases.
        is_kept: Whether it keeps all bounds, as measured.
    """

    settings: dict[str, Any]
    queries: int
    metrics: dict[str, Interval]
    is_kept: bool


@dataclass(frozen=True)
class TuningReport:
    """What a tuner found, and what it did.

    Attributes:
        goals: What it was asked for; what is to be best comes first.
        settings: What is set now.
        was: What was set before.
        is_applied: Whether the settings were changed.
        reason: Why, or why not.
        gain: By which share the settings are better on held-out traffic than what was; None where
            nothing was compared.
        rows: What was measured, best first, those that keep the bounds before others.
        importances: How much each knob moves what is to be best, as shares; most first.
        noise: By which share the same settings differ between measurements.
        spent: How many queries were asked for the search.
        notes: What was decided without a trial, and what was not tried.
    """

    goals: Sequence[Goal]
    settings: dict[str, Any]
    was: dict[str, Any]
    is_applied: bool
    reason: str
    gain: Interval | None
    rows: Sequence[Row]
    importances: dict[str, float]
    noise: float
    spent: int
    notes: Sequence[str] = field(default=())

    @property
    def pareto(self) -> list[Row]:
        """Settings that no other one matches in every goal and beats in one."""
        return [
            one
            for one in self.rows
            if not any(self._dominates(other, one) for other in self.rows if other is not one)
        ]

    def to_toml(self) -> str:
        """Return the settings as TOML."""
        lines = [f"{json.dumps(name)} = {_toml(value)}" for name, value in self.settings.items()]
        return "\n".join(["[settings]", *lines, ""])

    def to_python(self) -> str:
        """Return the settings as Python that turns the knobs of components to them."""
        lines = [f"    {name!r}: {value!r},\n" for name, value in self.settings.items()]
        return (
            "from ragaccel.tuning import tunables\n\n"
            f"settings = {{\n{''.join(lines)}}}\n"
            "for knob in tunables(components):\n"
            "    if knob.name in settings:\n"
            "        knob.set(settings[knob.name])\n"
        )

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the report as one page that loads nothing, and write it to a file if asked to."""
        page = html.page(self)
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def cells(self, most: int) -> list[list[str]]:
        """Return the best settings as rows of a table, its headings first."""
        names = list(self.settings)
        metrics = list(dict.fromkeys(goal.metric for goal in self.goals))
        cells = [[*names, *metrics, "queries", "goals"]]
        cells += [
            [
                *(str(row.settings.get(name, self.settings[name])) for name in names),
                *(spelled(row.metrics[metric]) for metric in metrics),
                f"{row.queries:,}",
                "kept" if row.is_kept else "missed",
            ]
            for row in self.rows[:most]
        ]
        return cells

    def summary(self) -> list[str]:
        """Return what was found, in sentences."""
        changed = {name: value for name, value in self.settings.items() if value != self.was[name]}
        told = [self.reason]
        if self.is_applied and changed:
            told.append(
                "changed: "
                + ", ".join(f"{name} {self.was[name]} -> {new}" for name, new in changed.items())
            )
        told.append(
            f"{self.spent:,} queries were asked; the same settings differ by {self.noise:.1%} "
            "between measurements."
        )
        return [*told, *self.notes]

    def __rich__(self) -> RenderableType:
        headings, *rows = self.cells(10)
        table = Table(*map(escape, headings))
        for row in rows:
            table.add_row(*map(Text, row))
        return Group(*map(Text, self.summary()), table)

    def _dominates(self, one: Row, other: Row) -> bool:
        pairs = [
            (
                goal.sign * one.metrics[goal.metric].value,
                goal.sign * other.metrics[goal.metric].value,
            )
            for goal in self.goals
        ]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def spelled(found: Interval) -> str:
    """Return a metric with its bounds."""
    if found.low == found.high:
        return f"{found.value:.4g}"
    return f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"


def _toml(value: Any) -> str:
    if isinstance(value, (bool, int, float, str)):
        return json.dumps(value)
    return json.dumps(str(value))
