"""What is known of each stage: how often, how long, how much of the path, what it used."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.observe.critical_path import own_time_ns
from ragaccel.observe.latency import Latency
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ragaccel.observe.calls import Call
    from ragaccel.observe.spent import Spent

_NS: Final = 1e9
_TYPICAL: Final = (25, 75)
_TAIL: Final = 95


@dataclass(frozen=True)
class StageProfile:
    """What is known of one stage.

    What it used is the mean per call, with the stages inside; of a stage that runs beside others
    of the process or the machine, theirs is counted too.

    Attributes:
        name: Of the stage.
        count: Calls.
        errors: Calls that an exception ended.
        latency: Of a call, with the stages inside.
        share: Of the critical paths of all requests that the stage spent by itself, 0 to 1.
        typical_share: The same of the middle half of the requests, from p25 to p75.
        tail_share: The same of the slowest requests, at or above p95.
        cpu_seconds: Of the thread; of the whole process where another thread ended the call.
        rss_bytes: By which the memory of the process grew; None if it was not read.
        disk_bytes: That the process read from and wrote to disks; None where it is not told.
        network_bytes: That the whole machine received and sent; None if it was not read.
        hit_rate: Share of the calls, or of their items, that the cache answered; None without one.
        levels: Hits of each level of the cache.
        batch_size: Mean number of requests or items that one call served; None if none told.
        wait: How long calls waited for their batch; None if none did.
    """

    name: str
    count: int
    errors: int
    latency: Latency
    share: float
    typical_share: float
    tail_share: float
    cpu_seconds: float | None = None
    rss_bytes: float | None = None
    disk_bytes: float | None = None
    network_bytes: float | None = None
    hit_rate: float | None = None
    levels: dict[str, int] = field(default_factory=dict)
    batch_size: float | None = None
    wait: Latency | None = None


def stages(requests: Sequence[Call], others: Sequence[Call]) -> dict[str, StageProfile]:
    """Sum up the stages by name, the largest share of the critical path first.

    Args:
        requests: Whose paths are shared out.
        others: Whose stages are only counted.
    """
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    for outermost in (*requests, *others):
        for one in outermost.walk():
            calls[one.name].append(one)
    shares = _shares(requests)
    found = [_stage(name, some, shares) for name, some in calls.items()]
    return {one.name: one for one in sorted(found, key=lambda one: -one.share)}


def _shares(requests: Sequence[Call]) -> list[Counter[str]]:
    """Return the share of each stage in all requests, in typical ones, and in the tail."""
    if not requests:
        return [Counter()] * 3
    totals = np.array([one.duration_ns for one in requests])
    first, third, tail = np.percentile(totals, (*_TYPICAL, _TAIL))
    spent = [own_time_ns(one) for one in requests]
    groups = (totals >= 0, (totals >= first) & (totals <= third), totals >= tail)
    return [
        _share(one for one, is_in in zip(spent, group, strict=True) if is_in) for group in groups
    ]


def _share(spent: Iterable[Counter[str]]) -> Counter[str]:
    summed: Counter[str] = Counter()
    for one in spent:
        summed.update(one)
    total = summed.total()
    return Counter({name: time / total for name, time in summed.items()})


def _stage(name: str, calls: Sequence[Call], shares: Sequence[Counter[str]]) -> StageProfile:
    waits = _values(calls, attributes.BATCH_WAIT)
    used = [one.spent for one in calls if one.spent is not None]
    cpu = _mean(used, "cpu_ns")
    return StageProfile(
        name=name,
        count=len(calls),
        errors=sum(one.error is not None for one in calls),
        latency=Latency.of([one.duration_ns for one in calls]),
        share=shares[0][name],
        typical_share=shares[1][name],
        tail_share=shares[2][name],
        cpu_seconds=None if cpu is None else cpu / _NS,
        rss_bytes=_mean(used, "rss_bytes"),
        disk_bytes=_mean(used, "disk_bytes"),
        network_bytes=_mean(used, "network_bytes"),
        hit_rate=_hit_rate(calls),
        levels=dict(Counter(_values(calls, attributes.CACHE_LEVEL))),
        batch_size=_batch_size(calls),
        wait=Latency.of(np.array(waits) * _NS) if waits else None,
    )


def _mean(used: Sequence[Spent], what: str) -> float | None:
    told = [value for one in used if (value := getattr(one, what)) is not None]
    return float(fmean(told)) if told else None


def _hit_rate(calls: Sequence[Call]) -> float | None:
    """Return the share of hits among calls that told; else of items that were not sent on."""
    hits = _values(calls, attributes.CACHE_HIT)
    if hits:
        return float(fmean(hits))
    items = sum(_values(calls, attributes.ITEMS, beside=attributes.SENT))
    sent = sum(_values(calls, attributes.SENT))
    # Without a cache all are sent, and that is no rate.
    return float(1 - sent / items) if sent < items else None


def _batch_size(calls: Sequence[Call]) -> float | None:
    """Return the mean over batches: one of three requests is told by three of them."""
    sizes = _values(calls, attributes.BATCH_SIZE)
    if sizes:
        return float(len(sizes) / sum(1 / size for size in sizes))
    items = _values(calls, attributes.ITEMS)
    return float(fmean(items)) if items else None


def _values(calls: Sequence[Call], name: str, *, beside: str | None = None) -> list[Any]:
    """Return an attribute of the calls that told it, and the other one beside it."""
    told = [one.attributes for one in calls]
    return [one[name] for one in told if name in one and (beside is None or beside in one)]
