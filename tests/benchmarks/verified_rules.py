"""The rules that `tests.benchmarks.verified` compares, each over the same stream of questions.

A rule is told of the nearest kept question, and says whether its answer is given. vCache's is
written from the formulas of the paper (Schroeder et al., 2025), with the confidence grid
log-spaced, which favours it, and 0.035 * 6 / n for its table of variances. GPTCache's default is
`SearchDistanceEvaluation` over faiss's squared distance with `similarity_threshold` 0.8: a distance
of at most 4 * (1 - 0.8), which is a cosine of at least 0.6 (read in 0.1.44).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ragaccel.reuse.verified_index import COLD, EXTENDED
from ragaccel.reuse.verified_labels import Label
from ragaccel.reuse.verified_strength import Strength

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ragaccel.reuse.verified_gate import Gate

LOOKS = 16  # as Index.nearest does
GPTCACHE = 0.6


@dataclass(frozen=True)
class Stream:
    """Questions in order.

    Attributes:
        near: Cosine of each to each.
        answers: What each is answered with, as a number.
        gates: What `ragaccel` compares of each.
        luck: A number from 0 to 1 for each.
    """

    near: NDArray[np.float32]
    answers: NDArray[np.int64]
    gates: Sequence[Gate]
    luck: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.answers)


@dataclass(frozen=True)
class Nearest:
    """The nearest kept question: which, how near, and ragaccel's score of it."""

    at: int
    similarity: float
    score: float


class Rule(Protocol):
    """Says what is reused, and hears whether it would have been right."""

    is_gated: bool

    def reuses(self, nearest: Nearest, luck: float) -> bool:
        """Tell whether the answer of the nearest is given."""

    def hear(self, nearest: Nearest, *, right: bool) -> bool:
        """Take the label of a question that the model was asked; tell whether it is kept too."""


@dataclass
class Verified:
    """`VerifiedReuse`'s own parts, in its own order."""

    delta: float
    audit: float = 0.05
    doubt: float = 0.02
    is_gated: bool = True

    def __post_init__(self) -> None:
        self.strength = Strength(self.delta, self.doubt, 20_000)

    def reuses(self, nearest: Nearest, luck: float) -> bool:
        return nearest.score >= self.strength.threshold("") and luck >= self.audit

    def hear(self, nearest: Nearest, *, right: bool) -> bool:
        is_audit = nearest.score >= self.strength.threshold("")
        self.strength.add("", Label(nearest.score, not right, is_audit))
        return True


@dataclass
class Static:
    """One threshold for all."""

    threshold: float
    is_gated: bool = False

    def reuses(self, nearest: Nearest, luck: float) -> bool:
        return nearest.similarity >= self.threshold

    def hear(self, nearest: Nearest, *, right: bool) -> bool:
        return True


@dataclass
class _Entry:
    similarities: list[float] = field(default_factory=lambda: [0.0, 1.0])
    right: list[bool] = field(default_factory=lambda: [False, True])
    fit: tuple[float, float, float] | None = None


@dataclass
class VCache:
    """A logistic model of each entry, whose bound is per request."""

    delta: float
    is_gated: bool = False
    entries: dict[int, _Entry] = field(default_factory=dict)

    def reuses(self, nearest: Nearest, luck: float) -> bool:
        entry = self.entries.get(nearest.at)
        if entry is None or len(entry.right) < 6:
            return False
        if entry.fit is None:
            entry.fit = _fitted(np.array(entry.similarities), np.array(entry.right, float))
        middle, steepness, deviation = entry.fit
        highest = np.minimum(1.0, middle + _Z * deviation)
        sure = (1 - _EPSILONS) / (1 + np.exp(-steepness * (nearest.similarity - highest)))
        with np.errstate(divide="ignore"):
            explore = float(np.min(1 - self.delta / (1 - sure)))
        return luck > explore

    def hear(self, nearest: Nearest, *, right: bool) -> bool:
        entry = self.entries.setdefault(nearest.at, _Entry())
        entry.similarities.append(round(nearest.similarity, 3))
        entry.right.append(right)
        entry.fit = None
        return not right


