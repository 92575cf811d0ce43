"""What moves in the fake camera's picture by itself: leaves, rain, snow, insects, noise. Touches planes given it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from agent.cameras.nuisances import Fan, Insects
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


@dataclass(frozen=True, slots=True)
class _Flight:
    """One insect, in pixels: x, y where it is halfway; way, bend: its velocity there, and its turn; size: across."""

    start_s: float
    for_s: float
    x: float
    y: float
    way: tuple[float, float]
    bend: tuple[float, float]
    size: float
    shine: float

    def at(self, t_s: float) -> tuple[float, float]:
        since = t_s - self.start_s - self.for_s / 2
        dx, dy = (way * since + bend * since * since / 2 for way, bend in zip(self.way, self.bend, strict=True))
        return self.x + dx, self.y + dy


class FlyingInsects:
    """Discs out of focus, drawn out to dashes while the shutter is open; to the next frame, up to 30 a second,
    each flies farther than it is long. Now a swarm comes, then for seconds hardly one.
    """

    SHUTTER_S = 0.02
    SWARM_S = 3.0

    def __init__(self, insects: Insects, width: int, height: int, seed: int) -> None:
        self._insects = insects
        self._width, self._height = width, height
        self._seed = seed
        self._swarm = lru_cache(maxsize=4)(self._swarm_of)

    def fly(self, y: Plane, t_s: float) -> None:
        """Brighten y in place where insects are at t_s."""
        for flight in self._flights(t_s):
            ends, (x0, y0, x1, y1) = self._dash(flight, t_s)
            if x0 >= x1 or y0 >= y1:
                continue
            (left, top), (right, bottom) = ends
            length = math.hypot(right - left, bottom - top)
            ux, uy = (right - left) / length, (bottom - top) / length
            dx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(left)
            dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(top)
            along, across = dx * ux + dy * uy, dy * ux - dx * uy
            # While the disc passed a point, of the time that the shutter was open.
            half = np.sqrt(np.maximum((flight.size / 2) ** 2 - across * across, 0))
            passed = np.minimum(along + half, length) - np.maximum(along - half, 0)
            share = np.float32(flight.shine / length) * np.maximum(passed, 0)
            part = y[y0:y1, x0:x1]
            part[:] = np.maximum(part, np.rint(part + share * (np.float32(235) - part)).astype(np.uint8))

    def in_view(self, t_s: float) -> int:
        """How many are in the picture, or touch its edge."""
        boxes = (self._dash(flight, t_s)[1] for flight in self._flights(t_s))
        return sum(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in boxes)

    def _flights(self, t_s: float) -> list[_Flight]:
        since = t_s - self._insects.at_s
        if not 0 <= since < self._insects.for_s:
            return []
        swarm = math.floor(since / self.SWARM_S)
        near = (*self._swarm(swarm - 1), *self._swarm(swarm))
        return [flight for flight in near if 0 <= t_s - flight.start_s < flight.for_s]

    def _dash(self, flight: _Flight, t_s: float) -> tuple[tuple[tuple[float, float], ...], tuple[int, int, int, int]]:
        """Where it begins and ends, and the pixels in the picture that hold it: left, top, right, bottom."""
        ends = flight.at(t_s - self.SHUTTER_S), flight.at(t_s)
        (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(*ends, strict=True))
        half = flight.size / 2
        return ends, (
            max(0, math.floor(x0 - half)),
            max(0, math.floor(y0 - half)),
            min(self._width, math.ceil(x1 + half) + 1),
            min(self._height, math.ceil(y1 + half) + 1),
        )

    def _swarm_of(self, number: int) -> tuple[_Flight, ...]:
        """Those that come within the number-th SWARM_S."""
        if number < 0:
            return ()
        rng = np.random.default_rng((self._seed, 41, number))
        many = rng.choice((0.0, 0.6, 2.4)) * self._insects.per_s * self.SWARM_S
        return tuple(self._flight(rng, number) for _ in range(rng.poisson(many)))

    def _flight(self, rng: np.random.Generator, number: int) -> _Flight:
        is_near = rng.uniform() < 0.125
        size = self._insects.size * self._width * rng.uniform(*((1.8, 2.2) if is_near else (0.6, 1.5)))
        size = max(1.4, size)
        # All fly alike, the near ones seem the faster: so many times their own size in a second.
        speed = size * rng.uniform(85, 110 if is_near else 180)
        turn, for_s = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.4)
        way = (speed * math.cos(turn), speed * math.sin(turn))
        bend = rng.uniform(-1.5, 1.5) / for_s
        return _Flight(
            start_s=self._insects.at_s + (number + rng.uniform()) * self.SWARM_S,
            for_s=for_s,
            x=rng.uniform(0, self._width),
            y=rng.uniform(0, self._height),
            way=way,
            bend=(-way[1] * bend, way[0] * bend),
            size=size,
            shine=rng.uniform(*((0.2, 0.4) if is_near else (0.4, 1.0))),
        )


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
