"""From frames in the slot to events on the board."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest

from agent.cameras.fake import FakeSource
from agent.cameras.scene import Scene, Sitter, Walker
from agent.handoffs import EventBoard, FrameSlot, StatusBoard
from agent.model import NS_PER_S, EndReason, Event, Frame, Packet, Phase, Thumbnail
from agent.settings import Settings, load_settings
from agent.topics import MOTION
from agent.vision import Vision

FPS = 10
T0_NS = 50 * NS_PER_S


def settings(**detection: Any) -> Settings:
    return load_settings(environ={}, overrides={"detection": {"quiet_s": 1, **detection}})


def picture(x: float | None, width: int = 160, height: int = 120) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A flat wall and, where x is given, somebody at x of the picture's width."""
    y = np.full((height, width), 140, np.uint8)
    if x is not None:
        left = round(x * width)
        y[height // 4 :, max(left, 0) : max(left + width // 8, 0)] = 60
    return y


class Bench:
    """A vision stage with somebody to step it."""

    def __init__(self, given: Settings | None = None) -> None:
        self.slot, self.board, self.statuses = FrameSlot(), EventBoard(), StatusBoard()
        ids = count(1)
        self.vision = Vision(given or settings(), self.slot, self.board, self.statuses, lambda: f"E{next(ids)}")
        self.told: list[Event] = []
        self.frame = 0
        self.t_ns = T0_NS

    def see(self, *positions: float | None, width: int = 160, height: int = 120) -> None:
        for x in positions:
            grey = np.full((height // 2, width // 2), 128, np.uint8)
            self.slot.put(Frame(self.frame, self.t_ns, picture(x, width, height), grey, grey))
            self.vision.step(0)
            self.told += self.board.take()
            self.frame += 1
            self.t_ns += NS_PER_S // FPS

    def motion_status(self) -> bytes:
        return self.statuses.all()[MOTION].payload


CALM: tuple[None, ...] = (None,) * 25
CROSSING = tuple(-0.1 + 0.05 * i for i in range(22))


def test_a_crossing_is_one_event_with_a_picture_of_who_crossed() -> None:
    import cv2

    bench = Bench()
    bench.see(*CALM, *CROSSING, *CALM)
    assert [event.phase for event in bench.told if event.phase is not Phase.UPDATE] == [Phase.START, Phase.END]
    end = bench.told[-1]
    assert end.end_reason is EndReason.QUIET
    assert abs(end.start.frame - 25) <= 2
    assert end.thumbnail is not None
    assert end.thumbnail.moment == end.peak
    thumbnail = cv2.imdecode(np.frombuffer(end.thumbnail.jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert thumbnail is not None
    box = end.boxes[0]
    inside = thumbnail[round((box.y + box.h / 2) * 120), round((box.x + box.w / 2) * 160)]
    assert inside < 90  # he stands where the box says
    assert box.w < 0.3


def test_every_revision_carries_the_picture_of_its_peak() -> None:
    bench = Bench()
    bench.see(*CALM, *CROSSING, *CALM)
    for event in bench.told:
        assert event.thumbnail is not None
        assert event.thumbnail.moment == event.peak


def test_an_event_is_told_within_three_frames_of_the_first_that_moved() -> None:
    bench = Bench()
    bench.see(*CALM)
    seen = 0
    while not bench.told:
        bench.see(0.02 + 0.05 * seen)
        seen += 1
    assert seen <= 3
    assert bench.told[0].start.frame == 25


def test_motion_is_on_while_an_event_goes_on_and_off_from_the_start() -> None:
    bench = Bench()
    assert bench.motion_status() == b"OFF"
    bench.see(*CALM, *CROSSING[:10])
    assert bench.motion_status() == b"ON"
    bench.see(*CALM)
    assert bench.motion_status() == b"OFF"


def test_a_shutdown_ends_the_event_that_is_open() -> None:
    bench = Bench()
    bench.see(*CALM, *CROSSING[:10])
    bench.vision.close(EndReason.SHUTDOWN)
    end = bench.board.take()[-1]
    assert (end.phase, end.end_reason) == (Phase.END, EndReason.SHUTDOWN)
    assert end.thumbnail is not None
    assert bench.motion_status() == b"OFF"


def test_a_lost_camera_ends_the_event_and_its_return_makes_none() -> None:
    bench = Bench()
    bench.see(*CALM, *CROSSING[:10])
    bench.slot.interrupt()
    bench.vision.step(0)
    bench.told += bench.board.take()
    assert bench.told[-1].end_reason is EndReason.CAMERA_LOST
    told = len(bench.told)
    bench.frame, bench.t_ns = 0, bench.t_ns + 2 * NS_PER_S
    bench.see(*(0.7,) * 40)  # what stands there now was not there before
    assert len(bench.told) == told


def test_a_camera_that_comes_back_with_another_size_is_learned_anew() -> None:
    bench = Bench()
    bench.see(*CALM)
    bench.frame = 0
    bench.see(*(0.5,) * 30, width=320, height=240)
    assert bench.told == []
    assert not bench.vision.status.learning


def test_a_limit_on_frames_per_second_is_kept_on_the_average() -> None:
    bench = Bench(settings(fps=4))
    bench.see(*(None,) * 50)
    assert 19 <= bench.vision.status.frames <= 21


def test_the_status_says_what_was_done() -> None:
    bench = Bench()
    assert bench.vision.status.learning
    bench.see(*CALM)
    status = bench.vision.status
    assert status.frames == 25
    assert status.last_frame_ns == T0_NS + 24 * NS_PER_S // FPS
    assert not status.learning
    assert bench.vision.step(0) is False


def entering(stop: float) -> tuple[float, ...]:
    """Somebody walks in from the left and stops at stop of the picture's width."""
    return tuple(-0.1 + 0.04 * i for i in range(round((stop + 0.1) / 0.04) + 1))


def test_who_stops_and_walks_on_is_one_event() -> None:
    bench = Bench()
    here = entering(0.5)
    bench.see(*CALM, *here, *(here[-1],) * 120, *(here[-1] + 0.04 * i for i in range(20)), *CALM)
    assert [event.phase for event in bench.told if event.phase is not Phase.UPDATE] == [Phase.START, Phase.END]
    assert bench.told[-1].end_reason is EndReason.QUIET


def test_who_stops_makes_two_events_where_standing_still_is_not_waited_for() -> None:
    bench = Bench(settings(still_s=0))
    here = entering(0.5)
    bench.see(*CALM, *here, *(here[-1],) * 120, *(here[-1] + 0.04 * i for i in range(20)), *CALM)
    assert len([event for event in bench.told if event.phase is Phase.START]) == 2


class OneSlot:
    """What a camera calls: every frame goes through the stage at once."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def on_packet(self, packet: Packet) -> None:
        """Frames are enough."""

    def on_frame(self, frame: Frame) -> None:
        self.bench.slot.put(frame)
        self.bench.vision.step(0)
        self.bench.told += self.bench.board.take()


@pytest.mark.parametrize(("busy", "is_kept"), [(0.3, True), (0.6, True), (0.0, False)])
def test_a_clerk_who_nods_and_writes_stays_in_the_event_in_which_he_came(busy: float, is_kept: bool) -> None:
    clerk = Sitter(at_s=10, x=0.55, seat_y=0.66, height=0.4, busy=busy, look=3)
    comes = Walker(at_s=6, from_x=-0.1, to_x=0.55, speed=0.16, height=0.7, feet_y=1.0)
    scene = Scene("desk", "counter", sitters=(clerk,), walkers=(comes,))
    source = FakeSource(scene, width=320, height=240, fps=10, want_packets=False)
    bench = Bench(settings(still_s=20))
    source.open(NS_PER_S)
    for _ in range(500):
        source.step(OneSlot(bench))
    ends = [event for event in bench.told if event.phase is Phase.END]
    assert len([event for event in bench.told if event.phase is Phase.START]) == 1
    assert (not ends) == is_kept


def test_what_stays_ends_its_event_where_it_stopped_and_is_absorbed() -> None:
    bench = Bench(settings(still_s=5))
    here = entering(0.5)
    bench.see(*CALM, *here, *(here[-1],) * 300)
    end = bench.told[-1]
    assert (end.phase, end.end_reason) == (Phase.END, EndReason.QUIET)
    assert end.last.frame <= 25 + len(here) + 5
    told = len(bench.told)
    # It is gone at once: the place where it was is no second event.
    bench.see(*CALM, *CALM, *CALM)
    assert len(bench.told) == told


def test_who_walks_out_ends_the_event_after_the_quiet_time() -> None:
    bench = Bench()
    bench.see(*CALM, *CROSSING, *CALM)
    end_frame = bench.told[-1].last.frame
    assert bench.told[-1].phase is Phase.END
    assert end_frame <= 25 + len(CROSSING)


def test_where_strips_are_asked_for_the_last_picture_of_an_event_is_one() -> None:
    bench = Bench(settings(strip=True))
    bench.see(*CALM, *CROSSING, *CALM)
    *before, last = bench.told
    assert before
    for event in before:
        assert event.thumbnail is not None
        assert event.thumbnail.width == 160
    assert last.phase is Phase.END
    assert last.thumbnail is not None
    assert (last.thumbnail.width, last.thumbnail.height) == (3 * 160 + 2 * 4, 120)
    assert last.thumbnail.moment == last.peak


def test_strips_can_be_asked_for_while_the_node_runs() -> None:
    bench = Bench()
    bench.see(*CALM)
    bench.vision.adopt(settings(strip=True))
    bench.see(*CALM, *CROSSING, *CALM)
    assert bench.told[-1].thumbnail is not None
    assert bench.told[-1].thumbnail.width > 3 * 160


def test_the_strip_shows_the_place_before_and_after_and_the_thing_between() -> None:
    import cv2

    strips: list[tuple[Event, Thumbnail]] = []
    bench = Bench()
    bench.vision = Vision(
        settings(), bench.slot, bench.board, bench.statuses, lambda: "E", lambda *told: strips.append(told)
    )
    bench.see(*CALM, *CROSSING, *CALM)
    ((event, strip),) = strips
    assert event.phase is Phase.END
    assert strip.moment == event.peak
    picture = cv2.imdecode(np.frombuffer(strip.jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    assert picture.shape == (120, 3 * 160 + 2 * 4)
    darkest = [int(picture[10:110, left + 4 : left + 156].min()) for left in (0, 164, 328)]
    assert darkest[0] > 100
    assert darkest[1] < 80
    assert darkest[2] > 100
