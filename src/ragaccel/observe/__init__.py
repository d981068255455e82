"""Where the time of requests goes, and whether a running application does as usual."""

from ragaccel.observe.alerts import Alert, Change, Threshold, log_alerts
from ragaccel.observe.monitor import Monitor
from ragaccel.observe.profile import Profile
from ragaccel.observe.profiler import Profiler
from ragaccel.observe.snapshot import MonitorReport, Snapshot
from ragaccel.observe.webhook import Webhook

__all__ = [
    "Alert",
    "Change",
    "Monitor",
    "MonitorReport",
    "Profile",
    "Profiler",
    "Snapshot",
    "Threshold",
    "Webhook",
    "log_alerts",
]
