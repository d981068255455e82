"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Other jobs share the cores: how long an example took says nothing.
settings.register_profile(
    "shared machine",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared machine")
