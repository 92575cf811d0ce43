"""Three frames of an event: before, peak and after it, to see at a glance what happened. Touches nothing."""

from __future__ import annotations

from collections import deque

from agent.model import NS_PER_S, Frame, Moment

APART_NS = NS_PER_S // 2
BEFORE_NS = NS_PER_S
AFTER_NS = NS_PER_S


class StripFrames:
    """Picks the frames as they pass; keeps at most ten of them.

    before: at least BEFORE_NS older than the event's start, or the oldest there is. after: the first that is AFTER_NS
    later than the last that moved, or the newest.
    """

    def __init__(self) -> None:
        self._past: deque[Frame] = deque(maxlen=7)
        self._start: Moment | None = None
        self._last_ns = 0
        self._before: Frame | None = None
        self._after: Frame | None = None

    def see(self, frame: Frame, active: bool, start: Moment | None) -> None:
        """One analysed frame, after `take`. start: that of the open event, None while none is open."""
        if start is None:
            self._start = None
        elif start != self._start:
            self._start = start
            older = [past for past in self._past if past.t_ns <= start.t_ns - BEFORE_NS]
            self._before = older[-1] if older else (self._past[0] if self._past else frame)
        if active:
            self._last_ns = frame.t_ns
        if active or self._after is None or self._after.t_ns - self._last_ns < AFTER_NS:
            self._after = frame
        if not self._past or frame.t_ns - self._past[-1].t_ns >= APART_NS:
            self._past.append(frame)

    def take(self, peak: Frame) -> tuple[Frame, ...]:
        """What was picked for the event that just ended, in order of time."""
        before, after = self._before, self._after
        frames = {frame.t_ns: frame for frame in (before, peak, after) if frame is not None}
        return tuple(frames[t_ns] for t_ns in sorted(frames))
