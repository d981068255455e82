"""Neighbour reuse: a search is answered with rows that searches for similar questions found.

The rows of up to eight neighbours are scored anew with the question's own vector. Whether the
nearest k among them are the nearest of all is proven, or trusted as far as labels allow, which are
free: a real search says it. Known before: reuse within a proven radius of one neighbour (Falchi et
al., "A metric cache for similarity search", 2008), and without a bound (Proximity, QVCache).
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import numpy as np

from ragaccel import telemetry
from ragaccel.errors import CollectionClosedError, ConfigurationError
from ragaccel.knobs import Knob
from ragaccel.resources import Errands
from ragaccel.reuse.figures import figures
from ragaccel.reuse.neighbours_bound import expected, need, proven
from ragaccel.reuse.neighbours_index import Index
from ragaccel.reuse.neighbours_pace import Pace
from ragaccel.reuse.neighbours_trust import Trust, recall
from ragaccel.reuse.verified_bound import most_likely_at_most
from ragaccel.telemetry import attributes
from ragaccel.vectors.metric import prepare_queries

if TYPE_CHECKING:
    from collections.abc import Callable

    from ragaccel.vectors import VectorCollection
    from ragaccel.vectors.search import Answers, Search
    from ragaccel.vectors.watch import Shortcut

    Make = Callable[[Search], Answers]

Mode = Literal["certified", "calibrated"]

_MOST_NEAR: Final = 8
_MOST_WAITING: Final = 64
_log = logging.getLogger("ragaccel.reuse")


class NeighbourStats(NamedTuple):
    """What a `NeighbourReuse` did since it was made.

    Attributes:
        searches: Searches that were put to it.
        certified: Of them those that were answered, and proven to be.
        calibrated: Those that were answered because that is right often enough.
        aside: Those that it left alone because a search is cheaper, or it was switched off.
        audits: Calibrated answers that were compared with a real search.
        wrong_audits: Of them those below the recall.
        error_bound: The share of wrong ones among calibrated answers is at most this, but for a
            doubt; 1.0 without audits.
        recall: Mean recall of audited answers; 1.0 without audits.
        saved_seconds: Time of searches not made, less that of tries and of longer searches.
        faults: Tries and audits that failed.
        entries: Questions whose lists are kept.
    """

    searches: int
    certified: int
    calibrated: int
    aside: int
    audits: int
    wrong_audits: int
    error_bound: float
    recall: float
    saved_seconds: float
    faults: int
    entries: int

    @property
    def share_served(self) -> float:
        """The share of searches that were not made."""
        return (self.certified + self.calibrated) / max(1, self.searches)


class _Tried(NamedTuple):
    """What neighbours' rows gave."""

    answers: Answers
    need: float
    similarity: float
    how: Mode | None
    is_label: bool

    def scores(self, k: int) -> list[float]:
        return self.answers.found[0][0][:k]


class _Audit(NamedTuple):
    """A served answer, and the search that it stood for."""

    corpus: str
    namespace: str
    tried: _Tried
    search: Search
    make: Make


