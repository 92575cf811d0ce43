"""Scenes as data: what the fake camera sees and what befalls it, and the truth about each moment. Reads scene files.

Times are seconds since the camera was first started, lengths shares of the picture. Light is relative: 1 is a
well-lit office. Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from agent.cameras.nuisances import Fan, Headlights, Hunt, Insects, Shake, Snow, Thing
from agent.errors import ConfigError

Place = Literal["office", "counter", "garden"]
FaultKind = Literal["stall", "die", "packet-gap", "jitter", "late-keyframe", "absent", "busy", "silent"]


@dataclass(frozen=True, slots=True)
class Walker:
    """Somebody who walks through, from from_x to to_x (centre of the body; outside 0..1 is out of sight).

    feet_y: where the feet are; height: of the whole person; speed: shares of the width per second;
    pause_at, pause_s: stands still there; back: walks back after arriving; contrast: 1 natural, towards 0
    hardly told from what is behind; look: clothes, any number.
    """

    at_s: float
    from_x: float = -0.12
    to_x: float = 1.12
    feet_y: float = 0.92
    height: float = 0.5
    speed: float = 0.15
    pause_at: float | None = None
    pause_s: float = 0.0
    back: bool = False
    contrast: float = 1.0
    look: int = 0

    @property
    def one_way_s(self) -> float:
        return abs(self.to_x - self.from_x) / self.speed + self.pause_s

    @property
    def for_s(self) -> float:
        return self.one_way_s * (2 if self.back else 1)

    def place(self, t_s: float) -> tuple[float, float, int] | None:
        """x, distance walked (both shares of the width) and direction (-1, 0, 1) at t_s; None when not there."""
        since = t_s - self.at_s
        if not 0 <= since < self.for_s:
            return None
        direction = 1 if self.to_x >= self.from_x else -1
        if since >= self.one_way_s:
            since = 2 * self.one_way_s - since
            direction = -direction
        walked = since * self.speed
        if self.pause_at is not None and self.pause_s > 0:
            before = min(abs(self.pause_at - self.from_x), abs(self.to_x - self.from_x))
            if walked > before:
                standing = since - before / self.speed < self.pause_s
                walked = before if standing else walked - self.pause_s * self.speed
                if standing:
                    direction = 0
        forward = 1 if self.to_x >= self.from_x else -1
        return self.from_x + forward * walked, walked, direction


@dataclass(frozen=True, slots=True)
class Sitter:
    """Somebody who sits and hardly moves: breathes, nods, writes. busy: 0 like a statue, 1 lively."""

    at_s: float = 0.0
    for_s: float = math.inf
    x: float = 0.5
    seat_y: float = 0.72
    height: float = 0.36
    busy: float = 0.3
    contrast: float = 1.0
    look: int = 3


@dataclass(frozen=True, slots=True)
class Lamp:
    """A lamp at x, y, on from at_s for for_s; brightness adds to the light below it and, weaker, everywhere."""

    at_s: float
    for_s: float
    x: float = 0.7
    y: float = 0.1
    reach: float = 0.7
    brightness: float = 0.8
    ramp_s: float = 0.08


@dataclass(frozen=True, slots=True)
class Daylight:
    """The light of the whole picture moves from from_light to to_light within [at_s, at_s + for_s], and stays."""

    at_s: float
    for_s: float
    from_light: float
    to_light: float


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud's shadow travels through the picture from the left; depth: share of the light it takes; edge: within
    this share of the width light becomes shade, 0 as soft as a cloud of that size makes it.
    """

    at_s: float
    for_s: float = 12.0
    depth: float = 0.45
    size: float = 0.8
    edge: float = 0.0


@dataclass(frozen=True, slots=True)
class Infrared:
    """Night mode from at_s for for_s: grey picture, infrared light from the camera, high gain; brightness: of its
    lights, 1 as usual; at 0.1 they hardly reach the place.
    """

    at_s: float
    for_s: float
    brightness: float = 1.0


