"""Cuts events from what the detector says: start, update, end. Pure; time comes with the motion."""

from __future__ import annotations

from collections.abc import Callable

from agent.model import NS_PER_S, Box, EndReason, Event, EventKind, Moment, Motion, Phase
from agent.settings import DetectionSettings

BETTER = 1.3
"""An update is worth sending when the picture got so many times better."""

EDGE = 0.01  # a box so near the picture's edge is cut off by it


class Events:
    """The machine from motion to events. At most one event is open.

    Confirmation (`confirm_frames`) is the detector's affair, since only it knows that it was the same thing
    in the same place for so many frames; here its word opens an event at once, dated back to Motion.since. So a
    subscriber hears of it after confirm_frames - 1 frame intervals. The hysteresis is in time: quiet_s to leave.
    """

    def __init__(self, settings: DetectionSettings, new_id: Callable[[], str]) -> None:
        self._quiet_ns = round(settings.quiet_s * NS_PER_S)
        self._longest_ns = round(settings.max_event_s * NS_PER_S)
        self._update_ns = round(settings.update_s * NS_PER_S)
        self._new_id = new_id
        self._open: _Open | None = None
        self._end_ns: int | None = None

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def peak(self) -> Moment | None:
        """The frame of the best picture so far of the open event; None while none is open."""
        return self._open.peak.moment if self._open else None

    def step(self, motion: Motion, sharpness: float = 1.0) -> list[Event]:
        """What is to be told after this frame, oldest first. sharpness: of the largest box, compared only."""
        told: list[Event] = []
        now = motion.moment
        current = self._open
        if current is not None and now.t_ns - current.last.t_ns >= self._quiet_ns:
            told.append(self._end(current, EndReason.QUIET))
        elif current is not None and now.t_ns - current.start.t_ns >= self._longest_ns:
            told.append(self._end(current, EndReason.MAX_LENGTH))
        current = self._open
        if current is None:
            if motion.active:
                told.append(self._start(motion, sharpness))
        elif motion.active:
            current.see(motion, sharpness)
            if current.is_news and now.t_ns - current.told_ns >= self._update_ns:
                told.append(current.tell(Phase.UPDATE, now.t_ns))
        return told

    def close(self, reason: EndReason) -> list[Event]:
        """End what is open."""
        return [self._end(self._open, reason)] if self._open else []

    def _start(self, motion: Motion, sharpness: float) -> Event:
        start = motion.since or motion.moment
        if self._end_ns is not None and start.t_ns <= self._end_ns:
            start = motion.moment  # events never overlap
        self._open = _Open(self._new_id(), start, motion, sharpness)
        return self._open.tell(Phase.START, motion.t_ns)

    def _end(self, current: _Open, reason: EndReason) -> Event:
        self._open = None
        self._end_ns = current.last.t_ns
        return current.tell(Phase.END, current.last.t_ns, reason)


class _Open:
    """The one event that goes on."""

    def __init__(self, event_id: str, start: Moment, motion: Motion, sharpness: float) -> None:
        self.id = event_id
        self.start = start
        self.last = motion.moment
        self.peak = motion
        self.zones = motion.zones
        self.told_ns = motion.t_ns
        self.is_news = False
        self._rev = 0
        self._quality = quality(motion, sharpness)
        self._told_quality = self._quality

    def see(self, motion: Motion, sharpness: float) -> None:
        self.last = motion.moment
        new_zones = tuple(zone for zone in motion.zones if zone not in self.zones)
        self.zones += new_zones
        self.is_news |= bool(new_zones)
        now = quality(motion, sharpness)
        if now > self._quality:
            self.peak, self._quality = motion, now
            self.is_news |= now >= self._told_quality * BETTER

    def tell(self, phase: Phase, now_ns: int, reason: EndReason | None = None) -> Event:
        self._rev += 1
        self.told_ns, self.is_news, self._told_quality = now_ns, False, self._quality
        return Event(
            id=self.id,
            rev=self._rev,
            phase=phase,
            kind=EventKind.MOTION,
            start=self.start,
            last=self.last,
            peak=self.peak.moment,
            score=self.peak.score,
            boxes=self.peak.boxes,
            zones=self.zones,
            end=self.last if reason else None,
            end_reason=reason,
        )


def quality(motion: Motion, sharpness: float = 1.0) -> float:
    """How good a picture of the moving thing this frame is: large, whole, sharp, sure."""
    if not motion.boxes:
        return 0.0
    box = motion.boxes[0]
    return box.w * box.h * (0.5 if _is_cut_off(box) else 1.0) * sharpness * motion.score


def _is_cut_off(box: Box) -> bool:
    """Left, right or top edge; people and cars are often cut off by the lower edge without harm."""
    return box.x < EDGE or box.y < EDGE or box.x + box.w > 1 - EDGE
