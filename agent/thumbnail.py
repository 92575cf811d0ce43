"""Thumbnails: one frame becomes a JPEG. Touches nothing."""

from __future__ import annotations

import numpy as np

from agent.model import Frame, Thumbnail

QUALITY = 80
"""JPEG quality: 640x480 comes to 25-60 kB, and faces at the size of the lores stream survive it."""


def encode(frame: Frame, quality: int = QUALITY, max_width: int | None = None) -> Thumbnail:
    """The whole lores picture in colour at its own size, or smaller where max_width says so."""
    import cv2

    height, width = frame.y.shape
    # OpenCV's I420 is one plane of 3h/2 rows: Y, then U, then V, each without padding; its conversion
    # assumes limited range BT.601, which is what a Frame promises.
    i420 = np.concatenate((frame.y.ravel(), frame.u.ravel(), frame.v.ravel())).reshape(height * 3 // 2, width)
    bgr = cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420)
    if max_width is not None and max_width < width:
        width, height = max_width, max(1, round(height * max_width / width))
        bgr = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)
    ok, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError(f"OpenCV could not encode a JPEG of {width}x{height}")
    return Thumbnail(jpeg.tobytes(), width, height, frame.moment)