@dataclass(frozen=True, slots=True)
class Foliage:
    """Leaves in a region that wave: sway in shares of the width, one swing in period_s, gusts on top."""

    x: float
    y: float
    w: float
    h: float
    sway: float = 0.008
    period_s: float = 2.3


@dataclass(frozen=True, slots=True)
class Rain:
    """Rain from at_s for for_s; drops: streaks in view in each frame."""

    at_s: float
    for_s: float
    drops: int = 120


@dataclass(frozen=True, slots=True)
class Cover:
    """A hand covers the lens from at_s for for_s; share: of the picture it hides."""

    at_s: float
    for_s: float
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The camera is pushed aside by dx, dy within ramp_s and, after for_s, back."""

    at_s: float
    for_s: float
    dx: float = 0.25
    dy: float = 0.0
    ramp_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Freeze:
    """The camera delivers the same picture again and again (its frame numbers and times go on)."""

    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that befalls the camera, in time since the first start, never repeated by the scene's period.

    stall: delivers nothing for for_s. silent: nothing from at_s until it is opened again. die: raises at at_s.
    packet-gap: frames but no packets. jitter: times off by up to jitter_ms. late-keyframe: no keyframe.
    absent, busy: cannot be opened within the time. Happens times times, every_s apart.
    """

    kind: FaultKind
    at_s: float = 0.0
    for_s: float = 0.0
    times: int = 1
    every_s: float = 0.0
    jitter_ms: float = 20.0

    def occurrence(self, t_s: float) -> int | None:
        """Which time it is happening at t_s, from 0; None when it is not."""
        for index in range(self.times):
            start = self.at_s + index * self.every_s
            if start <= t_s < start + self.for_s:
                return index
        return None


