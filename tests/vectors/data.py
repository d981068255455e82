"""Vectors that behave like embeddings, and exact search in plain numpy to compare with."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck

METRICS = ("cosine", "ip", "l2")
#: What Hypothesis must not mind where other jobs share the cores.
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

_CENTRES = np.random.default_rng(2026).standard_normal((100, 64))


def clustered(rows, *, seed, dim=64, spread=0.7):
    """Return float32 vectors in a hundred clusters, as the embeddings of texts are."""
    generator = np.random.default_rng(seed)
    chosen = _CENTRES[generator.integers(0, len(_CENTRES), rows), :dim]
    return (chosen + spread * generator.standard_normal((rows, dim))).astype(np.float32)


def names(rows, prefix="row"):
    """Return that many ids, each of which tells its place."""
    return [f"{prefix}-{at}" for at in range(rows)]


def places(hits):
    """Return the places that the ids of hits tell, in their order."""
    return [int(hit.id.rpartition("-")[2]) for hit in hits]


def exact_scores(metric, queries, rows):
    """Return the scores of float32 rows for queries, computed in float64, shape (m, n)."""
    queries, rows = np.float64(np.atleast_2d(queries)), np.float64(rows)
    if metric == "l2":
        return -np.stack([((rows - query) ** 2).sum(axis=1) for query in queries])
    if metric == "cosine":
        queries, rows = _unit(queries), _unit(rows)
    return queries @ rows.T


def nearest(metric, queries, rows, k):
    """Return the places of the k best rows of each query; of equal scores the earlier first."""
    return np.argsort(-exact_scores(metric, queries, rows), axis=1, kind="stable")[:, :k]


def recall(found, truth):
    """Return which share of the true places was found, over all queries."""
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len(set(got) & set(right)) / len(right) for got, right in pairs]))


def _unit(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
