"""How long to wait before the next try: doubling, bounded, with jitter. Touches nothing."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays of about 1, 2, 4 ... limit_s seconds, each drawn between half and whole, never below 1 s.

    random: 0..1, so that a thousand nodes that lost one broker do not come back in the same moment.
    """

    def __init__(self, random: Callable[[], float], limit_s: float = 60.0) -> None:
        self._random = random
        self._limit_s = limit_s
        self._tries = 0

    def next_s(self) -> float:
        """The next delay, seconds."""
        high = min(2.0 ** max(self._tries, 1), self._limit_s)
        self._tries = min(self._tries + 1, 32)
        low = max(1.0, high / 2)
        return low + (high - low) * self._random()

    def reset(self) -> None:
        """All is well: begin anew with the shortest delay."""
        self._tries = 0


class Pace:
    """At most per_s things per second, a second's worth of them at once; per_s 0: no limit. No clock of its own."""

    def __init__(self, per_s: float) -> None:
        self._interval_ns = round(1e9 / per_s) if per_s else 0
        self._burst_ns = round(1e9)
        self._free_ns = 0

    def wait_ns(self, now_ns: int) -> int:
        """How long until the next one may go; 0 for now."""
        return max(0, self._free_ns - now_ns)

    def went(self, now_ns: int) -> None:
        self._free_ns = max(self._free_ns, now_ns - self._burst_ns) + self._interval_ns
