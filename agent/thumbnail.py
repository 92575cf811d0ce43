"""Thumbnails: one frame becomes a JPEG. Touches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.model import Box, Frame, Moment, Plane, Thumbnail

QUALITY = 80
"""JPEG quality: 640x480 comes to 25-60 kB, and faces at the size of the lores stream survive it."""

HALF_SHARP = 150.0

STRIP_WIDTH = 320
GAP = 4  # pixels of white between the pictures of a strip


def encode(frame: Frame, quality: int = QUALITY, max_width: int | None = None) -> Thumbnail:
    """The whole lores picture in colour at its own size, or smaller where max_width says so."""
    bgr = in_colour(frame, max_width)
    return _jpeg(bgr, quality, frame.moment)


def strip(frames: Sequence[Frame], moment: Moment, quality: int = QUALITY, width: int = STRIP_WIDTH) -> Thumbnail:
    """Several pictures of one camera beside each other, each at most width pixels wide: before, peak, after.

    moment: of the picture that it is about. ValueError where there is none.
    """
    if not frames:
        raise ValueError("a strip needs at least one frame")
    pictures = [in_colour(frame, width) for frame in frames]
    height = min(len(picture) for picture in pictures)
    gap = np.full((height, GAP, 3), 255, np.uint8)
    parts: list[Any] = [part for picture in pictures for part in (gap, picture[:height])]
    return _jpeg(np.hstack(parts[1:]), quality, moment)


def sharpness(luma: Plane, box: Box) -> float:
    """How sharp the picture is within box, 0..1; 0.5 where edges are as soft as those of a slow walk indoors.

    luma: uint8. Variance of the Laplacian at half the size, where noise is weak and a blur of 4 pixels still shows;
    it depends on what is shown, so only pictures of the same thing are worth comparing.
    """
    import cv2

    height, width = luma.shape
    left, top = int(box.x * width), int(box.y * height)
    part = luma[top : round((box.y + box.h) * height), left : round((box.x + box.w) * width)]
    if min(part.shape) < 8:
        return 0.5  # too small to tell
    half = cv2.resize(part, (part.shape[1] // 2, part.shape[0] // 2), interpolation=cv2.INTER_AREA)
    _, deviation = cv2.meanStdDev(cv2.Laplacian(half, cv2.CV_16S))
    variance = float(deviation[0, 0]) ** 2
    return variance / (variance + HALF_SHARP)


def in_colour(frame: Frame, max_width: int | None = None) -> Any:
    """uint8 (h, w, 3), blue first: OpenCV's order."""
    import cv2

    height, width = frame.y.shape
    # OpenCV's I420 is one plane of 3h/2 rows: Y, then U, then V, each without padding; its conversion
    # assumes limited range BT.601, which is what a Frame promises.
    i420 = np.concatenate((frame.y.ravel(), frame.u.ravel(), frame.v.ravel())).reshape(height * 3 // 2, width)
    bgr = cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420)
    if max_width is not None and max_width < width:
        bgr = cv2.resize(bgr, (max_width, max(1, round(height * max_width / width))), interpolation=cv2.INTER_AREA)
    return bgr


def _jpeg(bgr: Any, quality: int, moment: Moment) -> Thumbnail:
    import cv2

    height, width = bgr.shape[:2]
    ok, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode a JPEG of {width}x{height}")
    return Thumbnail(jpeg.tobytes(), width, height, moment)
