"""What would help, told only from what was measured: each rule is a function of a profile."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.observe.critical_path import own_time_ns
from ragaccel.observe.latency import Latency, spelled
from ragaccel.observe.replay import cached, shortened
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ragaccel.observe.calls import Call
    from ragaccel.observe.profile import Profile
    from ragaccel.observe.replay import Replay

_FEW_REQUESTS: Final = 20
_SMALL_GAIN: Final = 0.05
_TENTH: Final = 10
_SIDE_BY_SIDE: Final = 1.5
_SINGLE: Final = 1.5
_MANY_CANDIDATES: Final = 30
_NS: Final = 1e9
_MANY_ROWS: Final = 10_000
_COLD: Final = 3
_COSTLY: Final = (("generate",), ("retrieve", "embed"))  # of each group the outermost
_AGAIN: Final = "profile the same queries again and compare: print(before.compare(after))."


@dataclass(frozen=True)
class Advice:
    """One thing to change.

    Attributes:
        stage: That it is about.
        finding: What was measured, and what to do.
        gain: The share of a duration that is expected to be saved, the largest of those known.
        gain_of: Which duration that is: mean, p50 or p95 of the requests, or the first request.
        expected: The latency of the requests after the change.
        check: How to see whether it is so.
    """

    stage: str
    finding: str
    gain: float
    gain_of: str
    expected: Latency
    check: str

    def __str__(self) -> str:
        return (
            f"{self.finding} Expected: {self.gain:.0%} less of the {self.gain_of}, "
            f"p50 {spelled(self.expected.p50)}, p95 {spelled(self.expected.p95)}. "
            f"To check, {self.check}"
        )


def advise(profile: Profile) -> tuple[Advice, ...]:
    """Return what would save most first.

    It is silent about fewer than 20 requests, and about gains below 5%.
    """
    if len(profile.requests) < _FEW_REQUESTS:
        return ()
    found = [advice for rule in RULES for advice in rule(profile) if advice.gain >= _SMALL_GAIN]
    return tuple(sorted(found, key=lambda one: -one.gain))


def cache_repeats(profile: Profile) -> Iterator[Advice]:
    """Queries that were asked before, and whose answers are made anew."""
    is_repeat, known = _repeats(profile)
    if known < _FEW_REQUESTS or not is_repeat.any():
        return
    found = [next((one for one in group if one in profile.stages), None) for group in _COSTLY]
    stages = [one for one in found if one is not None]
    if not stages and "cache.lookup" not in profile.stages:
        stages = ["query"]  # nothing inside is known, and nothing is cached
    for stage in stages:
        yield _advice(
            stage,
            f"{is_repeat.sum() / known:.0%} of the queries had been asked before, and {stage} "
            f"{_of_path(profile, stage)}: {_WRAP[stage]} with accelerate(..., cache=cache).",
            profile.replay(cached(stage, profile.hit_ns), is_repeat.astype(np.float64)),
            _AGAIN,
        )


def batch_embeddings(profile: Profile) -> Iterator[Advice]:
    """Texts that are embedded at the same time, and one by one."""
    calls = [one for one in _calls(profile, "embed") if not one.is_hit]
    size = profile.stages["embed"].batch_size if "embed" in profile.stages else None
    if len(calls) < _FEW_REQUESTS or (size is not None and size >= _SINGLE):
        return
    beside, durations = _at_once(calls), np.array([one.duration_ns for one in calls])
    if beside.mean() < _SIDE_BY_SIDE:
        return
    least = np.argsort(beside, kind="stable")[: max(2, len(calls) // _TENTH)]
    alone, usual = float(np.median(durations[least])), float(np.median(durations))
    if alone >= usual:
        return
    yield _advice(
        "embed",
        f"{beside.mean():.1f} texts are embedded at a time, each by a call of its own that takes "
        f"{spelled(usual / _NS)}, and {spelled(alone / _NS)} where it is least disturbed: send "
        "them together with accelerate(embed_model, batch=True).",
        profile.replay(shortened("embed", alone / usual)),
        "look at the batch size of embed after it, and " + _AGAIN,
    )


def cut_candidates(profile: Profile) -> Iterator[Advice]:
    """A reranker that is given many candidates."""
    candidates = [
        told
        for one in _calls(profile, "rerank")
        if (told := one.attributes.get(attributes.ITEMS)) is not None
    ]
    if not candidates or fmean(candidates) < _MANY_CANDIDATES:
        return
    yield _advice(
        "rerank",
        f"rerank {_of_path(profile, 'rerank')} for {fmean(candidates):.0f} candidates a call: "
        "retrieve half as many.",
        profile.replay(shortened("rerank", 0.5)),
        "compare the answers' quality on judged queries with both numbers, and " + _AGAIN,
    )


def compress_store(profile: Profile) -> Iterator[Advice]:
    """A search over vectors that are not compressed, or in a store that tells nothing of it."""
    flat = {id(one) for one in _calls(profile, "search") if _is_flat(one)}
    foreign = {id(one) for one in _calls(profile, "retrieve") if not _has(one, "search")}
    stage = "search" if flat else "retrieve"
    if not flat and not foreign:
        return

    def change(call: Call) -> float | None:
        if id(call) in flat:
            return call.duration_ns / 2
        if id(call) in foreign:
            return call.duration_ns - own_time_ns(call)[call.name] / 2
        return None

    known = "over vectors that are not compressed" if flat else "besides embed and in its own store"
    yield _advice(
        stage,
        f"{stage} {_of_path(profile, stage)} {known}: put them into a CompressedVectorStore, "
        "which is taken to halve the search here.",
        profile.replay(change),
        "measure_recall() of its collection, and " + _AGAIN,
    )


def warm_up(profile: Profile) -> Iterator[Advice]:
    """A first request that pays for what all others find ready."""
    first, *rest = (one.call.duration_ns for one in profile.requests)
    usual = Latency.of(rest)
    if first < _COLD * usual.p99 * _NS or not usual.p50:
        return
    yield Advice(
        profile.requests[0].call.name,
        f"The first request took {spelled(first / _NS)}, {first / _NS / usual.p50:.0f} times the "
        "p50 of those after it: load models and open stores before the first user comes, with one "
        "query that nobody waits for.",
        1 - usual.p50 * _NS / first,
        "first request",
        usual,
        "profile a new process after such a query.",
    )


#: Each gives what it finds, or nothing.
RULES: Final[tuple[Callable[[Profile], Iterator[Advice]], ...]] = (
    cache_repeats, batch_embeddings, cut_candidates, compress_store, warm_up,
)  # fmt: skip

_WRAP: Final = {
    "generate": "wrap the LLM",
    "retrieve": "wrap the retriever",
    "embed": "wrap the embedding model",
    "query": "wrap the retriever or the LLM",
}


def _advice(stage: str, finding: str, replay: Replay, check: str) -> Advice:
    gain_of = max(replay.gains, key=replay.gains.__getitem__)
    return Advice(stage, finding, replay.gains[gain_of], gain_of, replay.after, check)


def _of_path(profile: Profile, stage: str) -> str:
    one = profile.stages[stage]
    return f"is {one.share:.0%} of the critical path ({one.tail_share:.0%} at p95)"


def _calls(profile: Profile, stage: str) -> list[Call]:
    return [one for request in profile.requests for one in request.call.walk() if one.name == stage]


def _repeats(profile: Profile) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], int]:
    """Tell which requests ask what an earlier one asked, and of how many it is known."""
    seen: set[bytes] = set()
    repeats = []
    for request in profile.requests:
        repeats.append(request.asked in seen)
        if request.asked is not None:
            seen.add(request.asked)
    return np.array(repeats), sum(one.asked is not None for one in profile.requests)


def _at_once(calls: list[Call]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return for each call how many of them were under way in its middle, itself included."""
    began = np.array([one.began_ns for one in calls])
    ended = np.array([one.ended_ns for one in calls])
    middle = (began + ended) // 2
    have_begun = np.searchsorted(np.sort(began), middle, "right")
    have_ended = np.searchsorted(np.sort(ended), middle, "right")
    return np.asarray(have_begun - have_ended)


def _is_flat(search: Call) -> bool:
    told = search.attributes
    return told.get(attributes.CODEC) == "float32" and bool(told[attributes.ROWS] >= _MANY_ROWS)


def _has(call: Call, stage: str) -> bool:
    return any(one.name == stage for one in call.walk())
