"""The renderer of the fake camera: a scene and a frame number become planes and their truth. Touches memory only.

A pure function of (scene, seed, frame number): caches hold nothing that could not be made again. Light is
linear, in codes of 1/1024 of sensor white, until one table turns it into luma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from agent.cameras import figures
from agent.cameras.backdrop import draw
from agent.cameras.figures import LIGHT_ONE, Floats, Sprite
from agent.cameras.planes import Planes, cv2_module
from agent.cameras.scene import LAMP_SPREAD, Scene, cloud_profile
from agent.cameras.weather import (
    FlyingInsects,
    Raindrops,
    SensorNoise,
    Snowflakes,
    TurningBlades,
    WavingLeaves,
    wander,
)
from agent.model import Box, Plane, SensorReading

CODES = 4096
WHITE = 1024.0
_BASE_SENSITIVITY_MS = 10.0  # exposure times gain that shows a well-lit office at the target brightness
_MAX_EXPOSURE_MS = 33.0
_MAX_GAIN = 16.0
_TARGET = 0.17
_AE_DELAY = 2  # frames between a reading and the first picture taken with it, as on real sensors
_AE_SETTLE_S = 0.35


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, or a thing, in view. box: all pixels that are there because of them, shadow included, in shares."""

    kind: Literal["walker", "sitter", "thing"]
    box: Box
    is_moving: bool
    contrast: float


@dataclass(frozen=True, slots=True)
class Truth:
    """What the picture of one frame shows. light: mean over the picture, 1 a well-lit office; hunting: how many stops
    brighter than right the exposure control makes it; insects: how many of them.
    """

    frame: int
    t_s: float
    people: tuple[Person, ...]
    light: float
    lamps_on: tuple[bool, ...]
    infrared: bool
    covered: bool
    turned: bool
    frozen: bool
    raining: bool
    things: tuple[Person, ...] = ()
    snowing: bool = False
    shaken: bool = False
    hunting: float = 0.0
    headlights: bool = False
    insects: int = 0

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Of everybody in view, and of the things that move."""
        return tuple(person.box for person in self.people) + tuple(t.box for t in self.things if t.is_moving)

    @property
    def moving_boxes(self) -> tuple[Box, ...]:
        return tuple(one.box for one in (*self.people, *self.things) if one.is_moving)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A sprite with its left upper pixel in the picture."""

    sprite: Sprite
    x: int
    y: int
    contrast: float
    kind: Literal["walker", "sitter", "thing"]
    is_moving: bool


@dataclass(frozen=True, slots=True)
class _Exposure:
    """sensitivity: exposure times gain, ms; scale: codes per unit of light times reflectance."""

    exposure_ms: float
    gain: float
    scale: float


