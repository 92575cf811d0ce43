"""Draws what the detector sees: boxes, tiles, light, masks, the score's curve. Touches nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.model import NS_PER_S, Frame, Motion, Plane
from agent.motion import Seen
from agent.settings import ZoneSettings
from agent.thumbnail import in_colour

Picture = npt.NDArray[np.uint8]

WIDTH = 640
GAP = 12
HEAD = 34
TITLE = 22  # pixels below each of the small pictures
CURVE = 104
CURVE_S = 30

# Blue, green, red, as OpenCV has them.
PAPER = (32, 28, 26)
LINE = (74, 66, 60)
INK = (236, 232, 230)
FAINT = (160, 150, 144)
MOVES = (60, 170, 255)
CHANGED = (230, 190, 70)
LIGHT = (110, 225, 245)
ZONES = {"detect": (120, 200, 90), "ignore": (150, 150, 150), "privacy": (60, 60, 60)}


class Annotator:
    """Draws frame after frame of one recording; keeps the scores of the last CURVE_S seconds.

    width, height: of the frames, pixels; they are shown WIDTH wide.
    """

    def __init__(self, width: int, height: int, zones: Sequence[ZoneSettings] = ()) -> None:
        self._picture = (WIDTH, round(WIDTH * height / width))
        # Three of them, with their titles, are as high as the picture.
        tall = max(60, (self._picture[1] + 6) // 3 - TITLE)
        self._small = (max(180, round(tall * width / height)), tall)
        self._zones = zones
        body = HEAD + max(self._picture[1], 3 * (tall + TITLE))
        # In whole macroblocks: players show the padding of others.
        wide, high = GAP + WIDTH + GAP + self._small[0] + GAP, body + GAP + CURVE + GAP + 18
        self.size = (-(-wide // 16) * 16, -(-high // 16) * 16)
        self._curve_top = body + GAP
        self._past: deque[tuple[int, float, bool, bool, bool]] = deque()
        self._t0_ns: int | None = None

    def draw(self, frame: Frame, motion: Motion, seen: Seen | None, is_open: bool) -> Picture:
        """One picture: uint8 (h, w, 3), blue first, of `size`. seen: the stages of this frame; None while learning.

        is_open: whether an event goes on.
        """
        if self._t0_ns is None:
            self._t0_ns = frame.t_ns
        self._past.append((frame.t_ns, motion.score, motion.active, is_open, motion.light_changed))
        while frame.t_ns - self._past[0][0] > CURVE_S * NS_PER_S:
            self._past.popleft()
        canvas = np.full((self.size[1], self.size[0], 3), PAPER, np.uint8)
        self._draw_head(canvas, frame, motion, is_open)
        self._paste(canvas, self._main(frame, motion, seen), GAP, HEAD)
        self._draw_stages(canvas, seen)
        self._draw_curve(canvas, frame.t_ns)
        return canvas

    # --- the parts -----------------------------------------------------------------------------------------

    def _draw_head(self, canvas: Picture, frame: Frame, motion: Motion, is_open: bool) -> None:
        minutes, seconds = divmod((frame.t_ns - (self._t0_ns or 0)) / NS_PER_S, 60)
        _write(canvas, f"{int(minutes)}:{seconds:04.1f}   frame {frame.seq}", GAP, 23, INK)
        word, colour = "nothing moves", FAINT
        if motion.learning:
            word, colour = "learning", LIGHT
        elif motion.active:
            word, colour = "MOTION", MOVES
        elif is_open:
            word, colour = "event goes on: quiet, or stands still", MOVES
        _write(canvas, word, 235, 23, colour)
        if motion.light_changed:
            _write(canvas, "light changes", 530, 23, LIGHT)
        zones = ", ".join(motion.zones)
        _write(canvas, f"score {motion.score:.2f}  {zones}", GAP + WIDTH + GAP, 23, INK if motion.active else FAINT)

    def _main(self, frame: Frame, motion: Motion, seen: Seen | None) -> Picture:
        cv2 = _opencv()
        picture: Picture = cv2.resize(in_colour(frame), self._picture, interpolation=cv2.INTER_LINEAR)
        width, height = self._picture
        if seen is not None and seen.changed is not None:
            changed = cv2.resize(seen.changed, self._picture, interpolation=cv2.INTER_NEAREST)
            _tint(picture, changed, CHANGED, 0.35)
        if seen is not None and seen.candidates is not None:
            edges, _ = cv2.findContours(
                cv2.resize(seen.candidates, self._picture, interpolation=cv2.INTER_NEAREST),
                cv2.RETR_EXTERNAL,
                cv2.CHAIN_APPROX_SIMPLE,
            )
            # A cell stands for the tile that begins one cell before it.
            half = -round(width / seen.candidates.shape[1] / 2)
            cv2.drawContours(picture, edges, -1, CHANGED, 1, offset=(half, half))
        for zone in self._zones:
            corners = np.array([[round(x * (width - 1)), round(y * (height - 1))] for x, y in zone.polygon], np.int32)
            if zone.kind == "ignore":
                mask: Plane = np.zeros((height, width), np.uint8)
                cv2.fillPoly(mask, [corners], 255)
                _tint(picture, mask, PAPER, 0.55)
            cv2.polylines(picture, [corners], True, ZONES[zone.kind], 2, cv2.LINE_AA)
            left, top = (int(side) for side in corners.min(axis=0))
            _write(picture, zone.id, left + 6, top + 18, ZONES[zone.kind], is_outlined=True)
        for box in motion.boxes:
            left, top = round(box.x * width), round(box.y * height)
            right, bottom = round((box.x + box.w) * width), round((box.y + box.h) * height)
            cv2.rectangle(picture, (left, top), (right, bottom), MOVES, 2)
            tall = f"{100 * box.h:.0f} %"
            _write(picture, tall, left, top - 6 if top > 20 else bottom + 16, MOVES, is_outlined=True)
        return picture

    def _draw_stages(self, canvas: Picture, seen: Seen | None) -> None:
        for i, (title, picture) in enumerate(zip(TITLES, self._stages(seen), strict=True)):
            top = HEAD + i * (self._small[1] + TITLE)
            self._paste(canvas, picture, GAP + WIDTH + GAP, top)
            _write(canvas, title, GAP + WIDTH + GAP, top + self._small[1] + 15, FAINT, size=0.4)

    def _stages(self, seen: Seen | None) -> list[Picture]:
        cv2 = _opencv()
        if seen is None:
            return [np.full((self._small[1], self._small[0], 3), LINE, np.uint8)] * 3
        light = np.ones((2, 2), np.float32) if seen.light is None else 1 / seen.light.tiles
        wide = cv2.resize(light, self._small, interpolation=cv2.INTER_LINEAR)
        gain = np.array(BRIGHTER, np.uint8)[np.clip(128 + 127 * np.log2(wide), 0, 255).astype(np.uint8)]
        level = cv2.resize(seen.level, self._small, interpolation=cv2.INTER_LINEAR)
        unlike = cv2.cvtColor(level // 2, cv2.COLOR_GRAY2BGR)
        if seen.changed is not None:
            _tint(unlike, cv2.resize(seen.changed, self._small, interpolation=cv2.INTER_NEAREST), CHANGED, 0.85)
        tiles = np.zeros((self._small[1], self._small[0], 3), np.uint8)
        counts = np.zeros_like(seen.limits) if seen.counts is None else seen.counts
        full = np.clip(counts * 4, 0, 255).astype(np.uint8)
        usual = np.clip(seen.limits * 4, 0, 255).astype(np.uint8)
        for channel, values in ((0, full), (1, full), (2, usual)):
            tiles[:, :, channel] = cv2.resize(values, self._small, interpolation=cv2.INTER_NEAREST)
        if seen.candidates is not None:
            _tint(tiles, cv2.resize(seen.candidates, self._small, interpolation=cv2.INTER_NEAREST), MOVES, 0.75)
        return [gain, unlike, tiles]

    def _draw_curve(self, canvas: Picture, now_ns: int) -> None:
        cv2 = _opencv()
        left, right = GAP, self.size[0] - GAP
        top, bottom = self._curve_top, self._curve_top + CURVE
        cv2.rectangle(canvas, (left, top), (right, bottom), (40, 36, 33), -1)

        def x_of(t_ns: int) -> int:
            return round(right - (now_ns - t_ns) / NS_PER_S / CURVE_S * (right - left))

        def y_of(score: float) -> int:
            return round(bottom - score * (CURVE - 8))

        past = list(self._past)
        for (then_ns, _, _, is_open, light), (t_ns, *_) in zip(past, [*past[1:], past[-1]], strict=True):
            if is_open:
                cv2.rectangle(canvas, (x_of(then_ns), top), (x_of(t_ns), bottom), (46, 62, 84), -1)
            if light:
                cv2.line(canvas, (x_of(then_ns), top), (x_of(then_ns), top + 8), LIGHT, 2)
        cv2.line(canvas, (left, y_of(0.5)), (right, y_of(0.5)), LINE, 1)
        for seconds in range(0, CURVE_S + 1, 5):
            x = x_of(now_ns - seconds * NS_PER_S)
            cv2.line(canvas, (x, bottom), (x, bottom + 4), FAINT, 1)
            label = "now" if not seconds else f"-{seconds} s"
            _write(canvas, label, max(left, x - 30), bottom + 17, FAINT, size=0.4)
        if len(past) > 1:
            points = np.array([(x_of(t_ns), y_of(score)) for t_ns, score, *_ in past], np.int32)
            area = np.vstack([[points[0][0], bottom], points, [points[-1][0], bottom]]).astype(np.int32)
            mask: Plane = np.zeros(canvas.shape[:2], np.uint8)
            cv2.fillPoly(mask, [area], 255)
            _tint(canvas, mask, MOVES, 0.25)
            cv2.polylines(canvas, [points], False, FAINT, 1, cv2.LINE_AA)
            for (_, _, active, *_), a, b in zip(past[1:], points, points[1:], strict=False):
                if active:
                    cv2.line(canvas, [int(v) for v in a], [int(v) for v in b], MOVES, 2, cv2.LINE_AA)
        _write(canvas, "score; shaded: event", left + 6, top + 15, FAINT, size=0.4)

    def _paste(self, canvas: Picture, picture: Picture, left: int, top: int) -> None:
        height, width = picture.shape[:2]
        canvas[top : top + height, left : left + width] = picture


TITLES = ("light: blue less, yellow more", "unlike what is usual here", "tiles: usual red, moving orange")

BRIGHTER = [
    tuple(round(70 + abs(i - 128) / 128 * (end - 70)) for end in ((230, 130, 40) if i < 128 else (60, 225, 250)))
    for i in range(256)
]
"""Colours of the light from half (blue) over the same (grey) to twice (yellow)."""


def _tint(picture: Picture, mask: Plane, colour: tuple[int, int, int], share: float) -> None:
    """Mix colour into picture where mask is set."""
    cv2 = _opencv()
    over = cv2.addWeighted(picture, 1 - share, np.full_like(picture, colour), share, 0)
    cv2.copyTo(over, mask, picture)


def _write(
    picture: Picture,
    words: str,
    x: int,
    y: int,
    colour: tuple[int, int, int],
    *,
    size: float = 0.48,
    is_outlined: bool = False,
) -> None:
    """OpenCV's own letters: ASCII only, so names in other scripts are not written, but ids are."""
    cv2 = _opencv()
    if is_outlined:
        cv2.putText(picture, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, PAPER, 3, cv2.LINE_AA)
    cv2.putText(picture, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _opencv() -> Any:
    import cv2

    return cv2
