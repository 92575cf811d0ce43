"""Pictures of what the detector sees."""

from __future__ import annotations

import numpy as np

from agent.annotate import GAP, HEAD, WIDTH, Annotator
from agent.model import NS_PER_S, Box, Frame, Motion
from agent.motion import Detector
from agent.settings import ZoneSettings


def frame(number: int, x: float | None, width: int = 320, height: int = 240) -> Frame:
    y = np.full((height, width), 140, np.uint8)
    if x is not None:
        left = round(x * width)
        y[height // 4 :, max(left, 0) : max(left + width // 8, 0)] = 60
    grey = np.full((height // 2, width // 2), 128, np.uint8)
    return Frame(number, number * NS_PER_S // 10 + 1, y, grey, grey)


def test_each_stage_is_drawn_and_what_moves_stands_in_a_box() -> None:
    detector, annotator = Detector(320, 240), Annotator(320, 240)
    shown = None
    for i in range(40):
        now = frame(i, None if i < 25 else 0.1 + 0.03 * (i - 25))
        motion = detector.step(now)
        shown = annotator.draw(now, motion, None if motion.learning else detector.seen, motion.active)
        assert shown.shape == (annotator.size[1], annotator.size[0], 3)
        assert not any(side % 16 for side in annotator.size)
    assert motion.active
    assert shown is not None
    box = motion.boxes[0]
    edge = shown[HEAD + round((box.y + box.h / 2) * 480), GAP + round(box.x * WIDTH)]
    assert edge[2] > 200  # orange
    assert edge[0] < 100
    side = shown[HEAD : HEAD + 480, GAP + WIDTH + GAP :]
    assert int(side.max()) > 150


def test_zones_are_drawn_and_what_is_ignored_is_dimmed() -> None:
    zones = [
        ZoneSettings(id="door", kind="detect", polygon=[(0.1, 0.1), (0.4, 0.1), (0.4, 0.4)]),
        ZoneSettings(id="tree", kind="ignore", polygon=[(0.5, 0.5), (1, 0.5), (1, 1), (0.5, 1)]),
    ]
    shown = Annotator(320, 240, zones).draw(frame(0, None), Motion(0, 1, 0.0, False, learning=True), None, False)
    picture = shown[HEAD : HEAD + 480, GAP : GAP + WIDTH]
    assert int(picture[360, 480].mean()) < 0.7 * int(picture[360, 160].mean())


def test_pictures_of_any_shape_are_drawn() -> None:
    for width, height in ((640, 360), (120, 160), (64, 64), (640, 96)):
        annotator = Annotator(width, height)
        motion = Motion(0, 1, 0.9, True, (Box(0, 0, 1, 1), Box(0.5, 0.99, 0.5, 0.01)))
        shown = annotator.draw(frame(0, None, width, height), motion, None, True)
        assert shown.shape[:2] == annotator.size[::-1]
