"""Asking recorded queries again, with knobs turned, and measuring what comes."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ragaccel.batching import gather
from ragaccel.tuning.goals import SECONDS, SECONDS_EACH
from ragaccel.tuning.parts import parts
from ragaccel.tuning.study import Space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from ragaccel.knobs import Knob
    from ragaccel.tuning.study import Samples, Setting

    Metric = Callable[[Any, Any], float]

_WARM_UP: Final = 4
_MB: Final = 1e6
_RECALL: Final = "recall@"


class Knobs:
    """Knobs together, turned to settings.

    Args:
        knobs: Each with what it is at now among its values.
    """

    def __init__(self, knobs: Sequence[Knob]) -> None:
        self.knobs = tuple(knobs)
        self.space = Space(
            tuple(knob.name for knob in knobs),
            tuple(len(knob.values) for knob in knobs),
            tuple(knob.monotone for knob in knobs),
        )
        self.was = tuple(knob.get() for knob in self.knobs)
        self.incumbent: Setting = tuple(
            knob.values.index(value) for knob, value in zip(self.knobs, self.was, strict=True)
        )

    def turn(self, setting: Setting) -> None:
        """Turn those knobs that are not as a setting has them, those of a rebuild first."""
        for knob, at in sorted(
            zip(self.knobs, setting, strict=True), key=lambda one: not one[0].rebuild
        ):
            _put(knob, knob.values[at])

    def put_back(self) -> None:
        """Turn all to what they were; one that fails does not keep the others from it."""
        with ExitStack() as stack:
            for knob, value in sorted(
                zip(self.knobs, self.was, strict=True), key=lambda one: one[0].rebuild
            ):
                stack.callback(_put, knob, value)

    def untold(self, setting: Setting) -> Setting:
        """Return a setting that must be turned to to see how much memory it takes."""
        return tuple(
            at if knob.rebuild and knob.bytes_at is None else was
            for knob, at, was in zip(self.knobs, setting, self.incumbent, strict=True)
        )

    def least_more_bytes(self) -> int:
        """Return the least that `more_bytes` can be."""
        return sum(
            min(map(knob.bytes_at, knob.values)) - knob.bytes_at(was)
            for knob, was in zip(self.knobs, self.was, strict=True)
            if knob.bytes_at is not None
        )

    def more_bytes(self, setting: Setting) -> int:
        """Return how many more bytes than what was a setting takes, as far as knobs tell."""
        return sum(
            knob.bytes_at(knob.values[at]) - knob.bytes_at(was)
            for knob, at, was in zip(self.knobs, setting, self.was, strict=True)
            if knob.bytes_at is not None and knob.values[at] != was
        )

    def named(self, setting: Setting) -> dict[str, Any]:
        """Return a setting by the names of the knobs."""
        return {knob.name: knob.values[at] for knob, at in zip(self.knobs, setting, strict=True)}


class Replay:
    """Measures settings by asking queries again.

    Args:
        ask: Gives the result of a query.
        queries: What is asked.
        knobs: What is turned.
        components: What takes memory.
        metrics: The user's own, of a query and its result.
        truth: For each query the ids that are right, best first; None where nobody asks for recall.
        depths: The k of each recall@k.
        sizes: Bytes that levels of caches may take, which count as full.
        known: Metrics that are equal for all settings.
        arrivals: When each query came, seconds; None to ask each when one before it is answered.
        concurrency: Gives the most queries that are under way at a time.
    """

    def __init__(
        self,
        ask: Callable[[Any], Any],
        queries: Sequence[Any],
        knobs: Knobs,
        components: Sequence[Any],
        *,
        metrics: Mapping[str, Metric],
        truth: Sequence[Sequence[str]] | None,
        depths: Sequence[int],
        sizes: Mapping[Any, int],
        known: Mapping[str, float],
        arrivals: Sequence[float] | None = None,
        concurrency: Callable[[], int] = lambda: 1,
    ) -> None:
        self._ask, self._queries, self._knobs, self._components = ask, queries, knobs, components
        self._metrics, self._truth, self._depths = metrics, truth, depths
        self._sizes, self._always, self._concurrency = sizes, known, concurrency
        self._gaps = None if arrivals is None else np.diff(arrivals, prepend=arrivals[0])
        self._memory: dict[Setting, float] = {}

    def known(self, setting: Setting) -> Mapping[str, float]:
        """Return what takes no query: memory, and what is equal for all.

        Memory is told by arithmetic where knobs know how many bytes they take.
        """
        untold = self._knobs.untold(setting)
        if untold not in self._memory:
            self._knobs.turn(untold)
            self._memory[untold] = memory_mb(self._components, self._sizes)
        more = self._knobs.more_bytes(setting) / _MB
        return {"memory_mb": self._memory[untold] + more, **self._always}

    def measure(self, setting: Setting, queries: NDArray[np.int64]) -> Samples:
        """Turn the knobs, ask some queries that do not count, and measure the others."""
        self._knobs.turn(setting)
        for at in queries[:_WARM_UP]:
            self._timed((self._queries[at], None))
        began = time.perf_counter()
        found = self._all_timed(queries)
        took = time.perf_counter() - began
        seconds = np.array([one for one, _, _ in found])
        samples = {
            SECONDS: seconds,
            SECONDS_EACH: seconds * (took / seconds.sum()),
            "error_rate": np.array([float(failed) for _, _, failed in found]),
        }
        results = [(at, *told[1:]) for at, told in zip(queries, found, strict=True)]
        for name, metric in self._metrics.items():
            samples[name] = np.array(
                [0.0 if bad else float(metric(self._queries[at], one)) for at, one, bad in results]
            )
        for depth in self._depths if self._truth is not None else ():
            samples[f"{_RECALL}{depth}"] = np.array(
                [0.0 if bad else self._recall(int(at), one, depth) for at, one, bad in results]
            )
        return samples

    def _all_timed(self, queries: NDArray[np.int64]) -> list[tuple[float, Any, bool]]:
        due: Iterable[float | None] = itertools.repeat(None)
        if self._gaps is not None:
            due = (time.perf_counter() + np.cumsum(self._gaps[queries])).tolist()
        asked = zip([self._queries[at] for at in queries], due, strict=False)
        concurrency = self._concurrency()
        if concurrency == 1:
            return [self._timed(one) for one in asked]
        outcomes = gather(asked, self._timed, concurrency=concurrency)
        return [outcome.unwrap() for outcome in outcomes]

    def _timed(self, asked: tuple[Any, float | None]) -> tuple[float, Any, bool]:
        """Ask a query when it is due; return how long that took since then, and what came."""
        query, due = asked
        began = time.perf_counter()
        if due is not None:
            time.sleep(max(0.0, due - began))
            began = due
        try:
            result = self._ask(query)
        except Exception:  # noqa: BLE001 - a setting that fails is one that is not taken
            return time.perf_counter() - began, None, True
        return time.perf_counter() - began, result, False

    def _recall(self, at: int, result: Any, depth: int) -> float:
        right = set(self._truth[at][:depth]) if self._truth is not None else set()
        return len(right.intersection(ids_of(result)[:depth])) / len(right) if right else 1.0


def answers(
    ask: Callable[[Any], Any], queries: Sequence[Any], components: Sequence[Any]
) -> tuple[list[list[str]], bool]:
    """Return the ids that are right for each query, and whether they come from exact search.

    Where the components hold no collection, what they find as they are counts as right.
    """
    exact = [one for one in parts(list(components)) if hasattr(one, "exactly")]
    with ExitStack() as stack:
        for one in exact:
            stack.enter_context(one.exactly())
        return [ids_of(ask(query)) for query in queries], bool(exact)


def ids_of(result: Any) -> list[str]:
    """Return the ids of what was found: hits, LlamaIndex nodes or a response, or documents."""
    nodes = getattr(result, "source_nodes", result)
    if isinstance(nodes, dict):
        nodes = nodes.get("context", ())
    found = []
    for one in nodes if isinstance(nodes, (list, tuple)) else ():
        document = one[0] if isinstance(one, tuple) and one else one
        name = getattr(document, "node_id", None) or getattr(document, "id", None)
        found.append(str(name or getattr(document, "page_content", document)))
    return found


def memory_mb(components: Sequence[Any], sizes: Mapping[Any, int]) -> float:
    """Return what the collections and caches of components take, in megabytes.

    Args:
        components: The components.
        sizes: Bytes of levels that are to be counted with that, whatever they hold now.
    """
    total = 0
    for one in parts(list(components)):
        stats = one.stats() if hasattr(one, "stats") else None
        total += getattr(stats, "bytes_in_memory", 0)
        for level in getattr(one, "levels", ()):
            total += sizes.get(level, getattr(level, "bytes_used", 0))
    return total / _MB


def _put(knob: Knob, value: Any) -> None:
    if knob.get() != value:
        knob.set(value)
