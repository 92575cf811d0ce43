"""What is usual: pixels' levels, their noise, tiles' restlessness. Touches nothing."""

from __future__ import annotations

import math

import numpy as np

from agent.model import Plane
from agent.motion.light import (
    Gain,
    Levels,
    Light,
    doubt_of,
    gain_of,
    is_like,
    lit,
    opencv,
    smooth_light,
    spread_out,
    tile_means,
)
from agent.motion.rules import AT_FIRST, CLIPPED, PER_PIXEL, Rules

_AROUND = np.ones((3, 3), np.uint8)


def rate(since_s: float, time_s: float) -> float:
    """Share of the way that a memory of time_s goes in since_s."""
    return 1 - math.exp(-since_s / time_s)


class Scene:
    """Mean level and noise of each pixel, the bounds within which it counts as the same, and the light of now.

    usual: the mean, uint8. noise: mean deviation. margin: uint8, what it may do. light: what multiplies a picture
    into the usual light; None: nothing. level: the last picture seen, in the usual light. doubt: levels that this
    leaves unsure, or None.
    """

    def __init__(self, first: Plane, rules: Rules) -> None:
        self._rules = rules
        self._mean: Levels = first.astype(np.float32)
        self.noise: Levels = np.ones(first.shape, np.float32)
        self._kernel = np.ones((rules.envelope, rules.envelope), np.uint8)
        self._floor: Levels | float = 0.0
        self._spread: Levels | float = 0.0
        self._updates = 0
        self._noise_since_s = 0.0
        self._same = self.usual = self._low = self._high = self._lowest = self._highest = self.margin = first
        self.level = first
        # An array: OpenCV takes three times as long to compare with a number.
        self._clipped: Plane = np.full_like(first, CLIPPED)
        self.light: Light | None = None
        self._gain: Gain | None = None
        self.doubt: Plane | None = None
        self._known_tiles: Levels | None = None

    def learn(self, small: Plane, frames: int) -> None:
        """Plain means, at first."""
        cv2 = opencv()
        if frames > 2:
            off = cv2.absdiff(small, cv2.convertScaleAbs(self._mean))
            cv2.accumulateWeighted(cv2.min(off, 40.0), self.noise, max(1 / (frames - 2), 0.02))
        cv2.accumulateWeighted(small, self._mean, max(1 / frames, 0.02))

    def settle(self, floor: Levels | float, spread: Levels | float) -> None:
        """What was learned is the background from now on. floor, spread: as in Rules; arrays where zones differ."""
        self._floor, self._spread = floor, spread
        self._set_margin()
        self._rebound()

    def adopt(self, small: Plane) -> None:
        """small is the background from now on."""
        self._mean[:] = small
        self.noise *= 1.5
        self._set_light(None)
        self._set_margin()
        self._rebound()

    def update(self, small: Plane, held: Plane | None, since_s: float) -> None:
        """Follow the picture, a fourth as fast where held (uint8 per pixel) is 255."""
        cv2, rules = opencv(), self._rules
        free = None if held is None else cv2.bitwise_not(held)
        self._updates += 1
        self._noise_since_s += since_s
        if self._updates % rules.noise_every == 0 or self._updates < AT_FIRST:
            # Bounded by the margin: a thing that stops does not make its place noisy.
            off = cv2.min(cv2.absdiff(self.level, self.usual), self.margin)
            cv2.accumulateWeighted(off, self.noise, rate(self._noise_since_s, rules.noise_s), mask=free)
            self._noise_since_s = 0.0
            self._set_margin()
        if self._updates % rules.absorb_every == 0:
            free = None
        cv2.accumulateWeighted(small, self._mean, rate(since_s, rules.fast_s), mask=free)
        self._rebound()

    def follow_light(self, things: Plane | None, since_s: float) -> None:
        """Follow the light, but not that of things (cells, 255). To be followed by an update."""
        light = _around(self.light, things)
        if light is not None and not light.is_small:
            # Clipped: one mad ratio in the dark must not blow up what was learned.
            step = 1 + rate(since_s, self._rules.relight_s) * (1 / np.clip(light.tiles, 0.5, 2.0) - 1)
            self._mean *= spread_out(step.astype(np.float32), self._mean.shape)

    @property
    def tiles(self) -> Levels:
        """Mean usual level of each tile."""
        if self._known_tiles is None:
            self._known_tiles = tile_means(self.usual)
        return self._known_tiles

    def is_quiet(self, small: Plane, least: float) -> bool:
        """Whether fewer than least pixels differ, in the usual light or in that of the frame before.

        Most frames of most days end here.
        """
        cv2 = opencv()
        most = small.size - least
        self.level = small
        self._same = cv2.inRange(small, self._low, self._high)
        if cv2.countNonZero(self._same) > most:
            if self.light is not None:
                self._set_light(None)
            return True
        if self.light is None:
            return False
        self.level = lit(small, self._gain)
        self._same = cv2.inRange(self.level, self._lowest, self._highest)
        return bool(cv2.countNonZero(self._same) > most)

    def relight(self, small: Plane, means: Levels) -> Levels:
        """After is_quiet: look for the light of now. Returns the usual light to that of now, per tile.

        means: of the tiles of small.
        """
        ratio = self.tiles / means
        light = smooth_light(ratio, self._rules)
        if is_like(light, self.light, 2 * self._rules.even):
            return ratio
        self._set_light(light)
        self.level = lit(small, self._gain)
        self._same = opencv().inRange(self.level, self._lowest, self._highest)
        return ratio

    def unlike(self, small: Plane, least: float) -> Plane | None:
        """255 where a pixel is unlike the background, after relight; None when fewer than least are."""
        cv2 = opencv()
        same = self._same
        if self.light is not None and self.light.least < 0.97:
            same = cv2.bitwise_or(same, cv2.compare(small, self._clipped, cv2.CMP_GE))
        return cv2.bitwise_not(same) if same.size - cv2.countNonZero(same) >= least else None

    def _set_light(self, light: Light | None) -> None:
        self.light = light
        self._gain = None if light is None else gain_of(light, self.usual.shape)
        self.doubt = doubt_of(light, self._gain, self._rules)
        self._widen()

    def _widen(self) -> None:
        """The bounds in the light of now."""
        cv2 = opencv()
        self._lowest, self._highest = self._low, self._high
        if self.doubt is not None:
            self._lowest, self._highest = cv2.subtract(self._low, self.doubt), cv2.add(self._high, self.doubt)

    def _set_margin(self) -> None:
        cv2 = opencv()
        if isinstance(self._spread, float):
            self.margin = cv2.convertScaleAbs(self.noise, alpha=self._spread, beta=self._floor)
        else:
            self.margin = cv2.convertScaleAbs(self.noise * self._spread + self._floor)

    def _rebound(self) -> None:
        """A pixel may look like any of its neighbours (leaves, shaking), give or take the margin of noise."""
        cv2 = opencv()
        self.usual = cv2.convertScaleAbs(self._mean)
        self._low = cv2.subtract(cv2.erode(self.usual, self._kernel), self.margin)
        self._high = cv2.add(cv2.dilate(self.usual, self._kernel), self.margin)
        self._known_tiles = None
        self._widen()


