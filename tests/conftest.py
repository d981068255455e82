"""What all tests share."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# Threads of one search wait for each other for long where other tests run beside it; set before
# faiss is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that a failure is one of the change it is seen on;
# `--hypothesis-profile explore` draws others. Other jobs share the cores: how long an example
# took says nothing.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")