class Renderer:
    """Renders frames of one scene at one size and rate. Not thread-safe; one frame at a time."""

    def __init__(self, scene: Scene, width: int, height: int, fps: float, seed: int = 0) -> None:
        self.scene = scene
        self.width = width
        self.height = height
        self.fps = fps
        self._seed = seed
        self._cv2 = cv2_module()
        sway = sum(shake.sway for shake in scene.shakes)
        margin_x = 2 * math.ceil((sway + sum(abs(turn.dx) for turn in scene.turns)) * width / 2)
        margin_y = 2 * math.ceil((sway + sum(abs(turn.dy) for turn in scene.turns)) * height / 2)
        self._backdrop = draw(scene.place, width, height, margin_x, margin_y, seed)
        view = self._backdrop.light[margin_y : margin_y + height, margin_x : margin_x + width]
        self._codes_at_base = _TARGET * WHITE / float(view.mean())
        self._luma = _tone_table()
        self._pools = [self._pool(lamp.x, lamp.y, lamp.reach) for lamp in scene.lamps]
        self._infrared_pool = self._pool(0.5, 0.5, 0.75) * np.float32(1 / 0.75) if scene.infrared else None
        self._foliage = [WavingLeaves(region, width, height, seed + i) for i, region in enumerate(scene.foliage)]
        self._noise = SensorNoise(width, height, seed)
        self._rain = Raindrops(width, height, seed) if scene.rain else None
        self._snow = [(snow, Snowflakes(width, height, seed, snow.flakes, snow.speed)) for snow in scene.snow]
        self._insects = [FlyingInsects(some, width, height, seed + i) for i, some in enumerate(scene.insects)]
        self._fans = [TurningBlades(fan, width, height) for fan in scene.fans]
        self._still: tuple[object, npt.NDArray[np.uint16], Plane] | None = None
        self._chroma: tuple[object, Plane, Plane] | None = None
        self._walker = lru_cache(maxsize=36)(figures.walker)
        self._sitter = lru_cache(maxsize=24)(figures.sitter)
        self._thing = lru_cache(maxsize=12)(figures.thing)
        self._log_light = lru_cache(maxsize=512)(self._log_light_of)

    def render(self, frame: int) -> tuple[Planes, SensorReading]:
        """The picture of a frame: y uint8 (h, w), u, v (h/2, w/2), limited range, newly made and writable."""
        frame = self._shown_frame(frame)
        t_s = self._time(frame)
        scene = self.scene
        exposure = self._exposure(frame)
        offset = self._offset(t_s)
        codes, y = self._scenery(t_s, exposure, offset)
        u, v = self._colours(t_s, exposure, offset)
        for region in self._foliage:
            region.wave(codes, y, self._luma, t_s, offset)
        for fan in self._fans:
            fan.turn(codes, y, self._luma, t_s, offset)
        people = self._people(t_s)
        if len(people) > 1:
            codes = codes.copy()  # who stands in front is mixed with who stands behind
        for placed in people:
            self._lay(placed, t_s, exposure, codes, y, u, v, is_last=placed is people[-1])
        level, cover = scene.cover(t_s)
        if cover is not None:
            self._cover(level, cover.share, exposure, y, u, v)
        rain = next((r for r in scene.rain if r.at_s <= t_s < r.at_s + r.for_s), None)
        if rain is not None and self._rain is not None:
            self._rain.drop(y, frame, rain.drops)
        for snow, flakes in self._snow:
            if snow.at_s <= t_s < snow.at_s + snow.for_s:
                flakes.fall(y, t_s)
        for insects in self._insects:
            insects.fly(y, t_s)
        smear = self._smear(frame)
        if smear:
            y = np.asarray(self._cv2.blur(y, (smear, 1)), dtype=np.uint8)
        self._noise.add(y, u, v, exposure.gain, scene.gain_noise, frame, with_colour=not scene.is_infrared(t_s))
        reading = SensorReading(
            exposure_us=round(exposure.exposure_ms * 1000, 1),
            analogue_gain=round(exposure.gain, 3),
            colour_gains=(1.0, 1.0) if scene.is_infrared(t_s) else (2.1, 1.6),
            lux=round(400 * scene.mean_light(t_s), 2),
        )
        return Planes(y, u, v), reading

    def truth(self, frame: int) -> Truth:
        """The truth about a frame without rendering it."""
        shown = self._shown_frame(frame)
        t_s = self._time(shown)
        scene = self.scene
        people: list[Person] = []
        smear = self._smear(shown) // 2
        for placed in self._people(t_s):
            sprite = placed.sprite
            x0, x1 = (min(max(placed.x + x, 0), self.width) for x in (sprite.x0 - smear, sprite.x1 + smear))
            y0, y1 = (min(max(placed.y + y, 0), self.height) for y in (sprite.y0, sprite.y1))
            if x1 > x0 and y1 > y0 and placed.contrast > 0:
                w, h = self.width, self.height
                box = Box(x0 / w, y0 / h, (x1 - x0) / w, (y1 - y0) / h)
                people.append(Person(placed.kind, box, placed.is_moving and shown == frame, placed.contrast))
        now_s = self._time(frame)
        return Truth(
            frame=frame,
            t_s=now_s,
            people=tuple(person for person in people if person.kind != "thing"),
            light=scene.mean_light(t_s),
            lamps_on=tuple(level > 0.5 for level in scene.lamp_levels(t_s)),
            infrared=scene.is_infrared(t_s),
            covered=scene.cover(t_s)[0] > 0.5,
            turned=scene.turned_by(t_s) != (0, 0),
            frozen=scene.frozen_since(now_s) is not None,
            raining=any(r.at_s <= t_s < r.at_s + r.for_s for r in scene.rain),
            things=tuple(person for person in people if person.kind == "thing"),
            snowing=any(snow.at_s <= t_s < snow.at_s + snow.for_s for snow in scene.snow),
            shaken=scene.shaken_by(t_s) != (0, 0),
            hunting=scene.hunted_by(t_s),
            headlights=bool(scene.headlights_at(t_s)),
            insects=sum(insects.in_view(t_s) for insects in self._insects),
        )

    # --- time and light --------------------------------------------------------------------------------------

    def _time(self, frame: int) -> float:
        return self.scene.scene_time(frame / self.fps)

    def _shown_frame(self, frame: int) -> int:
        """The frame whose picture is shown: an earlier one while the picture is frozen."""
        since = self.scene.frozen_since(self._time(frame))
        return frame if since is None else frame - math.floor((self._time(frame) - since) * self.fps + 1e-6)

    def _log_light_of(self, frame: int) -> float:
        return math.log(self.scene.mean_light(self._time(max(frame, 0))))

    def _exposure(self, frame: int) -> _Exposure:
        """The exposure control: the light of the last frames, smoothed, _AE_DELAY frames late, within the limits."""
        if self.scene.light_is_constant():
            log_light = self._log_light(0)
        else:
            keep = math.exp(-1 / (_AE_SETTLE_S * self.fps))
            terms = min(400, math.ceil(5 * _AE_SETTLE_S * self.fps))
            total = weight_sum = 0.0
            weight = 1.0
            for back in range(terms + 1):
                total += weight * self._log_light(frame - _AE_DELAY - back)
                weight_sum += weight
                weight *= keep
            log_light = total / weight_sum
        wanted = _BASE_SENSITIVITY_MS / math.exp(log_light)
        longest = min(_MAX_EXPOSURE_MS, 950 / self.fps)
        # Steps of 1/24 stop, as sensors have: a settled exposure stays the same, and the picture can be kept.
        wanted = 2 ** (round((math.log2(wanted) + self.scene.hunted_by(self._time(frame))) * 24) / 24)
        sensitivity = min(max(wanted, 0.05), longest * _MAX_GAIN)
        exposure_ms = min(sensitivity, longest)
        scale = self._codes_at_base * sensitivity / _BASE_SENSITIVITY_MS
        return _Exposure(exposure_ms, sensitivity / exposure_ms, scale)

    def _offset(self, t_s: float) -> tuple[int, int]:
        turned, shaken = self.scene.turned_by(t_s), self.scene.shaken_by(t_s)
        return round((turned[0] + shaken[0]) * self.width), round((turned[1] + shaken[1]) * self.height)

    def _smear(self, frame: int) -> int:
        """By how many pixels a moving camera smears this picture sideways; 0 for hardly."""
        way = abs(self._offset(self._time(frame + 1))[0] - self._offset(self._time(frame))[0])
        return min(way, 61) if way > 2 else 0

    def _pool(self, x: float, y: float, reach: float) -> Floats:
        """The light of a lamp over the picture, mean LAMP_SPREAD."""
        xx = (np.arange(self.width, dtype=np.float32)[None, :] / self.width - x) / reach
        yy = (np.arange(self.height, dtype=np.float32)[:, None] / self.height - y) / reach
        pool = 0.3 + 0.7 * np.exp(-(xx * xx + yy * yy))
        return (pool * (LAMP_SPREAD / float(pool.mean()))).astype(np.float32)

    def _illumination(self, t_s: float) -> tuple[float, Floats | None]:
        """Even light, and what lamps or infrared add per pixel (None: nothing)."""
        scene = self.scene
        extra: Floats | None = None
        for beam, middle in scene.headlights_at(t_s):
            xs = np.exp(-(((np.arange(self.width, dtype=np.float32) / self.width - middle) / beam.reach) ** 2))
            ys = np.exp(-(((np.arange(self.height, dtype=np.float32) / self.height - beam.y) / beam.reach) ** 2))
            part = ys[:, None] * xs[None, :] * np.float32(beam.brightness)
            extra = part if extra is None else extra + part
        if self._infrared_pool is not None and scene.is_infrared(t_s):
            part = self._infrared_pool * np.float32(scene.infrared_light(t_s) / LAMP_SPREAD * 0.75)
            return 0.0, part if extra is None else extra + part
        for lamp, level, pool in zip(scene.lamps, scene.lamp_levels(t_s), self._pools, strict=True):
            if level > 0:
                part = pool * np.float32(lamp.brightness * level)
                extra = part if extra is None else extra + part
        return scene.ambient(t_s), extra

    def _changing(self, t_s: float) -> Floats | None:
        """What clouds and mains flicker leave of the light, (h, w) or (h, 1); None for all of it."""
        scene = self.scene
        if scene.is_infrared(t_s):
            return None
        field: Floats | None = None
        for cloud, middle in scene.clouds_at(t_s):
            xs = (np.arange(64, dtype=np.float32) + 0.5) / 64
            if cloud.edge > 0:  # an edge needs every pixel
                xs = (np.arange(self.width, dtype=np.float32) + 0.5) / self.width
            grid = xs[None, :] + 0.25 * ((np.arange(36, dtype=np.float32)[:, None] + 0.5) / 36 - 0.5) - middle
            if cloud.edge > 0:
                inside = np.clip((cloud.size / 2 - np.abs(grid)) / cloud.edge + 0.5, 0, 1)
                shade = (1 - cloud.depth * inside * inside * (3 - 2 * inside)).astype(np.float32)
            else:
                shade = (1 - cloud.depth * np.exp(-((2 * grid / cloud.size) ** 4))).astype(np.float32)
            part = np.asarray(
                self._cv2.resize(shade, (self.width, self.height), interpolation=self._cv2.INTER_LINEAR), np.float32
            )
            field = part if field is None else field * part
        if scene.flicker > 0:
            # A rolling shutter reads a row in 1/(1.1 h) of the frame time; light swings at twice the mains frequency.
            rows = np.arange(self.height, dtype=np.float32)[:, None] / (1.1 * self.height * self.fps)
            cycles = 2 * scene.mains_hz * (t_s + rows) + 0.013 * self.fps * t_s
            wave = (1 + scene.flicker * np.cos(2 * math.pi * (cycles - np.floor(cycles)))).astype(np.float32)
            field = wave if field is None else field * wave
        return field

    # --- painting --------------------------------------------------------------------------------------------

    def _scenery(
        self, t_s: float, exposure: _Exposure, offset: tuple[int, int]
    ) -> tuple[npt.NDArray[np.uint16], Plane]:
        """The place without people: codes uint16 (h, w), not to be written when cached, and luma, always new."""
        scene = self.scene
        even = scene.ambient(t_s)
        beams = tuple(middle for _, middle in scene.headlights_at(t_s))
        key = (even, scene.lamp_levels(t_s), scene.infrared_light(t_s), exposure.scale, offset, beams)
        changing = self._changing(t_s)
        if changing is None and self._still is not None and self._still[0] == key:
            return self._still[1], self._still[2].copy()
        backdrop = self._backdrop
        top, left = backdrop.margin_y + offset[1], backdrop.margin_x + offset[0]
        light = backdrop.light[top : top + self.height, left : left + self.width]
        even, extra = self._illumination(t_s)
        if extra is None:
            lit = light * np.float32(even * exposure.scale)
        else:
            lit = light * ((extra + np.float32(even)) * np.float32(exposure.scale))
        if changing is not None:
            lit *= changing
        codes = np.minimum(lit, CODES - 1).astype(np.uint16)
        y = self._luma[codes]
        if changing is None:
            self._still = (key, codes, y)
            y = y.copy()
        return codes, y

    def _colours(self, t_s: float, exposure: _Exposure, offset: tuple[int, int]) -> tuple[Plane, Plane]:
        scene = self.scene
        grey = scene.is_infrared(t_s)
        strength = 0.0 if grey else round(16 / (1 + 0.06 * (exposure.gain - 1))) / 16
        lamps = 0.0 if grey else sum(scene.lamp_levels(t_s))
        warm = round(4 * min(1.0, lamps / (lamps + 2 * scene.ambient(t_s) + 1e-6)))
        key = (strength, warm, offset)
        if self._chroma is None or self._chroma[0] != key:
            backdrop = self._backdrop
            top, left = (backdrop.margin_y + offset[1]) // 2, (backdrop.margin_x + offset[0]) // 2
            crop = np.s_[top : top + self.height // 2, left : left + self.width // 2]
            u, v = (
                np.clip(128 + shift + (plane[crop].astype(np.float32) - 128) * strength, 16, 240).astype(np.uint8)
                for plane, shift in ((backdrop.u, -warm), (backdrop.v, warm))
            )
            self._chroma = (key, u, v)
        return self._chroma[1].copy(), self._chroma[2].copy()

    def _people(self, t_s: float) -> list[_Placed]:
        """Everybody and every thing at scene time t_s, farthest first."""
        scene = self.scene
        dx, dy = self._offset(t_s)
        found: list[tuple[float, _Placed]] = []
        for walker in scene.walkers:
            place = walker.place(t_s)
            if place is None:
                continue
            x, walked, direction = place
            height = max(8, round(walker.height * self.height))
            steps = walked * self.width / (0.85 * height)
            phase = int(steps * figures.GAIT_PHASES) % figures.GAIT_PHASES if direction else 0
            sprite = self._walker(height, walker.look, phase, direction)
            left = round(x * self.width) - sprite.foot_x - dx
            top = round(walker.feet_y * self.height) - sprite.foot_y - dy
            found.append((walker.feet_y, _Placed(sprite, left, top, walker.contrast, "walker", direction != 0)))
        for sitter in scene.sitters:
            if not sitter.at_s <= t_s < sitter.at_s + sitter.for_s:
                continue
            height = max(8, round(sitter.height * self.height))
            busy = sitter.busy * 4
            nod = round(busy * wander(t_s, 6.1, self._seed + sitter.look))
            lean = round(busy * wander(t_s, 9.7, self._seed + sitter.look + 11))
            writing = busy * wander(t_s, 0.9, self._seed + sitter.look + 23)
            hand = round(writing if wander(t_s, 13.0, self._seed + 5) > 0.1 else 0)
            sprite = self._sitter(height, sitter.look, nod, hand, lean)
            left = round(sitter.x * self.width) - sprite.foot_x - dx
            top = round(sitter.seat_y * self.height) - sprite.foot_y - dy
            found.append((sitter.seat_y, _Placed(sprite, left, top, sitter.contrast, "sitter", False)))
        for thing in scene.things:
            there = thing.place(t_s)
            if there is None:
                continue
            sprite = self._thing(max(8, round(thing.height * self.height)), thing.look)
            left = round(there[0] * self.width) - sprite.foot_x - dx
            top = round(thing.feet_y * self.height) - sprite.foot_y - dy
            found.append((thing.feet_y, _Placed(sprite, left, top, 1.0, "thing", there[1])))
        return [placed for _, placed in sorted(found, key=lambda item: item[0])]

    def _lay(
        self,
        placed: _Placed,
        t_s: float,
        exposure: _Exposure,
        codes: npt.NDArray[np.uint16],
        y: Plane,
        u: Plane,
        v: Plane,
        *,
        is_last: bool,
    ) -> None:
        """Lay a figure over the picture, lit like the place where it stands. codes are written unless it is_last."""
        sprite = placed.sprite
        x0, x1 = max(0, placed.x + sprite.x0), min(self.width, placed.x + sprite.x1)
        y0, y1 = max(0, placed.y + sprite.y0), min(self.height, placed.y + sprite.y1)
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - placed.y : y1 - placed.y, x0 - placed.x : x1 - placed.x]
        light = self._light_at(t_s, (x0 + x1) // 2, (y0 + y1) // 2) * exposure.scale
        share = np.float32(placed.contrast / 255)
        under = codes[y0:y1, x0:x1] * (1 - sprite.shadow[part] * share)
        mixed = under + sprite.alpha[part] * share * (sprite.light[part] * np.float32(light / LIGHT_ONE) - under)
        there = (sprite.alpha[part] | sprite.shadow[part]) > 0
        laid = np.minimum(mixed, CODES - 1).astype(np.uint16)
        np.copyto(y[y0:y1, x0:x1], self._luma[laid], where=there)
        if not is_last:
            np.copyto(codes[y0:y1, x0:x1], laid, where=there)
        if self.scene.is_infrared(t_s):
            return
        cx, cy = placed.x // 2, placed.y // 2
        hw, hh = self.width // 2, self.height // 2
        rows, columns = sprite.alpha_c.shape
        x0, x1, y0, y1 = max(0, cx), min(hw, cx + columns), max(0, cy), min(hh, cy + rows)
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - cy : y1 - cy, x0 - cx : x1 - cx]
        alpha = sprite.alpha_c[part] * share
        for plane, own in ((u, sprite.u), (v, sprite.v)):
            below = plane[y0:y1, x0:x1]
            below[:] = (below + alpha * (own[part].astype(np.int16) - below) + np.float32(0.5)).astype(np.uint8)

    def _light_at(self, t_s: float, x: int, y: int) -> float:
        even, extra = self._illumination_at(t_s, min(x, self.width - 1), min(y, self.height - 1))
        light = even + extra
        for cloud, middle in self.scene.clouds_at(t_s):
            light *= 1 - cloud.depth * cloud_profile(x / self.width - middle, cloud)
        return light

    def _illumination_at(self, t_s: float, x: int, y: int) -> tuple[float, float]:
        scene = self.scene
        beams = 0.0
        for beam, middle in scene.headlights_at(t_s):
            dx, dy = (x / self.width - middle) / beam.reach, (y / self.height - beam.y) / beam.reach
            beams += beam.brightness * math.exp(-dx * dx - dy * dy)
        if self._infrared_pool is not None and scene.is_infrared(t_s):
            return 0.0, beams + float(self._infrared_pool[y, x]) * scene.infrared_light(t_s) / LAMP_SPREAD * 0.75
        extra = beams + sum(
            float(pool[y, x]) * lamp.brightness * level
            for lamp, level, pool in zip(scene.lamps, scene.lamp_levels(t_s), self._pools, strict=True)
        )
        return scene.ambient(t_s), extra

    def _cover(
        self,
        level: float,
        share: float,
        exposure: _Exposure,
        y: Plane,
        u: Plane,
        v: Plane,
    ) -> None:
        """A hand that comes in from the left until it hides share of the picture."""
        edge, glow = figures.hand(self.width, self.height)
        soft = 0.14 * self.width
        # Far enough that a whole cover leaves no edge in sight.
        reach = level * (share * self.width + (2 * soft if share >= 1 else 0)) - soft / 2
        columns = np.arange(self.width, dtype=np.float32)[None, :]
        hidden = np.clip((np.float32(reach) + edge - columns) / np.float32(soft) + np.float32(0.5), 0, 1)
        skin = glow * np.float32(0.006 * exposure.scale)
        dark = self._luma[np.minimum(skin, CODES - 1).astype(np.uint16)]
        y[:] = (y + hidden * (dark.astype(np.float32) - y)).astype(np.uint8)
        small = hidden[::2, ::2]
        for plane, colour in ((u, 121.0), (v, 140.0)):
            plane[:] = (plane + small * (np.float32(colour) - plane)).astype(np.uint8)


def _tone_table() -> Plane:
    """Linear codes to limited-range luma: a shoulder that saves highlights, then gamma 1/2.2 (after BT.709)."""
    light = np.arange(CODES, dtype=np.float64) / WHITE
    shown = np.power((1 - np.exp(-1.9 * light)) / (1 - math.exp(-1.9 * (CODES - 1) / WHITE)), 1 / 2.2)
    table: Plane = np.rint(16 + 219 * shown).astype(np.uint8)
    return table
