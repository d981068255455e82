"""Finding settings: offline from recorded traffic, and online on a share of it."""

from ragaccel.knobs import Knob
from ragaccel.tuning.auto import AutoTuner
from ragaccel.tuning.goals import Goal, read_goals
from ragaccel.tuning.guard import Guard
from ragaccel.tuning.parts import tunables
from ragaccel.tuning.recorder import TrafficRecorder
from ragaccel.tuning.report import TuningReport
from ragaccel.tuning.traffic import Asked, Traffic

__all__ = [
    "Asked",
    "AutoTuner",
    "Goal",
    "Guard",
    "Knob",
    "Traffic",
    "TrafficRecorder",
    "TuningReport",
    "read_goals",
    "tunables",
]
