"""A profile as one page that loads nothing: tables and inline SVG, every text escaped."""

from __future__ import annotations

import zlib
from collections import Counter
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Final

import numpy as np

from ragaccel.observe.critical_path import critical_path
from ragaccel.observe.latency import spelled
from ragaccel.observe.profile_table import columns, headlines
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ragaccel.observe.calls import Call, Request
    from ragaccel.observe.profile import Profile

_NS: Final = 1e9
_WIDTH: Final = 1000
_HALF: Final = _WIDTH // 2
_ROW: Final = 20
_BAR: Final = 16
_LETTER: Final = 6.5
_MOST_ROWS: Final = 100
_BINS: Final = 40
_PLOT_HEIGHT: Final = 120
_LEAST_WIDTH: Final = 0.5
_STAGES: Final = (*attributes.OF_STAGE, "search")


def page(profile: Profile) -> str:
    """Return the page."""
    template = Template(files(__package__).joinpath("profile.html").read_text(encoding="utf-8"))
    return template.substitute(
        requests=f"{len(profile.requests):,}",
        headlines="".join(f"<p>{escape(line)}</p>" for line in headlines(profile)),
        advice=_advice(profile),
        table=table(columns(profile)),
        waterfalls=_waterfalls(profile),
        flame=_flame([one.call for one in profile.requests]),
        histograms="".join(_histogram(name, one) for name, one in _durations(profile).items()),
    )


def _advice(profile: Profile) -> str:
    if not profile.advice:
        return "<p>Nothing that the evidence is strong enough for.</p>"
    return f"<ul>{''.join(f'<li>{escape(str(one))}</li>' for one in profile.advice)}</ul>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as a table, the first as its headings."""
    headings, *others = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(("th", *("td",) * len(rows)), rows, strict=False)
    )
    body = "".join(f"<tr>{row}</tr>" for row in others)
    return f"<table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table>"


def _waterfalls(profile: Profile) -> str:
    both = (("p50", profile.p50_request), ("p99", profile.p99_request))
    return "".join(_waterfall(name, one) for name, one in both if one is not None)


def _waterfall(name: str, request: Request) -> str:
    root = request.call
    rows = list(_nested(root, 0))
    end_ns = max(one.ended_ns for one, _ in rows)
    scale = _HALF / max(1, end_ns - root.began_ns)
    on_path = {id(one) for step in critical_path(root) for one in step.stack}
    bars = []
    for at, (call, depth) in enumerate(rows[:_MOST_ROWS]):
        left, width = (call.began_ns - root.began_ns) * scale, call.duration_ns * scale
        told = f"{'· ' * depth}{call.name} {spelled(call.duration_ns / _NS)}"
        told += f" ({call.error})" if call.error else ""
        kind = "" if id(call) in on_path else ' class="aside"'
        bars.append(_bar(call.name, left, at * 2 * _ROW + _ROW, width, told, kind))
        bars.append(f'<text x="0" y="{at * 2 * _ROW + _BAR}">{escape(told)}</text>')
    caption = f"{name}: {spelled(root.duration_ns / _NS)}"
    caption += f", trace {request.trace_id}" if request.trace_id else ""
    caption += f", the first {_MOST_ROWS} of {len(rows)} stages" if len(rows) > _MOST_ROWS else ""
    return _figure(caption, _HALF, len(bars) * _ROW, "".join(bars))


def _nested(call: Call, depth: int) -> Iterator[tuple[Call, int]]:
    yield call, depth
    for one in call.children:
        yield from _nested(one, depth + 1)


def _flame(requests: Sequence[Call]) -> str:
    """Draw the critical paths of all requests, laid over each other, outermost stages on top."""
    own: Counter[tuple[str, ...]] = Counter()
    for request in requests:
        for step in critical_path(request):
            own[tuple(call.name for call in step.stack)] += step.ended_ns - step.began_ns
    whole: Counter[tuple[str, ...]] = Counter()
    for stack, time_ns in own.items():
        for depth in range(1, len(stack) + 1):
            whole[stack[:depth]] += time_ns
    total = sum(own.values())
    lefts: dict[tuple[str, ...], float] = {(): 0.0}
    bars = []
    for stack in sorted(whole):
        left, width = lefts[stack[:-1]], whole[stack] / total * _WIDTH
        lefts[stack], lefts[stack[:-1]] = left, left + width
        told = f"{stack[-1]} {whole[stack] / total:.1%}"
        if width >= _LEAST_WIDTH:
            bars.append(_bar(stack[-1], left, (len(stack) - 1) * _ROW, width, told, label=told))
    height = max(map(len, whole), default=0) * _ROW
    return _figure("Width is the time on the critical path.", _WIDTH, height, "".join(bars))


def _durations(profile: Profile) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in profile.stages}
    for outermost in (*(one.call for one in profile.requests), *profile.others):
        for call in outermost.walk():
            found[call.name].append(call.duration_ns)
    return found


def _histogram(name: str, durations_ns: Sequence[int]) -> str:
    """Draw how often a stage took how long, on a logarithmic scale."""
    logs = np.log10(np.maximum(durations_ns, 1))
    counts, edges = np.histogram(logs, bins=_BINS)
    highest, width = counts.max(), _HALF / _BINS
    bars = [
        _bar(
            name, at * width, _PLOT_HEIGHT * (1 - count / highest), width - 1,
            f"{spelled(10 ** edges[at] / _NS)} to {spelled(10 ** edges[at + 1] / _NS)}: {count:,}",
            height=_PLOT_HEIGHT * count / highest,
        )
        for at, count in enumerate(counts)
        if count
    ]  # fmt: skip
    ends = ((0, "start", edges[0]), (_HALF, "end", edges[-1]))
    axis = f'<line class="axis" x1="0" x2="{_HALF}" y1="{_PLOT_HEIGHT}" y2="{_PLOT_HEIGHT}"/>'
    for left, anchor, edge in ends:
        axis += (
            f'<text x="{left}" y="{_PLOT_HEIGHT + _BAR}" text-anchor="{anchor}">'
            f"{spelled(10**edge / _NS)}</text>"
        )
    caption = f"{name}: {len(durations_ns):,} calls, up to {highest:,} in a bar"
    return _figure(caption, _HALF, _PLOT_HEIGHT + _ROW, "".join(bars) + axis)


def _bar(
    name: str,
    left: float,
    top: float,
    width: float,
    told: str,
    kind: str = "",
    *,
    label: str = "",
    height: float = _BAR,
) -> str:
    """Draw a bar in the colour of its name, with a text where the pointer rests."""
    fits = len(label) * _LETTER < width
    text = f'<text class="on-bar" x="{left + 4:.1f}" y="{top + 12}">{escape(label)}</text>'
    return (
        f"<g{kind}><title>{escape(told)}</title>"
        f'<rect x="{left:.2f}" y="{top:.2f}" width="{max(width, 1):.2f}" height="{height:.2f}" '
        f'fill="hsl({_hue(name):.0f} 55% 42%)"/>'
        f"{text if label and fits else ''}</g>"
    )


def _hue(name: str) -> float:
    """Return the hue of a stage's name; known ones are a golden angle apart."""
    at = _STAGES.index(name) if name in _STAGES else zlib.crc32(name.encode())
    return at * 137.508 % 360


def _figure(caption: str, width: int, height: float, drawn: str) -> str:
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img">{drawn}</svg></figure>'
    )
