"""Decoded pictures as NumPy planes, and planes scaled down to lores. Touches memory only; OpenCV is loaded late."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane

from agent.model import Plane


class Planes(NamedTuple):
    """y: uint8 (h, w); u, v: uint8 (h/2, w/2); limited range."""

    y: Plane
    u: Plane
    v: Plane

    def frozen(self) -> Planes:
        """Contiguous and read-only, copied only where a plane is not contiguous."""
        planes = Planes(*(np.ascontiguousarray(plane) for plane in self))
        for plane in planes:
            plane.flags.writeable = False
        return planes


def lores_size(width: int, height: int, max_width: int, max_height: int) -> tuple[int, int]:
    """The largest even size within the limits that keeps the shape of width x height and is not larger."""
    shrink = min(1.0, max_width / width, max_height / height)
    w, h = (max(2, round(side * shrink / 2) * 2) for side in (width, height))
    return min(w, width & ~1, max_width), min(h, height & ~1, max_height)


def scaled(planes: Planes, width: int, height: int) -> Planes:
    """planes at width x height (even); each pixel the mean of the area it covers. The same arrays if it fits."""
    if planes.y.shape == (height, width):
        return planes
    cv2 = cv2_module()
    half = (width // 2, height // 2)
    return Planes(
        cv2.resize(planes.y, (width, height), interpolation=cv2.INTER_AREA),
        cv2.resize(planes.u, half, interpolation=cv2.INTER_AREA),
        cv2.resize(planes.v, half, interpolation=cv2.INTER_AREA),
    )


def planes_of(frame: VideoFrame) -> Planes:
    """The planes of a decoded picture, cropped to an even size. Views into the frame (read-only) where it can be.

    Any pixel format; full range is mapped to limited range. ValueError for formats that cannot be converted.
    """
    name = frame.format.name
    is_full = name.startswith("yuvj") or (hasattr(frame, "color_range") and int(frame.color_range) == 2)
    if name.startswith("gray"):
        is_full = is_full or name == "gray"
    if name not in ("yuv420p", "yuvj420p"):
        frame = frame.reformat(format="yuvj420p" if name.startswith("yuvj") else "yuv420p")
        # Every conversion but yuvj to yuvj already makes limited range.
        is_full = is_full and name.startswith("yuvj")
    width, height = frame.width & ~1, frame.height & ~1
    parts = frame.planes  # once: PyAV makes all three anew each time it is asked
    y = _plane(parts[0], width, height)
    u, v = _plane(parts[1], width // 2, height // 2), _plane(parts[2], width // 2, height // 2)
    if is_full:
        luma, chroma = _to_limited()
        return Planes(luma[y], chroma[u], chroma[v])
    return Planes(y, u, v)


def _plane(plane: VideoPlane, width: int, height: int) -> Plane:
    view = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)[:height, :width]
    # The decoder may still predict from this picture: nobody writes into it.
    view.flags.writeable = False
    return view


@cache
def _to_limited() -> tuple[Plane, Plane]:
    """Tables from full to limited range: luma 0..255 to 16..235, chroma about 128 by 224/255 (BT.601, 8 bit)."""
    codes = np.arange(256, dtype=np.float64)
    luma = np.rint(16 + codes * 219 / 255).astype(np.uint8)
    chroma = np.rint(128 + (codes - 128) * 224 / 255).astype(np.uint8)
    return luma, chroma


@cache
def cv2_module() -> ModuleType:
    """OpenCV, loaded when first needed: importing it takes 0.1 s and 30 MB that many commands do without."""
    import cv2

    return cv2
