"""Thresholds by namespace: its own where its labels prove one, else that of all."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from ragaccel.reuse.verified_bound import chance_of_at_least
from ragaccel.reuse.verified_labels import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ragaccel.reuse.verified_labels import Label

_MOST_NAMESPACES: Final = 1000


class Strength:
    """The labels of all namespaces in one pool, and of each in a table of its own.

    Args:
        delta: The share of wrong answers among reused ones that is allowed.
        doubt: Probability that a threshold is too low.
        max_labels: How many the pool keeps, and each table.
    """

    def __init__(self, delta: float, doubt: float, max_labels: int) -> None:
        self._delta, self._doubt, self._max_labels = delta, doubt, max_labels
        self._pool = Table(delta, doubt, max_labels)
        self._own: OrderedDict[str, Table] = OrderedDict()

    def threshold(self, namespace: str) -> float:
        """Return the score from which on answers are reused in a namespace.

        The pool's threshold is the prior of a namespace that has not proved one: it holds until
        labels of its own refute it.
        """
        own = self._own.get(namespace)
        if own is None:
            return self._pool.threshold
        if own.is_proven or own.was_broken or (self._pool.is_proven and self._refutes(own)):
            return own.threshold
        return self._pool.threshold

    def add(self, namespace: str, label: Label) -> bool:
        """Take a label, and tell whether it showed that the bound is broken."""
        broken = self._table(namespace).add(label)
        return self._pool.add(label) or broken

    def fill(self, labels: Iterable[tuple[str, Label]]) -> None:
        """Take labels of an earlier process, the oldest first."""
        by: dict[str, list[Label]] = {}
        for namespace, label in labels:
            by.setdefault(namespace, []).append(label)
        self._pool.fill(label for each in by.values() for label in each)
        for namespace, each in by.items():
            self._table(namespace).fill(each)

    def _table(self, namespace: str) -> Table:
        table = self._own.get(namespace)
        if table is None:
            table = self._own[namespace] = Table(self._delta, self._doubt, self._max_labels)
            if len(self._own) > _MOST_NAMESPACES:
                self._own.popitem(last=False)
        self._own.move_to_end(namespace)
        return table

    def _refutes(self, own: Table) -> bool:
        trials, mistakes = own.above(self._pool.threshold)
        return chance_of_at_least(mistakes, trials, self._delta) <= self._doubt
