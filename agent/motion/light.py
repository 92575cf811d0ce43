"""Light: how its change is measured per tile, divided out of a picture, and told from a thing. Touches nothing."""

from __future__ import annotations

import functools
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agent.model import NS_PER_S, Plane, SensorReading
from agent.motion.rules import TILE, Rules

Levels = npt.NDArray[np.float32]
_ONE = np.float32(1)
ALIKE = 0.03
"""A change of light by less than this share is too little to matter where two frames are compared."""


@functools.cache
def opencv() -> Any:
    """OpenCV, loaded when the first picture is looked at. Untyped: its stubs differ between 4.6 and 5.0."""
    import cv2

    return cv2


def tile_means(picture: Plane) -> Levels:
    """float32: each tile's mean level, at least 1, so that ratios exist."""
    cv2 = opencv()
    height, width = picture.shape
    # Two halvings in bytes lose a seventh of a level and make the rest cheap; in the dark one level is a tenth of
    # all light, so what follows is in floats.
    half = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    quarter = cv2.resize(half, (width // 4, height // 4), interpolation=cv2.INTER_AREA).astype(np.float32)
    means: Levels = cv2.resize(quarter, (width // TILE, height // TILE), interpolation=cv2.INTER_AREA)
    return np.maximum(means, _ONE, out=means)


class Light(NamedTuple):
    """What multiplies a picture into another light: float32 per tile; its least and greatest."""

    tiles: Levels
    least: float
    most: float

    @property
    def middle(self) -> float:
        """The median; np.median takes five times as long."""
        every = self.tiles.ravel()
        return float(np.partition(every, every.size // 2)[every.size // 2])

    @property
    def is_small(self) -> bool:
        return self.most < 1 + ALIKE and self.least > 1 - ALIKE


def is_like(one: Light | None, other: Light | None, even: float) -> bool:
    """Whether both are the same light, give or take the share `even`."""
    if one is None or other is None:
        only = one or other
        return only is None or (only.most < 1 + even and only.least > 1 - even)
    cv2 = opencv()
    return bool(cv2.norm(one.tiles, other.tiles, cv2.NORM_INF) <= even * other.least)


def light_between(then: Levels, now: Levels, rules: Rules) -> Light | None:
    """What multiplies the light of now into that of then, from tile means; None where nothing changed.

    The median of neighbours keeps a thing of less than half of them from passing for light, and keeps the edge
    of a cloud's shadow where it is.
    """
    return smooth_light(then / now, rules)


def smooth_light(ratio: Levels, rules: Rules) -> Light | None:
    cv2 = opencv()
    tiles: Levels = cv2.medianBlur(ratio, rules.median)
    least, most, _, _ = cv2.minMaxLoc(tiles)
    return Light(tiles, least, most) if most > 1 + rules.even or least < 1 - rules.even else None


def spread_out(tiles: Levels, shape: tuple[int, ...]) -> Levels:
    """tiles at the size of the picture; the rim keeps its slope, or a shadow's edge would show there."""
    size = (shape[1] + 2 * TILE, shape[0] + 2 * TILE)
    cv2 = opencv()
    out: Levels = cv2.resize(with_rim(tiles), size, interpolation=cv2.INTER_LINEAR)[TILE:-TILE, TILE:-TILE]
    return out


def with_rim(tiles: Levels) -> Levels:
    """One more tile on each side, in line with the two next to it."""
    wide: Levels = np.matmul(np.matmul(_with_rim(tiles.shape[0])[0], tiles), _with_rim(tiles.shape[1])[1])
    return wide


@functools.cache
def _with_rim(length: int) -> tuple[Levels, Levels]:
    """The matrix that puts one more value at both ends, in line with the two next to it; and its transpose."""
    matrix = np.zeros((length + 2, length), np.float32)
    matrix[1:-1] = np.eye(length)
    inner = min(1, length - 1)
    matrix[0, 0] += 2
    matrix[0, inner] -= 1
    matrix[-1, -1] += 2
    matrix[-1, length - 1 - inner] -= 1
    return matrix, np.ascontiguousarray(matrix.T)


class Gain(NamedTuple):
    """A change of light, at the size of the picture: a factor of each pixel, in bytes, and what one of them is."""

    factors: Plane
    unit: float


def gain_of(light: Light, shape: tuple[int, ...]) -> Gain:
    cv2 = opencv()
    # In bytes, a third of the cost of floats: the gain is rounded by 0.2 % of its greatest, half a level at 200.
    scale = 240 / light.most
    size = (shape[1] + 2 * TILE, shape[0] + 2 * TILE)
    tiles = cv2.convertScaleAbs(with_rim(light.tiles), alpha=scale)
    factors = cv2.resize(tiles, size, interpolation=cv2.INTER_LINEAR)
    return Gain(factors[TILE:-TILE, TILE:-TILE], 1 / scale)


def lit(picture: Plane, gain: Gain | None) -> Plane:
    """The picture in other light: uint8."""
    if gain is None:
        return picture
    level: Plane = opencv().multiply(picture, gain.factors, scale=gain.unit)
    return level


def doubt_of(light: Light | None, gain: Gain | None, rules: Rules) -> Plane | None:
    """Levels of doubt that dividing out a change of light leaves, uint8; None for none. gain: that of light.

    The light of a tile is not that of each of its pixels, and a dim picture that is brightened is coarser and
    noisier: both grow with the change.
    """
    if light is None or gain is None or light.is_small:
        return None
    doubt: Plane = opencv().convertScaleAbs(gain.factors, alpha=rules.doubt * gain.unit, beta=-rules.doubt)
    return doubt


class LightChange:
    """Knows when the light is changing, from the share of tiles that are in another light than usual."""

    def __init__(self, rules: Rules, t_ns: int) -> None:
        self._rules = rules
        self._shares: deque[tuple[int, float, float, SensorReading | None]] = deque()
        self._last_ns = self._since_ns = t_ns - 3600 * NS_PER_S
        self.share = 0.0

    def see(
        self, t_ns: int, ratio: Levels, light: Light | None, restless: float, sensor: SensorReading | None = None
    ) -> None:
        """One frame. ratio, light: usual light to the light of now, per tile, and what it comes to; None: the same.

        restless: share of cells with too many changed pixels. Sets share.
        """
        self.share = 0.0
        if light is not None and (light.most > 1.06 or light.least < 0.94):
            cv2 = opencv()
            self.share = 1 - cv2.countNonZero(cv2.inRange(ratio, 0.94, 1.06)) / ratio.size
        self._note(t_ns, restless, sensor)

    def see_same(self, t_ns: int, is_usual: bool, sensor: SensorReading | None = None) -> None:
        """One frame in the usual light or in that of the frame before, in which nothing changed."""
        if is_usual:
            self.share = 0.0
        self._note(t_ns, 0.0, sensor)

    def _note(self, t_ns: int, restless: float, sensor: SensorReading | None) -> None:
        shares = self._shares
        shares.append((t_ns, self.share, restless, sensor))
        while t_ns - shares[0][0] > NS_PER_S // 2:
            shares.popleft()

    @property
    def rise(self) -> float:
        """How much more tiles there are in another light than at some time within half a second."""
        return self.share - min(share for _, share, _, _ in self._shares) if self.share > 0.3 else 0.0

    @property
    def is_another_picture(self) -> bool:
        """Nearly all of the light changed at once, and much is left over when it is divided out."""
        if self.share <= 0.7 or self.rise <= 0.5:
            return False
        return self._shares[-1][2] - min(unrest for _, _, unrest, _ in self._shares) > 0.2

    @property
    def _has_switched_filter(self) -> bool:
        """Whether the sensor's colour gains jumped within half a second: the infrared filter came or went."""
        now, then = self._shares[-1][3], self._shares[0][3]
        if now is None or then is None or now.colour_gains is None or then.colour_gains is None:
            return False
        return any(abs(a - b) > 0.25 * min(a, b) for a, b in zip(now.colour_gains, then.colour_gains, strict=True))

    @property
    def _lux_change(self) -> float | None:
        """By which part the sensor's lux changed within half a second; None where it does not tell."""
        now, then = self._shares[-1][3], self._shares[0][3]
        if now is None or then is None or now.lux is None or then.lux is None:
            return None
        return abs(now.lux - then.lux) / max(min(now.lux, then.lux), 0.01)

    def is_on(self, t_ns: int, moving_share: float) -> bool:
        """Whether light is changing now. A thing fills most tiles that it darkens with changed pixels, light few.

        The infrared filter is known from the sensor's colour gains, whatever the picture shows. Where its lux jumped,
        more of the picture may be full of changed pixels.
        """
        if self._has_switched_filter:
            self.happened(t_ns)
            return True
        if self.rise <= 0.3:
            return False
        lux_change = self._lux_change
        most = 0.5 if lux_change is not None and lux_change > 0.15 else 0.25
        if moving_share >= most * self.share:
            return False
        self.happened(t_ns)
        return True

    def begin_anew(self, t_ns: int) -> None:
        """The picture of now is the usual one."""
        self._shares.clear()
        self.happened(t_ns)

    def happened(self, t_ns: int) -> None:
        if t_ns - self._last_ns > NS_PER_S:
            self._since_ns = t_ns
        self._last_ns = t_ns

    def holds(self, t_ns: int) -> bool:
        """Whether nothing new is to be believed yet. Not for longer than hold_longest_s: no lamp hides a person."""
        return (
            t_ns - self._last_ns < self._rules.hold_s * NS_PER_S
            and t_ns - self._since_ns < self._rules.hold_longest_s * NS_PER_S
        )
