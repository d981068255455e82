"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Threads of one search wait for each other for long where other tests run beside it; set before
# faiss is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Other jobs share the cores: how long an example took says nothing.
settings.register_profile(
    "shared machine",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared machine")