class NeighbourReuse:
    """Answers a search with what searches for similar questions found, scored anew.

    It is for retrievers that are one plain search, filtered or not, over a `CompressedVectorStore`
    of the metric "cosine"; others are left alone. It pays where a search compares with many vectors
    or reads them from a slow disk. Over codes a search mostly takes less time than the scoring, and
    one that looks for a whole list takes several times as long: there it soon stands aside.

    Nothing is shared across namespaces, embedding models, filters and other settings of a
    retriever. Writes are replayed: an answer is as fresh as a new search. It is as right as the
    searches that made the lists: on compressed vectors what is proven holds for what these found.

    Lists are kept in this process's memory: about 4 bytes per component and 8 per row, 30 MB for
    10,000 questions of 384 dimensions with 200 rows each.

    Args:
        mode: "certified" serves only what is proven to be the nearest k. "calibrated" serves also
            what is right often enough.
        recall: The recall@k that a calibrated answer has to have; 1.0 for exactly the k.
        error: The share of calibrated answers that may be below it, above 0 and at most 0.5.
        rows: How many rows a search looks for, to have a list for its neighbours.
        audit: Share of the calibrated answers that are compared with a real search, and of the
            searches that are learned from. Of the first 500 questions all are, then fewer and
            fewer, down to this; anew after a bulk load or when the bound is broken.
        doubt: Probability that more than `error` is let through, while questions come as those
            that were learned from.
        background: Whether audits are made after the answer is given, on a thread of their own.
        min_gain: The share of a search's time that reuse has to save; where it saves less it stands
            aside, and tries again after 1,000 searches. None lets it never stand aside.
        max_entries: How many questions are kept.
        seed: Of the choice of audits.

    Raises:
        ConfigurationError: An argument is none of those it can be.

    Example:
        >>> reuse = NeighbourReuse("calibrated", recall=1.0, error=0.01)
        >>> reuse.stats().share_served
        0.0
    """

    def __init__(
        self,
        mode: Mode = "certified",
        *,
        recall: float = 1.0,
        error: float = 0.01,
        rows: int = 200,
        audit: float = 0.05,
        doubt: float = 0.05,
        background: bool = True,
        min_gain: float | None = 0.1,
        max_entries: int = 10_000,
        seed: int | None = None,
    ) -> None:
        self._options = {
            "recall": recall, "error": error, "rows": rows, "audit": audit, "doubt": doubt,
            "background": background, "min_gain": min_gain, "max_entries": max_entries,
            "seed": seed,
        }  # fmt: skip
        _check(mode, **self._options)
        self._mode, self._recall, self._error, self._doubt = mode, recall, error, doubt
        self._rows, self._audited, self._background = rows, audit, background
        self._lock = threading.Lock()
        self._index = Index(max_entries, rows, _MOST_NEAR)
        self._trusts: dict[str, Trust] = {}
        self._pace = Pace(min_gain)
        self._random = random.Random(seed)  # noqa: S311 - which answers are audited is no secret
        self._errands = Errands(self._audit, "ragaccel-neighbours", _MOST_WAITING)
        self._counts: Counter[str] = Counter()
        self._by: Counter[tuple[str, str]] = Counter()
        self._recalls = 0.0
        self.is_on = True
        telemetry.measure(self)

    def within(self, partition: bytes, namespace: str) -> Shortcut:
        """Return what searches are put to; see `ragaccel.wrapping.seam.Neighbours`."""
        return partial(self._find, partition, namespace)

    def trusted(self, collection: VectorCollection) -> float:
        """Return the need from which calibrated answers of a collection are served."""
        with self._lock:
            return self._trust(collection.id).need

    def stats(self) -> NeighbourStats:
        """Return what it did since it was made."""
        with self._lock:
            counts, audits = self._counts, self._counts["audits"]
            wrong = counts["wrong_audits"]
            return NeighbourStats(
                counts["searches"], counts["certified"], counts["calibrated"], counts["aside"],
                audits, wrong, most_likely_at_most(wrong, audits, self._doubt),
                self._recalls / audits if audits else 1.0, self._pace.saved, counts["faults"],
                len(self._index),
            )  # fmt: skip

    def figures(self) -> list[telemetry.Figure]:
        """Return the statistics as metrics."""
        with self._lock:
            counted = list(self._by.items())
        return figures(counted)

    def tunables(self) -> tuple[Knob, ...]:
        """Return the knob that switches it on and off."""
        return (
            Knob(
                "neighbours",
                (False, True),
                lambda: self.is_on,
                lambda value: setattr(self, "is_on", value),
            ),
        )

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no audit waits; see `ragaccel.resources.Errands`."""
        return self._errands.wait(timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._mode, self._options)

    # -- a search ----------------------------------------------------------------------------------

    def _find(
        self,
        partition: bytes,
        namespace: str,
        collection: VectorCollection,
        search: Search,
        make: Make,
        span: telemetry.Stage,
    ) -> Answers:
        if not self._fits(collection, search):
            return make(search)
        with self._lock:
            self._counts["searches"] += 1
            is_aside = not self.is_on or self._pace.stands_aside()
            self._counts["aside"] += is_aside
        if is_aside:
            return self._timed(search, make, plain=True)
        key = (partition, collection.id, search.k)
        tried = self._try(key, collection, search, make)
        self._count(namespace, "miss" if tried is None or tried.how is None else tried.how)
        if tried is None or tried.how is None:
            return self._missed(key, namespace, collection.id, tried, search, make)
        span.set(
            {attributes.CACHE_HIT_KIND: tried.how, attributes.CACHE_SIMILARITY: tried.similarity}
        )
        if tried.how == "calibrated" and tried.is_label:
            audit = _Audit(collection.id, namespace, tried, search, make)
            if self._background:
                self._errands.add(audit)
            else:
                self._audit(audit)
        return tried.answers

    def _fits(self, collection: VectorCollection, search: Search) -> bool:
        plain = not search.exact and math.isinf(search.min_score) and search.k < self._rows
        return plain and collection.metric == "cosine" and collection.dim is not None

    def _try(
        self, key: Any, collection: VectorCollection, search: Search, make: Make
    ) -> _Tried | None:
        began = time.perf_counter()
        try:
            tried = self._scored(key, collection, search, make)
        except Exception as error:  # noqa: BLE001 - a search is made instead
            self._fault("looking at similar searches", error)
            return None
        if tried is not None:
            with self._lock:
                served = tried.how is not None
                self._pace.tried(time.perf_counter() - began, served=served)
        return tried

    def _scored(
        self, key: Any, collection: VectorCollection, search: Search, make: Make
    ) -> _Tried | None:
        """Score the neighbours' rows, and tell whether what is best among them may be served."""
        query = prepare_queries(search.queries, "cosine")[0]
        with self._lock:
            trust = self._trust(collection.id)
            trust.follow(collection.position[0])
            near = self._index.nearest(key, collection, query)
            trusted = trust.need
            is_label = self._random.random() < trust.share
        if near is None:
            return None
        answers = make(search._replace(among=near.rows, where=None))
        scores, slots = answers.found[0]
        is_whole = bool(np.isinf(near.floors).any())
        if answers.position != near.position or (len(scores) < search.k and not is_whole):
            return None  # a write came in between, or rows were deleted
        last = scores[search.k - 1] if len(scores) >= search.k else -math.inf
        bound = proven(query.astype(np.float64), near.vectors, near.floors, last)
        needed = need(last, near.cosines, near.floors)
        how: Mode | None = None
        if is_whole or last > bound:
            how = "certified"
        elif self._mode == "calibrated" and needed >= trusted:
            how, bound = "calibrated", expected(trusted, near.cosines, near.floors)
        floor = max(bound, scores[-1]) if len(scores) == search.reach else bound
        count = max(search.k, sum(score >= floor for score in scores))
        served = answers._replace(found=[(scores[:count], slots[:count])], floor=floor)
        return _Tried(served, needed, float(near.cosines[0]), how, is_label)

    def _missed(
        self,
        key: Any,
        namespace: str,
        corpus: str,
        tried: _Tried | None,
        search: Search,
        make: Make,
    ) -> Answers:
        """Make a search, for a list to keep, and learn from it."""
        with self._lock:
            plain = self._pace.is_sample()
        asked = search if plain else search._replace(spare=max(search.reach, self._rows) - search.k)
        answers = self._timed(asked, make, plain=plain)
        try:
            if tried is not None and tried.is_label:
                self._learn(corpus, namespace, tried, answers, search.k, audit=False)
            if not plain:
                self._keep(key, asked, answers)
        except Exception as error:  # noqa: BLE001 - the caller has its answer
            self._fault("learning from a search", error)
        scores, slots = answers.found[0]
        return answers._replace(found=[(scores[: search.reach], slots[: search.reach])])

    def _timed(self, search: Search, make: Make, *, plain: bool) -> Answers:
        began = time.perf_counter()
        answers = make(search)
        with self._lock:
            self._pace.searched(time.perf_counter() - began, plain=plain)
        return answers

    def _keep(self, key: Any, asked: Search, answers: Answers) -> None:
        query = prepare_queries(asked.queries, "cosine")[0]
        scores, slots = answers.found[0]
        floor = scores[-1] if len(scores) == asked.reach else -math.inf
        rows = np.array(slots, dtype=np.int64)
        with self._lock:
            self._index.put(key, asked.where, answers.position, query, rows, floor)

    # -- learning ----------------------------------------------------------------------------------

    def _audit(self, audit: _Audit) -> None:
        try:
            answers = audit.make(audit.search)
            self._learn(
                audit.corpus, audit.namespace, audit.tried, answers, audit.search.k, audit=True
            )
        except CollectionClosedError:
            return
        except Exception as error:  # noqa: BLE001 - the caller has its answer
            self._fault("comparing an answer with a search", error)

    def _learn(
        self,
        corpus: str,
        namespace: str,
        tried: _Tried,
        answers: Answers,
        k: int,
        *,
        audit: bool,
    ) -> None:
        if answers.position != tried.answers.position:
            return  # another search than the one that was answered
        share = recall(tried.scores(k), answers.found[0][0][:k])
        wrong = share < self._recall
        self._count(namespace, "wrong" if wrong else "right")
        with self._lock:
            self._trust(corpus).add(tried.need, wrong=wrong, audit=audit)
            if audit:
                self._counts["audits"] += 1
                self._counts["wrong_audits"] += wrong
                self._recalls += share

    def _trust(self, corpus: str) -> Trust:
        trust = self._trusts.get(corpus)
        if trust is None:
            trust = self._trusts[corpus] = Trust(self._error, self._doubt, self._audited)
        return trust

    # -- counting ----------------------------------------------------------------------------------

    def _count(self, namespace: str, what: str) -> None:
        with self._lock:
            self._counts[what] += 1
            self._by[namespace, what] += 1

    def _fault(self, doing: str, error: Exception) -> None:
        with self._lock:
            self._counts["faults"] += 1
            is_first = self._counts["faults"] == 1
        if is_first:
            _log.warning("%s failed; a search is made (%s)", doing, type(error).__name__)


def _check(mode: Any, **options: Any) -> None:
    if mode not in get_args(Mode):
        raise ConfigurationError(f"mode must be certified or calibrated, got {mode!r}.")
    most = {"recall": 1.0, "error": 0.5, "audit": 1.0, "doubt": 0.5}
    for name, limit in most.items():
        if not 0 < options[name] <= limit:
            raise ConfigurationError(
                f"{name} must be above 0 and at most {limit}, got {options[name]!r}."
            )
    if options["min_gain"] is not None and not 0 <= options["min_gain"] < 1:
        raise ConfigurationError(
            f"min_gain must be None, or at least 0 and below 1, got {options['min_gain']!r}."
        )
    for name in ("rows", "max_entries"):
        if options[name] < 1:
            raise ConfigurationError(f"{name} must be at least 1, got {options[name]!r}.")


def _rebuild(mode: Mode, options: dict[str, Any]) -> NeighbourReuse:
    return NeighbourReuse(mode, **options)
