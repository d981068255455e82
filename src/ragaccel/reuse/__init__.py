"""Reuse of earlier results: right by construction, or wrong no more often than is allowed."""

from ragaccel.reuse.freshness import Answer, answers
from ragaccel.reuse.neighbours import NeighbourReuse, NeighbourStats
from ragaccel.reuse.serve import serve, uncached
from ragaccel.reuse.verified import ReuseStats, VerifiedReuse
from ragaccel.reuse.verified_judge import same_text, similar_text
from ragaccel.wrapping.wording import same_words

__all__ = [
    "Answer",
    "NeighbourReuse",
    "NeighbourStats",
    "ReuseStats",
    "VerifiedReuse",
    "answers",
    "same_text",
    "same_words",
    "serve",
    "similar_text",
    "uncached",
]
