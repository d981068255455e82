"""Joining what is asked at the same time."""

from ragaccel.batching.micro import MicroBatcher

__all__ = ["MicroBatcher"]
