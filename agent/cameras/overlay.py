"""Time and name burnt into the luma of the main stream, for those who want them. Touches the plane it is given."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from agent.cameras.planes import cv2_module
from agent.clock import Clock, wall_of
from agent.model import NS_PER_S, Plane


@dataclass(frozen=True, slots=True)
class Overlay:
    """One line in the lower left corner, dark-edged: node, date, time of zone, and "?" while the clock is unsure.

    name: ASCII, since OpenCV's built-in font has nothing else; node ids are.
    """

    name: str
    zone: ZoneInfo

    def draw(self, y: Plane, t_ns: int, clock: Clock) -> None:
        """y: uint8 (h, w), written in place."""
        cv2 = cv2_module()
        at = dt.datetime.fromtimestamp(wall_of(clock, t_ns) // NS_PER_S, self.zone)
        text = f"{self.name} {at:%Y-%m-%d %H:%M:%S %Z}{'' if clock.synced() else ' ?'}"
        scale = y.shape[0] / 900
        origin = (round(12 * scale), y.shape[0] - round(14 * scale))
        for luma, thick in ((16, 4), (235, 2)):
            cv2.putText(
                y, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, luma, max(1, round(thick * scale)), cv2.LINE_AA
            )
