"""Cuts events from what the detector says: start, update, end. Pure; time comes with the motion."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from agent.model import NS_PER_S, Box, EndReason, Event, EventKind, Moment, Motion, Phase
from agent.settings import DetectionSettings

BETTER = 1.3
"""An update is worth sending when the picture got so many times better."""

MINUTE_NS = 60 * NS_PER_S
CALM_NS = 30 * NS_PER_S
"""A storm is over after so long without motion."""

EDGE = 0.01  # a box so near the picture's edge is cut off by it


class Events:
    """The machine from motion to events. At most one event is open.

    Confirmation (`confirm_frames`) is the detector's affair, since only it knows that it was the same thing
    in the same place for so many frames; here its word opens an event at once, dated back to Motion.since. So a
    subscriber hears of it after confirm_frames - 1 frame intervals.

    Hysteresis: to open an event takes the detector's word; half of that keeps it open, and so does a thing that
    stands still where it was last seen, for up to still_s; who stirs there has moved. The end is the last frame that
    moved.

    Storms: when the storm_per_min-th event within a minute begins, all that moves is gathered in that one event, and
    it tells the rate, until nothing moved for CALM_NS. Nothing is left out: its picture is the best of all.
    """

    def __init__(self, settings: DetectionSettings, new_id: Callable[[], str]) -> None:
        self.adopt(settings)
        self._new_id = new_id
        self._open: _Open | None = None
        self._end_ns: int | None = None
        self._moved_ns: int | None = None
        self._movements: deque[int] = deque()

    def adopt(self, settings: DetectionSettings) -> None:
        """Go by these from the next step on, also for the event that is open."""
        self._quiet_ns = round(settings.quiet_s * NS_PER_S)
        self._still_ns = max(self._quiet_ns, round(settings.still_s * NS_PER_S))
        self._longest_ns = round(settings.max_event_s * NS_PER_S)
        self._update_ns = round(settings.update_s * NS_PER_S)
        # Half of the way to confirmation, as the detector scores it.
        self._sign = 1 / (settings.confirm_frames + 1)
        self._storm_per_min = settings.storm_per_min

    @property
    def is_open(self) -> bool:
        return self._open is not None

    @property
    def start(self) -> Moment | None:
        """The first frame of the open event; None while none is open."""
        return self._open.start if self._open else None

    @property
    def peak(self) -> Moment | None:
        """The frame of the best picture so far of the open event; None while none is open."""
        return self._open.peak.moment if self._open else None

    def may_be_peak(self, motion: Motion) -> bool:
        """Whether this would be the best picture if it were sharp; else nobody needs to measure that."""
        return motion.active and (self._open is None or self._open.would_gain(motion))

    def asks_for_stillness(self, t_ns: int) -> bool:
        """Whether it matters now if a thing stands still: there was no sign of it for a while."""
        current = self._open
        return (
            current is not None
            and not current.rate_per_min
            and self._still_ns > self._quiet_ns
            and t_ns - current.seen_ns >= min(self._quiet_ns, NS_PER_S) // 2
        )

    def step(
        self, motion: Motion, sharpness: float = 1.0, is_there: bool = False, stirs: bool = False
    ) -> list[Event]:
        """What is to be told after this frame, oldest first.

        sharpness: of the largest box, 0..1. is_there: a thing stands still where it was last seen; stirs: and moves
        too little for the detector.
        """
        told: list[Event] = []
        now = motion.moment
        current = self._open
        if current is not None and self._is_over(current, now.t_ns):
            told.append(self._end(current, EndReason.QUIET))
        elif current is not None and now.t_ns - current.start.t_ns >= self._longest_ns:
            told.append(self._end(current, EndReason.MAX_LENGTH))
        current = self._open
        if current is None:
            if motion.active:
                self._count(now.t_ns)
                told.append(self._start(motion, sharpness))
        elif motion.active:
            if current.rate_per_min:
                self._count(now.t_ns)
                current.gather(len(self._movements))
            current.see(motion, sharpness)
            if current.is_news and now.t_ns - current.told_ns >= self._update_ns:
                told.append(current.tell(Phase.UPDATE, now.t_ns))
        elif is_there or motion.score >= self._sign:
            current.seen_ns = now.t_ns
            if stirs:
                current.last = now
        if motion.active:
            self._moved_ns = now.t_ns
        return told

    def close(self, reason: EndReason) -> list[Event]:
        """End what is open."""
        return [self._end(self._open, reason)] if self._open else []

    def _is_over(self, current: _Open, t_ns: int) -> bool:
        since_ns = t_ns - current.last.t_ns
        if current.rate_per_min:
            return since_ns >= max(CALM_NS, self._quiet_ns)
        return t_ns - current.seen_ns >= self._quiet_ns or since_ns >= self._still_ns

    def _count(self, t_ns: int) -> None:
        """Note a movement that begins after quiet_s without any; forget those of more than a minute ago."""
        if self._moved_ns is None or t_ns - self._moved_ns >= self._quiet_ns:
            self._movements.append(t_ns)
        while self._movements and t_ns - self._movements[0] >= MINUTE_NS:
            self._movements.popleft()

    def _start(self, motion: Motion, sharpness: float) -> Event:
        start = motion.since or motion.moment
        if self._end_ns is not None and start.t_ns <= self._end_ns:
            start = motion.moment  # events never overlap
        self._open = _Open(self._new_id(), start, motion, sharpness)
        if 0 < self._storm_per_min <= len(self._movements):
            self._open.gather(len(self._movements))
        return self._open.tell(Phase.START, motion.t_ns)

    def _end(self, current: _Open, reason: EndReason) -> Event:
        self._open = None
        self._end_ns = current.last.t_ns
        return current.tell(Phase.END, current.last.t_ns, reason)


class _Open:
    """The one event that goes on. seen_ns: the last sign of the thing, moving or not."""

    def __init__(self, event_id: str, start: Moment, motion: Motion, sharpness: float) -> None:
        self.id = event_id
        self.start = start
        self.last = motion.moment
        self.seen_ns = motion.t_ns
        self.peak = motion
        self.zones = motion.zones
        self.told_ns = motion.t_ns
        self.is_news = False
        self.rate_per_min = 0
        self._rev = 0
        self._quality = quality(motion, sharpness)
        self._told_quality = self._quality
        self._told_rate = 0

    def would_gain(self, motion: Motion) -> bool:
        return quality(motion) > self._quality

    def gather(self, movements: int) -> None:
        """This event stands for so many movements within the last minute."""
        self.rate_per_min = max(self.rate_per_min, movements)
        self.is_news |= self.rate_per_min >= self._told_rate * BETTER

    def see(self, motion: Motion, sharpness: float) -> None:
        self.last = motion.moment
        self.seen_ns = motion.t_ns
        new_zones = tuple(zone for zone in motion.zones if zone not in self.zones)
        self.zones += new_zones
        self.is_news |= bool(new_zones)
        now = quality(motion, sharpness)
        if now > self._quality:
            self.peak, self._quality = motion, now
            self.is_news |= now >= self._told_quality * BETTER

    def tell(self, phase: Phase, now_ns: int, reason: EndReason | None = None) -> Event:
        self._rev += 1
        self.told_ns, self.is_news = now_ns, False
        self._told_quality, self._told_rate = self._quality, self.rate_per_min
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
            rate_per_min=self.rate_per_min or None,
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
