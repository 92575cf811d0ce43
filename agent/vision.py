"""The vision stage: newest frame -> motion -> events -> thumbnail -> EventBoard. No disk, no network, no clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from agent import thumbnail
from agent.events import Events
from agent.handoffs import EventBoard, FrameSlot, Status, StatusBoard
from agent.model import NS_PER_S, EndReason, Event, Frame, Moment, Motion, Thumbnail
from agent.motion import Detector, Seen
from agent.settings import Settings
from agent.status import VisionStatus
from agent.still import StillThere
from agent.strip import StripFrames
from agent.topics import MOTION

log = logging.getLogger(__name__)


class Vision:
    """One camera's eye. Vision thread only, but for `status`, which anybody may read.

    The detector is made for the size of the first frame, and anew when the size changes or the camera was
    started again (frame numbers begin anew), so that nobody has to tell it. on_strip: is given before, peak and after
    of each event that has ended, as one picture; costs memory for nine frames, as does `detection.strip`.
    is_armed: while it says no, the detector goes on learning the scene, but nothing that moves is told.
    with_pictures=False: events without thumbnails, where nobody will look at them.
    """

    def __init__(
        self,
        settings: Settings,
        slot: FrameSlot,
        board: EventBoard,
        statuses: StatusBoard,
        new_id: Callable[[], str],
        on_strip: Callable[[Event, Thumbnail], None] | None = None,
        is_armed: Callable[[], bool] = lambda: True,
        *,
        with_pictures: bool = True,
    ) -> None:
        self.status = VisionStatus()
        self.motion: Motion | None = None
        self._settings = self._wanted = settings
        self._is_armed = is_armed
        self._disarmed_ns: int | None = None
        self._slot = slot
        self._board = board
        self._statuses = statuses
        self._events = Events(settings.detection, new_id)
        self._still = StillThere()
        self._on_strip = on_strip
        self._with_pictures = with_pictures
        self._strip = StripFrames() if self._wants_strips() else None
        self._detector: Detector | None = None
        self._share = 1.0
        self._period_ns = self._period()
        self._due_ns = 0
        self._seq = -1
        self._peak: Frame | None = None
        self._thumbnail: Thumbnail | None = None
        self._start: Moment | None = None
        self._is_on = False
        statuses.put(MOTION, Status(b"OFF"))

    @property
    def is_on(self) -> bool:
        """Whether an event goes on."""
        return self._is_on

    @property
    def seen(self) -> Seen | None:
        """The detector's stages on the frame of self.motion; None while it learns. Vision thread only."""
        return None if self._detector is None or self.motion is None or self.motion.learning else self._detector.seen

    def step(self, wait_s: float) -> bool:
        """Look at the newest frame, waiting up to wait_s for one. Whether one was analysed.

        self.motion is what was seen on it.
        """
        frame = self._slot.take(wait_s)
        if self._wanted is not self._settings:
            self._take_over(self._wanted)
        if self._slot.take_interruption():
            self.close(EndReason.CAMERA_LOST)
            self._detector = None
            self._still.forget()
        if frame is None or not self._is_due(frame):
            return False
        detector = self._detector_for(frame)
        seen_before = detector.seen
        motion = self.motion = self._not_merely_uncovered(detector, detector.step(frame))
        self._seq = frame.seq
        sharpness = 1.0
        if motion.active and detector.seen is seen_before:
            # Its boxes are those of an earlier frame: no picture to show them on.
            sharpness = 0.0
        elif motion.boxes and self._events.may_be_peak(motion):
            sharpness = thumbnail.sharpness(frame.y, motion.boxes[0])
        if self._is_armed():
            is_there, stirs = self._stays(detector, motion)
            for event in self._events.step(self._since_arming(motion), sharpness, is_there, stirs):
                self._tell(event, frame)
        else:
            self._disarmed_ns = frame.t_ns
            self.close(EndReason.DISARMED)
        self._watch(detector, motion)
        if self._strip is not None:
            self._strip.see(frame, motion.active, self._events.start)
        if self._events.peak == motion.moment:
            self._keep(frame)
        self._show(self._events.is_open)
        self.status = replace(
            self.status,
            frames=self.status.frames + 1,
            skipped=self._slot.skipped,
            last_frame_ns=frame.t_ns,
            learning=motion.learning,
            light="changing" if motion.light_changed else "steady",
        )
        return True

    def ease(self, share: float) -> None:
        """Analyse only this share of the frames the settings allow, 0..1. Any thread."""
        self._share = share
        self._period_ns = self._period()

    def _period(self) -> int:
        limit = self._settings.detection.fps or (self._settings.camera.fps if self._share < 1 else 0)
        return round(NS_PER_S / (limit * self._share)) if limit else 0

    def _wants_strips(self) -> bool:
        return self._on_strip is not None or (self._with_pictures and self._settings.detection.strip)

    def adopt(self, settings: Settings) -> None:
        """Go by other settings for detection and zones from the next frame on. Any thread."""
        self._wanted = settings

    def _take_over(self, settings: Settings) -> None:
        before, self._settings = self._settings, settings
        self._period_ns = self._period()
        self._events.adopt(settings.detection)
        if self._strip is None or not self._wants_strips():
            self._strip = StripFrames() if self._wants_strips() else None
        detection, was = settings.detection, before.detection
        if (detection.sensitivity, detection.confirm_frames) != (was.sensitivity, was.confirm_frames) or (
            settings.zones != before.zones
        ):
            self._detector = None

    def close(self, reason: EndReason) -> None:
        """End what is open: the node stops, or the camera is lost. May be followed by more steps."""
        for event in self._events.close(reason):
            self._tell(event)
        self._show(False)

    def _is_due(self, frame: Frame) -> bool:
        if not self._period_ns:
            return True
        if frame.seq <= self._seq:
            self._due_ns = frame.t_ns
        if frame.t_ns < self._due_ns:
            return False
        # From the due time, not from this frame's: 15 fps thinned to 10 must not become 7.5.
        self._due_ns = max(self._due_ns + self._period_ns, frame.t_ns)
        return True

    def _detector_for(self, frame: Frame) -> Detector:
        height, width = frame.y.shape
        detector = self._detector
        if detector is None or (detector.width, detector.height) != (width, height) or frame.seq <= self._seq:
            import cv2

            # OpenCV's workers spin for their next task: at this size that costs a tenth of all CPU and gains no time.
            cv2.setNumThreads(1)
            detection = self._settings.detection
            detector = self._detector = Detector(
                width,
                height,
                sensitivity=detection.sensitivity,
                confirm_frames=detection.confirm_frames,
                zones=self._settings.zones,
            )
            log.info("learning the background at %dx%d", width, height)
        return detector

    def _since_arming(self, motion: Motion) -> Motion:
        """The same word, but what began while nobody wanted to know begins now."""
        if self._disarmed_ns is None or motion.since is None or motion.since.t_ns > self._disarmed_ns:
            return motion
        return replace(motion, since=None)

    def _not_merely_uncovered(self, detector: Detector, motion: Motion) -> Motion:
        """The same word, unless all that changed is the place of something that stayed and is gone now."""
        if not motion.active or self._events.is_open or detector.seen is None:
            return motion
        if not self._still.is_uncovered(detector.seen.small, motion.boxes):
            return motion
        return replace(motion, active=False, boxes=(), zones=(), since=None)

    def _stays(self, detector: Detector, motion: Motion) -> tuple[bool, bool]:
        """Whether what moved before stands still now, and whether it stirs."""
        if motion.active or detector.seen is None or not self._events.asks_for_stillness(motion.t_ns):
            return False, False
        small = detector.seen.small
        is_there = self._still.is_there(small)
        return is_there, is_there and self._still.stirs(motion.t_ns, small)

    def _watch(self, detector: Detector, motion: Motion) -> None:
        """Remember what `_stays` will compare with."""
        start = self._events.start
        if start is None:
            if self._start is not None and detector.seen is not None:
                self._still.absorb(detector.seen.small)
            if detector.seen is not None and not motion.learning:
                self._still.look_around(motion.t_ns, detector.seen.small)
        elif motion.active:
            if start != self._start:
                self._still.begin(start.t_ns)
            self._still.see(motion.boxes)
        self._start = start

    def _keep(self, frame: Frame) -> None:
        if self._peak is not frame:
            self._peak, self._thumbnail = frame, None

    def _tell(self, event: Event, frame: Frame | None = None) -> None:
        if frame is not None and event.peak == frame.moment:
            self._keep(frame)
        if self._with_pictures and self._thumbnail is None and self._peak is not None:
            self._thumbnail = thumbnail.encode(self._peak)
        picture, strip = self._thumbnail, None
        if event.end is not None and self._strip is not None and self._peak is not None:
            strip = thumbnail.strip(self._strip.take(self._peak), self._peak.moment)
        if strip is not None and self._settings.detection.strip:
            picture = strip
        self._board.put(replace(event, thumbnail=picture))
        log.info(
            "event %s rev %d %s: score %.2f, frames %d-%d",
            event.id,
            event.rev,
            event.phase.value,
            event.score,
            event.start.frame,
            event.last.frame,
        )
        if event.end is not None:
            if strip is not None and self._on_strip is not None:
                self._on_strip(event, strip)
            self._peak = self._thumbnail = None

    def _show(self, is_on: bool) -> None:
        if is_on != self._is_on:
            self._is_on = is_on
            self._statuses.put(MOTION, Status(b"ON" if is_on else b"OFF"))
