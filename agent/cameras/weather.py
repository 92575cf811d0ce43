"""What moves in the fake camera's picture by itself: leaves, fans, rain, snow, noise. Touches planes given it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from agent.cameras.nuisances import Fan
from agent.cameras.planes import cv2_module
from agent.cameras.scene import Foliage
from agent.model import Plane

SPARE = 96
"""Sheets are so many pixels larger than the picture, for shifting them about."""


class WavingLeaves:
    """A region of leaves: each point swings on its own small path, made from a few smooth random fields."""

    def __init__(self, region: Foliage, width: int, height: int, seed: int) -> None:
        self._cv2 = cv2_module()
        self.x0, self.y0 = max(0, round(region.x * width)), max(0, round(region.y * height))
        self.x1 = min(width, round((region.x + region.w) * width))
        self.y1 = min(height, round((region.y + region.h) * height))
        w, h = max(1, self.x1 - self.x0), max(1, self.y1 - self.y0)
        rng = np.random.default_rng((seed, 31))
        self._sway = region.sway * width
        self._period_s = region.period_s
        # Still at the region's rim, so that it has no seam.
        rim = np.minimum(1, 4 * np.minimum(np.linspace(0, 1, h), np.linspace(1, 0, h)))[:, None] * np.minimum(
            1, 4 * np.minimum(np.linspace(0, 1, w), np.linspace(1, 0, w))
        )
        self._fields = [
            (self._cv2.resize(rng.uniform(-1, 1, (5, 6)), (w, h), interpolation=self._cv2.INTER_CUBIC) * rim).astype(
                np.float32
            )
            for _ in range(3)
        ]
        self._xs = np.broadcast_to(np.arange(w, dtype=np.float32)[None, :], (h, w))
        self._ys = np.broadcast_to(np.arange(h, dtype=np.float32)[:, None], (h, w))

    def wave(self, codes: npt.NDArray[np.uint16], y: Plane, luma: Plane, t_s: float, offset: tuple[int, int]) -> None:
        if offset != (0, 0) or self.x1 <= self.x0 or self.y1 <= self.y0:
            return
        turn = 2 * math.pi * t_s / self._period_s
        gust = 0.55 + 0.45 * math.sin(turn / 5.3 + 1)
        weights = (math.sin(turn), math.sin(1.7 * turn + 2), math.sin(2.9 * turn + 4))
        shift = sum(
            (
                np.float32(weight * gust * self._sway) * field
                for weight, field in zip(weights, self._fields, strict=True)
            ),
            start=np.zeros_like(self._xs),
        )
        region = codes[self.y0 : self.y1, self.x0 : self.x1]
        cv2 = self._cv2
        moved = cv2.remap(
            region, self._xs + shift, self._ys + 0.4 * shift, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        y[self.y0 : self.y1, self.x0 : self.x1] = luma[moved]


class SensorNoise:
    """Sensor noise from sheets that are shifted at random from frame to frame."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        cv2 = cv2_module()
        self._cv2 = cv2
        rng = np.random.default_rng((seed, 9))
        size = (height + SPARE, width + SPARE)
        fine = rng.standard_normal(size).astype(np.float32)
        # A camera's own noise reduction leaves grains larger than a pixel.
        coarse = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), 1.0)
        sheet = 0.8 * fine + 0.6 * coarse / max(float(coarse.std()), 1e-6)
        # One byte per pixel, 1/24 of the deviation each: at 1080p floats would be 10 MB.
        self._sheet = np.clip(np.rint(sheet * (24 / float(sheet.std()))), -127, 127).astype(np.int8)
        self._seed = seed
        self._made: dict[int, tuple[Plane, Plane]] = {}

    def add(
        self, y: Plane, u: Plane, v: Plane, gain: float, strength: float, frame: int, *, with_colour: bool
    ) -> None:
        """Noise of about 1.2 levels at gain 1, growing with the root of the gain, onto the planes in place."""
        eighths = round(8 * 1.2 * strength * math.sqrt(gain))
        if not eighths:
            return
        self._onto(y, eighths, frame, 1)
        if with_colour:
            self._onto(u, max(1, eighths // 2), frame, 2)
            self._onto(v, max(1, eighths // 2), frame, 3)

    def _onto(self, plane: Plane, eighths: int, frame: int, stream: int) -> None:
        random = mixed_bits(self._seed, frame, stream)
        dy, dx = random % SPARE, (random >> 16) % SPARE
        crop = np.s_[dy : dy + plane.shape[0], dx : dx + plane.shape[1]]
        up, down = self._levels(eighths)
        self._cv2.add(plane, up[crop], dst=plane)
        self._cv2.subtract(plane, down[crop], dst=plane)

    def _levels(self, eighths: int) -> tuple[Plane, Plane]:
        """The positive and the negative half of the sheet in whole levels: two saturating passes are the cheapest."""
        if eighths not in self._made:
            if len(self._made) >= 4:
                self._made.pop(next(iter(self._made)))
            levels = np.rint(self._sheet * np.float32(eighths / 8 / 24)).astype(np.int16)
            up, down = np.clip(levels, 0, 255).astype(np.uint8), np.clip(-levels, 0, 255).astype(np.uint8)
            self._made[eighths] = (up, down)
        return self._made[eighths]


class Raindrops:
    """Streaks of drops that fall through the field of view, others in each frame."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        self._cv2 = cv2_module()
        self._seed = seed
        self._sheets = _rain_sheets(width, height, seed)

    def drop(self, y: Plane, frame: int, drops: int) -> None:
        """Brighten y in place where drops fall in this frame."""
        for layer in range(max(1, round(drops / 60))):
            random = mixed_bits(self._seed, frame, 100 + layer)
            # Not the same sheet twice in one picture: drops would fall in pairs.
            sheet = self._sheets[(frame + 3 * layer) % len(self._sheets)]
            dx, dy = (random >> 8) % SPARE, (random >> 24) % SPARE
            self._cv2.add(y, sheet[dy : dy + y.shape[0], dx : dx + y.shape[1]], dst=y)


def _rain_sheets(width: int, height: int, seed: int) -> list[Plane]:
    """Sheets with about 60 streaks per picture each, brightness to be added."""
    cv2 = cv2_module()
    rng = np.random.default_rng((seed, 55))
    sheets = []
    for _ in range(8):
        sheet = np.zeros((height + SPARE, width + SPARE), dtype=np.uint8)
        for _ in range(60):
            x, y = rng.uniform(0, sheet.shape[1]), rng.uniform(-0.1, 1) * sheet.shape[0]
            length = rng.uniform(0.03, 0.13) * height
            bright = int(rng.uniform(12, 46))
            end = (int(x + 0.12 * length), int(y + length))
            cv2.line(sheet, (int(x), int(y)), end, bright, max(1, round(height / 400)), cv2.LINE_AA)
        sheets.append(np.asarray(cv2.blur(sheet, (1, max(1, height // 90))), dtype=np.uint8))
    return sheets


class Snowflakes:
    """Flakes that fall, each on its own way: a flake is the same one in the next frame, as a drop of rain is not."""

    def __init__(self, width: int, height: int, seed: int, flakes: int, speed: float) -> None:
        self._cv2 = cv2_module()
        rng = np.random.default_rng((seed, 71))
        near = rng.uniform(0.25, 1, flakes) ** 2
        self._x0, self._y0 = rng.uniform(0, 1, flakes) * width, rng.uniform(0, 1.1, flakes) * height
        self._fall, self._drift = speed * height * near, rng.uniform(-0.3, 0.5, flakes) * speed * height * near
        self._radius = np.maximum(0.7, 0.011 * height * near)
        self._bright = 40 + 90 * near

    def fall(self, y: Plane, t_s: float) -> None:
        """Brighten y in place where flakes are at t_s."""
        height, width = y.shape
        xs, ys = (self._x0 + self._drift * t_s) % width, (self._y0 + self._fall * t_s) % (1.1 * height)
        sheet = np.zeros_like(y)
        for x, top, radius, bright in zip(xs, ys, self._radius, self._bright, strict=True):
            centre = (round(float(x) * 16), round(float(top - 0.05 * height) * 16))
            self._cv2.circle(sheet, centre, round(float(radius) * 16), int(bright), -1, self._cv2.LINE_AA, 4)
        self._cv2.add(y, sheet, dst=y)


class TurningBlades:
    """A fan: dark blades that turn within a disc, each point as much covered as the shutter time would have it."""

    def __init__(self, fan: Fan, width: int, height: int) -> None:
        self._fan = fan
        self._centre = (round(fan.x * width), round(fan.y * height))
        self._radius = max(2, round(fan.radius * height))
        along = np.arange(-self._radius, self._radius + 1, dtype=np.float32)
        self._angle = np.arctan2(along[:, None], along[None, :])
        far = np.hypot(along[:, None], along[None, :])
        self._disc = ((far <= self._radius) & (far > 0.12 * self._radius)).astype(np.float32)

    def turn(self, codes: npt.NDArray[np.uint16], y: Plane, luma: Plane, t_s: float, offset: tuple[int, int]) -> None:
        height, width = y.shape
        left, top = self._centre[0] - offset[0] - self._radius, self._centre[1] - offset[1] - self._radius
        side = 2 * self._radius + 1
        x0, x1, y0, y1 = max(0, left), min(width, left + side), max(0, top), min(height, top + side)
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        turned = self._angle[part] - np.float32(2 * math.pi * self._fan.turns_per_s * t_s)
        blades = np.clip(2 * np.cos(self._fan.blades * turned), 0, 1) * self._disc[part]
        lit = codes[y0:y1, x0:x1] * (1 - np.float32(0.65) * blades)
        y[y0:y1, x0:x1] = luma[lit.astype(np.uint16)]


def wander(t_s: float, period_s: float, seed: int) -> float:
    """A smooth random walk between -1 and 1 that takes about period_s from one whim to the next."""
    step = t_s / period_s
    whole = math.floor(step)
    part = step - whole
    part = part * part * (3 - 2 * part)
    a, b = ((mixed_bits(seed, whole + i, 7) % 2001) / 1000 - 1 for i in (0, 1))
    return a + (b - a) * part


def mixed_bits(seed: int, frame: int, stream: int) -> int:
    """64 well-mixed bits of three numbers (SplitMix64's finaliser)."""
    x = (seed * 0x9E3779B97F4A7C15 + frame * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) & (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (1 << 64) - 1
    return x ^ (x >> 31)
