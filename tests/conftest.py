"""What holds for all tests: hypothesis does not judge by time on noisy machines; Ctrl-C reaches children."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("camera-agent", deadline=None)
settings.load_profile("camera-agent")

# A shell starts what runs in its background with SIGINT ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
