"""Reuse of earlier results: right by construction, or wrong no more often than is allowed."""

from ragaccel.reuse.freshness import Answer, answers
from ragaccel.reuse.serve import serve
from ragaccel.reuse.verified import ReuseStats, VerifiedReuse
from ragaccel.reuse.verified_judge import same_text, similar_text

__all__ = [
    "Answer",
    "ReuseStats",
    "VerifiedReuse",
    "answers",
    "same_text",
    "serve",
    "similar_text",
]