@dataclass(frozen=True, slots=True)
class Scene:
    """All of it. period_s: after so long the scene begins again, 0 never (light and faults: see each).

    light: of the room without lamps; gain_noise: sensor noise relative to a small modern sensor; flicker: depth
    of mains flicker, mains_hz its frequency.
    """

    name: str
    place: Place = "office"
    about: str = ""
    period_s: float = 0.0
    light: float = 1.0
    gain_noise: float = 1.0
    flicker: float = 0.0
    mains_hz: float = 50.0
    walkers: tuple[Walker, ...] = ()
    sitters: tuple[Sitter, ...] = ()
    lamps: tuple[Lamp, ...] = ()
    daylight: tuple[Daylight, ...] = ()
    clouds: tuple[Cloud, ...] = ()
    infrared: tuple[Infrared, ...] = ()
    foliage: tuple[Foliage, ...] = ()
    rain: tuple[Rain, ...] = ()
    snow: tuple[Snow, ...] = ()
    insects: tuple[Insects, ...] = ()
    shakes: tuple[Shake, ...] = ()
    hunts: tuple[Hunt, ...] = ()
    headlights: tuple[Headlights, ...] = ()
    fans: tuple[Fan, ...] = ()
    things: tuple[Thing, ...] = ()
    covers: tuple[Cover, ...] = ()
    turns: tuple[Turn, ...] = ()
    freezes: tuple[Freeze, ...] = ()
    faults: tuple[Fault, ...] = ()

    def scene_time(self, t_s: float) -> float:
        return t_s % self.period_s if self.period_s > 0 else t_s

    def light_is_constant(self) -> bool:
        changes = (self.lamps, self.daylight, self.clouds, self.infrared, self.covers, self.headlights)
        return not any(changes)

    def ambient(self, t_s: float) -> float:
        """The light without lamps at scene time t_s."""
        light = self.light
        for change in self.daylight:
            if t_s >= change.at_s:
                done = min(1.0, (t_s - change.at_s) / max(change.for_s, 1e-6))
                light = change.from_light + (change.to_light - change.from_light) * smooth(done)
        return light

    def lamp_levels(self, t_s: float) -> tuple[float, ...]:
        return tuple(between(lamp.at_s, lamp.for_s, lamp.ramp_s, t_s) for lamp in self.lamps)

    def is_infrared(self, t_s: float) -> bool:
        return self.infrared_light(t_s) > 0

    def infrared_light(self, t_s: float) -> float:
        """What the camera's own lights add, 0 by day."""
        nights = (night for night in self.infrared if night.at_s <= t_s < night.at_s + night.for_s)
        return max((INFRARED_LIGHT * night.brightness for night in nights), default=0.0)

    def cover(self, t_s: float) -> tuple[float, Cover | None]:
        """How far the hand has come in, 0..1, and which it is."""
        for cover in self.covers:
            level = between(cover.at_s, cover.for_s, COVER_RAMP_S, t_s)
            if level > 0:
                return level, cover
        return 0.0, None

    def turned_by(self, t_s: float) -> tuple[float, float]:
        """Where the camera looks, in shares of the picture from its usual direction."""
        dx = dy = 0.0
        for turn in self.turns:
            level = smooth(between(turn.at_s, turn.for_s, turn.ramp_s, t_s))
            dx += turn.dx * level
            dy += turn.dy * level
        return dx, dy

    def shaken_by(self, t_s: float) -> tuple[float, float]:
        """As turned_by, for the wind."""
        ways = [shake.by(t_s) for shake in self.shakes]
        return sum(dx for dx, _ in ways), sum(dy for _, dy in ways)

    def hunted_by(self, t_s: float) -> float:
        """How many stops too bright the exposure control makes the picture."""
        return sum(hunt.swing(t_s) for hunt in self.hunts)

    def headlights_at(self, t_s: float) -> list[tuple[Headlights, float]]:
        """The headlights whose light is in the picture or near it, and the x of its middle."""
        found = ((light, light.middle(t_s)) for light in self.headlights)
        return [(light, middle) for light, middle in found if middle is not None]

    def frozen_since(self, t_s: float) -> float | None:
        return next((f.at_s for f in self.freezes if f.at_s <= t_s < f.at_s + f.for_s), None)

    def clouds_at(self, t_s: float) -> list[tuple[Cloud, float]]:
        """The clouds in view and the x of each one's middle."""
        return [
            (cloud, -cloud.size + (1 + 2 * cloud.size) * (t_s - cloud.at_s) / cloud.for_s)
            for cloud in self.clouds
            if cloud.at_s <= t_s < cloud.at_s + cloud.for_s
        ]

    def mean_light(self, t_s: float) -> float:
        """What the exposure control sees, relative to a well-lit office; never quite 0."""
        if self.is_infrared(t_s):
            light = self.infrared_light(t_s)
        else:
            light = self.ambient(t_s)
            for cloud, middle in self.clouds_at(t_s):
                points = [(i + 0.5) / 16 for i in range(16)]
                light *= 1 - cloud.depth * sum(cloud_profile(x - middle, cloud) for x in points) / 16
            light += sum(
                LAMP_SPREAD * lamp.brightness * level
                for lamp, level in zip(self.lamps, self.lamp_levels(t_s), strict=True)
            )
        for beam, middle in self.headlights_at(t_s):
            points = [(i + 0.5) / 16 for i in range(16)]
            across = sum(math.exp(-(((x - middle) / beam.reach) ** 2)) for x in points) / 16
            light += beam.brightness * across * beam.reach * math.sqrt(math.pi)
        level, cover = self.cover(t_s)
        if cover is not None:
            light *= 1 - 0.97 * cover.share * level
        return max(light, 1e-4)


LAMP_SPREAD = 0.55
"""A lamp's mean light over the picture, as a share of that right below it."""
INFRARED_LIGHT = 0.05
COVER_RAMP_S = 0.4


def smooth(x: float) -> float:
    return x * x * (3 - 2 * x)


