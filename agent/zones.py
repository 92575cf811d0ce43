"""Detection zones and ignore masks: polygons in shares of the picture become masks. Touches nothing.

A mask is uint8 (h, w), 255 where it holds and 0 elsewhere, in any size that the caller analyses at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.model import Plane
from agent.settings import ZoneSettings


class Zones:
    """The zones of one picture at one size.

    counted: where motion counts (inside any detect zone if there is one, and outside every ignore zone), or
    None when that is the whole picture. Privacy zones arrive blacked out and need no mask here.
    """

    def __init__(self, zones: Sequence[ZoneSettings], width: int, height: int) -> None:
        self._detect = [(zone.id, fill(zone.polygon, width, height)) for zone in zones if zone.kind == "detect"]
        ignored = [fill(zone.polygon, width, height) for zone in zones if zone.kind == "ignore"]
        self.counted: Plane | None = None
        if self._detect or ignored:
            counted = np.full((height, width), 0 if self._detect else 255, np.uint8)
            for _, mask in self._detect:
                counted |= mask
            for mask in ignored:
                counted &= ~mask
            counted.flags.writeable = False
            self.counted = counted

    def touched(self, moving: Plane) -> tuple[str, ...]:
        """Ids of the detect zones that hold any pixel of moving (uint8, non-zero = moves), in settings order."""
        return tuple(zone_id for zone_id, mask in self._detect if bool((moving & mask).any()))


def fill(polygon: Sequence[tuple[float, float]], width: int, height: int) -> Plane:
    """The pixels whose square the polygon touches: uint8 (height, width), 255 inside.

    Rounded outward to whole pixels, so that a thin zone never vanishes at analysis size.
    """
    import cv2

    corners = np.array([[x * width - 0.5, y * height - 0.5] for x, y in polygon])
    # A corner on the picture's edge lies half a pixel outside of it; a thin zone along the edge would vanish.
    corners = np.clip(corners, 0, [width - 1, height - 1])
    # Sixteenths of a pixel (shift=4): a corner between two pixels must not jump to one of them.
    points = np.round(corners * 16).astype(np.int32)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points], 255, shift=4)
    return mask
