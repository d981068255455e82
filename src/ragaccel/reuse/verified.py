"""Verified reuse of answers: a semantic cache whose wrong answers per hit are bounded.

After vCache (Schroeder et al., 2025), whose bound is per request and whose strength is one entry's
alone; here it is per hit, and all entries share what is learned.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ragaccel import telemetry
from ragaccel.cache import MISSING, DiskLevel, flow
from ragaccel.errors import ConfigurationError
from ragaccel.reuse.figures import FIGURES, figures
from ragaccel.reuse.verified_file import Kept, VerifiedFile
from ragaccel.reuse.verified_gate import Gate, gate
from ragaccel.reuse.verified_index import Index, Neighbour
from ragaccel.reuse.verified_judge import Embedder, same_text, unit
from ragaccel.reuse.verified_labels import Label
from ragaccel.reuse.verified_strength import Strength
from ragaccel.telemetry import attributes

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ragaccel.cache import MultiLevelCache
    from ragaccel.reuse.verified_judge import Judge
    from ragaccel.wrapping.semantic import Call

T = TypeVar("T")

_FILE: Final = "verified.sqlite"
_log = logging.getLogger("ragaccel.reuse")


class _Looked(NamedTuple):
    """What was found out about a question before the model was asked."""

    partition: bytes
    vector: NDArray[Any]
    gate: Gate
    neighbour: Neighbour | None
    is_near: bool
    is_audit: bool


class ReuseStats(NamedTuple):
    """What a `VerifiedReuse` did since it was made.

    Attributes:
        hits: Questions that were answered as a similar one was.
        misses: Questions that the model was asked.
        audits: Of the misses those that would have been hits.
        wrong_audits: Of the audits those where another answer would have been given.
        right: Labels of answers that were, or would have been, right to give.
        wrong: Labels of answers that were not.
        faults: Embeddings, judgements, reads and writes that failed.
        entries: Questions that are kept.
    """

    hits: int
    misses: int
    audits: int
    wrong_audits: int
    right: int
    wrong: int
    faults: int
    entries: int


class VerifiedReuse:
    """Answers a question as a similar one was, and is wrong in at most `delta` of the hits.

    What is reused, and what decides it, is learned: every miss is judged against the answer that
    would have been given, and so is a share of the hits, which are asked of the model all the same.
    Until there are enough labels nothing is reused: about ln(200) / delta of them, 530 for 1%.
    Nothing is reused across namespaces, models and their settings, system prompts, histories and
    arguments of the call. Calls with tools or a schema are left to the exact cache.

    Args:
        delta: The share of wrong answers among the reused ones that is allowed, above 0 and at
            most 0.5.
        embed: Gives the vector of a question: a function of a text, blocking or not, or an
            embedding model of LangChain or LlamaIndex.
        judge: Tells of a question, the answer that was kept and the model's own whether both say
            the same: blocking or not. By default if they are the same text; where a model words
            its answers anew each time take `similar_text` or ask a model.
        audit: Share of the hits that are asked of the model all the same.
        split: Gives of a prompt the question and the rest of it, which must be equal, such as
            retrieved context; None for a prompt that is not to be reused. By default a prompt is
            the question.
        doubt: Probability that the threshold is too low for `delta`.
        background: Whether to judge and learn after the answer is given; for judges that take long.
        path: A file for what is learned; by default one beside the cache's disk level, and none
            where it has none. Use another one for another `embed` or `judge`.
        max_entries: How many questions are kept.
        max_labels: How many labels are kept; the newest count.
        seed: Of the choice of audits.

    Raises:
        ConfigurationError: A number is outside of what it can be.

    Example:
        >>> reuse = VerifiedReuse(delta=0.01, embed=lambda text: [1.0, float(len(text))])
        >>> reuse.stats().hits
        0
    """

    def __init__(
        self,
        delta: float = 0.01,
        *,
        embed: Any,
        judge: Judge = same_text,
        audit: float = 0.05,
        split: Callable[[str], tuple[str, str] | None] | None = None,
        doubt: float = 0.02,
        background: bool = False,
        path: str | os.PathLike[str] | None = None,
        max_entries: int = 10_000,
        max_labels: int = 20_000,
        seed: int | None = None,
    ) -> None:
        _check("delta", delta, 0.5)
        _check("audit", audit, 1.0)
        _check("doubt", doubt, 0.5)
        for name, number in (("max_entries", max_entries), ("max_labels", max_labels)):
            if number < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {number}.")
        self._options = {
            "delta": delta, "embed": embed, "judge": judge, "audit": audit, "split": split,
            "doubt": doubt, "background": background, "path": path, "max_entries": max_entries,
            "max_labels": max_labels, "seed": seed,
        }  # fmt: skip
        self._embed, self._judge, self._split = Embedder(embed), judge, split
        self._audit, self._background, self._path = audit, background, path
        self._most = (max_entries, max_labels)
        self._lock = threading.RLock()
        self._index = Index(max_entries)
        self._strength = Strength(delta, doubt, max_labels)
        self._random = random.Random(seed)  # noqa: S311 - which hits are audited is no secret
        self._file: VerifiedFile | None = None
        self._is_loaded = False
        self._counts: Counter[str] = Counter()
        self._by: Counter[tuple[str, str]] = Counter()
        telemetry.measure(self)

    def threshold(self, namespace: str = "default") -> float:
        """Return the score from which on answers are reused; infinity until it is known."""
        with self._lock:
            return self._strength.threshold(namespace)

    def stats(self) -> ReuseStats:
        """Return what it did since it was made."""
        with self._lock:
            counts = {name: self._counts[name] for name in ReuseStats._fields}
            return ReuseStats(**counts | {"entries": len(self._index)})

    def figures(self) -> list[telemetry.Figure]:
        """Return the statistics as metrics."""
        with self._lock:
            counted = list(self._by.items())
        return figures(counted)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._file is not None:
            self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._options,)

    # -- what `accelerate` calls; see `ragaccel.wrapping.semantic.Semantic` -----------------------

    async def find(self, io: flow.IO, call: Call[T], span: telemetry.Stage) -> Any:
        """Return the answer to a similar question, or `MISSING`; nothing is raised."""
        try:
            looked = await self._look(io, call)
            call.looked = looked
            near = None if looked is None else looked.neighbour
            if looked is None or near is None or not looked.is_near or looked.is_audit:
                return self._missed(call, looked)
            answer = await call.answer(io, near.key, counted=True)
            if answer is MISSING or call.said(answer) is None:
                await self._remove(io, looked.partition, near.key)
                call.looked = looked._replace(neighbour=None)
                return self._missed(call, looked)
        except Exception as error:  # noqa: BLE001 - the model is asked instead
            self._fault("looking for a similar question", error)
            return MISSING
        self._count(call.namespace, "hits", "hit")
        span.set(
            {attributes.CACHE_HIT_KIND: "semantic", attributes.CACHE_SIMILARITY: near.similarity}
        )
        return answer

    async def learn(self, io: flow.IO, call: Call[T], answer: T) -> None:
        """Judge what would have been reused by what the model said; nothing is raised."""
        if call.looked is None:
            return
        if self._background:
            io.spawn(lambda: self._learn(io, call, answer))
        else:
            await self._learn(io, call, answer)

    # -- looking -----------------------------------------------------------------------------------

    async def _look(self, io: flow.IO, call: Call[T]) -> _Looked | None:
        question, rest = call.question, ""
        if self._split is not None:
            parted = self._split(question)
            if parted is None:
                return None
            question, rest = parted
        if not self._is_loaded:
            await io.call(self._load, call.cache)
        embed = self._embed.awaited if io is flow.ASYNC else self._embed.blocking
        vector, facts = unit(await io.call(embed, question)), gate(question)
        partition = call.partition(rest)
        with self._lock:
            near = self._index.nearest(partition, vector, facts, call.key)
            is_near = near is not None and near.score >= self._strength.threshold(call.namespace)
            is_audit = is_near and self._random.random() < self._audit
        return _Looked(partition, vector, facts, near, is_near, is_audit)

    def _missed(self, call: Call[Any], looked: _Looked | None) -> Any:
        is_audit = looked is not None and looked.is_audit
        self._count(call.namespace, "misses", "audit" if is_audit else "miss")
        return MISSING

    # -- learning ----------------------------------------------------------------------------------

    async def _learn(self, io: flow.IO, call: Call[T], answer: T) -> None:
        looked: _Looked = call.looked
        try:
            said = call.said(answer)
            if said is None:
                return
            right = await self._judged(io, call, looked, said)
            await self._keep(io, call, looked, right=right)
        except Exception as error:  # noqa: BLE001 - the caller has its answer
            self._fault("learning from an answer", error)

    async def _judged(self, io: flow.IO, call: Call[T], looked: _Looked, said: str) -> bool | None:
        """Return whether the neighbour's answer would have been right, or None if nobody knows."""
        if looked.neighbour is None:
            return None
        kept = await call.answer(io, looked.neighbour.key, counted=False)
        kept_said = None if kept is MISSING else call.said(kept)
        if kept_said is None:
            await self._remove(io, looked.partition, looked.neighbour.key)
            return None
        if self._judge is same_text:
            return same_text(call.question, kept_said, said)
        return bool(await io.call(self._judge, call.question, kept_said, said))

    async def _keep(
        self, io: flow.IO, call: Call[T], looked: _Looked, *, right: bool | None
    ) -> None:
        near, broken = looked.neighbour, False
        label = None
        with self._lock:
            if near is not None and right is not None:
                label = Label(near.score, not right, looked.is_audit)
                broken = self._strength.add(call.namespace, label)
            group = near.group if near is not None and right else None
            group = self._index.put(looked.partition, call.key, looked.vector, looked.gate, group)
        if label is not None:
            self._count(call.namespace, "right" if right else "wrong", None)
            if looked.is_audit:
                self._count(call.namespace, "audits", None)
                self._counts["wrong_audits"] += label.wrong
        if self._file is not None:
            entry = Kept(looked.partition, call.key, looked.vector, looked.gate, group)
            write = functools.partial(self._file.keep, call.namespace, entry, label, anew=broken)
            await io.call(write)

    async def _remove(self, io: flow.IO, partition: bytes, key: bytes) -> None:
        """Forget a question whose answer is kept no more."""
        with self._lock:
            self._index.remove(partition, key)
        if self._file is not None:
            await io.call(self._file.remove, partition, key)

    # -- the file ----------------------------------------------------------------------------------

    def _load(self, cache: MultiLevelCache) -> None:
        with self._lock:
            if self._is_loaded:
                return
            self._is_loaded = True
            path = self._path or _beside(cache)
            if path is None:
                return
            self._file = VerifiedFile(Path(path), *self._most)
            entries, labels = self._file.load()
            for entry in entries:
                self._index.put(*entry)
            self._strength.fill(labels)

    # -- counting ----------------------------------------------------------------------------------

    def _count(self, namespace: str, name: str, told: str | None) -> None:
        with self._lock:
            self._counts[name] += 1
            if told is not None or name in FIGURES:
                self._by[namespace, told or name] += 1

    def _fault(self, doing: str, error: Exception) -> None:
        with self._lock:
            self._counts["faults"] += 1
            is_first = self._counts["faults"] == 1
        if is_first:
            _log.warning("%s failed; the model is asked instead (%s)", doing, type(error).__name__)


def _check(name: str, share: float, most: float) -> None:
    if not 0 < share <= most:
        raise ConfigurationError(f"{name} must be above 0 and at most {most}, got {share}.")


def _beside(cache: MultiLevelCache) -> Path | None:
    """Return a path beside the cache's disk level, if it has one."""
    for level in cache.levels:
        if isinstance(level, DiskLevel):
            return level.path.with_name(f"{level.path.stem}.{_FILE}")
    return None


def _rebuild(options: dict[str, Any]) -> VerifiedReuse:
    return VerifiedReuse(**options)