def between(at_s: float, for_s: float, ramp_s: float, t_s: float) -> float:
    """0 before at_s, 1 after ramp_s, and down again in the ramp_s after at_s + for_s."""
    if not at_s <= t_s < at_s + for_s + ramp_s:
        return 0.0
    ramp_s = max(ramp_s, 1e-6)
    return max(0.0, min(1.0, (t_s - at_s) / ramp_s, (at_s + for_s + ramp_s - t_s) / ramp_s))


def cloud_profile(distance: float, cloud: Cloud) -> float:
    """How much of the cloud's depth falls at this distance from its middle, 0..1."""
    if cloud.edge > 0:
        return smooth(min(1.0, max(0.0, (cloud.size / 2 - abs(distance)) / cloud.edge + 0.5)))
    return math.exp(-((2 * distance / cloud.size) ** 4))


def load_scene(path: Path) -> Scene:
    """A scene from TOML: the fields of Scene, its lists as [[walkers]], [[lamps]]... ConfigError in one line."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("read", path, error, hint="a scene file or the name of a built-in scene") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("read", path, f"not TOML: {error}", hint="see docs/FAKE-CAMERA.md") from error
    tree.setdefault("name", path.stem)
    try:
        scene: Scene = _build(Scene, tree, "")
    except ValueError as error:
        raise ConfigError("read", path, error, hint="see docs/FAKE-CAMERA.md") from error
    return scene


_POSITIVE = {
    *("speed", "height", "reach", "size", "w", "h", "mains_hz", "hz", "radius", "blades"),
    *("foliage.period_s", "hunts.period_s", "clouds.for_s", "headlights.for_s", "infrared.brightness"),
}
_BOUNDS = {"height": 1.5, "contrast": 1.0, "busy": 1.0, "depth": 1.0, "share": 1.0, "flicker": 0.9}
_BOUNDS |= {"drops": 5000, "flakes": 5000, "stops": 4, "sway": 0.2, "blades": 12, "radius": 1}
_BOUNDS |= {"per_s": 20, "insects.size": 0.1}


def _build(kind: type[Any], tree: dict[str, Any], where: str) -> Any:
    """A dataclass from a TOML table; ValueError names the field, its value and what would be right."""
    hints = get_type_hints(kind)
    for key in tree:
        if key not in hints:
            raise ValueError(f"{where}{key}: there is no such field; there are {', '.join(hints)}")
    values = {key: _value(hints[key], key, value, f"{where}{key}") for key, value in tree.items()}
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ValueError(f"{where}{field.name}: is missing")
    return kind(**values)


def _value(hint: Any, key: str, value: Any, where: str) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ValueError(f"{where} = {value!r}: should be a list of tables, [[{key}]]")
        return tuple(_build(get_args(hint)[0], item, f"{key}[{i}].") for i, item in enumerate(value))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where} = {value!r}: should be one of {', '.join(get_args(hint))}")
        return value
    if hint is str or hint is bool:
        if not isinstance(value, hint):
            raise ValueError(f"{where} = {value!r}: should be a {'text' if hint is str else 'true or false'}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError(f"{where} = {value!r}: should be a number")
    if hint is int:
        if value != int(value) or value < 0:
            raise ValueError(f"{where} = {value!r}: should be a whole number, 0 or more")
        value = int(value)
    if math.isinf(value) and key not in ("for_s", "moves_at_s", "leaves_at_s"):
        raise ValueError(f"{where} = {value!r}: should be a finite number")
    place = re.sub(r"\[\d+\]", "", where)
    if value <= 0 and (key in _POSITIVE or place in _POSITIVE):
        raise ValueError(f"{where} = {value!r}: should be above 0")
    if (
        key.endswith(
            ("_s", "light", "noise", "depth", "contrast", "busy", "share", "flicker", "edge", "sway", "stops")
        )
        and value < 0
    ):
        raise ValueError(f"{where} = {value!r}: should be 0 or more")
    most = _BOUNDS.get(place, _BOUNDS.get(key, math.inf))
    if value > most:
        raise ValueError(f"{where} = {value!r}: should be at most {most:g}")
    return value if hint is int else float(value)
