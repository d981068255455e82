"""Replaying traffic against an application, and checking every answer against exact search."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ragaccel.cli.demo.corpus import Passage
from ragaccel.cli.demo.pipelines import K
from ragaccel.cli.demo.traffic import Ask, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ragaccel import MultiLevelCache, VectorCollection
    from ragaccel.cli.demo.corpus import Corpus
    from ragaccel.cli.demo.models import TextModel
    from ragaccel.cli.demo.pipelines import Application


class RememberingModel:
    """A model that embeds the corpus once for all applications; questions are always embedded."""

    def __init__(
        self, model: TextModel, texts: Sequence[str], vectors: NDArray[np.float32]
    ) -> None:
        self.name, self.dim = model.name, model.dim
        self._model = model
        self._known = dict(zip(texts, vectors, strict=True))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts into the unit rows of an (n, dim) array."""
        if all(text in self._known for text in texts):
            return np.stack([self._known[text] for text in texts])
        return self._model.embed(texts)


class Truth:
    """What an exact search finds now: plain numpy, no part of ragaccel."""

    def __init__(self, corpus: Corpus, vectors: NDArray[np.float32]) -> None:
        self._ids = [one.id for one in corpus.passages]
        self._texts = {one.id: one.text for one in corpus.passages}
        self._rows = vectors.copy()
        self._place = {id_: at for at, id_ in enumerate(self._ids)}

    def put(self, passage: Passage, vector: NDArray[np.float32]) -> None:
        """Add or replace a passage."""
        if passage.id not in self._place:
            self._place[passage.id] = len(self._ids)
            self._ids.append(passage.id)
            self._rows = np.concatenate((self._rows, vector[None, :]))
        self._rows[self._place[passage.id]] = vector
        self._texts[passage.id] = passage.text

    def delete(self, id_: str) -> None:
        """Delete a passage."""
        self._rows[self._place[id_]] = 0
        del self._texts[id_]

    def top(self, query: NDArray[np.float32]) -> set[str]:
        """Return the ids of the K nearest passages."""
        scores = self._rows @ query
        return {self._ids[at] for at in np.argpartition(-scores, K)[:K]}

    def holds(self, found: Sequence[tuple[str, str]]) -> bool:
        """Tell whether every found passage exists with just that text."""
        return all(self._texts.get(id_) == text for id_, text in found)


@dataclass
class Measured:
    """What a replay saw.

    Attributes:
        seconds: Duration of each request, in order.
        embedding: Duration of embedding each question on its own, where there are no spans to tell.
        levels: The cache level that served each request, or None.
        recall: Recall@10 of each answer against exact search at that moment.
        answered: Whether the question's own paragraph was in each answer.
        answerable: Whether it was in the answer of exact search.
        stale: Answers that a new search would not have given.
        writes: Writes among the requests.
    """

    seconds: list[float] = field(default_factory=list)
    embedding: list[float] = field(default_factory=list)
    levels: list[str | None] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    answered: list[bool] = field(default_factory=list)
    answerable: list[bool] = field(default_factory=list)
    stale: int = 0
    writes: int = 0

    def quantiles(self, *, hit: bool | None = None) -> tuple[float, float]:
        """Return p50 and p95 in seconds of all requests, or of the hits or misses only."""
        chosen = [
            seconds
            for seconds, level in zip(self.seconds, self.levels, strict=True)
            if hit is None or (level is not None) == hit
        ]
        if not chosen:
            return float("nan"), float("nan")
        p50, p95 = np.percentile(chosen, [50, 95])
        return float(p50), float(p95)

    def hit_rate(self, level: str | None = None) -> float:
        """Return the share of requests that a level, or any, served."""
        served = [one for one in self.levels if one is not None and level in (None, one)]
        return len(served) / len(self.levels) if self.levels else 0.0


@dataclass(frozen=True)
class Replay:
    """The parts of a replay that stay the same for every application."""

    corpus: Corpus
    model: TextModel
    vectors: NDArray[np.float32]
    questions: NDArray[np.float32]

    def truth(self) -> Truth:
        """Return exact search over the corpus as it is before any write."""
        return Truth(self.corpus, self.vectors)

    def run(
        self,
        application: Application,
        cache: MultiLevelCache | None,
        truth: Truth,
        events: Sequence[Ask | Write],
        advance: Callable[[], object],
    ) -> Measured:
        """Make the requests and the writes in order, checking every answer."""
        measured = Measured()
        for event in events:
            if isinstance(event, Write):
                self._write(application, truth, event)
                measured.writes += 1
            else:
                self._ask(application, cache, truth, event.question, measured)
            advance()
        return measured

    def _ask(
        self,
        application: Application,
        cache: MultiLevelCache | None,
        truth: Truth,
        question: int,
        measured: Measured,
    ) -> None:
        asked = self.corpus.questions[question]
        before = {} if cache is None else cache.stats().hits
        if cache is None:
            started = time.perf_counter()
            self.model.embed([asked.text])
            measured.embedding.append(time.perf_counter() - started)
        started = time.perf_counter()
        found = application.ask(asked.text)
        measured.seconds.append(time.perf_counter() - started)
        after = {} if cache is None else cache.stats().hits
        level = next((name for name in after if after[name] > before.get(name, 0)), None)
        ids, exact = {id_ for id_, _ in found}, truth.top(self.questions[question])
        measured.levels.append(level)
        measured.recall.append(len(ids & exact) / K)
        measured.answered.append(asked.passage_id in ids)
        measured.answerable.append(asked.passage_id in exact)
        if not truth.holds(found):
            measured.stale += 1
        elif level is not None and application.collection is not None and ids != exact:
            fresh = _search(application.collection, self.questions[question])
            measured.stale += len(fresh & exact) > len(ids & exact)

    def _write(self, application: Application, truth: Truth, write: Write) -> None:
        passage, delete = _change(self.corpus, write)
        if delete:
            application.delete(passage.id)
            truth.delete(passage.id)
        else:
            application.put(passage)
            truth.put(passage, self.model.embed([passage.text])[0])


def _search(collection: VectorCollection, query: NDArray[np.float32]) -> set[str]:
    return {hit.id for hit in collection.search(query, K)[0]}


def _change(corpus: Corpus, write: Write) -> tuple[Passage, bool]:
    """Return the passage that a write is about, and whether it is deleted."""
    if write.kind in ("add", "retract"):
        question = corpus.questions[write.target]
        own = next(one for one in corpus.passages if one.id == question.passage_id)
        text = f"{own.text} This paragraph was brought up to date."
        return Passage(f"new:{question.id}", own.title, text), write.kind == "retract"
    own = corpus.passages[corpus.distractors_at + write.target]
    text = f"{own.text} (Revised.)"
    return Passage(own.id, own.title, text), write.kind == "delete"
