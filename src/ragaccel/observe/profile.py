"""What a profiler found: per stage and per request, where the time went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from ragaccel.errors import ConfigurationError
from ragaccel.observe.latency import Latency
from ragaccel.observe.replay import Replay, cached, replay, shortened
from ragaccel.observe.stages import StageProfile, stages

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType
    from rich.table import Table
    from typing_extensions import Self

    from ragaccel.observe.advice import Advice
    from ragaccel.observe.calls import Call, Request
    from ragaccel.observe.replay import Change

_NS: Final = 1e9
_USUAL_HIT_NS: Final = 5e5


@dataclass(frozen=True)
class Profile:
    """What a `Profiler` heard. `rich.print(profile)` shows it, `to_html` draws it.

    Attributes:
        latency: Of the requests.
        errors: Requests that an exception ended.
        dropped: Requests that were heard and not kept; see `Profiler`.
        stages: By name, the largest share of the critical path first.
        throughput: Requests per second, from the first one's beginning to the last one's end.
        memory_bytes: Resident memory of the process at the end; None where it is not told.
        overhead_seconds: What the profiler itself took, per stage.
        requests: What was heard of each, in the order in which they began.
        others: Batches, writes, and stages that began after their request was over.
    """

    latency: Latency
    errors: int
    dropped: int
    stages: dict[str, StageProfile]
    throughput: float
    memory_bytes: int | None
    overhead_seconds: float
    requests: tuple[Request, ...] = field(repr=False)
    others: tuple[Call, ...] = field(repr=False)

    @classmethod
    def of(
        cls,
        requests: Iterable[Request],
        others: Iterable[Call] = (),
        *,
        dropped: int = 0,
        overhead_seconds: float = 0.0,
        memory_bytes: int | None = None,
    ) -> Self:
        """Sum up what was heard."""
        kept = tuple(sorted(requests, key=lambda one: one.call.began_ns))
        rest = tuple(others)
        calls = [one.call for one in kept]
        spanned = max(one.ended_ns for one in calls) - calls[0].began_ns if calls else 0
        return cls(
            latency=Latency.of([one.duration_ns for one in calls]),
            errors=sum(one.error is not None for one in calls),
            dropped=dropped,
            stages=stages(calls, rest),
            throughput=len(calls) / spanned * _NS if spanned else 0.0,
            memory_bytes=memory_bytes,
            overhead_seconds=overhead_seconds,
            requests=kept,
            others=rest,
        )

    @property
    def bottleneck(self) -> str | None:
        """The stage with the largest share of the critical path of typical requests, p25 to p75."""
        return self._largest("typical_share")

    @property
    def tail_bottleneck(self) -> str | None:
        """The stage with the largest share of the critical path of requests at or above p95."""
        return self._largest("tail_share")

    @property
    def hit_rate(self) -> float | None:
        """Share of the cache's look-ups that it served; None if there were none."""
        return self.stages["cache.lookup"].hit_rate if "cache.lookup" in self.stages else None

    @property
    def p50_request(self) -> Request | None:
        """The request that took about as long as the median."""
        return self._nearest(self.latency.p50)

    @property
    def p99_request(self) -> Request | None:
        """The request that took about as long as the 99th percentile."""
        return self._nearest(self.latency.p99)

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        """What would help, with the expected gain, the largest first; none on thin evidence."""
        from ragaccel.observe.advice import advise

        return advise(self)

    def what_if(
        self, stage: str, *, factor: float | None = None, hit_rate: float | None = None
    ) -> Replay:
        """Return how the requests would be if a stage were quicker, or answered by a cache.

        The recorded requests are replayed with what was sequential in sequence, and what was
        parallel side by side. That a quicker stage leaves more of the machine to the others is not
        foreseen.

        Args:
            stage: Its name.
            factor: Its new duration with all that is inside, as a share of what it was.
            hit_rate: The share of requests, 0 to 1, whose calls of the stage a cache answers; calls
                that were hits already stay as they are. A hit takes as long as the hits that were
                heard, or half a millisecond.

        Raises:
            ConfigurationError: The stage was not heard in a request, or a number cannot be.
        """
        known = {one.name for request in self.requests for one in request.call.walk()}
        if stage not in known:
            raise ConfigurationError(
                f"no request had a stage {stage!r}; known are: {', '.join(sorted(known))}."
            )
        if (factor is None) == (hit_rate is None):
            raise ConfigurationError("give either factor= or hit_rate=, and not both.")
        if factor is not None:
            if not 0 <= factor < float("inf"):
                raise ConfigurationError(
                    f"factor must be 0 or more, got {factor}; write factor=0.5."
                )
            return self.replay(shortened(stage, factor))
        if hit_rate is None or not 0 <= hit_rate <= 1:
            raise ConfigurationError(f"hit_rate must be within [0, 1], got {hit_rate}.")
        return self.replay(cached(stage, self.hit_ns), hit_rate)

    def replay(self, change: Change, chance: float | NDArray[np.float64] = 1.0) -> Replay:
        """Return how the requests would be after any change; see `ragaccel.observe.replay`."""
        return replay([one.call for one in self.requests], change, chance)

    @property
    def hit_ns(self) -> float:
        """How long a look-up that hits takes, at the median; half a millisecond if none did."""
        calls = (one for request in self.requests for one in request.call.walk())
        hits = [one.duration_ns for one in calls if one.name == "cache.lookup" and one.is_hit]
        return median(hits) if hits else _USUAL_HIT_NS

    def figures(self) -> dict[str, float | None]:
        """Return the figures that goals are set for, by the names of `observe.targets`."""
        count = len(self.requests)
        found: dict[str, float | None] = {
            "query.throughput": self.throughput,
            "query.error_rate": self.errors / count if count else None,
            "cache.hit_rate": self.hit_rate,
            "process.memory": self.memory_bytes,
        }
        told = {"query": self.latency} if count else {}
        told |= {f"stages.{name}": one.latency for name, one in self.stages.items()}
        for figure, latency in told.items():
            found |= {f"{figure}.{name}": getattr(latency, name) for name in ("p50", "p95", "p99")}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return all figures, the advice, and the p50 and p99 request, ready for JSON.

        Durations are in seconds, sizes in bytes. Nothing of the queries is in it.
        """
        return {
            "requests": len(self.requests),
            "errors": self.errors,
            "dropped": self.dropped,
            "latency": asdict(self.latency),
            "throughput": self.throughput,
            "hit_rate": self.hit_rate,
            "memory_bytes": self.memory_bytes,
            "overhead_seconds": self.overhead_seconds,
            "bottleneck": self.bottleneck,
            "tail_bottleneck": self.tail_bottleneck,
            "stages": {name: asdict(one) for name, one in self.stages.items()},
            "advice": [asdict(one) for one in self.advice],
            "p50_request": _told(self.p50_request),
            "p99_request": _told(self.p99_request),
        }

    def to_html(self, path: str | Path | None = None) -> str:
        """Return one page that needs no other file: table, waterfalls, flame view, histograms.

        Args:
            path: Where to write it as well.
        """
        from ragaccel.observe.html import page

        made = page(self)
        if path is not None:
            Path(path).write_text(made, encoding="utf-8")
        return made

    def compare(self, after: Profile) -> Table:
        """Return a table of this profile beside one that was made after a change."""
        from ragaccel.observe.profile_table import comparison

        return comparison(self, after)

    def __rich__(self) -> RenderableType:
        from ragaccel.observe.profile_table import summary

        return summary(self)

    def _largest(self, share: str) -> str | None:
        shares = {name: getattr(one, share) for name, one in self.stages.items()}
        return max(shares, key=lambda name: shares[name]) if any(shares.values()) else None

    def _nearest(self, seconds: float) -> Request | None:
        return min(
            self.requests,
            key=lambda one: abs(one.call.duration_ns / _NS - seconds),
            default=None,
        )


def _told(request: Request | None) -> dict[str, Any] | None:
    if request is None:
        return None
    began_ns = request.call.began_ns
    return {
        "trace_id": request.trace_id,
        "seconds": request.call.duration_ns / _NS,
        "stages": _waterfall(request.call, began_ns, 0),
    }


def _waterfall(call: Call, began_ns: int, depth: int) -> list[dict[str, Any]]:
    row = {
        "name": call.name,
        "depth": depth,
        "start": (call.began_ns - began_ns) / _NS,
        "seconds": call.duration_ns / _NS,
        "error": call.error,
    }
    return [row, *(line for one in call.children for line in _waterfall(one, began_ns, depth + 1))]
