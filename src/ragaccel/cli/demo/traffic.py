"""The demo's traffic: which question is asked when, and what is written in between."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WriteKind = Literal["replace", "delete", "add", "retract"]


@dataclass(frozen=True)
class Ask:
    """A request for the answer to a question, given by its index."""

    question: int


@dataclass(frozen=True)
class Write:
    """A change of the collection.

    Attributes:
        kind: "replace" and "delete" change a distractor's text and remove a distractor. "add" adds
            a passage made of the paragraph that answers a question and one sentence more, so that
            it belongs in the answer; "retract" removes that passage.
        target: The index of the distractor, or of the question the added passage answers.
    """

    kind: WriteKind
    target: int


def zipf_draws(questions: int, n: int, *, exponent: float = 1.0, seed: int) -> list[int]:
    """Draw questions by a Zipf law, as a help desk is asked.

    Args:
        questions: How many questions there are.
        n: How many to draw.
        exponent: The k-th most popular question is drawn with weight `k ** -exponent`.
        seed: Decides which questions are popular and in which order they come.

    Returns:
        Indices of questions.
    """
    rng = np.random.default_rng(seed)
    by_popularity = rng.permutation(questions)
    weights = np.arange(1.0, questions + 1) ** -exponent
    ranks = rng.choice(questions, size=n, p=weights / weights.sum())
    return [int(question) for question in by_popularity[ranks]]


def web_draws(questions: int, n: int, *, repeats: float = 0.157, seed: int) -> list[int]:
    """Draw questions with as few exact repeats as a web search log has.

    The default share is that of the 50,000 requests of the TREC 2005 Terabyte efficiency topics. A
    repeat takes up any earlier request with equal chance.

    Args:
        questions: How many questions there are.
        n: How many to draw, at least one.
        repeats: The share of draws that repeat an earlier one, below 1; rounded down to whole
            draws.
        seed: Decides which questions are drawn and in which order.

    Returns:
        Indices of questions.

    Raises:
        ValueError: There are too few questions for `n` draws with so few repeats.
    """
    largest = int(questions / (1 - repeats))
    if n > largest:
        raise ValueError(
            f"{questions} questions allow at most {largest} draws with {repeats:.1%} repeats, "
            f"not {n}"
        )
    rng = np.random.default_rng(seed)
    fresh = iter(rng.permutation(questions))
    repeated = set(1 + rng.choice(n - 1, size=math.floor(n * repeats), replace=False))
    draws: list[int] = []
    for place in range(n):
        draws.append(draws[rng.integers(place)] if place in repeated else int(next(fresh)))
    return draws


def repeat_ceiling(draws: Sequence[int]) -> float:
    """Tell the highest hit rate any exact cache can reach.

    Args:
        draws: At least one draw.

    Returns:
        The share of draws that repeat an earlier one.
    """
    return 1 - len(set(draws)) / len(draws)


def traffic(draws: Sequence[int], *, writes: float = 0.01, seed: int) -> list[Ask | Write]:
    """Put writes between requests.

    The four kinds of write take turns. "replace" and "delete" each take the next distractor, from
    0 on. "add" comes just before a request for the question it answers, and the next write retracts
    that passage.

    Args:
        draws: The questions asked, in order.
        writes: Writes per request, at most 1.
        seed: Decides when the writes come.

    Returns:
        A request for each draw and the writes, in order.
    """
    rng = np.random.default_rng(seed)
    places = set(rng.choice(len(draws), size=round(len(draws) * writes), replace=False))
    kinds: Iterator[WriteKind] = itertools.cycle(get_args(WriteKind))
    distractors = itertools.count()
    added = -1
    events: list[Ask | Write] = []
    for place, question in enumerate(draws):
        if place in places:
            kind = next(kinds)
            if kind == "add":
                added = question
            of_distractor = kind in ("replace", "delete")
            events.append(Write(kind, next(distractors) if of_distractor else added))
        events.append(Ask(question))
    return events
