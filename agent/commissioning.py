"""The commissioning record: what was measured when a node was hung, whether it passed, its view with zones. Pure.

Published retained on `B/commissioning` and kept beside the clips, so that later views can be compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.model import Frame, Plane
from agent.records import Check
from agent.settings import ZoneSettings
from agent.view import unmasked

DARK, BRIGHT = 40, 220
"""Luma of limited range: darker or brighter parts show nothing that could move."""
MOST_UNUSABLE = 0.6
MOST_AGE_MS = 1000.0
LEAST_FPS_SHARE = 0.8
COLOURS = {"detect": (90, 200, 120), "ignore": (150, 150, 150), "privacy": (60, 60, 230)}


def light_of(luma: Plane, zones: Sequence[ZoneSettings] = ()) -> tuple[float, float, float]:
    """Mean, share too dark, share too bright. luma: uint8 (h, w). zones: privacy masks are dark by intent."""
    height, width = luma.shape
    seen = luma[unmasked((width, height), zones) > 0]
    if not seen.size:
        return 0.0, 1.0, 0.0
    return float(seen.mean()), float((seen < DARK).mean()), float((seen > BRIGHT).mean())


def light_check(light: tuple[float, float, float]) -> Check:
    mean, dark, bright = light
    words = f"mean {mean:.0f} of 255, {dark:.0%} too dark, {bright:.0%} too bright"
    hint = "more light, or another angle" if dark > bright else "turn it away from windows and lamps"
    return Check(what="light", passed=max(dark, bright) <= MOST_UNUSABLE, words=words, hint=hint)


def fps_check(measured: float, wanted: float) -> Check:
    words = f"{measured:.1f} frames per second" + (f" of {wanted:g}" if wanted else "")
    hint = "a slow board or a dark scene; lower camera.fps, or camera.width and height"
    return Check(what="fps", passed=measured > 0 and measured >= LEAST_FPS_SHARE * wanted, words=words, hint=hint)


def age_check(age_ms: tuple[float, float]) -> Check:
    words = f"a frame is analysed {age_ms[0]:.0f} ms after it was taken (p95 {age_ms[1]:.0f} ms)"
    return Check(
        what="latency", passed=age_ms[1] <= MOST_AGE_MS, words=words, hint="the board is too slow for this size"
    )


def walk_check(seen: int, wanted: int) -> Check:
    hint = "raise detection.sensitivity, look at the zones in view-zones.jpg, or hang it lower"
    return Check(what="walk", passed=seen == wanted, words=f"{seen} of {wanted} walks became an event", hint=hint)


def signal_dbm(wireless: str) -> float | None:
    """The level of the first wireless interface in the words of /proc/net/wireless; None without one."""
    for line in wireless.splitlines()[2:]:
        fields = line.split()
        if len(fields) > 3:
            try:
                return float(fields[3].rstrip("."))
            except ValueError:
                return None
    return None


def with_zones(frame: Frame, zones: Sequence[ZoneSettings]) -> Any:
    """The picture with every zone's outline and id; uint8 (h, w, 3), blue first."""
    import cv2

    from agent.thumbnail import in_colour

    picture = in_colour(frame)
    height, width = picture.shape[:2]
    for zone in zones:
        corners = np.array([(x * (width - 1), y * (height - 1)) for x, y in zone.polygon]).round().astype(np.int32)
        cv2.polylines(picture, [corners], True, COLOURS[zone.kind], 2, cv2.LINE_AA)
        # OpenCV's own letters know no Vietnamese: the id, which is ASCII, not the name.
        label, (left, top) = f"{zone.id}: {zone.kind}", corners.min(axis=0)
        (wide, tall), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        at = (int(left) + 4, int(top) + tall + 6)
        cv2.rectangle(picture, (int(left), int(top)), (at[0] + wide + 4, at[1] + 6), COLOURS[zone.kind], cv2.FILLED)
        cv2.putText(picture, label, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return picture
