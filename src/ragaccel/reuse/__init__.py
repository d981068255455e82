"""Reuse of earlier results that is right by construction."""

from ragaccel.reuse.freshness import Answer, answers
from ragaccel.reuse.serve import serve

__all__ = ["Answer", "answers", "serve"]