_EPSILONS = np.logspace(-6, -0.3, 50)
_Z = np.array([NormalDist().inv_cdf(1 - one) for one in _EPSILONS])


def _fitted(
    similarities: NDArray[np.float64], right: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the middle, the steepness and the deviation of the middle of a logistic model."""
    slope, offset = _logistic(similarities, right)
    slope = max(slope, 1e-6)
    middle = min(1.0, max(0.0, -offset / slope))
    if similarities[right == 1].min() > similarities[right == 0].max():
        return middle, slope, math.sqrt(0.035 * 6 / len(right))
    design = np.stack((np.ones_like(similarities), similarities), 1)
    chance = 1 / (1 + np.exp(-np.clip(design @ (offset, slope), -30, 30)))
    gradient = np.array((-1 / slope, offset / slope**2))
    information = design.T @ (design * (chance * (1 - chance))[:, None]) + 1e-9 * np.eye(2)
    return middle, slope, math.sqrt(abs(gradient @ np.linalg.solve(information, gradient)))


def _logistic(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and offset by Newton's method, hardly regularised."""
    design, weights = np.stack((np.ones_like(x), x), 1), np.zeros(2)
    for _ in range(30):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        step = np.linalg.solve(
            design.T @ (design * (chance * (1 - chance))[:, None]) + 1e-5 * np.eye(2),
            design.T @ (y - chance) - 1e-5 * weights,
        )
        weights += step
        if abs(step).max() < 1e-6:
            break
    return float(weights[1]), float(weights[0])


@dataclass(frozen=True)
class Outcome:
    """What came of a stream: shares of the requests, and which questions were hits."""

    hits: float
    wrong_per_hit: float
    hit_at: NDArray[np.bool_]


def play(stream: Stream, rule: Rule) -> Outcome:
    """Answer a stream by a rule; what is no hit is asked of the model and judged."""
    kept, groups = np.empty(len(stream), np.int64), np.empty(len(stream), np.int64)
    count = next_group = wrong = 0
    hit_at = np.zeros(len(stream), bool)
    for at in range(len(stream)):
        near = stream.near[at][kept[:count]]
        row = _row(stream, rule, at, near, kept)
        group, is_kept = next_group, True
        if row is not None:
            others = near[groups[:count] != groups[row]]
            cosine = float(near[row])
            margin = cosine - float(others.max()) if len(others) and count >= COLD else 0.0
            added = EXTENDED * stream.gates[at].extends(stream.gates[kept[row]])
            nearest = Nearest(int(kept[row]), cosine, cosine + margin + added)
            right = bool(stream.answers[kept[row]] == stream.answers[at])
            if rule.reuses(nearest, stream.luck[at]):
                hit_at[at], wrong = True, wrong + (not right)
                continue
            is_kept = rule.hear(nearest, right=right)
            group = int(groups[row]) if right else next_group
        if is_kept:
            kept[count], groups[count] = at, group
            count, next_group = count + 1, max(next_group, group + 1)
    hits = int(hit_at.sum())
    return Outcome(hits / len(stream), wrong / max(1, hits), hit_at)


def _row(
    stream: Stream, rule: Rule, at: int, near: NDArray[np.float32], kept: NDArray[np.int64]
) -> int | None:
    """Return the row of the nearest kept question that the rule lets through."""
    if not len(near):
        return None
    if not rule.is_gated:
        return int(near.argmax())
    looks = min(LOOKS, len(near))
    best = np.argpartition(-near, looks - 1)[:looks]
    ranked = best[np.argsort(-near[best])]
    return next((int(r) for r in ranked if stream.gates[kept[r]].lets(stream.gates[at])), None)
