"""What holds for all tests: hypothesis does not judge by time, since the machines are noisy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("camera-agent", deadline=None)
settings.load_profile("camera-agent")
