"""Contract suites for those who add a part of their own; our own parts pass them too.

Subclass a suite in your tests, give its fixture, and pytest runs every test of the contract.
"""

from ragaccel.testing.engines import EngineContract
from ragaccel.testing.levels import LevelContract

__all__ = ["EngineContract", "LevelContract"]