def _around(light: Light | None, things: Plane | None) -> Light | None:
    """light, with that of the tiles under things guessed from all others: a large thing is no light."""
    if light is None or things is None:
        return light
    cv2 = opencv()
    rows, columns = light.tiles.shape
    under = cv2.resize(things, (columns, rows), interpolation=cv2.INTER_AREA)
    under = cv2.dilate(under, _AROUND) > 0
    if under.all():
        return None
    others = light.tiles[~under]
    # The middle one; np.median takes five times as long.
    middle = np.partition(others, others.size // 2)[others.size // 2]
    return light._replace(tiles=np.where(under, middle, light.tiles))


class Restlessness:
    """How many changed pixels are usual in each tile: leaves, rain and noise are, after some seconds.

    limits: uint8, one per cell, in counts (PER_PIXEL to a pixel); what is above it is too many. is_used:
    whether any tile takes clearly more than it would if nothing ever moved in it.
    """

    def __init__(self, need: Levels, calm: float) -> None:
        self._power: Levels = np.zeros(need.shape, np.float32)
        self._calm, self._least = calm, float(need.min())
        self._bytes: Plane = np.minimum(need * np.float32(PER_PIXEL) + np.float32(0.5), 255).astype(np.uint8)
        self._set_limits()

    def learn(self, counts: Plane | None, busy: Plane | None, share: float) -> None:
        """Running mean square of the counts, smoothed over neighbours; busy tiles learn a tenth as fast, and alone,

        or what moves would raise the limits around it.
        """
        cv2, power = opencv(), self._power
        if counts is None:
            if not self._is_raised:
                return
            power *= 1 - share
        else:
            square = cv2.multiply(counts, counts, scale=1 / PER_PIXEL**2, dtype=cv2.CV_32F)
            if busy is None:
                cv2.accumulateWeighted(cv2.blur(square, (3, 3)), power, share)
            else:
                calm = cv2.bitwise_not(busy)
                cv2.accumulateWeighted(cv2.blur(cv2.copyTo(square, calm), (3, 3)), power, share, mask=calm)
                cv2.accumulateWeighted(square, power, 0.1 * share, mask=busy)
        self._set_limits()

    def _set_limits(self) -> None:
        cv2 = opencv()
        # OpenCV's running sums leave tiny negatives, and what is below a tenth of a pixel is none.
        usual = cv2.sqrt(cv2.threshold(self._power, 0.01, 0, cv2.THRESH_TOZERO)[1])
        more = cv2.convertScaleAbs(usual, alpha=self._calm * PER_PIXEL)
        highest = cv2.minMaxLoc(more)[1] / PER_PIXEL
        self._is_raised = highest > 0
        self.is_used = highest >= 0.3 * self._least
        self.limits: Plane = cv2.add(more, self._bytes)
