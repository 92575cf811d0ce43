"""The JPEG that stands for an event."""

from __future__ import annotations

import numpy as np
import pytest

from agent.model import Box, Frame, Moment
from agent.thumbnail import encode, sharpness, strip


def frame(y: int, u: int, v: int, width: int = 64, height: int = 48) -> Frame:
    half = (height // 2, width // 2)
    return Frame(7, 8, np.full((height, width), y, np.uint8), np.full(half, u, np.uint8), np.full(half, v, np.uint8))


@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [
        ((16, 128, 128), (0, 0, 0)),  # limited range: 16 is black
        ((235, 128, 128), (255, 255, 255)),
        ((81, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 0)),
        ((41, 240, 110), (0, 0, 255)),
    ],
)
def test_a_thumbnail_has_the_frames_colours(yuv: tuple[int, int, int], rgb: tuple[int, int, int]) -> None:
    import cv2

    picture = cv2.imdecode(np.frombuffer(encode(frame(*yuv)).jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert np.abs(picture[24, 32, ::-1].astype(int) - rgb).max() <= 4


def test_a_thumbnail_is_the_whole_picture_of_its_moment() -> None:
    thumbnail = encode(frame(100, 128, 128, 66, 50))
    assert (thumbnail.width, thumbnail.height) == (66, 50)
    assert thumbnail.moment == Moment(8, 7)
    assert thumbnail.jpeg[:2] == b"\xff\xd8"


def test_left_is_left_and_up_is_up() -> None:
    import cv2

    y = np.full((48, 64), 40, np.uint8)
    y[:24, :32] = 200
    half = np.full((24, 32), 128, np.uint8)
    picture = cv2.imdecode(np.frombuffer(encode(Frame(0, 1, y, half, half)).jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    assert picture[10, 10] > 180
    assert picture[10, 50] < 80
    assert picture[40, 10] < 80


def test_a_strip_is_its_pictures_side_by_side() -> None:
    middle = frame(235, 128, 128)
    picture = strip([frame(16, 128, 128), middle, frame(16, 128, 128)], middle.moment)
    assert (picture.width, picture.height) == (3 * 64 + 2 * 4, 48)
    with pytest.raises(ValueError, match="at least one frame"):
        strip([], middle.moment)


def test_sharpness_falls_with_every_blur_and_is_measured_within_the_box_only() -> None:
    import cv2

    checks = np.kron(np.indices((12, 16)).sum(0) % 2, np.ones((10, 10))).astype(np.uint8) * 120 + 60
    box = Box(0.0, 0.0, 0.5, 1.0)
    blurred = [sharpness(np.asarray(cv2.blur(checks, (1 + 6 * i, 1 + 6 * i)), np.uint8), box) for i in range(4)]
    assert blurred == sorted(blurred, reverse=True)
    assert blurred[0] > 1.3 * blurred[-1]
    checks[:, 80:] = 60
    assert sharpness(checks, Box(0.55, 0.0, 0.4, 1.0)) == 0.0
    assert sharpness(checks, Box(0.0, 0.0, 0.01, 0.01)) == 0.5  # too small to tell
